"""Pruned checkpoints that no stock class of transformers can hold. Importing this registers the classes that can."""

from __future__ import annotations

from pdtrim_plugins.checkpoints.classes import CONFIG_KEY, FORMAT, classes_of, register

__all__ = ["CONFIG_KEY", "FORMAT", "classes_of", "register"]

register()
