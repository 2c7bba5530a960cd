"""The kinds of component that give the layers of a finished plan other numbers: recoveries, and then quantizers."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from pdtrim_core.api.component import Component
from pdtrim_core.api.format_facts import FormatFacts
from pdtrim_core.api.recovery_facts import RecoveryFacts
from pdtrim_core.plan.elements import Stage
from pdtrim_core.plan.layers import Layer

if TYPE_CHECKING:
    from torch import Tensor

    from pdtrim_core.api.recovery_context import RecoveryContext
    from pdtrim_core.execution.stage_walk import WalkedLayer

Contract = Literal["dense-cache", "pair"]
"""What holds of the K/V that the stages hand over; see `Recovery.contract`."""


if TYPE_CHECKING:
    property_or_option = property
else:

    class property_or_option(property):  # noqa: N801 - it is a decorator
        """A property instead of which a subclass may have an option of the same name.

        pydantic lets no option have the name of an attribute of a class above, so that only instances have this one.
        """

        def __get__(self, instance: Any, owner: type | None = None) -> Any:
            if instance is None:
                raise AttributeError(self.fget.__name__)
            return vars(instance).get(self.fget.__name__, self.fget(instance))


class Recovery(Component):
    """Makes a pruned pair good again: gives the layers that are left other weights, for the same plan."""

    kind = "recovery"

    tokens: int = Field(25_600, gt=0, description="tokens of text that it is computed from")
    optional: bool = Field(
        default=False, description="whether it is left out, with a note, for a model that it can do nothing for, and not refused"
    )

    @property_or_option
    def contract(self) -> Contract:
        """What holds of the K/V that prefill hands over.

        With "dense-cache" they stay the dense model's, or come nearer to them: decode's weights for K/V, and those of the blocks
        that prefill runs, may not change. With "pair" all may, and the two checkpoints belong together. A recovery with another
        contract has a property, or an option, of this name.
        """
        return "dense-cache"

    def texts(self, text_tokens: int) -> int:
        """Return how many texts of so many tokens it is computed from at most."""
        return math.ceil(self.tokens / text_tokens)

    def problems(self, facts: RecoveryFacts) -> list[str]:
        """Return why such a model cannot be recovered so, a sentence each, as far as that is certain without the weights.

        It is called by `pdtrim-core check --budget`, and by a run before it measures anything. It must be quick.
        """
        del facts
        return []

    @abstractmethod
    def recover(self, context: RecoveryContext) -> None:
        """Change layers of the pair with `context.change`, or with that of the layers of `context.walk`.

        The dense model must be left as it is. What makes the pair no better on texts that it was not computed from is undone by
        the run.
        """


class LayerRecovery(Recovery):
    """A recovery that gives layers other weights one by one, from shallow to deep, each by what it sees at that layer alone.

    A search can measure its candidates with what such a recovery would make of them (`search.recovered`), estimated from the
    dense model's hidden states.
    """

    streams: ClassVar[bool] = True

    def stages(self) -> tuple[Stage, ...]:
        """Return the stages whose layers it goes through, in order; of a pair that is one model, decode stands for both."""
        return "prefill", "decode"

    def wants(self, stage: Stage, layer: Layer, gone: range) -> bool:
        """Tell whether it may change a layer; those that it does not want are passed without a look at their tokens.

        `gone` are the blocks of the dense model between the layer and what the stage runs next.
        """
        del stage, layer, gone
        return True

    @abstractmethod
    def weights(self, layer: WalkedLayer) -> Mapping[str, Tensor]:
        """Return other weights of a layer, by their names in the block, in their shapes and number format.

        None of them leaves it as it is.
        """

    def recover(self, context: RecoveryContext) -> None:
        """Change the layers of each stage; those behind a changed one see what it makes then."""
        stages = [stage for stage in self.stages() if stage == "decode" or not context.unified]
        for number, stage in enumerate(stages):
            for layer in context.walk(stage, (number, len(stages)), self.wants):
                weights = self.weights(layer)
                if weights:
                    layer.change(weights)


AS_IT_IS = "none"
"""What a recipe says of a stage whose weights keep the number format of the model."""


class Quantizer(Component):
    """Gives the linear layers of a stage another number format, after pruning and recovery.

    Embeddings, norms and the head stay as they are. A recipe names it in the table `formats`.
    """

    kind = "quantizer"

    schemes: ClassVar[tuple[str, ...]] = ()
    """The names of the formats that it knows, such as "W4A16"."""

    decode: str = Field(AS_IT_IS, description="number format of decode's linear layers, such as W4A16; none: that of the model")
    prefill: str = Field(AS_IT_IS, description="number format of prefill's linear layers; none: that of the model")

    @property
    def formats(self) -> dict[Stage, str]:
        """The formats that stages are to have; those that stay as they are left out."""
        named: dict[Stage, str] = {"prefill": self.prefill, "decode": self.decode}
        return {stage: scheme for stage, scheme in named.items() if scheme != AS_IT_IS}

    def scheme(self, stage: Stage) -> str | None:
        """Return the format of a stage; None where it stays as it is."""
        return self.formats.get(stage)

    def problems(self, facts: FormatFacts) -> list[str]:
        """Return why such layers cannot have these formats, a sentence each; that a format is unknown is told without it.

        It is called by `pdtrim-core check --budget` and before a run measures anything, of the dense model's layers, and again
        of those that pruning left. It must be quick.
        """
        del facts
        return []

    @abstractmethod
    def quantize(self, weight: Tensor, scheme: str) -> dict[str, Tensor]:
        """Return what a checkpoint has in place of a linear layer's `weight`, `[outputs, inputs]`, by the names in that layer.

        The weight has the number format in which the checkpoint stores the model. It must be left as it is.
        """

    @abstractmethod
    def dequantize(self, stored: Mapping[str, Tensor], scheme: str) -> Tensor:
        """Return the weight that is computed with, from what `quantize` returned, in the number format that was given to that."""

    def rounds_inputs(self, scheme: str) -> bool:
        """Tell whether a format quantises what a layer is given, too."""
        del scheme
        return False

    def round_inputs(self, inputs: Tensor, scheme: str) -> Tensor:
        """Return what a layer computes with of its `inputs`, `[..., inputs]`: each token by itself, whatever stands beside it.

        It is only called for formats with `rounds_inputs`.
        """
        del scheme
        return inputs

    @abstractmethod
    def config(self, scheme: str) -> dict[str, Any]:
        """Return the entry `quantization_config` of a checkpoint whose linear layers all have a format, as JSON data.

        Exporters add the names of linear layers outside the blocks to its list `ignore`.
        """
