"""How other libraries are called to read a checkpoint: they run no code of it, stay quiet, and their errors become one line."""

from __future__ import annotations

import io
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

from pdtrim_core.api import PdtrimError, one_line, shortened, why_no_model
from pdtrim_plugins.model_sources.hub_problems import hub_problem

NO_CODE = {"trust_remote_code": False}
"""What every call of transformers gets that is given a path or an id: code of a checkpoint never runs, and nothing is asked."""
OURS = "pdtrim_"
"""How the model types of our own classes begin, which exports have whose blocks differ from one another."""
OURS_PREFILL = (
    "it is the prefill side of a pair that pdtrim-core wrote, which is no whole model; take the decode side, or the model that "
    "was pruned"
)
OURS_WITHOUT_PARTS = (
    "it is an export of pdtrim-core some of whose blocks have no attention or no MLP, which cannot be pruned again; take the "
    "model that was pruned"
)
OURS_DAMAGED = "it is said to be an export of pdtrim-core, and its config.json does not describe one; export the run again"
UNEVEN = "deci"
"""llama.cpp's architecture whose blocks differ from one another."""
OURS_UNEVEN = (
    "its blocks differ from one another (architecture deci of llama.cpp), which is not read from GGUF files: take the "
    "checkpoint of the same run, unified/ of the exporter checkpoints"
)
UNKNOWN_TYPE = re.compile(r"has model type `([^`]*)` but Transformers does not recognize")
VALIDATOR = re.compile(r"^Class validation error for validator '\w+':\s*(?:\w+:\s*)?")
"""What the hub client puts before the reason that a config is refused for."""
HEARD = 20
"""Lines of another library's output that are remembered for the case that it fails."""


@contextmanager
def opening(name: str) -> Iterator[None]:
    """Keep other libraries quiet while a checkpoint is read, and turn any error of theirs into one line that names it."""
    with quietly() as heard:
        try:
            yield
        except PdtrimError:
            raise
        except MemoryError:
            raise PdtrimError(f"{name} does not fit in memory") from None
        except Exception as error:
            # transformers, safetensors, gguf and the hub client each raise their own errors for a bad file.
            raise PdtrimError(f"cannot open the model {name}: {_explained(error, heard, name)}") from error


def _explained(error: Exception, heard: Heard, name: str) -> str:
    reason = VALIDATOR.sub("", why_no_model(error))
    if "trust_remote_code" in str(error):
        return (
            "it comes with code of its own (auto_map), which pdtrim-core does not run; take a checkpoint of an architecture that "
            "transformers has"
        )
    unknown = UNKNOWN_TYPE.search(str(error))
    if unknown:
        return f"this version of transformers does not know its model_type '{shortened(unknown[1])}': a newer one may"
    from_hub = hub_problem(error, name)
    if from_hub:
        return from_hub
    advice = "" if os.path.exists(name) else " (a hub id needs the network once, and `hf auth login` if it is gated)"  # noqa: PTH110
    said = heard.beside(reason)
    return f"{reason}{advice}{f'; it said before: {said}' if said else ''}"


class Heard(logging.Handler):
    """What other libraries said while they were kept quiet."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.stream = io.StringIO()
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Remember a warning."""
        self._lines.append(record.getMessage())

    def beside(self, reason: str) -> str:
        """Return as one line what was said that a reason does not say; progress bars do not count."""
        written = [line for line in self.stream.getvalue().splitlines() if "%|" not in line]
        lines = [one_line(line) for line in (*self._lines, *written)]
        return shortened("; ".join(line for line in lines[-HEARD:] if line and line not in reason), 500)


@contextmanager
def quietly() -> Iterator[Heard]:
    """Keep other libraries' progress bars and warnings from the terminal; yield what is heard of them."""
    from transformers.utils import logging as of_transformers  # noqa: PLC0415 - slow to import

    heard = Heard()
    shown = of_transformers.is_progress_bar_enabled()
    of_transformers.disable_progress_bar()
    # Without a network the hub client would print its retries.
    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [heard], False
        logger.setLevel(logging.WARNING)
    try:
        # The GGUF reader draws a progress bar that no setting switches off.
        with redirect_stderr(heard.stream):
            yield heard
    finally:
        for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
        if shown:
            of_transformers.enable_progress_bar()
