"""What a run has spent so far, and once it is finished what it was made from: `state.json` in its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from pdtrim_core.files.atomic_files import write_whole
from pdtrim_core.files.reading import UnreadableError, read_json

STATE = "state.json"


@dataclass(frozen=True)
class RunState:
    """The seconds of each step and the counts of candidates, summed over all times that the run was begun or went on.

    `made_from` and `files` are those of a finished run, and empty until then: the code and the files that it depends on, and
    the files that it wrote, each with something that changes when they do.
    """

    seconds: Mapping[str, float] = field(default_factory=dict)
    candidates: Mapping[str, int] = field(default_factory=dict)
    made_from: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


def write_state(folder: Path, state: RunState) -> None:
    """Write the state of a run into its folder."""
    write_whole(folder / STATE, json.dumps(asdict(state), indent=1) + "\n")


def read_state(folder: Path) -> RunState:
    """Return the state of a run; an empty one where the folder has none that can be read."""
    try:
        return TypeAdapter(RunState).validate_python(read_json(folder / STATE))
    except (FileNotFoundError, UnreadableError, ValidationError):
        return RunState()


def stamp_of(file: Path) -> str:
    """Return what changes when a file is written anew, without reading it: its size in bytes and the time of its last change."""
    try:
        about = file.stat()
    except OSError:
        return "gone"
    return f"{about.st_size} {about.st_mtime_ns}"
