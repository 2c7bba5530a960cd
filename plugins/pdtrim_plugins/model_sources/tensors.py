"""Whether the tensors of a checkpoint are those of its config: transformers fills missing ones with random numbers.

The names and shapes are in the headers of the files. transformers' own reader is given them without any weights, so that what
it renames, joins and ties on the way is known as it will be.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pdtrim_core.api import PdtrimError, UnreadableError, auto_class_of, pattern_of, read_json
from pdtrim_plugins.model_sources.opening import NO_CODE, opening

SAFETENSORS, BINARY = "model.safetensors", "pytorch_model.bin"
INDEX = ".index.json"
"""What the name of an index has behind that of the whole file."""
LIKE_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack")
"""Ends of the names of files that may hold weights."""
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Number formats that exports keep, by safetensors' names."""
FLOATS = {*DTYPES, "F64", "torch.float64"}
"""Number formats whose numbers are the weights themselves."""
NAMED = 4
"""Tensors that are named one by one."""
COMPUTED = re.compile(
    r"(^|\.)(inv_freq|(cos|sin)_cached|masked_bias|position_ids|attn_rot_embd\.weight)$|(^|\.)(attn|attention)\.bias$"
)
"""Tables that older checkpoints store and that are computed now: rotary frequencies, causal masks, running numbers."""
ADVICE = "download the checkpoint again, or take the config.json that belongs to these weights"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as the header of a file describes it; `dtype` is safetensors' name of the number format."""

    shape: tuple[int, ...]
    dtype: str


def folder_of(source: str, revision: str | None = None) -> Path | None:
    """Return the folder that a checkpoint is in: its own, or that of the hub's cache; None where nothing is cached."""
    folder = Path(source)
    if folder.is_dir():
        return folder
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - comes with transformers

    cached = try_to_load_from_cache(source, "config.json", revision=revision)
    return Path(cached).parent if isinstance(cached, str) else None


def stored_in(folder: Path, config: Any, name: str) -> dict[str, StoredTensor] | None:
    """Return what the files of a checkpoint hold by name; None for a config without weights.

    Raises `PdtrimError` for files that are named in the index and do not exist, that are damaged, or that are not read at all.
    """
    file = _first_file(folder, config)
    if file is None:
        others = sorted(other.name for other in folder.iterdir() if other.name.endswith(LIKE_WEIGHTS))
        if others:
            raise PdtrimError(
                f"cannot open the model {name}: weights are read from {SAFETENSORS} or {BINARY}, or from the files that "
                f"{SAFETENSORS}{INDEX} or {BINARY}{INDEX} names, and it has only {_named(others)}; {ADVICE}"
            )
        return None
    files = _named_by(file, name) if file.name.endswith(INDEX) else [file]
    lost = [one.name for one in files if not one.is_file()]
    if lost:
        by = f"its {file.name}" if file.name.endswith(INDEX) else "its config.json"
        raise PdtrimError(f"cannot open the model {name}: {_some(lost)} missing, which {by} names; {ADVICE}")
    found: dict[str, StoredTensor] = {}
    places: dict[str, Path] = {}
    for one in files:
        try:
            with opening(name):
                there = _binary(one) if one.suffix == ".bin" else _safetensors(one)
        except PdtrimError as error:
            raise PdtrimError(f"{error} (in {one.name})") from error
        for key in sorted(found.keys() & there.keys(), key=_order):
            with opening(name):
                same = found[key] == there[key] and torch.equal(_tensor(places[key], key), _tensor(one, key))
            if not same:
                raise PdtrimError(
                    f"cannot open the model {name}: {key} is in {places[key].name} and, with other numbers, in "
                    f"{one.name}; {ADVICE}"
                )
        found |= there
        places |= dict.fromkeys(there, one)
    return found


def files_of(source: str, config: Any, name: str, **options: Any) -> list[Path]:
    """Return the files that hold a checkpoint's tensors; those of the hub are brought to this machine.

    Raises `PdtrimError` where they are no safetensors files, in which alone weights can stay.
    """
    folder = folder_of(source, options.get("revision"))
    if folder is None or _first_file(folder, config) is None:
        from huggingface_hub import snapshot_download  # noqa: PLC0415 - comes with transformers

        patterns = [SAFETENSORS, f"{SAFETENSORS}{INDEX}", "*.safetensors", "config.json"]
        folder = Path(snapshot_download(source, revision=options.get("revision"), allow_patterns=patterns))
    first = _first_file(folder, config)
    files = [] if first is None else _named_by(first, name) if first.name.endswith(INDEX) else [first]
    if not files or any(file.suffix != ".safetensors" for file in files):
        raise PdtrimError(
            f"{name}: its weights are in no safetensors files, and only in such can they stay (placement = stream): convert it, "
            "or choose another placement"
        )
    return files


