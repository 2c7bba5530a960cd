"""The plugin host: loads plugins, checks what they offer, and finds components by name.

What is wrong with a plugin is data, not an exception: the host records it, `pdtrim-core plugins` shows it, and a run that
does not need the plugin goes on.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pluggy

from pdtrim_core.api import hookspecs
from pdtrim_core.errors import PdtrimError, PluginError, RecipeError, blame, did_you_mean, reason_of
from pdtrim_core.files.paths import PathLike
from pdtrim_core.host.discovery import ONLY, Imported, Origin, import_plugin, installed_plugins
from pdtrim_core.host.guarding import Calls, Fault, Guard, guard
from pdtrim_core.host.implementations import Implementation, Sort, implementations_of
from pdtrim_core.host.registries import NAME, REGISTRIES, Failure, Offer, Offers, Provided
from pdtrim_core.host.sources import digest_of_class, digest_of_file

if TYPE_CHECKING:
    from pdtrim_core.api.component import Component
    from pdtrim_core.model.block_layout import BlockLayout

__all__ = ["NAME", "Failure", "Origin", "PluginHost", "Provided", "load_plugins"]


PYTHON = "python"
"""The source of plugins that are registered by a name alone."""


class _Guarded:
    """What pluggy is given for a plugin: a guard for each of its implementations."""

    def __init__(self, guards: Mapping[str, Guard]) -> None:
        vars(self).update(guards)


@dataclass(frozen=True)
class _Collected:
    """What the registries of all plugins gave."""

    provided: list[Provided]
    failures: list[Failure]


class PluginHost:
    """Loaded plugins. Make one with `load_plugins`; pass it on, there is no global one."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._plugins: dict[str, object] = {}
        self._calls = Calls()
        self._offers = Offers("")
        self._collected: _Collected | None = None
        self._refused: list[Failure] = []
        self._arrivals: dict[Origin, int] = {}
        self.origins: list[Origin] = []
        self.left_out: tuple[str, ...] = ()
        """Installed distributions that `PDTRIM_PLUGINS` leaves out."""
        self.not_run: tuple[Path, ...] = ()
        """Plugin files that were named by someone who is not known to be trusted, and that were not run."""
        self.import_seconds: dict[Origin, float] = {}

    @property
    def provided(self) -> list[Provided]:
        """Components in the order of loading; those of a `tryfirst` come before all others, those of a `trylast` after."""
        return self._collect().provided

    @property
    def failures(self) -> list[Failure]:
        """What is wrong with plugins, in the order of loading."""
        known = [*self._refused, *self._collect().failures]
        return sorted(known, key=lambda failure: self._arrivals[failure.origin])

    def register(self, plugin: object, origin: Origin | str) -> None:
        """Take in a plugin: a module or object with hook implementations, under its origin or a name of your own.

        Problems become `failures`; of a plugin that is given a name they are raised, as `PluginError`.
        """
        self._collected = None
        if isinstance(origin, str):
            self._register_named(plugin, Origin(origin, PYTHON))
            return
        if not isinstance(origin, Origin):
            raise PluginError(f"register takes a plugin and a name for it, such as 'mine', not {type(origin).__name__}")
        try:
            problems = self._register(plugin, origin)
        except Exception as error:  # noqa: BLE001 - pluggy's refusals, and whatever looking at a foreign object may raise
            problems = [reason_of(error)]
        for problem in problems:
            self._refuse(origin, problem)
        if not problems:
            self._arrivals.setdefault(origin, len(self._arrivals))
            self.origins.append(origin)

    def _register_named(self, plugin: object, origin: Origin) -> None:
        """Take in a plugin that someone names in Python, who sees at once what is wrong with it."""
        with blame(f"plugin '{origin.plugin}'"):
            problems = self._register(plugin, origin) if origin.plugin else ["its name is empty"]
        if not problems and not self._implements(origin):
            self._remove(origin)
            problems = ["it implements no hook: mark its methods with @hookimpl, and call them as the hooks are called"]
        if problems:
            raise PluginError(f"plugin '{origin.plugin}' cannot be registered: {'; '.join(problems)}")
        self._arrivals.setdefault(origin, len(self._arrivals))
        self.origins.append(origin)

    @contextmanager
    def listening(self, plugin: object, name: str) -> Iterator[None]:
        """Have a plugin under a name as long as this lasts. Raises `PluginError` as `register` does."""
        origin = Origin(name, PYTHON)
        self.register(plugin, name)
        try:
            yield
        finally:
            self._remove(origin)
            self.origins.remove(origin)
            del self._arrivals[origin]

    def _implements(self, origin: Origin) -> bool:
        registered = self._manager.get_plugin(_name_of(origin))
        return bool(registered is not None and vars(registered))

    def _remove(self, origin: Origin) -> None:
        self._collected = None
        self._manager.unregister(name=_name_of(origin))
        del self._plugins[_name_of(origin)]

    def take(self, imported: Imported) -> None:
        """Take in an installed plugin, or record why it cannot be had."""
        if imported.problem:
            self._refuse(imported.origin, imported.problem)
            return
        self.import_seconds[imported.origin] = imported.seconds
        self.register(imported.plugin, imported.origin)

    def _refuse(self, origin: Origin, problem: str) -> None:
        self._arrivals.setdefault(origin, len(self._arrivals))
        self._refused.append(Failure(origin, problem))

    def _register(self, plugin: object, origin: Origin) -> list[str]:
        """Register guards for what a plugin implements, or return what is wrong with it."""
        name = _name_of(origin)
        known = [other for other, taken in self._plugins.items() if other == name or taken is plugin]
        if known:
            return [f"it is registered already, as {known[0]}"]
        implementations, problems = implementations_of(plugin, origin)
        if not problems:
            guards = {member: guard(found, self._calls, self._accept) for member, found in implementations.items()}
            self._manager.register(_Guarded(guards), name=name)
            self._plugins[name] = plugin
        return problems

    def _accept(self, by: Implementation, answer: Any) -> Any:
        return self._offers.take(by, answer) if by.sort is Sort.REGISTRY else answer

    def _call(self, hook: str, **facts: object) -> tuple[Any, list[Fault]]:
        """Have pluggy call a hook; return its answer, and the implementations that failed."""
        before = len(self._calls.faults)
        answer = getattr(self._manager.hook, hook)(**facts)
        faults = self._calls.faults[before:]
        del self._calls.faults[before:]
        return answer, faults

    def _collect(self) -> _Collected:
        """Call all registries, once for the plugins that there are: a wrapper may change what others offer."""
        if self._collected is None:
            offers: list[Offer] = []
            failures: list[Failure] = []
            for hook, kind in REGISTRIES.items():
                self._offers = Offers(kind)
                answers, faults = self._call(hook)
                offers += self._offers.left(answers)
                failures += [Failure(fault.origin, f"{hook} failed: {fault}") for fault in faults] + self._offers.failures
            offers.sort(key=lambda offer: (offer.by.rank, self._arrivals[offer.by.origin]))
            self._collected = _Collected([Provided(offer.component, offer.by.origin) for offer in offers], failures)
        return self._collected

    def of_kind(self, kind: str) -> list[Provided]:
        """Return what is provided of one kind, in the order of `provided`."""
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
        hints += [f"{' and '.join(map(str, self.not_run))} not run: say --trust if you trust it"] if self.not_run else []
        hint = f" ({'; '.join(hints)})" if hints else ""
        raise RecipeError(kind, [f"there is no {kind} '{name}'{did_you_mean(name, known)}{hint}"])

    def find_blocks(self, model: Any, name: str) -> BlockLayout:
        """Return where a transformers model keeps its blocks; `name` names the model.

        Where no plugin knows, they are found by structure. Raises `PdtrimError` if that cannot be, with the reason, and
        `PluginError` if no plugin knows and one failed.
        """
        layout, faults = self._call("pdtrim_find_blocks", model=model)
        if layout is not None:
            return cast("BlockLayout", layout)
        if faults:
            raise PluginError(f"the hook pdtrim_find_blocks of {faults[0].implementation.plugin} failed: {faults[0]}")
        if not hasattr(model, "get_submodule"):
            raise PdtrimError(
                f"{name}: no plugin knows where the architecture '{model.config.model_type}' keeps its blocks; a plugin can say "
                "so with the hook pdtrim_find_blocks"
            )
        from pdtrim_core.model.find_layout import find_layout  # noqa: PLC0415 - listings must not import torch

        return find_layout(model, name)

    def label_of(self, component: Component) -> str:
        """Return how messages call a component that was made from one of these plugins."""
        for provided in self.provided:
            if provided.component is type(component):
                return provided.label
        return f"{component.kind} '{component.name}'"

    def source_of(self, component: Component) -> str:
        """Return where the code of a component comes from, and a hash of it: "pdtrim-norm 0.1.0 8d0f3a5b21c4"."""
        for provided in self.provided:
            if provided.component is type(component):
                # The name of a plugin file, not its path, which may be spelled in many ways.
                origin = Path(provided.origin.source).name if provided.origin.code else provided.origin
                return f"{origin} {digest_of_class(provided.component, provided.origin.code)}"
        return f"{type(component).__module__} {digest_of_class(type(component))}"

    def tell(self, event: str, **facts: object) -> None:
        """Send an event to every listener. One that fails is muted after one warning; the run goes on."""
        _, faults = self._call(event, **facts)
        for fault in faults:
            if fault.origin not in self._calls.muted:
                self._calls.muted.add(fault.origin)
                warnings.warn(
                    f"plugin {fault.implementation.plugin} failed in {event} and is muted: {fault}",
                    stacklevel=2,
                )


