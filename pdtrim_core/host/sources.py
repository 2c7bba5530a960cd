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
from importlib.machinery import ModuleSpec
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


def digest_of_file(module: ModuleType, content: bytes) -> str:
    """Return a hash of the code of a plugin file that was loaded from that content, and of the modules that it uses.

    These are what it imports anywhere, and modules that it loaded in other ways and has under a name; none that is installed.
    """
    seen: set[Path] = set()
    used = [digest for name in sorted(_imported(content)) for digest in _digests_of_own(name, seen)]
    for value in vars(module).values():
        file = _file_of(value) if isinstance(value, ModuleType) else None
        if file is not None and file not in seen and not _installed(file) and _is_foreign(value.__name__):
            seen.add(file)
            used.append(_digest_of_loaded(value.__name__, value.__spec__, file))
    return _hash([hashlib.sha256(content).hexdigest(), *used])


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
    names = set() if _installed(files[0]) else {found for content in contents for found in _imported(content)} - {name}
    imported = [digest for found in sorted(names) for digest in _digests_of_own(found, seen)]
    return _hash([*(hashlib.sha256(content).hexdigest() for content in contents), *imported])


def _files_of(module: ModuleType) -> Iterator[Path]:
    """Yield the files of a module, and of all modules below it where it is a package."""
    file = _file_of(module)
    if file is not None:
        yield from sorted(file.parent.rglob("*.py")) if hasattr(module, "__path__") else [file]


def _file_of(module: ModuleType) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file) if file and file.endswith(".py") and Path(file).is_file() else None


def _digests_of_own(name: str, seen: set[Path]) -> Iterator[str]:
    """Yield a hash of each file of a top-level module, if no distribution brings it, and of what that imports; each file once."""
    waiting, met = [name], {name}
    while waiting:
        name = waiting.pop()
        spec, imported = _spec_of(name), set[str]()
        for file in _own_files(spec):
            if file not in seen:
                seen.add(file)
                yield _digest_of_loaded(name, spec, file)
                imported |= _imported(file.read_bytes())
        waiting += sorted(imported - met, reverse=True)
        met |= imported


_loaded: dict[Path, tuple[object, str]] = {}
"""The hash that each file of a loaded module had when it was first looked at, with the spec that it was loaded by."""


def _digest_of_loaded(name: str, spec: object, file: Path) -> str:
    """Return the hash of a file; that of a loaded module is what it was at first, until the module is loaded anew."""
    if name not in sys.modules:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    known = _loaded.get(file)
    if known is None or known[0] is not spec:
        known = _loaded[file] = (spec, hashlib.sha256(file.read_bytes()).hexdigest())
    return known[1]


def _imported(content: bytes) -> set[str]:
    """Return the top-level names that a source imports anywhere; none where it cannot be parsed."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError, RecursionError):
        return set()
    names = set()
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return {name for name in names if name != OURS and name not in sys.stdlib_module_names}


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield what a source is made of down to its statements; its expressions, most of it by far, hold no imports."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for inner in ("body", "orelse", "finalbody", "handlers", "cases"):
            waiting += getattr(node, inner, ())


def _spec_of(name: str) -> ModuleSpec | None:
    """Return how a top-level module was or would be found."""
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None


def _own_files(spec: ModuleSpec | None) -> list[Path]:
    """Return the files of a top-level module or package that no installed distribution brings."""
    if spec is None:
        return []
    places = [Path(place) for place in spec.submodule_search_locations or ()]
    # Looking through all files of an installed package, such as torch, would take longer than all else here.
    own = [place for place in places if not _installed(place / "__init__.py")]
    files = [file for place in own for file in place.rglob("*.py")] if places else [Path(spec.origin or "")]
    return sorted(file for file in files if file.suffix == ".py" and file.is_file() and not _installed(file))


def _installed(file: Path) -> bool:
    """Tell whether an installed distribution brings a file: where distributions lie, or beside one (`pip install --target`)."""
    folder = file.parent
    while (folder / "__init__.py").is_file():
        folder = folder.parent
    return not set(INSTALLED).isdisjoint(file.parts) or _has_distributions(folder)


@cache
def _has_distributions(folder: Path) -> bool:
    return any(folder.glob("*.dist-info"))


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
