"""Recipes that ship: all but the model and how much of it goes. Each is a file whose first line says what it is for."""

from __future__ import annotations

from importlib import resources
from typing import Any

from pdtrim_core.errors import RecipeError, did_you_mean
from pdtrim_core.files.reading import parse_toml

DEFAULT, BLOCKS = "default", "blocks"
NAMES = ("fast", DEFAULT, BLOCKS, "best", "paper")
"""The presets, from the quickest to the slowest, and the paper's."""


def text_of(name: str) -> str:
    """Return a preset as TOML. Raises `RecipeError` for a name that there is not."""
    if name not in NAMES:
        raise RecipeError("preset", [f"there is no preset '{name}'{did_you_mean(name, NAMES)}"])
    return (resources.files(__name__) / f"{name}.toml").read_text(encoding="utf-8")


def preset(name: str) -> dict[str, Any]:
    """Return a preset as recipe data. Raises `RecipeError` for a name that there is not."""
    return parse_toml(text_of(name))


def about(name: str) -> str:
    """Return what a preset is for, a line. Raises `RecipeError` for a name that there is not."""
    return text_of(name).partition("\n")[0].removeprefix("# ")
