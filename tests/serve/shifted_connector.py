"""A connector with a fault that nothing tells: each layer's K/V go under the name of the next one."""

from __future__ import annotations

from typing import Any

from pdtrim_plugins.vllm.connector import PDTrimNixlConnector


class ShiftedConnector(PDTrimNixlConnector):
    """Hands over layer 1 where decode wants layer 0, and so on."""

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        shared = [name for name in kv_caches if name in self.shared_layers]
        moved = dict(zip(shared, [kv_caches[name] for name in (*shared[1:], shared[0])], strict=True))
        super().register_kv_caches({**kv_caches, **moved})
