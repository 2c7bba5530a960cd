"""SliceGPT: rotates hidden states to their principal components, and cuts off those of the lowest variance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pdtrim_core.api import PdtrimError, Pruned, Pruner

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from pdtrim_core.api import BlockModel, PruneContext, PruneFacts

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""By `model_type`: blocks with one RMS norm in front of attention and one in front of a gated MLP, and no other."""
LARGE = 256
STEP = 8
"""Hidden sizes from `LARGE` on are cut to multiples of this, which suit matrix products."""


class SliceGpt(Pruner):
    """Rotates hidden states to their principal components and cuts off the last ones: a new model replaces the dense one.

    The hidden size is the same between all blocks. It stays whole before the head and, where embeddings are tied to the head,
    after them: so the head is the dense model's.
    """

    name = "slicegpt"
    cites = "SliceGPT, section 3 (arXiv:2401.15024)"
    replaces_model = True

    windows: int = Field(128, gt=0, description="calibration windows at most (the authors' code: 128)")
    window: int = Field(128, gt=1, description="tokens of a calibration window (the authors' code: 2048)")
    signal: Literal["stream", "normed"] = Field(
        "stream",
        description="what the principal components are computed on: stream, the hidden states as they are, as in the authors' "
        "code; normed, each token divided by its root mean square, so that all have the same weight",
    )

    def problems(self, facts: PruneFacts) -> list[str]:
        """Return why the norms of a family cannot be fused."""
        problem = (
            f"slicegpt can rotate models of the families {', '.join(FAMILIES)}, and {facts.model} is of {facts.family}: choose "
            "another pruner"
        )
        return [problem] if facts.family not in FAMILIES else []

    def prune(self, context: PruneContext) -> Pruned:
        """Return the sliced model whose number of parameters, with the rotations of its shortcuts, is closest to the budget."""
        from pdtrim_plugins.pruners.rotation import Slicer  # noqa: PLC0415 - listings must not import torch

        model = context.model
        self.check(context.facts)
        width = nearest_width(model, context.parameters)
        windows = context.windows(self.window, self.windows)
        hidden, tokens = model.config.hidden_size, len(windows) * self.window
        context.note(f"slicegpt cut the hidden size from {hidden} to {width}, computed on {tokens} tokens")
        if tokens < hidden:
            context.note(f"slicegpt: {tokens} tokens are too few for {hidden} principal components: use more calibration samples")
        slicer = Slicer(model, width, normed=self.signal == "normed")
        return Pruned(replaced=slicer.slice(windows, batch_tokens=context.batch_tokens, reached=context.reached))

    def restore(self, model: BlockModel, weights: Mapping[str, Tensor]) -> BlockModel:
        """Rebuild the sliced model from its weights."""
        from pdtrim_plugins.pruners.rotation import sliced_again  # noqa: PLC0415 - listings must not import torch

        return sliced_again(model, weights)


def nearest_width(model: BlockModel, fewer: int) -> int:
    """Return the hidden size at which a sliced model has `fewer` parameters than the dense one, as closely as possible.

    With a budget of 0 nothing is cut, though the rotations add parameters. Raises `PdtrimError` where even the smallest hidden
    size leaves too many.
    """
    hidden = model.config.hidden_size
    if fewer <= 0:
        return int(hidden)
    widths = range(STEP, hidden + 1, STEP) if hidden >= LARGE else range(1, hidden + 1)
    wanted = model.sizes.parameters - fewer
    most = model.sizes.parameters - sliced_parameters(model, widths[0])
    if fewer > most:
        raise PdtrimError(
            f"slicegpt can remove at most {most} of the {model.sizes.parameters} parameters of {model.name}, and the budget is "
            f"{fewer}: remove less, or choose another pruner"
        )
    return min(widths, key=lambda width: (abs(sliced_parameters(model, width) - wanted), width))


def sliced_parameters(model: BlockModel, width: int) -> int:
    """Return how many parameters the model has with its hidden size cut to a width, with the rotations of its shortcuts."""
    from torch import nn  # noqa: PLC0415 - listings must not import torch

    hidden, count = model.config.hidden_size, model.sizes.parameters
    embedding = model.model.get_input_embeddings()
    tied = embedding.weight is model.model.get_output_embeddings().weight
    count -= 0 if tied else embedding.num_embeddings * (hidden - width)
    for index in range(model.block_count):
        before = hidden if tied and index == 0 else width
        after = hidden if index == model.block_count - 1 else width
        units = model.units(index)
        query, key, value, attended, gate, up, down = [*units.projections("attention"), *units.projections("mlp")]
        for linear, cut in ((query, before), (key, before), (value, before), (gate, width), (up, width)):
            assert isinstance(linear, nn.Linear)
            count -= linear.out_features * (hidden - cut)
        for linear, cut in ((attended, width), (down, after)):
            assert isinstance(linear, nn.Linear)
            count -= (linear.in_features + (linear.bias is not None)) * (hidden - cut)
        count += before * width + width * after - 2 * hidden
    return int(count)
