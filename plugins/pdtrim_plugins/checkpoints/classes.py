"""Model classes for checkpoints whose blocks differ from one another, as the `pdtrim` entry of their config describes.

Each subclasses its family's own class, and changes the form of the blocks after they are made.
"""

from __future__ import annotations

import functools
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from pdtrim_core import PdtrimError
from pdtrim_plugins.architectures import LAYOUTS
from pdtrim_plugins.checkpoints.blocks import give_form

CONFIG_KEY = "pdtrim"
"""The entry of a config that describes the plan."""
FORMAT, PARTS_FORMAT, EXPERTS_FORMAT = 1, 2, 3
"""The format of the entry, of one with blocks without their attention or their MLP, and of one with blocks that have fewer
experts than others: earlier versions do not know these."""
PREFIX = "pdtrim_"


def register() -> None:
    """Register the classes of all families with a built-in block layout with `AutoConfig` and `AutoModelForCausalLM`."""
    for family in LAYOUTS:
        classes_of(family)


@functools.cache
def classes_of(family: str) -> tuple[type[Any], type[Any]]:
    """Return the config and model class of a family (a `model_type` of transformers), registered with the Auto classes."""
    stock_config = CONFIG_MAPPING[family]
    stock_model = MODEL_FOR_CAUSAL_LM_MAPPING[stock_config]
    config: type[Any] = type(f"PDTrim{stock_config.__name__}", (stock_config,), _config_attributes(family, stock_config))
    model = _model_class(stock_model, config)
    AutoConfig.register(PREFIX + family, config, exist_ok=True)
    AutoModelForCausalLM.register(config, model, exist_ok=True)
    return config, model


def _config_attributes(family: str, stock: type[Any]) -> dict[str, Any]:
    return {"model_type": PREFIX + family, "__module__": __name__, "__doc__": f"The config of {stock.__name__} with a plan."}


def _model_class(stock: type[Any], config: type[Any]) -> type[Any]:
    class Formed(stock):  # type: ignore[misc]
        config_class = config

        def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            give_form(self, plan_entry(config))
            self.without_parts = "without" in plan_entry(config)

        def forward(self, *args: Any, past_key_values: Any = None, use_cache: bool | None = None, **kwargs: Any) -> Any:
            if past_key_values is None and use_cache is not False:
                # A cache made from the config has one entry per block, and would cut sliding windows that decode needs whole.
                past_key_values = DynamicCache()
            if self.without_parts and past_key_values is not None and not past_key_values.get_seq_length():
                # Entries stand for the blocks that have attention, and not for those of their numbers.
                past_key_values = DynamicCache()
            given = {"past_key_values": past_key_values, "use_cache": use_cache, **kwargs}
            known = getattr(self, "first_tokens", None)
            if known is None:
                return super().forward(*args, **given)
            ids_BT = args[0] if args else kwargs.get("input_ids")
            mask_BT = args[1] if len(args) > 1 else kwargs.get("attention_mask")
            before = 0 if past_key_values is None else past_key_values.get_seq_length()
            with known.reading(ids_BT, mask_BT, before):
                return super().forward(*args, **given)

    # transformers looks up in a class's module how its attention is chosen.
    Formed.__name__ = Formed.__qualname__ = f"PDTrim{stock.__name__}"
    Formed.__module__ = stock.__module__
    Formed.__doc__ = f"{stock.__name__} with blocks that differ from one another."
    return Formed


def plan_entry(config: Any) -> dict[str, Any]:
    """Return the entry that describes the plan. Raises `PdtrimError` where it is missing or newer than this version."""
    entry: dict[str, Any] = getattr(config, CONFIG_KEY, None) or {}
    if entry.get("format") not in (FORMAT, PARTS_FORMAT, EXPERTS_FORMAT):
        raise PdtrimError(
            f"the config has {CONFIG_KEY} format {entry.get('format')}, this version reads {EXPERTS_FORMAT}: export the run "
            "again, or install the version that wrote it"
        )
    return entry
