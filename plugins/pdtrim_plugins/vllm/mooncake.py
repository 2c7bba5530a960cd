"""The prefill side's connector for Mooncake, apart from the others because importing vLLM's warns where Mooncake is missing.

Nobody has run it: vLLM's connector wants an accelerator. Layer names match by design, since prefill's carry decode's index.
"""

from __future__ import annotations

from vllm.distributed.kv_transfer.kv_connector.v1.mooncake.mooncake_connector import MooncakeConnector

from pdtrim_plugins.vllm.connector import SharedLayersMixin


class PDTrimMooncakeConnector(SharedLayersMixin, MooncakeConnector):  # type: ignore[misc]
    """Mooncake, by the same two hooks."""
