"""Classes for pruned checkpoints that no stock class of transformers can load. Importing this module registers them."""

from __future__ import annotations

from pdtrim_plugins.checkpoints.classes import CONFIG_KEY, EXPERTS_FORMAT, FORMAT, PARTS_FORMAT, classes_of, register

__all__ = ["CONFIG_KEY", "EXPERTS_FORMAT", "FORMAT", "PARTS_FORMAT", "classes_of", "register"]

register()
