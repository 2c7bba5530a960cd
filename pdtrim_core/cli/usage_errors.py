"""A command line that cannot be understood: in one line, with what to say instead."""

from __future__ import annotations

from typing import Any

from pdtrim_core.api.kinds import KINDS, key_of
from pdtrim_core.errors import did_you_mean
from pdtrim_core.recipe.settings import Settings

RECIPE_COMMANDS = ("run", "score", "check", "sweep")
"""Commands that take a recipe, or a sweep, and change it with `--set`."""


def told(error: Any) -> str:
    """Return what is wrong with a command line, of an error of typer's; an error of another sort is said as it is."""
    context = getattr(error, "ctx", None)
    text = one_sentence(error.format_message()).replace("Value error, ", "")
    if context is None:
        return text
    option = getattr(error, "option_name", None)
    kind = type(error).__name__
    if kind == "NoSuchOption" and option:
        text = f"{context.command_path} has no option {option}{_instead(option, context)}"
    elif kind == "MissingParameter" and _asks_recipe(context):
        text = f"{context.command_path} takes a {'sweep' if context.info_name == 'sweep' else 'recipe'}, a TOML file: name one"
    return f"{text} (see {context.command_path} --help)"


def one_sentence(text: str) -> str:
    """Return a text of several lines as one, without the full stop at its end."""
    return " ".join(text.split()).removesuffix(".")


def _instead(option: str, context: Any) -> str:
    """Return what to say instead of an option that a command does not have."""
    name = option.lstrip("-").replace("-", "_")
    keys = [*Settings.model_fields, *map(key_of, KINDS)]
    if _asks_recipe(context) and name in keys:
        where = "" if context.info_name == "sweep" else ", or write it into the recipe"
        return f": {name} is a key of the recipe: say --set {name}=...{where}"
    return did_you_mean(
        option, [name for parameter in context.command.params for name in parameter.opts if name.startswith("--")]
    )


def _asks_recipe(context: Any) -> bool:
    return context.info_name in RECIPE_COMMANDS
