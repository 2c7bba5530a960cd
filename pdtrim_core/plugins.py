"""The plugin host: loads plugins, checks what they offer, and finds components by name.

What is wrong with a plugin is data, not an exception: the host records it, `pdtrim-core plugins` shows it, and a run that
does not need the plugin goes on.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from pdtrim_core import hookspecs
from pdtrim_core.components import KINDS, Component
from pdtrim_core.errors import PdtrimError, PluginError, RecipeError, blame, did_you_mean

if TYPE_CHECKING:
    from pdtrim_core.place import BlockPlace

GROUP = hookspecs.PROJECT
_REGISTRIES = {
    "pdtrim_scorers": "scorer",
    "pdtrim_searchers": "searcher",
    "pdtrim_pruners": "pruner",
    "pdtrim_distillers": "distiller",
    "pdtrim_splitters": "splitter",
    "pdtrim_objectives": "objective",
    "pdtrim_calibrations": "calibration",
    "pdtrim_model_sources": "model",
    "pdtrim_exporters": "exporter",
    "pdtrim_reports": "report",
}
_NAME = re.compile(r"[a-z][a-z0-9]*([-+][a-z0-9]+)*")


@dataclass(frozen=True)
class Origin:
    """Where a plugin comes from: its name, and the distribution (with version) or file that brought it."""

    plugin: str
    source: str
    version: str = ""

    def __str__(self) -> str:
        return f"{self.source} {self.version}".strip()


@dataclass(frozen=True)
class Provided:
    """A component class and where it comes from."""

    component: type[Component]
    origin: Origin

    @property
    def label(self) -> str:
        """How messages call it: "scorer 'norm-ratio' (pdtrim-norm 0.1.0)"."""
        return f"{self.component.kind} '{self.component.name}' ({self.origin})"


@dataclass(frozen=True)
class Failure:
    """A plugin, or one thing in it, that cannot be used, and why."""

    origin: Origin
    problem: str


class PluginHost:
    """Loaded plugins. Make one with `load_plugins`; pass it on, there is no global one."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._muted: set[int] = set()
        self.origins: list[Origin] = []
        self.provided: list[Provided] = []
        self.failures: list[Failure] = []

    @property
    def hook(self) -> Any:
        """The pluggy relay, to ask the questions of `hookspecs`."""
        return self._manager.hook

    def register(self, plugin: object, origin: Origin) -> None:
        """Take in a plugin: a module or object with hook implementations. Problems become `failures`."""
        problems = self._misspelt(plugin)
        if problems:
            self.failures += [Failure(origin, problem) for problem in problems]
            return
        try:
            self._manager.register(plugin, name=f"{origin.source}:{origin.plugin}")
        except (pluggy.PluginValidationError, ValueError) as error:
            self.failures.append(Failure(origin, str(error).splitlines()[-1].strip()))
            return
        self.origins.append(origin)
        for hook, kind in _REGISTRIES.items():
            function = getattr(plugin, hook, None)
            if function is not None and self._is_impl(function):
                self._collect(function, kind, origin)

    def _is_impl(self, function: object) -> bool:
        return hasattr(function, f"{hookspecs.PROJECT}_impl")

    def _misspelt(self, plugin: object) -> list[str]:
        hooks = [name for name in dir(hookspecs) if name.startswith("pdtrim_")]
        members = [name for name in dir(plugin) if not name.startswith("__")]
        marked = [name for name in members if self._is_impl(getattr(plugin, name, None))]
        wrong = [f"there is no hook {name}{did_you_mean(name, hooks)}" for name in marked if name not in hooks]
        return wrong + [f"{name} is not marked with @hookimpl" for name in members if name in hooks and name not in marked]

    def _collect(self, function: Any, kind: str, origin: Origin) -> None:
        try:
            offered = list(function())
        except Exception as error:  # noqa: BLE001 - foreign code: whatever it raises is recorded as its failure
            self.failures.append(Failure(origin, f"{function.__name__} failed: {type(error).__name__}: {error}"))
            return
        for component in offered:
            problem = _problem_with(component, kind)
            if problem:
                self.failures.append(Failure(origin, problem))
            else:
                self.provided.append(Provided(component, origin))

    def of_kind(self, kind: str) -> list[Provided]:
        """Return what is provided of one kind, in the order of loading."""
        return [provided for provided in self.provided if provided.component.kind == kind]

    def find(self, kind: str, name: str) -> Provided:
        """Return the component of a kind by its name, or by "distribution/name" where two offer it.

        Raises `RecipeError` when there is none or more than one.
        """
        source, _, bare = name.rpartition("/")
        found = [p for p in self.of_kind(kind) if p.component.name == bare and source in ("", p.origin.source)]
        if len(found) == 1:
            return found[0]
        if found:
            choices = " or ".join(f"'{p.origin.source}/{bare}'" for p in found)
            raise RecipeError(kind, [f"'{bare}' is offered by {len(found)} plugins: say use = {choices}"])
        known = {p.component.name for p in self.of_kind(kind)}
        failed = len({failure.origin for failure in self.failures})
        broken = f" ({failed} plugin{'s' * (failed > 1)} failed to load: see pdtrim-core plugins)" if failed else ""
        raise RecipeError(kind, [f"there is no {kind} '{name}'{did_you_mean(name, known)}{broken}"])

    def find_blocks(self, model: Any, name: str) -> BlockPlace:
        """Return where a transformers model keeps its blocks. Raises `PdtrimError` if no plugin knows; `name` names the model."""
        with blame("the hook pdtrim_find_blocks"):
            place: BlockPlace | None = self.hook.pdtrim_find_blocks(model=model)
        if place is None:
            raise PdtrimError(
                f"{name}: no plugin knows where the architecture '{model.config.model_type}' keeps its blocks; a plugin can say "
                "so with the hook pdtrim_find_blocks"
            )
        return place

    def label_of(self, component: Component) -> str:
        """Return how messages call a component that was made from one of these plugins."""
        for provided in self.provided:
            if provided.component is type(component):
                return provided.label
        return f"{component.kind} '{component.name}'"

    def tell(self, event: str, **facts: object) -> None:
        """Send an event to every listener. One that fails is muted after one warning; the run goes on."""
        for implementation in getattr(self.hook, event).get_hookimpls():
            if id(implementation.plugin) in self._muted:
                continue
            try:
                implementation.function(**{name: facts[name] for name in implementation.argnames})
            except Exception as error:  # noqa: BLE001 - a listener is foreign code and must not stop a run
                self._muted.add(id(implementation.plugin))
                warnings.warn(
                    f"plugin {implementation.plugin_name} failed in {event} and is muted: {type(error).__name__}: {error}",
                    stacklevel=2,
                )


