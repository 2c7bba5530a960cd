"""What a user can cause, said in words that name what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from pdtrim_core.wording import LONGEST_LINE, LONGEST_REASON, one_line, shortened

MOST_PROBLEMS = 100
"""Problems that one error tells, at most."""


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


def reason_of(error: BaseException, *, kind: bool = False) -> str:
    """Return another library's error as one line that can be acted on: its whole text, and its causes where they add something.

    The name of its class is said where the text alone says little, or with `kind` always. A long text loses its middle, because
    the reason may stand at either end.
    """
    said = _said(error, kind=kind)
    known = {id(error)}
    cause = _cause_of(error)
    while cause is not None and id(cause) not in known:
        known.add(id(cause))
        more = _said(cause, kind=False)
        if more not in said:
            said += f" (because: {more})"
        cause = _cause_of(cause)
    return shortened(said, LONGEST_REASON)


def _said(error: BaseException, *, kind: bool) -> str:
    text, name = one_line(str(error)), type(error).__name__
    if not text:
        return name
    return f"{name}: {text}" if kind or " " not in text or isinstance(error, KeyError) else text


def _cause_of(error: BaseException) -> BaseException | None:
    if error.__cause__ is not None or error.__suppress_context__:
        return error.__cause__
    return error.__context__


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
        raise PluginError(f"{label} failed: {reason_of(error, kind=True)}") from error
