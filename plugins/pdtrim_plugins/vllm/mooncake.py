"""The prefill server's connector for Mooncake, in its own module because importing vLLM's warns where Mooncake is missing.

It has never been run: vLLM's connector needs an accelerator. Layer names match by design, since prefill's have decode's index.
"""

from __future__ import annotations

from vllm.distributed.kv_transfer.kv_connector.v1.mooncake.mooncake_connector import MooncakeConnector

from pdtrim_plugins.vllm.shared_layers import SharedLayersMixin


class PDTrimMooncakeConnector(SharedLayersMixin, MooncakeConnector):  # type: ignore[misc]
    """Mooncake, through the same two hooks."""
