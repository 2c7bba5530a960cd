"""The code that a component is made of, as a hash: a stored value holds it, and so knows when it is stale.

A component's code is that of the modules of its class and of its base classes, each with all modules of its package, and with
the modules that these import and that no installed distribution brings, such as a helper beside a plugin file. What an installed
distribution brings is named by its version.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from types import CodeType, ModuleType

ENGINE = ("torch", "transformers")
"""Distributions that compute every number, beside our own."""
OURS = "pdtrim_core"
INSTALLED = ("site-packages", "dist-packages")
"""Folders of installed distributions."""
DIGITS = 12
PLAIN = (str, int, float, tuple, type(None))
"""Sorts of class attributes whose text is the same in every process."""


def engine() -> dict[str, str]:
    """Return what computes every number: distributions with their versions, our own with a hash of its code."""
    return {"pdtrim-core": f"{_version('pdtrim-core')} {_digest_of_package(OURS)}", **{name: _version(name) for name in ENGINE}}


def digest_of_class(component: type, loaded: str = "") -> str:
    """Return a hash of the code of a class; `loaded` is that of the plugin file which it was loaded from."""
    names = sorted({cls.__module__ for cls in component.__mro__ if _is_foreign(cls.__module__)})
    if loaded:
        return _hash([loaded, *(_digest_of_module(name) for name in names if name != component.__module__)])
    return _hash([_digest_of_module(name) or _digest_of_bytecode(component) for name in names])


def digest_of_file(path: Path, content: bytes) -> str:
    """Return a hash of the code of a plugin file with that content, and of what it imports from files that are not installed."""
    return _hash([hashlib.sha256(content).hexdigest(), *_digests_of_imports(content, {path})])


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return what to say of each thing whose code is other code now; both are texts of origin and hash by the thing's name."""
    return [_change(name, before.get(name, "unknown"), text) for name, text in now.items() if before.get(name) != text]


def _change(name: str, before: str, now: str) -> str:
    (where, _, _), (origin, _, _) = before.rpartition(" "), now.rpartition(" ")
    return f"the code of {name} ({origin}) has changed" if origin and where == origin else f"{name} is {now}, was {before}"


def _is_foreign(module: str) -> bool:
    top = module.partition(".")[0]
    return top not in (OURS, "pydantic") and top not in sys.stdlib_module_names


def _digest_of_module(name: str) -> str:
    """Return a hash of the code that a module belongs to; empty where it has no file."""
    top = name.partition(".")[0]
    module = sys.modules.get(top)
    if module is None or _file_of(module) is None:
        return ""
    return _digest_of_package(top)


@cache
def _digest_of_package(name: str) -> str:
    module = sys.modules.get(name) or importlib.import_module(name)
    files = list(_files_of(module))
    contents = [file.read_bytes() for file in files]
    seen = set(files)
    imported = [] if _installed(files[0]) else [digest for content in contents for digest in _digests_of_imports(content, seen)]
    return _hash([*(hashlib.sha256(content).hexdigest() for content in contents), *imported])


def _files_of(module: ModuleType) -> Iterator[Path]:
    """Yield the files of a module, and of all modules below it where it is a package."""
    file = _file_of(module)
    if file is not None:
        yield from sorted(file.parent.rglob("*.py")) if hasattr(module, "__path__") else [file]


def _file_of(module: ModuleType) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file) if file and file.endswith(".py") and Path(file).is_file() else None


def _digests_of_imports(content: bytes, seen: set[Path]) -> Iterator[str]:
    """Yield a hash of each file that a source imports, directly or not, and that no distribution brings; each file once."""
    for name in sorted(_imported(content)):
        for file in _own_files(name):
            if file not in seen:
                seen.add(file)
                inner = file.read_bytes()
                yield hashlib.sha256(inner).hexdigest()
                yield from _digests_of_imports(inner, seen)


def _imported(content: bytes) -> set[str]:
    """Return the top-level names that a source imports anywhere; none where it cannot be parsed."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError, RecursionError):
        return set()
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return {name for name in names if name != OURS and name not in sys.stdlib_module_names}


def _own_files(name: str) -> list[Path]:
    """Return the files of a top-level module or package that no installed distribution brings."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return []
    file = None if spec is None or spec.origin is None else Path(spec.origin)
    if spec is None or file is None or file.suffix != ".py" or _installed(file):
        return []
    return sorted(file.parent.rglob("*.py")) if spec.submodule_search_locations else [file]


def _installed(file: Path) -> bool:
    return not set(INSTALLED).isdisjoint(file.parts)


def _digest_of_bytecode(component: type) -> str:
    """Return a hash of a class that was defined where there is no file, such as in a notebook."""
    found = [f"{component.__module__}.{component.__qualname__}"]
    for cls in component.__mro__:
        for name, member in sorted(vars(cls).items(), key=lambda entry: entry[0]) if _is_foreign(cls.__module__) else ():
            code = getattr(getattr(member, "__func__", member), "__code__", None)
            if isinstance(code, CodeType):
                found.append(f"{name} {_words_of(code)}")
            elif isinstance(member, PLAIN):
                found.append(f"{name} {member!r}")
    return _hash(found)


def _words_of(code: CodeType) -> str:
    """Return a function's instructions and constants; those of functions inside it, whose repr has an address, in their place."""
    constants = [_words_of(constant) if isinstance(constant, CodeType) else repr(constant) for constant in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def _hash(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:DIGITS]


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "?"
