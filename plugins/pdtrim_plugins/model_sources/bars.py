"""What other libraries draw as bars while a model is opened, told to whoever listens instead."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Told = Callable[[str, float], None]
"""Takes what is being done and the share of it that is done, 0 to 1."""
DOWNLOAD, WEIGHTS, CONVERSION = "download", "weights", "conversion"


def nobody(what: str, share: float) -> None:
    """Tell nobody."""
    del what, share


class Downloads:
    """The bytes of all files that are on their way, which several threads fetch: one share for all."""

    def __init__(self, told: Told) -> None:
        self._told = told
        self._bytes: dict[int, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def at(self, bar: int, done: float, total: float) -> None:
        """Take note of how far one file is."""
        with self._lock:
            self._bytes[bar] = done, total
            done, total = (sum(numbers) for numbers in zip(*self._bytes.values(), strict=True))
        self._told(DOWNLOAD, min(1.0, done / total))


def bar_class(told: Told, what: str) -> type[Any]:
    """Return a class of tqdm bars that draw nothing and tell how far they are: bars of bytes as downloads, others as `what`."""
    from tqdm.auto import tqdm  # noqa: PLC0415 - listings do without

    downloads = Downloads(told)

    class Bar(tqdm):  # type: ignore[misc]
        """A bar that is told, not drawn."""

        monitor_interval = 0  # no thread that looks after it

        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)  # of the hub client's own bars
            super().__init__(*args, **{**options, "disable": False})

        def display(self, *_: Any, **__: Any) -> bool:
            """Tell how far it is; tqdm calls this ten times a second at most."""
            if self.total and self.unit == "B":
                downloads.at(id(self), self.n, self.total)
            elif self.total and self.unit == "it":
                told(what, min(1.0, self.n / self.total))
            return True

        def clear(self, *_: Any, **__: Any) -> None:
            """Leave the terminal alone."""

        def close(self) -> None:
            """End without the empty line that a drawn bar leaves behind."""
            self.display()
            self.leave = False
            super().close()

    return Bar


@contextmanager
def bars_told(told: Told) -> Iterator[dict[str, Any]]:
    """Tell instead of drawing what transformers and the hub client would show; yield what `from_pretrained` is given for that.

    Of releases of transformers that cannot be asked for it, nothing is told.
    """
    from transformers import modeling_gguf_pytorch_utils as of_gguf  # noqa: PLC0415 - slow to import
    from transformers.utils import hub, logging  # noqa: PLC0415 - the same

    bar = bar_class(told, WEIGHTS)
    hook = getattr(logging, "set_tqdm_hook", None)
    before = hook(lambda _factory, args, options: bar(*args, **options)) if hook else None
    drawn = vars(of_gguf).get("tqdm")
    if drawn is not None:
        vars(of_gguf)["tqdm"] = bar_class(told, CONVERSION)
    try:
        yield {"tqdm_class": bar} if "tqdm_class" in hub.DownloadKwargs.__annotations__ else {}
    finally:
        if drawn is not None:
            vars(of_gguf)["tqdm"] = drawn
        if hook:
            hook(before)
