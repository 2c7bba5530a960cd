"""What a user can cause, said in words that name what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

LONGEST_VALUE = 200
"""Characters of a user's own value in a message, at most."""
LONGEST_LINE = 2000
"""Characters of a line of a message, at most."""
MOST_PROBLEMS = 100
"""Problems that one error tells, at most."""
# With the marks that turn the direction of writing, and halves of surrogate pairs, which no terminal can be sent.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def shortened(text: str, most: int = LONGEST_VALUE) -> str:
    """Return a text in one line of some `most` characters, the middle of a longer one left out, control characters spelt out."""
    if len(text) > most:
        text = f"{text[: most * 2 // 3]}...{text[-(most // 3) :]}"
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def shown(value: object) -> str:
    """Return a user's value as a message shows it: its `repr`, shortened."""
    return shortened(repr(value))


class PdtrimError(Exception):
    """A problem that the user can do something about; its text is shown without a traceback.

    Whatever the text quotes, no line of it is longer than `LONGEST_LINE`, and control characters are spelt out.
    """

    exit_code = 1

    def __init__(self, message: object = "") -> None:
        super().__init__("\n".join(shortened(line, LONGEST_LINE) for line in str(message).split("\n")))


class RecipeError(PdtrimError):
    """A recipe or command line that cannot be carried out.

    Holds every problem that was found, one sentence each, so that a user mends them in one go.
    """

    exit_code = 2

    def __init__(self, where: str, problems: Sequence[str]) -> None:
        self.where = where
        told = tuple(shortened(problem, LONGEST_LINE) for problem in problems[:MOST_PROBLEMS])
        self.problems = (*told, *([f"and {len(problems) - len(told)} more"] if len(problems) > len(told) else []))
        count = f"{len(problems)} problems" if len(problems) != 1 else "1 problem"
        super().__init__(
            "\n".join([f"{shortened(where, LONGEST_LINE)}: {count}", *(f"  {problem}" for problem in self.problems)])
        )


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
