"""What transformers 4, and readers like it, know a checkpoint's config and tokenizer by.

They ignore the names of transformers 5 (`dtype`, `rope_parameters`, a new name of a count of experts) without a word, and compute
with their defaults: beside the new names stand the old ones.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pdtrim_plugins.exporters.configs import OURS
from pdtrim_plugins.exporters.json_files import write_json

OTHER_NAMES = ("gpt_neox", "gpt_neox_japanese")
"""Families that have other names for the base and the share of rotary embedding."""
TWO_FIELDS = ("falcon", "fuyu", "gpt_neox", "llama", "olmo", "persimmon", "phi", "stablelm")
"""Families whose early readers take a scaling of exactly the fields `type` and `factor`. Others need `rope_type`."""


def tell_older_readers(folder: Path) -> None:
    """Rewrite config and tokenizer config of a checkpoint so that older readers compute the same with them."""
    for name, telling in (("config.json", with_older_keys), ("tokenizer_config.json", with_older_tokenizer)):
        file = folder / name
        if file.is_file():
            write_json(file, telling(json.loads(file.read_text(encoding="utf-8"))))


def with_older_keys(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config with the older names, too, of number format, rotary embedding and count of experts."""
    found = _other_names_of_experts(config) | config
    if isinstance(config.get("text_config"), dict):
        found["text_config"] = with_older_keys(config["text_config"])
    if isinstance(config.get("dtype"), str):
        found["torch_dtype"] = config["dtype"]
    if config.get("sliding_window") == 0:
        # Qwen2-MoE without windows, which its first readers refuse with a width of 0.
        found["sliding_window"] = None
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict):
        return found
    if isinstance(rope.get("sliding_attention"), dict):
        # Gemma 3: local blocks have a base of their own.
        found["rope_local_base_freq"] = rope["sliding_attention"].get("rope_theta")
    whole = rope.get("full_attention", rope)
    if not isinstance(whole, dict) or "rope_theta" not in whole:
        return found
    family = str(config.get("model_type")).removeprefix(OURS)
    names = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"} if family in OTHER_NAMES else {}
    for name in ("rope_theta", "partial_rotary_factor"):
        if name in whole:
            found[name] = found[names.get(name, name)] = whole[name]
    scaled = found | {"rope_scaling": _scaling(family, whole)}
    # transformers 5 reads rope_scaling before rope_parameters: left out where it cannot say the same (bases by kind of block).
    if scaled["rope_scaling"] and _rope_of(family, scaled) == _rope_of(family, config):
        return scaled
    return found


def with_older_tokenizer(config: dict[str, Any]) -> dict[str, Any]:
    """Return a tokenizer's config with the older name of its class, and of its special tokens that have no role."""
    found = dict(config)
    if found.get("tokenizer_class") == "TokenizersBackend":
        found["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(found.get("extra_special_tokens"), list):
        found["additional_special_tokens"] = found.pop("extra_special_tokens")
    return found


def _scaling(family: str, rope: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a rotary embedding is stretched, as older readers of the family take it; nothing where it is not."""
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return {}
    if kind == "linear" and family in TWO_FIELDS:
        return {"type": kind, "factor": rope["factor"]}
    return {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}


def _rope_of(family: str, config: Mapping[str, Any]) -> Any:
    """Return the rotary embedding that the family's class reads from a config; nothing where it reads none."""
    from transformers import CONFIG_MAPPING  # noqa: PLC0415 - slow to import

    if family not in CONFIG_MAPPING:
        return None
    try:
        read = CONFIG_MAPPING[family].from_dict(copy.deepcopy(dict(config)))
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return _without_old_names(getattr(read, "rope_parameters", None))


def _without_old_names(rope: Any) -> Any:
    """Return a rotary embedding without the older name of its kind, which stays in it where it was read from."""
    if not isinstance(rope, dict):
        return rope
    return {key: _without_old_names(value) for key, value in rope.items() if key != "type"}


def _other_names_of_experts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config's numbers of experts by the other names that its class knows them by."""
    from transformers import CONFIG_MAPPING  # noqa: PLC0415 - slow to import

    kind = config.get("model_type")
    names = CONFIG_MAPPING[kind].attribute_map if kind in CONFIG_MAPPING else {}
    return {other: config[name] for other, name in names.items() if "expert" in other and name in config}