def _problem_with(component: object, kind: str) -> str | None:
    """Return why an object is no usable component of a kind."""
    wanted = KINDS[kind]
    if not (inspect.isclass(component) and issubclass(component, wanted)):
        return f"{component!r} is not a subclass of {wanted.__name__}"
    if inspect.isabstract(component):
        missing = ", ".join(sorted(component.__abstractmethods__))
        return f"{component.__name__} does not define {missing}"
    if not (isinstance(component.name, str) and _NAME.fullmatch(component.name)):
        return f"{component.__name__} has the name {component.name!r}: use lower-case words joined by '-'"
    return None


def load_plugins(files: Iterable[Path] = ()) -> PluginHost:
    """Load all installed plugins of the entry point group `pdtrim`, and plugins that are plain Python files.

    Raises `PluginError` for a file that cannot be loaded: it was named, so it is needed.
    """
    host = PluginHost()
    points = metadata.entry_points(group=GROUP)
    for point in sorted(points, key=lambda point: (point.dist.name if point.dist else "", point.name)):
        dist = point.dist
        origin = Origin(point.name, dist.name if dist else "?", dist.version if dist else "")
        try:
            plugin = point.load()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - foreign code: a plugin that fails to import is recorded
            host.failures.append(Failure(origin, f"cannot import {point.value}: {type(error).__name__}: {error}"))
            continue
        host.register(plugin, origin)
    for path in files:
        _load_file(host, path)
    return host


def _load_file(host: PluginHost, path: Path) -> None:
    origin = Origin(path.stem, str(path))
    before = len(host.failures)
    if not path.is_file():
        raise PluginError(f"plugin file {path} does not exist")
    spec = importlib.util.spec_from_file_location(f"pdtrim_file_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise PluginError(f"plugin file {path} is not a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        # The user's own file: whatever it raises is the user's to see, named.
        raise PluginError(f"plugin file {path} failed: {type(error).__name__}: {error}") from error
    host.register(module, origin)
    if len(host.failures) > before:
        raise PluginError(f"plugin file {path}: {host.failures[-1].problem}")
