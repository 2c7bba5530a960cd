"""The outcome of a run that is finished, while nothing has changed that it was made from: it is not carried out again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pdtrim_core.errors import PdtrimError, blame
from pdtrim_core.pipeline.run_keys import sources_of
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.results.outcome import Outcome
from pdtrim_core.results.run_folder import OWN_FILES, OWN_FOLDERS, load_outcome
from pdtrim_core.results.run_state import STATE, read_state, stamp_of

ELSEWHERE = ("out", "plugins", "report")
"""Keys of a recipe that decide about nothing in an outcome: where it lies, how plugin files are spelt, what is printed of it."""
WRITTEN_LATER = (STATE, "report.html", "evaluations")
"""What other commands write into the folder of a finished run."""


def kept_outcome(recipe: Recipe) -> Outcome | None:
    """Return the outcome in a recipe's run folder where carrying it out again would change nothing; else None.

    The recipe, the code of its components, the files of its model and of its data, and all that the run wrote must be as they
    were. Neither the model nor torch is loaded for that.
    """
    state = read_state(recipe.out)
    if not state.made_from or any(stamp_of(recipe.out / name) != stamp for name, stamp in state.files.items()):
        return None
    try:
        outcome = load_outcome(recipe.out)
    except PdtrimError:
        return None
    same = _decisive(outcome.recipe) == _decisive(recipe.to_data()) and state.made_from == made_from(recipe)
    return outcome if same else None


def made_from(recipe: Recipe) -> dict[str, str]:
    """Return what a run is made from by name: code with its hash, files with their stamps; nothing where that cannot be told."""
    with blame(recipe.host.label_of(recipe.model)):
        model = recipe.model.files()
    if model is None:
        return {}
    others = (*recipe.recoveries, *recipe.exporters)
    code = {f"{part.kind} '{part.name}'": recipe.host.source_of(part) for part in others}
    return {**sources_of(recipe), **code, **stamps([*model, *_named_files(_decisive(recipe.to_data()))])}


def written_files(out: Path, exported: Iterable[Path]) -> dict[str, str]:
    """Return the files that a run wrote into its folder, those of its exporters among them, with their stamps."""
    own = [out / name for name in (*OWN_FILES, *OWN_FOLDERS) if name not in WRITTEN_LATER]
    files = [file for path in (*own, *exported) for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
    return {file.resolve().relative_to(out.resolve()).as_posix(): stamp_of(file) for file in files}


def stamps(files: Iterable[Path]) -> dict[str, str]:
    """Return the stamps of files, by their paths."""
    return {str(file): stamp_of(file) for file in files}


def _decisive(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key not in ELSEWHERE}


def _named_files(value: Any) -> Iterator[Path]:
    """Yield the files that texts in the data of a recipe name, and those in folders that they name."""
    if isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _named_files(inner)
    elif isinstance(value, str) and value:
        path = Path(value).expanduser()
        try:
            yield from sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path] * path.is_file()
        except (OSError, ValueError):  # a text may be no path at all
            return
