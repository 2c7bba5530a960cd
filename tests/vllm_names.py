"""Whether a version of vLLM still has the names that the plugin imports, by its source; nothing is installed or imported.

    python tests/vllm_names.py vllm-0.33.0-....whl      or the folder that vLLM is installed in (site-packages)

Run by hand when vLLM has a new version: `pip download --no-deps vllm` gets its wheel. Ends with 1 where a name is missing.
"""

from __future__ import annotations

import ast
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

PLUGIN = Path(__file__).parents[1] / "plugins" / "pdtrim_plugins" / "vllm"
Source = Callable[[str], str | None]


def source_of(place: Path) -> Source:
    """Return what reads a file of a wheel or a folder, None where there is none."""
    if place.is_dir():
        return lambda name: (place / name).read_text(encoding="utf-8") if (place / name).is_file() else None
    wheel = zipfile.ZipFile(place)
    names = set(wheel.namelist())
    return lambda name: wheel.read(name).decode() if name in names else None


def imported() -> Iterator[tuple[str, str, str]]:
    """Yield what each module of the plugin imports: the module's name, vLLM's module, and the name in it."""
    for file in sorted(PLUGIN.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
                yield from ((file.relative_to(PLUGIN).as_posix(), str(node.module), alias.name) for alias in node.names)


def names_in(module: str, source: Source) -> set[str] | None:
    """Return the names that a module has, also those of branches, and those that it gives lazily; None where there is none."""
    path = module.replace(".", "/")
    text = source(f"{path}.py") or source(f"{path}/__init__.py")
    if text is None:
        return None
    package = module if source(f"{path}.py") is None else module.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.ImportFrom(module=str() as other, names=[ast.alias(name="*")], level=level):
                found |= names_in(f"{package}.{other}" if level else other, source) or set()
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                found.add(node.name)
            case ast.ImportFrom() | ast.Import():
                found.update(alias.asname or alias.name for alias in node.names)
            case ast.Name(ctx=ast.Store()):
                found.add(node.id)
            case ast.Constant(value=str() as text):
                # vLLM's own package names what it imports lazily in a table of texts.
                found.add(text)
    return found


def missing(source: Source) -> list[str]:
    """Return a line for each name that is not there."""
    lines = []
    for file, module, name in imported():
        names = names_in(module, source)
        if names is None:
            lines.append(f"{file}: there is no module {module}")
        elif name not in names:
            lines.append(f"{file}: {module} has no {name}")
    return lines


def main() -> None:
    """Look, and say what is missing."""
    lines = missing(source_of(Path(sys.argv[1])))
    print("\n".join(lines) or f"all {len(list(imported()))} names are there")
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()
