"""What a user can cause, said in words that name what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager


class PdtrimError(Exception):
    """A problem that the user can do something about; its text is shown without a traceback."""

    exit_code = 1


class RecipeError(PdtrimError):
    """A recipe or command line that cannot be carried out.

    Holds every problem that was found, one sentence each, so that a user mends them in one go.
    """

    exit_code = 2

    def __init__(self, where: str, problems: Sequence[str]) -> None:
        self.where = where
        self.problems = tuple(problems)
        count = f"{len(self.problems)} problems" if len(self.problems) != 1 else "1 problem"
        super().__init__("\n".join([f"{where}: {count}", *(f"  {problem}" for problem in self.problems)]))


class PlanError(PdtrimError):
    """A plan that breaks its law, or that meets a model it was not made for."""


class PluginError(PdtrimError):
    """A plugin that failed or returned nonsense; the text names the plugin and where it comes from."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return advice to append to "unknown NAME": the nearest name, or all of them if they are few."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    if names and len(names) < 10:
        return f"; there is {', '.join(names)}" if len(names) == 1 else f"; there are {', '.join(names)}"
    return ""


@contextmanager
def blame(label: str) -> Iterator[None]:
    """Turn whatever plugin code raises into a `PluginError` that names it.

    `label` says who was running, such as "scorer 'norm-ratio' (pdtrim-norm 0.1.0)".
    """
    try:
        yield
    except PdtrimError:
        raise
    except Exception as error:
        # Plugin code is foreign code: anything may come out of it, and the user must learn whose it was.
        raise PluginError(f"{label} failed: {type(error).__name__}: {error}") from error
