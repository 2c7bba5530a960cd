"""vLLM's NIXL connector, restricted to the K/V that decode has a layer for. The decode server uses vLLM's own."""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.nixl.connector import NixlPullConnector

from pdtrim_plugins.vllm.shared_layers import SharedLayersMixin


class PDTrimNixlConnector(SharedLayersMixin, NixlPullConnector):  # type: ignore[misc]
    """NIXL: decode reads the K/V from prefill's memory."""


def __getattr__(name: str) -> Any:
    """Return the example connector, which exports of older versions look for here; it is imported for nobody else."""
    if name == "PDTrimExampleConnector":
        from pdtrim_plugins.vllm import example_connector  # noqa: PLC0415 - only where it is used

        return example_connector.PDTrimExampleConnector
    raise AttributeError(name)
