"""vLLM's example connector, restricted to the K/V that decode has a layer for."""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.example_connector import ExampleConnector

from pdtrim_plugins.vllm.shared_layers import SharedLayersMixin


class PDTrimExampleConnector(SharedLayersMixin, ExampleConnector):  # type: ignore[misc]
    """Shared storage: files in a folder, for experiments."""

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """Load nothing: for a prompt seen before, the files have decode's layers, not all of prefill's."""
        del request, num_computed_tokens
        return 0, False
