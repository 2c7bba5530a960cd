"""What connectors of the prefill server have in common: only the K/V that decode has a layer for are handed over.

Only the public hooks of `KVConnectorBase_V1` are used.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pdtrim_core import PdtrimError


class SharedLayersMixin:
    """Restricts a connector to the layers in `kv_connector_extra_config.shared_layers`, the names of decode's layers."""

    @property
    def shared_layers(self) -> tuple[str, ...]:
        """The names, in decode's order. Raises `PdtrimError` where they are not configured."""
        config: Any = self._kv_transfer_config  # type: ignore[attr-defined]
        names = config.get_from_extra_config("shared_layers", None)
        if not isinstance(names, list) or not names:
            raise PdtrimError(
                f"{type(self).__name__} needs kv_connector_extra_config.shared_layers: take --kv-transfer-config from "
                "serve/prefill.json, which pdtrim-core export writes"
            )
        return tuple(names)

    def register_kv_caches(self, kv_caches: dict[str, Tensor]) -> None:
        """Register the caches that decode has a layer for. Raises `PdtrimError` where the model has no cache of such a name."""
        names = self.shared_layers
        missing = [name for name in names if name not in kv_caches]
        if missing:
            raise PdtrimError(
                f"this model has no K/V called {missing[0]}: prefill.json and the checkpoint are from different exports"
            )
        super().register_kv_caches({name: kv_caches[name] for name in names})  # type: ignore[misc]

    def save_kv_layer(self, layer_name: str, kv_layer: Tensor, attn_metadata: Any, **more: Any) -> None:
        """Save the K/V of a layer if decode has it."""
        if layer_name in self.shared_layers:
            super().save_kv_layer(layer_name, kv_layer, attn_metadata, **more)  # type: ignore[misc]
