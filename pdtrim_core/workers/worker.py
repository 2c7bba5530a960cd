"""A worker, as it is inside its own process: it does one job at a time, and models stay open from one to the next."""

from __future__ import annotations

import os
import platform
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from pdtrim_core.errors import PdtrimError, PluginError, reason_of
from pdtrim_core.host.sources import engine
from pdtrim_core.pipeline.executor import Job
from pdtrim_core.pipeline.run_cache import RunCache


@dataclass(frozen=True)
class About:
    """Where a worker is, and the code that it has."""

    machine: str
    pid: int
    code: dict[str, str]


@dataclass(frozen=True)
class Failed:
    """Why a job has no result: what a user can mend, a plugin, no memory left on the device, or else a bug.

    It is told in words, since not every exception can be sent.
    """

    kind: Literal["user", "plugin", "memory", "bug"]
    reason: str
    traceback: str


class Worker:
    """Does jobs with so many CPU threads, in a folder from which relative paths lead where they lead in the driver."""

    def __init__(self, threads: int, folder: str) -> None:
        import torch  # noqa: PLC0415 - the driver reads this module, too

        with suppress(OSError):  # on another machine it need not be there
            os.chdir(folder)

        torch.set_num_threads(threads)
        self._cache = RunCache()

    def about(self) -> About:
        """Tell where this is, and what code it has."""
        return About(platform.node(), os.getpid(), engine())

    def do(self, job: Job[Any], arguments: Sequence[Any]) -> Any:
        """Return what a job returns, or how it `Failed`."""
        import torch  # noqa: PLC0415 - as above

        try:
            return job(self._cache, *arguments)
        except torch.OutOfMemoryError as error:
            return Failed("memory", str(error), traceback.format_exc())
        except PluginError as error:
            return Failed("plugin", str(error), traceback.format_exc())
        except PdtrimError as error:
            return Failed("user", str(error), traceback.format_exc())
        except Exception as error:  # noqa: BLE001 - whatever a job raises is told where it was asked for
            return Failed("bug", reason_of(error, kind=True), traceback.format_exc())
