"""What exporters wrote, as a repository of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pdtrim_core.errors import PdtrimError, RecipeError, reason_of

CARD = "README.md"
PICTURES = ".png"
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def check_repository(name: str) -> None:
    """Raise `RecipeError` for what is no name of a repository."""
    if not REPOSITORY.fullmatch(name) or "--" in name or ".." in name:
        raise RecipeError("--push-to-hub", [f"'{name}' is no repository: say ORG/NAME, such as my-name/smollm2-pair"])


def push(paths: Sequence[Path], name: str) -> str:
    """Put files and folders into a repository of models, in one commit, and return its address.

    A repository that does not exist yet is made, and is private. Each path lies there under its own name, and the card of the
    first folder is the card of the repository. Raises `PdtrimError` where the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi  # noqa: PLC0415 - slow to import

    files = dict(_files(paths))
    operations: list[Any] = [CommitOperationAdd(path_in_repo=inside, path_or_fileobj=file) for inside, file in files.items()]
    api = HfApi(library_name="pdtrim-core")
    try:
        api.create_repo(name, private=True, exist_ok=True)
        api.create_commit(name, operations, commit_message="Upload with pdtrim-core")
    except Exception as error:
        # Errors of the network come as those of whatever library the hub's own uses. The first line tells what happened.
        what = f"cannot push to {name} at {api.endpoint}: {reason_of(error).splitlines()[0]}"
        raise PdtrimError(f"{what} (a token is made at the hub and kept by `hf auth login`, or stands in HF_TOKEN)") from error
    return f"{api.endpoint}/{name}"


def _files(paths: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """Yield the place in the repository of each file, with its own."""
    for path in paths:
        if path.is_dir():
            for file in sorted(path.rglob("*")):
                if file.is_file():
                    yield f"{path.name}/{file.relative_to(path).as_posix()}", file
        else:
            yield path.name, path
    folders = [path for path in paths if (path / CARD).is_file()]
    if folders:
        yield CARD, folders[0] / CARD
        for picture in sorted(folders[0].glob(f"*{PICTURES}")):
            yield picture.name, picture
