"""What recoveries learn from, as tokens of the model, each text checked against its vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

from pdtrim_core.data.tokens import opening_of, tokens_of
from pdtrim_core.errors import blame
from pdtrim_core.pipeline.run_context import RunContext
from pdtrim_core.pipeline.run_inputs import RunInputs


@dataclass(frozen=True)
class TrainingTokens:
    """The training part of a run's calibration source, and texts as tokens of its model."""

    context: RunContext
    inputs: RunInputs

    def opening(self) -> tuple[int, ...]:
        """Return the tokens that the tokenizer puts in front of a text. Raises `PdtrimError` if the model does not have them."""
        found = opening_of("text", self.inputs.model.tokenizer)
        self.inputs.model.check_ids(found, "what its tokenizer puts in front of a text")
        return found

    def of(self, text: str, number: int, source: str) -> tuple[int, ...]:
        """Return the tokens of a source's text. Raises `PdtrimError` with its number if the model lacks one of them."""
        found = tokens_of(text, self.inputs.model.tokenizer)
        self.inputs.model.check_ids(found, f"the text {number} of recovery_data.sources '{source}'")
        return found

    def texts(self) -> list[str]:
        """Return the training texts of the calibration source."""
        calibration = self.context.recipe.calibration
        with blame(self.context.host.label_of(calibration)):
            return list(calibration.training_texts(self.context.rng("recovery texts")))

    def prompts(self) -> list[str]:
        """Return the training prompts of the calibration source; none that measures."""
        calibration = self.context.recipe.calibration
        with blame(self.context.host.label_of(calibration)):
            prompts = list(calibration.training_prompts(self.context.rng("recovery prompts of the source")))
        return [prompt for prompt in prompts if not self.inputs.calibration.holds(prompt)]
