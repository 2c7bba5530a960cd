"""A tiny copy of a model's config, to learn by trying how models of it are built; its keys are found by trying, too.

Sizes are divided, all by the same number, so that what divides what stays so; the largest divisor with which a model can be made
and run is taken. Numbers of things (blocks, heads, experts) stay, but for that of the blocks.
"""

from __future__ import annotations

import copy
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pdtrim_core.errors import PdtrimError, reason_of

DIVISORS = (64, 32, 16, 8, 4, 2, 1)
LEAST = (4, 2)
"""The smallest sizes that a division may give, best first: half of a head of 2 is hardly a rotation any more."""
LARGE = 32
"""A size from here on is divided; what is smaller is a choice, such as the experts of a token, or small anyway."""
MOST_PARAMETERS = 80_000_000
"""Numbers that a tiny model may have: what cannot be made smaller is not run."""
WIDTHS = re.compile(r"(^|_)(dims?|size|rank|width|d|embd|embed|inner|hidden|ff|ffn|ffw|channels)(_|$)")
"""Words in the names of keys that hold a width."""
COUNTS = re.compile(r"(^|_)(kernel|conv|window|windows|chunk|block|group|patch|image|state|step|topk|bits|ratio)(_|$)")
"""Words in the names of keys that hold none all the same."""
POSITIONS = re.compile(r"(^|_)(n_positions|max_position|max_seq|seq_len|n_ctx|max_sequence|positions|length|max_len)")
MOST_POSITIONS = 512
VOCABULARY = re.compile(r"(^|_)vocab(ulary)?(_size)?")
MOST_IDS = 512
SECTIONS = re.compile(r"(^|_)sections?$")
"""Keys of lists into which a head is divided, as in the rotary embeddings of models that see."""
TOKEN = re.compile(r"(^|_)(token_id|token_index|token_ids|id)$")
DEPTH = "num_hidden_layers"


def small_copy(model: Any, *, blocks: int | None = 4, seed: int = 0) -> Any:
    """Return a tiny model of the same class with random weights, on the processor, with so many blocks at most (None: all).

    Raises `PdtrimError` where none can be made and run, with the reason of the last try.
    """
    return small_model(type(model), model.config, blocks=blocks, seed=seed)


def small_model(
    model_class: Callable[[Any], Any],
    config: Any,
    *,
    blocks: int | None = 4,
    seed: int = 0,
    runs: Callable[[Any], None] | None = None,
) -> Any:
    """Return a tiny model of a class and a config; see `small_copy`. `runs` runs it in place of three tokens."""
    failed = ""
    for small in small_configs(config, blocks=blocks):
        try:
            made = made_of(model_class, small, seed=seed)
            (runs or run_three)(made)
        except PdtrimError as error:
            failed = failed or str(error)
        except Exception as error:  # noqa: BLE001 - each architecture trips over a senseless size in its own way
            failed = failed or reason_of(error, kind=True)
        else:
            return made
    raise PdtrimError(f"no tiny model of its architecture can be made and run: {failed}")


def run_three(model: Any) -> None:
    """Run three tokens. Raises whatever the model does."""
    with torch.inference_mode(), quietly():
        model(input_ids=torch.tensor([[1, 2, 3]]), use_cache=False)


@contextmanager
def quietly() -> Iterator[None]:
    """Let models that are only tried warn nobody, through Python's warnings or transformers' log."""
    log = logging.getLogger("transformers")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def made_of(model_class: Callable[[Any], Any], config: Any, *, seed: int = 0) -> Any:
    """Return a model of a config with random weights large enough that every block matters. Raises `PdtrimError` if too large."""
    with torch.device("meta"), quietly():
        numbers = sum(parameter.numel() for parameter in model_class(copy.deepcopy(config)).parameters())
    if numbers > MOST_PARAMETERS:
        raise PdtrimError(f"its smallest model still has {numbers:,} parameters")
    with torch.random.fork_rng(devices=[]), quietly():
        torch.manual_seed(seed)
        model = model_class(copy.deepcopy(config)).to(torch.float32).eval().requires_grad_(requires_grad=False)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=1.5 * parameter.shape[-1] ** -0.5)
    return model


