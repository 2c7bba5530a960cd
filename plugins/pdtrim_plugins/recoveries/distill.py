"""The pair trained: the dense model's answers learned by the layers that are left, or its K/V by those that only make K/V."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field

from pdtrim_core.api import PdtrimError, Recovery, RecoveryFacts

if TYPE_CHECKING:
    from torch import nn

    from pdtrim_core.api import Layer, RecoveryContext, Stage
    from pdtrim_plugins.recoveries.step_losses import StepLoss
    from pdtrim_plugins.recoveries.trained_weights import Trained, TrainedWeights

LARGE = 1e9
"""Parameters of a model from which on `train = "auto"` is LoRA: training all takes four numbers in float32 for each weight."""
LR: Mapping[str, float] = {"full": 1e-4, "lora": 2e-4}
NO_PEFT = "train = 'lora' needs peft, which is not installed: pip install 'pdtrim-core[distill]', or say train = 'full'"
STAGES: tuple[Stage, ...] = ("prefill", "decode")


class Part(NamedTuple):
    """A training: the file of its progress, what it trains, and whether it is towards the dense K/V and not the answers."""

    file: str
    trained: Trained
    of_cache: bool = False


class Distill(Recovery):
    """Trains decode, on the K/V that prefill makes, to answer as the dense model does, at no cost when the pair runs.

    A step takes some texts, each a prompt and a continuation. The dense model reads them whole; prefill reads the prompts, and
    decode the continuations on prefill's K/V, through which no gradient flows. The loss is KL(dense || pair), in nats a token,
    over the tokens of the continuations. AdamW changes the layers of decode from the first changed one up; the embeddings, tied
    to the head or not, the final norm and the head stay as they are. The weights that came nearest to the dense model on the
    texts to check with are taken. Training decode on the K/V of a prefill that stays comes from OverFill, whose decode is
    narrower, and PrefillShare, where it does as well as training both; the loss here is the whole distribution of the dense
    model, not the next token of a text.

    With `stage = "prefill"` or "both" prefill is trained, too. Under the contract "pair" the same loss trains it, through the K/V
    that decode reads, in the same steps. Under "dense-cache" its K/V must mean the same to every decode, so only the blocks that
    it skips are trained, and not towards answers but towards the dense model's K/V: the loss is the mean squared difference,
    as a share of the mean square. That is a training of its own, in front of decode's.
    """

    name = "distill"
    cites = "OverFill, 2025 (arXiv:2508.08446); PrefillShare, 2026 (arXiv:2602.12029)"

    tokens: int = Field(500_000, gt=0, description="tokens of text to train on, at most; prompts count")
    stage: Literal["decode", "prefill", "both"] = Field(
        "decode",
        description="the stage that is trained; of prefill, with contract = dense-cache, the K/V of blocks that it skips, "
        "towards the dense model's; with contract = pair, all that the pair's answers depend on",
    )
    train: Literal["auto", "lora", "full"] = Field(
        "auto",
        description="full: all weights that the contract leaves free; lora: adapters of low rank to them, merged at the end (by "
        "peft); auto: lora for models of more than 1e9 parameters",
    )
    contract: Literal["dense-cache", "pair"] = Field(
        "dense-cache",
        description="dense-cache: what makes K and V in decode stays as it is, so that every prefill whose K/V are the dense "
        "model's can feed it; pair: it is trained too, and each stage belongs to the other alone",
    )
    rank: int = Field(16, gt=0, description="rank of the adapters of lora, which count twice")
    lr: float | None = Field(None, gt=0, description="highest learning rate of AdamW; without it 1e-4 for full and 2e-4 for lora")
    steps: int | None = Field(None, gt=0, description="steps of the training; without it one pass over the texts")
    batch: int = Field(8, gt=0, description="texts a step")
    warm_up: float = Field(
        0.05, ge=0, lt=1, description="share of the steps in which the learning rate rises; behind them it falls to 0 as a cosine"
    )
    clip: float = Field(
        1.0, gt=0, description="longest gradient, as the norm of all its numbers; longer ones are scaled down to it"
    )
    temperature: float = Field(
        1.0, gt=0, description="the logits of both models are divided by it in the loss, which is multiplied by its square"
    )
    stream_weight: float = Field(
        0.0,
        ge=0,
        description="weight in the loss of the mean squared difference of the hidden states behind the last block, as a share of "
        "the mean square of the dense model's",
    )
    autocast: bool = Field(default=False, description="whether steps compute in bfloat16 whatever the model's number format")
    recompute: bool = Field(
        default=False,
        description="whether each block is computed again when the gradient reaches it: less memory, and about a third more time",
    )
    check_every: int = Field(50, gt=0, description="steps between two looks at the texts to check with")
    save_every: int = Field(
        50, gt=0, description="steps between two times that all is written that a killed run needs to go on from there"
    )

    def problems(self, facts: RecoveryFacts) -> list[str]:
        """Return why nothing of this family can be trained, or not so."""
        found = []
        if not facts.layout.kv and not facts.layout.mlp:
            found.append(
                f"{facts.model} ({facts.family}): its projections are fused, those of K and V with that of Q, so none can be "
                "trained that leaves the K/V as they are"
            )
        if self.train == "lora" and find_spec("peft") is None:
            found.append(NO_PEFT)
        return found

    def texts(self, text_tokens: int) -> int:
        """Return how many texts the tokens give, or the steps need where that is less."""
        given = super().texts(text_tokens)
        return given if self.steps is None else min(given, self.steps * self.batch)

    def recover(self, context: RecoveryContext) -> None:
        """Train the layers, or go on where an earlier try of the run ended; give them the weights that were best."""
        seed = context.rng.getrandbits(32)
        for part in self._parts(context):
            if any(part.trained.values()):
                self._train(context, part, seed)
            elif part.of_cache:
                context.note("distill: prefill skips no block whose K/V could be trained, so nothing of it is trained")
            else:
                context.note("distill: the plan takes nothing away that training could make up for")

    def _parts(self, context: RecoveryContext) -> Iterator[Part]:
        """Yield the trainings, in order; with the contract dense-cache decode learns on the K/V that prefill has learned."""
        answers = self._stages(context)
        if self.contract == "dense-cache" and "prefill" in answers:
            yield Part("kv.safetensors", self._passed(context), of_cache=True)
            answers = tuple(stage for stage in answers if stage == "decode")
        if answers:
            yield Part("training.safetensors", {key: names for stage in answers for key, names in self._trained(context, stage)})

    def _stages(self, context: RecoveryContext) -> tuple[Stage, ...]:
        if context.unified:
            return ("decode",)
        return STAGES if self.stage == "both" else (self.stage,)

    def _train(self, context: RecoveryContext, part: Part, seed: int) -> None:
        from pdtrim_plugins.recoveries.training import Progress, Schedule, Training  # noqa: PLC0415 - needs torch

        progress = Progress(context.folder / part.file, self._key(context, seed))
        trial = context.trial()
        method = self._method(context)
        steps, highest = self.steps or max(1, len(context.texts) // self.batch), self.lr or LR[method]
        training = Training(
            self._weights(method, trial, part.trained, seed),
            trial,
            progress,
            Schedule(steps, self.batch, lambda step: highest * self._share(step, steps), seed, self.clip),
            self._loss(of_cache=part.of_cache),
        )
        best = training.run(context, check_every=self.check_every, save_every=self.save_every)
        if best is None:
            context.note(
                "distill: at no check was the pair nearer to the dense model than before, so its weights stay as they were"
            )
            return
        for stage, layer, weights in best:
            context.change(stage, layer, weights)

    def _loss(self, *, of_cache: bool) -> StepLoss:
        from pdtrim_plugins.recoveries.step_losses import AnswerLoss, CacheLoss  # noqa: PLC0415 - needs torch

        if of_cache:
            return CacheLoss()
        return AnswerLoss(self.temperature, self.stream_weight, self.autocast, self.recompute)

    def _share(self, step: int, steps: int) -> float:
        """Return the learning rate of a step as a share of the highest: rising in a line, then falling as half a cosine."""
        rising = math.ceil(self.warm_up * steps)
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))

    def _method(self, context: RecoveryContext) -> Literal["lora", "full"]:
        if self.train == "auto":
            return "lora" if context.model.sizes.parameters > LARGE else "full"
        return self.train

    def _weights(self, method: str, trial: RecoveryContext, trained: Trained, seed: int) -> TrainedWeights:
        from pdtrim_plugins.recoveries.trained_weights import AllWeights, LowRankWeights  # noqa: PLC0415 - needs torch

        if method == "full":
            return AllWeights(trial, trained)
        if find_spec("peft") is None:
            raise PdtrimError(f"distill: {NO_PEFT}")
        return LowRankWeights(trial, trained, rank=self.rank, seed=seed)

    def _passed(self, context: RecoveryContext) -> dict[tuple[Stage, Layer], tuple[str, ...]]:
        """Return the names of the weights that make the K/V of the blocks that prefill skips."""
        passed = [layer for layer in context.layers("prefill") if layer.state == "kv-only"]
        return {("prefill", layer): tuple(self._names(context, "prefill", layer)) for layer in passed}

    def _trained(self, context: RecoveryContext, stage: Stage) -> Iterator[tuple[tuple[Stage, Layer], tuple[str, ...]]]:
        """Yield the names of the weights of a stage that answers train, by its layers from the first changed one up."""
        lost = [
            block for removal in (context.plan.prefill, context.plan.decode) for element in removal for block in element.blocks
        ]
        layers = context.layers(stage) if lost else ()
        # Where the first lost block is gone it is the layer in front of it that has to make up for it.
        first = max((layer.block for layer in layers if layer.block <= min(lost)), default=0)
        for number, layer in enumerate(layers):
            # Behind the last K/V that decode reads no answer depends on prefill, unless it makes the first token.
            matters = stage == "decode" or context.pair.first_token == "prefill"
            if layer.block >= first and (matters or any(one.kv_slot is not None for one in layers[number:])):
                yield (stage, layer), tuple(self._names(context, stage, layer))

    def _names(self, context: RecoveryContext, stage: Stage, layer: Layer) -> Iterator[str]:
        layout = context.model.layout
        of_kv = _within(layout.kv[:3])
        # Norms of K are given heads and not tokens: no stage can have its own.
        fixed = _within(layout.kv[3:])
        if layer.runs and self.contract == "dense-cache":
            fixed += of_kv
        free = of_kv if not layer.runs else ("",) if layout.kv else _within(layout.mlp)
        for name, weight in context.module(stage, layer).named_parameters():
            if name.startswith(fixed) or not name.startswith(free):
                continue
            if not weight.is_floating_point():
                raise PdtrimError(
                    f"distill: the weight {name} of block {layer.block} has the format {weight.dtype}, which cannot be trained: "
                    "open the model without quantisation"
                )
            yield name

    def _key(self, context: RecoveryContext, seed: int) -> str:
        """Return a hash of all that decides what a training comes to."""
        of_texts = [[text.prompts, text.choices] for text in (*context.texts, *context.check)]
        pair = context.pair
        what = [
            self.model_dump(mode="json", exclude={"save_every"}),
            [context.model.exact_fingerprint, str(context.model.dtype), repr(context.plan), seed, len(context.texts)],
            [pair.first_token, pair.batch_tokens, of_texts],
        ]
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode())
        dense = {id(weight) for weight in context.model.model.parameters()}
        for stage in STAGES:
            for layer in context.layers(stage):
                _add(digest, f"{stage} {layer}", context.module(stage, layer), without=dense)
        return digest.hexdigest()


def _within(parts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{part}." for part in parts)


def _add(digest: hashlib._Hash, where: str, module: nn.Module, *, without: set[int]) -> None:
    """Add the weights of a module to a hash, but for those that a set has."""
    import torch  # noqa: PLC0415 - listings must not import torch

    for name, weight in module.named_parameters():
        if id(weight) not in without:
            digest.update(f"{where} {name}\n".encode())
            digest.update(weight.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
