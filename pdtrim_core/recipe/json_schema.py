"""The JSON schema of recipes."""

from __future__ import annotations

from typing import Any

from pdtrim_core.api.kinds import KINDS, key_of
from pdtrim_core.api.layer_kinds import AS_IT_IS, Quantizer
from pdtrim_core.host.host import PluginHost
from pdtrim_core.recipe.settings import Settings
from pdtrim_core.recipe.toml_data import DEFAULT_QUANTIZER, DEFAULTS, LISTS, NONE

STAGES = ("decode", "prefill")


def schema(host: PluginHost) -> dict[str, Any]:
    """Return the JSON schema of recipes for the components that are loaded, for editors."""
    result = Settings.model_json_schema()
    definitions = result.setdefault("$defs", {})
    for kind in KINDS:
        tables, default = [], DEFAULT_QUANTIZER if kind == "quantizer" else DEFAULTS.get(kind)
        for provided in host.of_kind(kind):
            part = provided.component.model_json_schema()
            definitions.update(part.pop("$defs", {}))
            names = [provided.component.name, f"{provided.origin.source}/{provided.component.name}"]
            part["properties"] = {"use": {"enum": names}, **part.get("properties", {})}
            if issubclass(provided.component, Quantizer):
                part["properties"] |= {stage: _format_of(provided.component, part["properties"][stage]) for stage in STAGES}
            if kind != "model" and provided.component.name != default:
                part["required"] = ["use", *part.get("required", [])]
            tables.append(part)
        names = [name for table in tables for name in table["properties"]["use"]["enum"]]
        name = {"type": "string"} if kind == "model" else {"enum": names}
        # Formats are named by stage, so that a name alone says nothing.
        one = {"anyOf": tables if kind == "quantizer" else [name, *tables]}
        one = {"anyOf": [{"const": NONE}, name, *tables]} if kind == "kv_selector" else one
        result["properties"][key_of(kind)] = _of_list(one) if kind in LISTS else one
    result["required"] = ["model", "prune"]
    return {**result, "$schema": "https://json-schema.org/draft/2020-12/schema", "title": "pdtrim-core recipe"}


def _of_list(one: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a kind of which there may be several, or none."""
    return {"anyOf": [{"const": NONE}, one, {"type": "array", "items": one}]}


def _format_of(quantizer: type[Quantizer], option: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of the format of a stage: one that the quantizer knows, or none."""
    return {**option, "enum": [*quantizer.schemes, AS_IT_IS]}
