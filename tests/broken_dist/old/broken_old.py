"""Was made for hooks of long ago; the tests say what became of them."""

from __future__ import annotations

from pdtrim_core import hookimpl


@hookimpl
def pdtrim_layers(model: object) -> None:
    """Answer a question that is called otherwise now."""
    del model


@hookimpl
def pdtrim_note_made(text: str) -> None:
    """Ask for an argument that is called otherwise now."""
    del text
