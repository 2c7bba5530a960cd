"""Which class of transformers makes a model of a config: that of language models, or that of models which see beside it."""

from __future__ import annotations

import re
from typing import Any

from pdtrim_core.errors import reason_of
from pdtrim_core.wording import shortened

NO_LANGUAGE_MODEL = re.compile(
    r"Unrecognized configuration class <class '(?:\w+\.)*(\w+)'> for this kind of AutoModel: AutoModelForCausalLM"
)


def auto_class_of(config: Any) -> Any:
    """Return the class that opens models of a config, with `from_config` and `from_pretrained`.

    A model that sees is opened whole, so that all of it can be written again; only its language model is run and pruned. What
    no class takes is left to `AutoModelForCausalLM`, which says so.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText  # noqa: PLC0415 - slow to import
    from transformers.models.auto.modeling_auto import (  # noqa: PLC0415 - the same
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    )

    kind = type(config)
    whole = kind in MODEL_FOR_CAUSAL_LM_MAPPING and MODEL_FOR_CAUSAL_LM_MAPPING[kind].config_class is kind
    # The language model alone of a nested config would leave the rest of the checkpoint behind.
    sees = config.get_text_config() is not config and kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return AutoModelForImageTextToText if sees and not whole else AutoModelForCausalLM


def why_no_model(error: Exception) -> str:
    """Return in one line why transformers made no model of a config: its own reason lists all its classes where none takes it."""
    other = NO_LANGUAGE_MODEL.search(str(error))
    if other is None:
        return reason_of(error)
    return f"transformers has no causal language model of {shortened(other[1])} (one that sees or hears, for example, is none)"
