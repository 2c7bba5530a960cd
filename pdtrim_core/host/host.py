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
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pluggy

from pdtrim_core.api import hookspecs
from pdtrim_core.api.kinds import KINDS, Component
from pdtrim_core.errors import PdtrimError, PluginError, RecipeError, did_you_mean
from pdtrim_core.host.compatibility import hook_names, problem_with_hook, problem_with_methods
from pdtrim_core.host.discovery import ONLY, Imported, Origin, import_plugin, installed_plugins
from pdtrim_core.host.tracing import traced

if TYPE_CHECKING:
    from pdtrim_core.model.block_layout import BlockLayout

__all__ = ["NAME", "Failure", "Origin", "PluginHost", "Provided", "load_plugins"]

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
NAME = re.compile(r"[a-z][a-z0-9]*([-+][a-z0-9]+)*")


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
        self.left_out: tuple[str, ...] = ()
        """Installed distributions that `PDTRIM_PLUGINS` leaves out."""
        self.import_seconds: dict[Origin, float] = {}

    @property
    def hook(self) -> Any:
        """The pluggy relay, to ask the questions of `hookspecs`."""
        return self._manager.hook

    def register(self, plugin: object, origin: Origin) -> None:
        """Take in a plugin: a module or object with hook implementations. Problems become `failures`."""
        try:
            problems = self._problems_with(plugin)
            if not problems:
                self._manager.register(plugin, name=f"{origin.source}:{origin.plugin}")
        except Exception as error:  # noqa: BLE001 - pluggy's refusals, and whatever looking at a foreign object may raise
            problems = [(str(error) or type(error).__name__).splitlines()[-1].strip()]
        if problems:
            self.failures += [Failure(origin, problem) for problem in problems]
            return
        self.origins.append(origin)
        for hook, kind in _REGISTRIES.items():
            function = getattr(plugin, hook, None)
            if function is not None and self._is_impl(function):
                self._collect(function, kind, origin)

    def take(self, imported: Imported) -> None:
        """Take in an installed plugin, or record why it cannot be had."""
        if imported.problem:
            self.failures.append(Failure(imported.origin, imported.problem))
            return
        self.import_seconds[imported.origin] = imported.seconds
        self.register(imported.plugin, imported.origin)

    def _is_impl(self, function: object) -> bool:
        return hasattr(function, f"{hookspecs.PROJECT}_impl")

    def _problems_with(self, plugin: object) -> list[str]:
        hooks = hook_names()
        members = [name for name in dir(plugin) if not name.startswith("__")]
        marked = [name for name in members if self._is_impl(getattr(plugin, name, None))]
        wrong = [problem_with_hook(name, _arguments(getattr(plugin, name))) for name in marked]
        unmarked = [f"{name} is not marked with @hookimpl" for name in members if name in hooks and name not in marked]
        return [problem for problem in wrong if problem] + unmarked

    def _collect(self, function: Any, kind: str, origin: Origin) -> None:
        try:
            with traced(function.__name__, origin.source) as found:
                offered = found.answer = list(function())
            problems = [(component, _problem_with(component, kind)) for component in offered]
        except Exception as error:  # noqa: BLE001 - foreign code: whatever it raises is recorded as its failure
            self.failures.append(Failure(origin, f"{function.__name__} failed: {type(error).__name__}: {error}"))
            return
        self.provided += [Provided(component, origin) for component, problem in problems if problem is None]
        self.failures += [Failure(origin, problem) for _, problem in problems if problem is not None]

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
        hints = [f"{failed} plugin{'s' * (failed > 1)} failed to load: see pdtrim-core plugins"] if failed else []
        hints += [f"{ONLY} leaves out {', '.join(self.left_out)}"] if self.left_out else []
        hint = f" ({'; '.join(hints)})" if hints else ""
        raise RecipeError(kind, [f"there is no {kind} '{name}'{did_you_mean(name, known)}{hint}"])

    def find_blocks(self, model: Any, name: str) -> BlockLayout:
        """Return where a transformers model keeps its blocks; `name` names the model.

        Raises `PdtrimError` if no plugin knows, and `PluginError` if none does and one failed.
        """
        failed: list[PluginError] = []
        for implementation in reversed(self.hook.pdtrim_find_blocks.get_hookimpls()):
            try:
                with traced("pdtrim_find_blocks", implementation.plugin_name) as found:
                    layout = found.answer = implementation.function(*[model][: len(implementation.argnames)])
            except Exception as error:  # noqa: BLE001 - foreign code, and another plugin may know this family
                what = f"the hook pdtrim_find_blocks of {implementation.plugin_name} failed"
                failed.append(PluginError(f"{what}: {type(error).__name__}: {error}"))
                continue
            if layout is not None:
                return cast("BlockLayout", layout)
        if failed:
            raise failed[0]
        raise PdtrimError(
            f"{name}: no plugin knows where the architecture '{model.config.model_type}' keeps its blocks; a plugin can say "
            "so with the hook pdtrim_find_blocks"
        )

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
                with traced(event, implementation.plugin_name, **facts):
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
    problem = problem_with_methods(component, kind)
    if problem:
        return problem
    if not (isinstance(component.name, str) and NAME.fullmatch(component.name)):
        return f"{component.__name__} has the name {component.name!r}: use lower-case words joined by '-'"
    return None


def _arguments(function: Any) -> list[str]:
    """Return the names of the arguments that a hook asks for; those with a default it does without."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [parameter.name for parameter in parameters if parameter.default is parameter.empty]


def load_plugins(files: Iterable[Path] = ()) -> PluginHost:
    """Load all installed plugins of the entry point group `pdtrim`, and plugins that are plain Python files.

    The environment variable `PDTRIM_PLUGINS` asks for some of the installed ones alone. Raises `PluginError` for a file that
    cannot be loaded: it was named, so it is needed.
    """
    host = PluginHost()
    installed = installed_plugins()
    host.left_out = installed.left_out
    for origin, point in installed.wanted:
        host.take(import_plugin(origin, point))
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
        with redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        # The user's own file: whatever it raises is the user's to see, named.
        raise PluginError(f"plugin file {path} failed: {type(error).__name__}: {error}") from error
    host.register(module, origin)
    if len(host.failures) > before:
        raise PluginError(f"plugin file {path}: {host.failures[-1].problem}")
