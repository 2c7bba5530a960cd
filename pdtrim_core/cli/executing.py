"""The executor that a command was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pdtrim_core.cli.options import ExecutorName
from pdtrim_core.errors import PdtrimError

if TYPE_CHECKING:
    from pdtrim_core.cli.progress import Display
    from pdtrim_core.pipeline.executor import Executor


@dataclass(frozen=True)
class Executed:
    """Who does the work of a command, as its options say."""

    executor: ExecutorName
    workers: int | None
    address: str | None


def check_executor(by: Executed) -> None:
    """Raise `PdtrimError` for options that do not go together, and where what workers need is not installed."""
    if by.executor == "ray":
        from pdtrim_core.workers import check_installed  # noqa: PLC0415 - only who wants workers needs it

        check_installed()
        return
    for option, value in {"--workers": by.workers, "--address": by.address}.items():
        if value is not None:
            raise PdtrimError(f"{option} belongs to --executor ray: say that, too, or leave it out")


@contextmanager
def executed_by(by: Executed, display: Display) -> Iterator[Executor | None]:
    """Give the executor of a command; None where this process does all itself. The display shows what workers have to say."""
    check_executor(by)
    if by.executor == "local":
        yield None
        return
    from pdtrim_core.workers.cluster import ray_workers  # noqa: PLC0415 - an extra, slow to import

    with ExitStack() as inside:
        with display.working("starting workers"):
            found = inside.enter_context(ray_workers(by.workers, by.address, display.tell))
        yield found