def small_configs(config: Any, *, blocks: int | None) -> Iterator[Any]:
    """Yield ever larger tiny configs, of which the first that works is to be taken."""
    for depth in dict.fromkeys((blocks, None)):
        shallow = with_depth(config, depth)
        # Small models first; where all that are not too small are too large, those with heads of two numbers.
        for least in LEAST:
            for divisor in DIVISORS:
                found = _divided(shallow, divisor, least)
                if found is not None:
                    yield found


def depth_of(config: Any) -> int | None:
    """Return how many blocks a config says that there are; None where it does not."""
    count = getattr(config.get_text_config(), DEPTH, None)
    return count if isinstance(count, int) else None


def with_depth(config: Any, blocks: int | None) -> Any:
    """Return a config with so many of the first blocks, its lists of one entry a block cut to match; the same one for None."""
    count = depth_of(config)
    if blocks is None or count is None or count <= blocks:
        return config
    data = data_of(config)
    text = text_data(config, data)
    for key, value in text.items():
        if isinstance(value, list | tuple) and len(value) == count:
            text[key] = list(value[:blocks])
    text[config.get_text_config().attribute_map.get(DEPTH, DEPTH)] = blocks
    return config_from(type(config), data) or config


def data_of(config: Any) -> dict[str, Any]:
    """Return a config as data of its own."""
    data: dict[str, Any] = copy.deepcopy(config.to_dict())
    for key in ("_name_or_path", "transformers_version"):
        data.pop(key, None)
    return data


def text_data(config: Any, data: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a config's data that is about the language model."""
    text = config.get_text_config()
    if text is config:
        return data
    path = next((key for key in data if getattr(config, key, None) is text), None)
    return data if path is None else data[path]


def config_from(config_class: Any, data: Mapping[str, Any]) -> Any:
    """Return a config made of data; None where its class refuses them."""
    try:
        with quietly():
            return config_class.from_dict(copy.deepcopy(dict(data)))
    except Exception:  # noqa: BLE001 - each family validates its config in its own way
        return None


def _divided(config: Any, divisor: int, least: int) -> Any:
    """Return a config with its sizes divided; None where its class refuses them, or where one would be smaller than `least`."""
    data, smallest = data_of(config), [least]
    _divide(data, divisor, smallest)
    made = config_from(type(config), data) if min(smallest) >= least else None
    return made if made is not None and (divisor == 1 or _head_size(made.get_text_config(), least) >= least) else None


def _head_size(config: Any, least: int) -> int:
    """Return the width of a head where a config tells it in the common way; a large enough one where it does not."""
    try:
        found = getattr(config, "head_dim", None)
        width, heads = (getattr(config, key, None) for key in ("hidden_size", "num_attention_heads"))
    except Exception:  # noqa: BLE001 - a config whose blocks have values of their own refuses to tell one for all
        return least
    if isinstance(found, int):
        return found
    return width // heads if isinstance(width, int) and isinstance(heads, int) and heads else least


def _divide(data: dict[str, Any], divisor: int, smallest: list[int]) -> None:
    """Divide the sizes in a config's data, those of its parts too, and note what comes of each."""
    for key, value in data.items():
        if isinstance(value, dict):
            _divide(value, divisor, smallest)
        elif isinstance(value, int) and not isinstance(value, bool):
            data[key] = _smaller(key, value, divisor)
            if value >= LARGE and not TOKEN.search(key) and data[key] != value:
                smallest.append(data[key])
        elif isinstance(value, list) and SECTIONS.search(key) and all(type(one) is int for one in value):
            data[key] = [one // divisor for one in value]
        elif isinstance(value, list) and TOKEN.search(key):
            data[key] = [min(one, 2) if isinstance(one, int) else one for one in value]


def _smaller(key: str, value: int, divisor: int) -> int:
    if TOKEN.search(key):
        return min(value, 2)
    if VOCABULARY.search(key):
        return min(value, MOST_IDS)
    if POSITIONS.search(key):
        return min(value, MOST_POSITIONS)
    return value if value < LARGE or COUNTS.search(key) or not WIDTHS.search(key) else value // divisor
