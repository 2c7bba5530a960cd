"""Where a model's weights are placed: the words of a recipe, and what they come to on this machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pdtrim_core.errors import PdtrimError, reason_of
from pdtrim_core.wording import shortened, shown

if TYPE_CHECKING:
    import torch

Placement = str | dict[str, str]
"""`auto`, `balanced`, `stream`, `stream:` and a device, a device as torch names it, or the memory that devices may give by their
numbers or names."""
AUTO, BALANCED, STREAM, CPU = "auto", "balanced", "stream", "cpu"
WORDS = (AUTO, BALANCED, STREAM)
ON = ":"
"""What stands between `stream` and the device that blocks run on."""
WANTED = (
    'auto, balanced, stream (or such as "stream:cpu"), a device such as "cpu" or "cuda:0", or a table such as '
    '{"0" = "20GiB", cpu = "60GiB"}'
)
SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,15})?) ?([KMGT]?)(i?)B", re.IGNORECASE)
"""A number of bytes in words; B are bytes in either case, as nobody counts memory in bits."""
PREFIXES = ("", "K", "M", "G", "T")
SAY_INSTEAD = "say model.placement = cpu, or stream, or give it more room"
"""What to do about a model some of whose weights found no room where they compute."""
FAILURES = (RuntimeError, AssertionError, TypeError, ValueError, NotImplementedError, ImportError, OSError)
"""What backends of torch raise, each in its own way, for what they have not."""
ROOM_LEFT = 0.8
"""Share of a device's free memory that weights may take; the rest is for hidden states, K/V and logits."""


def checked_placement(value: Any) -> Any:
    """Return a placement whose form is right. Raises `ValueError`; whether its devices are there is another question."""
    if isinstance(value, Mapping):
        wrong = [key for key, size in value.items() if not (isinstance(size, str) and SIZE.fullmatch(size))]
        if wrong or not value:
            told = f", and {shortened(str(wrong[0]))} has {shown(value[wrong[0]])}" if wrong else ""
            raise ValueError(f"a table of placement gives each device a size such as 20GiB{told}")
    elif not isinstance(value, str) or not value:
        raise ValueError(f"must be {WANTED}")
    return value


def is_streaming(placement: Any) -> bool:
    """Tell whether weights stay in their files under a placement."""
    return isinstance(placement, str) and placement.partition(ON)[0] == STREAM


def bytes_of(size: str) -> int:
    """Return the bytes of a size such as 20GiB. Raises `ValueError` for what is none."""
    found = SIZE.fullmatch(size)
    if found is None:
        raise ValueError(f"{shown(size)} is no size such as 20GiB")
    number, prefix, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** PREFIXES.index(prefix.upper()))


def check_devices(placement: Placement) -> None:
    """Raise `PdtrimError` in one line where a placement names a device that is not here, or that cannot do the sums of a run."""
    if isinstance(placement, str) and placement in (AUTO, STREAM, CPU):
        return
    if placement == BALANCED:
        if not _usable_accelerator():
            raise PdtrimError("placement = balanced spreads a model over accelerators, and there is none here: say auto")
        return
    numbers = [] if isinstance(placement, str) else [name for name in placement if name.isdecimal()]
    if numbers and not _accelerator_kind():
        raise PdtrimError(f"placement = {shown(placement)}: {numbers[0]} is the number of an accelerator, and there is none here")
    for name in [_alone(placement)] if isinstance(placement, str) else _named(placement):
        reason = _unusable(name)
        if reason:
            raise PdtrimError(f"placement = {shown(placement)}: {reason}")


def first_device(placement: Placement) -> str:
    """Return the device that token ids go to, by its name."""
    if isinstance(placement, str) and placement not in WORDS:
        return _alone(placement)
    accelerator = _usable_accelerator()
    if isinstance(placement, Mapping) and all(name in (CPU, "disk") for name in _named(placement)):
        return CPU
    return str(accelerator) if accelerator else CPU