def _name_of(origin: Origin) -> str:
    """Return the name under which pluggy has a plugin."""
    return f"{origin.source}:{origin.plugin}"


def load_plugins(files: PathLike | Iterable[PathLike] = (), *, trust: bool = True) -> PluginHost:
    """Load all installed plugins of the entry point group `pdtrim`, and plugins that are plain Python files.

    The environment variable `PDTRIM_PLUGINS` selects some of the installed ones. Without `trust` no file is run, and the host
    remembers in `not_run` which ones were named. Raises `PluginError` for a file that cannot be loaded: it was named, so it is
    needed.
    """
    files = [files] if isinstance(files, str | os.PathLike) else files
    host = PluginHost()
    installed = installed_plugins()
    host.left_out = installed.left_out
    for origin, point in installed.wanted:
        host.take(import_plugin(origin, point))
    if not trust:
        host.not_run = tuple(_existing(Path(path)) for path in files)
        return host
    needed = {_load_file(host, _existing(Path(path))) for path in files}
    for failure in host.failures:
        if failure.origin in needed:
            raise PluginError(f"plugin file {failure.origin.source}: {failure.problem}")
    return host


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise PluginError(f"plugin file {path} does not exist")
    return path


def _load_file(host: PluginHost, path: Path) -> Origin:
    # A name of its own, since files in two folders may be called the same.
    place = hashlib.sha256(str(path.resolve()).encode(errors="surrogateescape")).hexdigest()[:8]
    spec = importlib.util.spec_from_file_location(f"pdtrim_file_{path.stem}_{place}", path)
    if spec is None or spec.loader is None:
        raise PluginError(f"plugin file {path} is not a Python file (.py)")
    content = path.read_bytes()
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        with redirect_stdout(sys.stderr):
            # Not by its loader, which may take bytecode that it kept for a file of the same second and size.
            exec(compile(content, str(path), "exec"), vars(module))  # noqa: S102 - the user named it to be run
    except (Exception, SystemExit) as error:
        # The user's own file: whatever it raises is the user's to see, named.
        raise PluginError(f"plugin file {path} failed: {reason_of(error, kind=True)}") from error
    # Behind its execution, which may have changed where modules are looked for.
    origin = Origin(path.stem, str(path), code=digest_of_file(module, content))
    host.register(module, origin)
    return origin