def _first_file(folder: Path, config: Any) -> Path | None:
    """Return the file that transformers begins with, weights or the index of their files; None where there is none."""
    chosen = getattr(config, "transformers_weights", None)
    if chosen is not None:
        return folder / str(chosen)
    names = (SAFETENSORS, f"{SAFETENSORS}{INDEX}", BINARY, f"{BINARY}{INDEX}")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _named_by(index: Path, name: str) -> list[Path]:
    """Return the files that an index names. Raises `PdtrimError` for one that transformers could not read."""
    try:
        content = read_json(index)
    except UnreadableError as error:
        raise PdtrimError(f"cannot open the model {name}: {error.reason} (in {index.name}); {ADVICE}") from error
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not all(isinstance(file, str) for file in names.values()):
        problem = "its weight_map is no table of tensors and the files they are in"
    elif not names:
        problem = "its weight_map names no tensor"
    elif not isinstance(content.get("metadata"), dict):
        problem = 'it has no metadata, which transformers asks for, so add "metadata": {}'
    else:
        return sorted({index.parent / file for file in names.values()})
    raise PdtrimError(f"cannot open the model {name}: {problem} (in {index.name}); {ADVICE}")


def _safetensors(file: Path) -> dict[str, StoredTensor]:
    from safetensors import safe_open  # noqa: PLC0415 - listings do without

    with safe_open(file, framework="pt") as opened:
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
        return {name: StoredTensor(tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}


def _binary(file: Path) -> dict[str, StoredTensor]:
    tensors = torch.load(file, map_location="meta", weights_only=True)
    names = {getattr(torch, dtype): stored for stored, dtype in DTYPES.items()}
    return {
        name: StoredTensor(tuple(tensor.shape), names.get(tensor.dtype, str(tensor.dtype)))
        for name, tensor in tensors.items()
        if isinstance(tensor, torch.Tensor)
    }


def _tensor(file: Path, key: str) -> torch.Tensor:
    """Return one tensor of a file with its numbers."""
    if file.suffix == ".bin":
        found: torch.Tensor = torch.load(file, map_location="cpu", weights_only=True, mmap=True)[key]
        return found
    from safetensors import safe_open  # noqa: PLC0415 - listings do without

    with safe_open(file, framework="pt") as opened:
        read: torch.Tensor = opened.get_tensor(key)
        return read


def dtypes_in(source: str, config: Any, name: str, **options: Any) -> dict[str, str]:
    """Return the number formats of a checkpoint's tensors, as `LoadedModel` has them; nothing for files without headers."""
    folder = folder_of(source, options.get("revision"))
    if folder is None:
        return {}
    by_pattern: dict[str, set[str]] = {}
    numbers: dict[str, int] = {}
    for key, tensor in (stored_in(folder, config, name) or {}).items():
        dtype = DTYPES.get(tensor.dtype)
        if dtype is not None:
            by_pattern.setdefault(pattern_of(key), set()).add(dtype)
            numbers[dtype] = numbers.get(dtype, 0) + prod(tensor.shape)
    if not numbers:
        return {}
    most = max(numbers, key=lambda dtype: numbers[dtype])
    # Blocks may be renumbered, so one format holds for the same tensor of all of them: one that loses nothing of any.
    common = {pattern: _widest(found) for pattern, found in by_pattern.items()}
    return {"": most, **{pattern: dtype for pattern, dtype in common.items() if dtype != most}}


def _widest(dtypes: Collection[str]) -> str:
    return next(iter(dtypes)) if len(dtypes) == 1 else "float32"


def check_stored(source: str, config: Any, name: str, **options: Any) -> bool:
    """Raise `PdtrimError` where the tensors of a checkpoint are not those of its config. No weights are read.

    Nothing is checked where no weights are on this machine yet; it tells whether there are some.
    """
    folder = folder_of(source, options.get("revision"))
    if folder is None:
        return False
    try:
        stored = stored_in(folder, config, name)
    except PdtrimError:
        if Path(source).is_dir():
            raise
        return False  # the hub client gets what its cache lacks
    if stored is None:
        return False
    model = without_weights(config, name)
    given = {key: torch.empty(tensor.shape, device="meta") for key, tensor in stored.items()}
    try:
        with opening(name):
            read, report = type(model).from_pretrained(
                None,
                config=copy.deepcopy(config),
                state_dict=dict(given),
                device_map="meta",
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except PdtrimError as error:
        # Tensors that are joined, such as those of experts, and do not fit together.
        _check_separate(given, model, name)
        raise PdtrimError(f"{error}; {ADVICE}") from error
    _check_keys(report, read, name)
    _check_formats({key: tensor for key, tensor in stored.items() if key not in report["unexpected_keys"]}, name)
    return True


def _check_formats(stored: Mapping[str, StoredTensor], name: str) -> None:
    """Refuse numbers that mean something only with scales that no config tells of: transformers takes them as they are."""
    wrong = [key for key, tensor in stored.items() if tensor.dtype not in FLOATS and not COMPUTED.search(key)]
    if wrong:
        formats = ", ".join(sorted({stored[key].dtype.removeprefix("torch.") for key in wrong}))
        raise PdtrimError(
            f"cannot open the model {name}: {_some(wrong)} stored as {formats}, and its config has no quantization_config that "
            "says what these numbers mean; take the checkpoint in floating-point numbers that it was made from"
        )


def without_weights(config: Any, name: str) -> Any:
    """Return the model of a config on the meta device."""
    with opening(name), torch.device("meta"):
        return auto_class_of(config).from_config(copy.deepcopy(config), **NO_CODE)


def _check_separate(given: Mapping[str, torch.Tensor], model: Any, name: str) -> None:
    """Compare with the tensors that the family writes, before anything is joined."""
    from transformers.core_model_loading import revert_weight_conversion  # noqa: PLC0415 - slow to import

    expected: dict[str, torch.Tensor] = revert_weight_conversion(model, model.state_dict())
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    refuse_tensors(
        name,
        missing=[key for key in expected if key not in given and key not in tied],
        mismatched=[
            (key, given[key].shape, tensor.shape)
            for key, tensor in expected.items()
            if key in given and given[key].shape != tensor.shape
        ],
    )


def check_report(report: Mapping[str, Any], model: Any, name: str) -> None:
    """Raise `PdtrimError` for what transformers' report of a reading says is wrong; warn of tensors that nothing reads."""
    note_unread(name, _check_keys(report, model, name))


def _check_keys(report: Mapping[str, Any], model: Any, name: str) -> list[str]:
    """Return the tensors that nothing reads; raise for those that matter."""
    unexpected = [key for key in report.get("unexpected_keys", ()) if not COMPUTED.search(key) or _belongs(key, model, leaf=True)]
    strange = [key for key in unexpected if _belongs(key, model)]
    refuse_tensors(name, missing=report.get("missing_keys", ()), mismatched=report.get("mismatched_keys", ()), unexpected=strange)
    if report.get("error_msgs"):
        raise PdtrimError(f"cannot open the model {name}: {'; '.join(report['error_msgs'])}")
    return [key for key in unexpected if key not in strange]


def note_unread(name: str, unread: Sequence[str]) -> None:
    """Warn of tensors that are no part of the language model, such as those of another head."""
    if unread:
        warnings.warn(f"{name}: {_some(unread)} not read: the architecture of its config has no place for it", stacklevel=3)


def refuse_tensors(
    name: str,
    *,
    missing: Iterable[str] = (),
    mismatched: Iterable[tuple[str, Sequence[int], Sequence[int]]] = (),
    unexpected: Iterable[str] = (),
) -> None:
    """Raise `PdtrimError` that names tensors that are missing, have another shape (stored, expected), or too many."""
    problems = []
    if missing := list(missing):
        problems.append(f"{_some(missing)} missing")
    if wrong := sorted(mismatched, key=lambda one: _order(one[0])):
        told = [f"{key} is {_shape(stored)} and by its config {_shape(expected)}" for key, stored, expected in wrong]
        problems.append(f"{', '.join(told[:NAMED])}{_more(told)}")
    if unexpected := list(unexpected):
        problems.append(f"by its config there {'is' if len(unexpected) == 1 else 'are'} no {_named(unexpected)}")
    if problems:
        raise PdtrimError(f"cannot open the model {name}: {'; '.join(problems)}; {ADVICE}")


def _belongs(key: str, model: Any, *, leaf: bool = False) -> bool:
    """Tell whether a tensor would be part of the decoder: of a module there is, of a block, or of a module beside the blocks.

    With `leaf`, only the first counts.
    """
    modules = dict(model.named_modules())
    owner = key.rpartition(".")[0]
    if owner in modules and modules[owner]._parameters:  # noqa: SLF001 - those of the module itself, not of its children
        return True
    lists = [path for path, module in modules.items() if isinstance(module, nn.ModuleList)]
    beside = {path.rpartition(".")[0] for path in lists} - {""}
    return not leaf and (any(key.startswith(f"{path}.") for path in lists) or owner.rpartition(".")[0] in beside)


def _some(keys: Sequence[str]) -> str:
    return f"{_named(keys)} {'is' if len(keys) == 1 else 'are'}"


def _named(keys: Sequence[str]) -> str:
    ordered = sorted(keys, key=_order)
    return f"{', '.join(ordered[:NAMED])}{_more(ordered)}"


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - NAMED} more" if len(names) > NAMED else ""


def _order(key: str) -> list[tuple[int, str]]:
    """Return what sorts names by the number of their block."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in key.split(".")]


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a number"