def loading_options(placement: Placement, weight_bytes: int) -> dict[str, Any]:
    """Return how transformers should place weights of so many bytes; a model that one device holds goes on one device.

    Raises `PdtrimError` where a device is not here.
    """
    check_devices(placement)
    first = first_device(placement)
    if isinstance(placement, Mapping):
        # accelerate knows no TB, and takes gb for bits.
        room = {_known_to_accelerate(name): bytes_of(size) for name, size in placement.items()}
        return {"device_map": AUTO, "max_memory": room}
    if first == CPU:
        return {}
    if placement == BALANCED or (placement == AUTO and not _holds(first, weight_bytes)):
        return {"device_map": placement}
    return {"device_map": first}


def _alone(placement: str) -> str:
    """Return the device that a placement names."""
    return placement.partition(ON)[2] if is_streaming(placement) else placement


def _known_to_accelerate(name: str) -> int | str:
    """Return a device of a table as accelerate names it: accelerators by their numbers, and one processor."""
    if name.isdecimal():
        return int(name)
    kind, _, number = name.partition(":")
    if kind == CPU:
        return CPU
    return int(number or 0) if kind == _accelerator_kind() else name


def _holds(device: str, weight_bytes: int) -> bool:
    return weight_bytes <= ROOM_LEFT * free_memory(device)


def free_memory(device: torch.device | str) -> int:
    """Return the free bytes where a device keeps its tensors."""
    import torch  # noqa: PLC0415 - listings must not import torch

    found = torch.device(device)
    if found.type == CPU:
        import psutil  # noqa: PLC0415 - comes with accelerate

        return int(psutil.virtual_memory().available)
    free, _ = torch.get_device_module(found).mem_get_info(found)
    return int(free)


def place(model: Any, placement: Placement) -> Any:
    """Return a model of transformers whose weights are in memory with them placed on their devices.

    Raises `PdtrimError` where a device is not here, and for weights that are to stay in their files.
    """
    if is_streaming(placement):
        raise PdtrimError(f"placement = {STREAM}: these weights are in memory, not in safetensors files that they could stay in")
    weights = sum(parameter.nbytes for parameter in model.parameters())
    options = loading_options(placement, weights)
    if not options:
        return model
    wanted, room = options["device_map"], options.get("max_memory")
    if wanted not in (AUTO, BALANCED):
        return model.to(wanted)
    from accelerate import dispatch_model, infer_auto_device_map  # noqa: PLC0415 - slow to import
    from accelerate.utils import get_balanced_memory  # noqa: PLC0415 - the same

    whole = model._no_split_modules  # noqa: SLF001 - transformers has no public name for it
    room = get_balanced_memory(model, max_memory=room, no_split_module_classes=whole)
    skipped = model._skip_keys_device_placement  # noqa: SLF001 - the same
    return dispatch_model(model, infer_auto_device_map(model, room, whole), skip_keys=skipped)


def _named(placement: Mapping[str, str]) -> list[str]:
    """Return the devices of a table by the names that torch has for them."""
    kind = _accelerator_kind()
    return [f"{kind}:{name}" if name.isdecimal() else name for name in placement if name != "disk"]


def _accelerator_kind() -> str | None:
    import torch  # noqa: PLC0415 - listings must not import torch

    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found.type if found else None


def _usable_accelerator() -> str | None:
    """Return the kind of accelerator that is here, unless it cannot do the sums of a run."""
    kind = _accelerator_kind()
    return None if kind is None or _unusable(kind) else kind


def _unusable(name: str) -> str | None:
    """Return why a device cannot be used; None where it can."""
    import torch  # noqa: PLC0415 - listings must not import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        return f"there is no device {shortened(name)}: say {WANTED}"
    if device.type == "meta":
        return "the device meta holds no numbers"
    try:
        torch.zeros(1, device=device)
    except FAILURES as error:
        # Where a backend is not part of torch, it lists all that it has in its place.
        why = "" if isinstance(error, NotImplementedError) else f" ({shortened(reason_of(error), 100)})"
        return f"the device {name} is not here{why}"
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except FAILURES:
        return f"the device {device.type} has no float64, in which sums are made: say cpu"
    return None
