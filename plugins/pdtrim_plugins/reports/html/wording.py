"""Numbers and blocks in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

MINUS = "\N{MINUS SIGN}"
PLUS_MINUS = "\N{PLUS-MINUS SIGN}"


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, in the plural where it is not one."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def joined(words: Sequence[str], last: str = "and") -> str:
    """Return words as a list in a sentence."""
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def ranges(blocks: Iterable[int]) -> str:
    """Return block numbers with runs of three or more as ranges: 0 to 4, 7 and 9."""
    runs: list[list[int]] = []
    for block in blocks:
        if runs and block == runs[-1][-1] + 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    texts: list[str] = []
    for run in runs:
        texts += [f"{run[0]} to {run[-1]}"] if len(run) > 2 else [str(block) for block in run]
    return joined(texts)


def signed(value: float, digits: int = 1) -> str:
    """Return a number with its sign; zero has none."""
    short = round(value, digits) + 0.0
    return f"{short:+.{digits}f}".replace("-", MINUS) if short else f"{short:.{digits}f}"


def plain(value: float, digits: int = 1) -> str:
    """Return a number with this many decimals."""
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", MINUS)


def change(share_saved: float) -> str:
    """Return a saved share as a signed change in percent."""
    return f"{signed(-100 * share_saved)} %"


def with_error(value: float, error: float | None, digits: int = 1) -> str:
    """Return a value with its standard error."""
    return plain(value, digits) if error is None else f"{plain(value, digits)} {PLUS_MINUS} {error:.{digits}f}"


def amount(value: float) -> str:
    """Return a large number with a prefix such as k or M."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.2f} {letter}"
    return f"{value:g}"


def duration(seconds: float) -> str:
    """Return a time in words, to the second."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours} h"] * bool(hours) + [f"{minutes} min"] * bool(minutes) + [f"{rest} s"] * (not hours)
    return " ".join(parts)


def element(text: str) -> str:
    """Return an element of a plan as the page names it: a block, the blocks of a merge, or a part of a block, gone or thinner."""
    block, dot, part = text.partition(".")
    if not dot:
        return f"block{'s' if '+' in text else ''} {text}"
    return f"{'MLP' if part.startswith('mlp') else 'attention'} of block {block}"


def cut(text: str, length: int) -> str:
    """Return a text cut to the length of a label."""
    return text if len(text) <= length else text[: length - 1] + "\N{HORIZONTAL ELLIPSIS}"
