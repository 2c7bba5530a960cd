"""What a recipe names on this machine that is not there: told before its model is opened."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pdtrim_core.api.component import Component
from pdtrim_core.api.kinds import key_of, options_of
from pdtrim_core.errors import PdtrimError, RecipeError, blame
from pdtrim_core.model.placement import check_devices
from pdtrim_core.recipe.recipe import Recipe

PLACEHOLDER = "${"
"""What a path has that a sweep completes when it is carried out."""


def check_there(recipe: Recipe, where: str = "") -> None:
    """Raise `RecipeError` with every file or model folder of a recipe that is not there; `where` names the recipe."""
    problems = missing(recipe)
    if problems:
        raise RecipeError(where or f"the recipe of {recipe.out}", problems)


def missing(recipe: Recipe) -> list[str]:
    """Return what a recipe names that is not there: its model, as far as its source can tell, and files of its data."""
    return [*_model(recipe), *_files(recipe)]


def _model(recipe: Recipe) -> Iterator[str]:
    if PLACEHOLDER in recipe.model.path:
        return
    try:
        check_devices(recipe.model.placement)
    except PdtrimError as error:
        yield f"model.{error}"
    try:
        with blame(recipe.host.label_of(recipe.model)):
            recipe.model.files()
    except PdtrimError as error:
        yield f"model.path: {error}"


def _files(recipe: Recipe) -> Iterator[str]:
    components: list[tuple[str, Component]] = [(key_of(kind), getattr(recipe, kind)) for kind in recipe.kinds if kind != "model"]
    for kind, several in recipe.lists.items():
        components += [(f"{kind}.{number}", part) for number, part in enumerate(several)]
    for key, component in components:
        for name, _ in options_of(type(component)):
            for path in _paths(getattr(component, name)):
                yield from _absent(path, f"{key}.{name}", component.kind)
    if recipe.recoveries:
        for source in recipe.settings.recovery_data.files:
            yield from _absent(Path(source), "recovery_data.sources", "text")


def _paths(value: Any) -> list[Path]:
    values = value if isinstance(value, tuple | list) else [value]
    return [one for one in values if isinstance(one, Path)]


def _absent(path: Path, key: str, sort: str) -> Iterator[str]:
    if PLACEHOLDER not in str(path) and not path.exists():
        yield f"{key}: {sort} file {path} does not exist"
