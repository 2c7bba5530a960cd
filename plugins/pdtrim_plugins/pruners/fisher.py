"""Fisher: removes the heads and channels that the dense model's predictions notice least, and lets the others take over.

Shape suffixes: B text, T token, V vocabulary, C channel (an input of a part's output projection), K kept channel, R removed one,
U unit, O output of that projection.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from pydantic import Field

from pdtrim_core.api import PdtrimError, Pruned, Pruner, Removal, Shrink
from pdtrim_plugins.pruners.channels import Parts
from pdtrim_plugins.pruners.units import (
    PARTS,
    Part,
    Place,
    adaptive,
    fused_parts,
    output_of,
    places_of,
    problems_of,
    size_of,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pdtrim_core.api import BlockModel, PruneContext, PruneFacts

Texts = Sequence[Sequence[int]]
BATCH_TOKENS = 1024
"""Tokens a batch where the recipe says nothing."""
MEAN_TOKENS = 8192
"""About how many tokens means are taken over, since they take a pass of the model of their own."""
IN_RANKING = 0.75
"""The share of the work that the ranking is: its passes also go back, which takes about twice as long as to go forth."""


class Fisher(Pruner):
    """Removes the heads and MLP channels that the dense model's own predictions depend on least, by one ranking of all blocks.

    What a unit is worth is how far the next token's distribution would move, to second order, if its mean output stood in its
    place: half of the mean of (g d)^2 over tokens, with d the distance of the unit's output from its mean, and g the gradient of
    the log-probability of a token that is drawn from the model's own distribution (the Fisher information; Kwon et al., 2022,
    take labels for it). Units go in the order of that, divided by the weights that they hold. So scores of all blocks, and of
    heads and channels, are in one unit, nats a token, and none has to be standardised.

    Then the output projection of each narrowed part is solved for anew, so that the kept channels give what all of them gave,
    with least squares (as in OBS and its kin; SlimGPT, 2024). Parts are solved for in the dense model, one by one.

    The dense model writes the texts that this is measured on itself: its greedy answers to the calibration's training prompts,
    which are what decode will have to write, and others that are sampled, for width. All of their tokens count. Decode does not
    run the first ones, but what they leave in the K/V is what all others attend to: a prefill without channels that were chosen
    behind them is nats away from the dense one, so neither prefill nor a unified model could lose the same. Each part keeps its
    best unit. Biases are those of the narrowed parts and belong to decode, as FLAP's do.
    """

    name = "fisher"
    cites = "Kwon et al. (arXiv:2204.09656), SlimGPT (arXiv:2412.18110); measured on what the model itself writes, ours"

    texts: int = Field(192, gt=0, description="texts that are sampled from the dense model")
    answers: int = Field(
        192, ge=0, description="training prompts of the calibration that the dense model answers for it, or as many as there are"
    )
    parts: Parts = "mlp"
    beginning: int = Field(
        0,
        ge=0,
        description="tokens at the beginning of each text that do not count; then decode alone can do without the channels",
    )
    take_over: bool = Field(
        default=True, description="solve for the weights of kept channels anew; if not, only the removed ones' mean is a bias"
    )
    multiple: int = Field(
        8, gt=0, description="how many channels are left of an MLP is a multiple of this, as the kernels of accelerators want it"
    )
    ridge: float = Field(
        0.01, gt=0, description="how strongly the solved weights are held at the old ones, as a share of the inputs' mean square"
    )

    @property
    def narrows(self) -> frozenset[Part]:
        """The parts that may lose units."""
        return frozenset(PARTS if self.parts == "both" else (self.parts,))

    @property
    def uniform(self) -> bool:
        """Never: narrowed blocks get biases, which no config describes."""
        return False

    def problems(self, facts: PruneFacts) -> list[str]:
        """Return why this budget is beyond the model's units."""
        return list(problems_of(self.name, facts, self.narrows)) if facts.parameters else []

    def prune(self, context: PruneContext) -> Pruned:
        """Return shrinks of both parts, and the output projection of each.

        Raises `PdtrimError` where texts are too short, and where what is measured is not finite.
        """
        model = context.model
        if not context.parameters:
            return Pruned(Removal())
        self.check(context.facts)
        for part in fused_parts(model.sizes, self.narrows):
            context.note(f"pruner 'fisher' keeps the {part} of this family whole, because its projections are fused or experts")
        written = [*context.answered_prompts(self.answers), *context.written_texts(self.texts)]
        texts = [text for text in written if len(text) > self.beginning + 1]
        if not texts:
            raise PdtrimError(
                f"pruner 'fisher' needs texts of more than {self.beginning + 1} tokens: raise recovery_data.answer_tokens, or "
                "lower pruner.beginning"
            )
        batches = _batches(texts, context.batch_tokens or BATCH_TOKENS)
        context.reached(0)
        means = self._means(model, batches)
        worth = self._worth(context, batches, means)
        scores = {place: (of_units / size_of(model, place)[1]).tolist() for place, of_units in worth.items()}
        chosen = adaptive(model, scores, context.parameters, multiple=self.multiple)
        shrinks = {place: Shrink(*place, tuple(sorted(units))) for place, units in chosen.items() if units}
        outputs = self._outputs(context, batches, means, shrinks)
        return Pruned(Removal(shrinks.values()), {shrink: outputs[place] for place, shrink in shrinks.items()})

    def _means(self, model: BlockModel, batches: Sequence[Texts]) -> dict[Place, Tensor]:
        """Return the mean of what goes into the projection out of each part, `[C]`, over some batches of all lengths."""
        import torch  # noqa: PLC0415 - listings must not import torch

        sums: dict[Place, Any] = dict.fromkeys(places_of(model.sizes, self.narrows), 0.0)
        tokens, count = sum(len(text) for batch in batches for text in batch), 0
        with torch.no_grad(), _inputs_of(model, list(sums)) as seen:
            for batch in batches[:: max(1, tokens // MEAN_TOKENS)]:
                model.model.base_model(input_ids=_ids(model, batch), use_cache=False)
                for place, inputs in seen.items():
                    sums[place] += self._behind(inputs, batch).double().sum((0, 1))
                count += sum(len(text) - self.beginning for text in batch)
        _check_finite(sums, "what goes into the projection out of")
        return {place: of_place / count for place, of_place in sums.items()}

    def _worth(self, context: PruneContext, batches: Sequence[Texts], means: Mapping[Place, Tensor]) -> dict[Place, Tensor]:
        """Return the Fisher information that each unit holds beyond its mean, `[U]`, summed over tokens."""
        import torch  # noqa: PLC0415 - listings must not import torch

        from pdtrim_core.api import drawn  # noqa: PLC0415 - it needs torch

        model, places = context.model, list(means)
        generator = torch.Generator(device=model.device).manual_seed(context.rng.randrange(2**32))
        found: dict[Place, Any] = dict.fromkeys(places, 0.0)
        with torch.enable_grad(), _inputs_of(model, places) as seen, _from_embeddings(model):
            for number, batch in enumerate(batches):
                context.reached(IN_RANKING * number / len(batches))
                logits_BTV = model.model(input_ids=_ids(model, batch), use_cache=False).logits[:, self.beginning :]
                logprobs_NV = logits_BTV.flatten(0, 1).float().log_softmax(dim=-1)
                labels_N1 = drawn(logprobs_NV.detach(), generator)
                inputs = [seen[place] for place in places]
                gradients = torch.autograd.grad(logprobs_NV.gather(1, labels_N1).sum(), inputs)
                for place, given, gradient in zip(places, inputs, gradients, strict=True):
                    moved_BTC = self._behind(given.detach(), batch).float() - means[place].to(given.device).float()
                    noticed_BTC = self._behind(gradient, batch).float() * moved_BTC
                    noticed_BTU = noticed_BTC.view(*noticed_BTC.shape[:2], size_of(model, place)[0], -1).sum(-1)
                    found[place] += noticed_BTU.double().square().sum((0, 1)).cpu()
        _check_finite(found, "the gradient in")
        return found

    def _outputs(
        self, context: PruneContext, batches: Sequence[Texts], means: Mapping[Place, Tensor], shrinks: Mapping[Place, Shrink]
    ) -> dict[Place, nn.Module]:
        """Return the projection out of each narrowed part: over the kept channels, with a bias for what is constant.

        The dense model runs block by block, so that only one block's sums are in memory.
        """
        import torch  # noqa: PLC0415 - listings must not import torch

        model, found = context.model, dict[Place, Any]()
        with torch.no_grad():
            recordings = [model.record(_ids(model, batch)) for batch in batches]
            states = [recording.hidden_BTD for recording in recordings]
            for block in range(model.block_count):
                context.reached(IN_RANKING + (1 - IN_RANKING) * block / model.block_count)
                here = {place: Solved(model, shrink, means[place]) for place, shrink in shrinks.items() if place[0] == block}
                with _inputs_of(model, list(here)) as seen:
                    for number, (recording, batch) in enumerate(zip(recordings, batches, strict=True)):
                        states[number] = model.run(block, states[number], recording.calls)
                        for place, solved in here.items() if self.take_over else ():
                            solved.add(self._behind(seen[place], batch).flatten(0, 1))
                found |= {place: solved.projection(self.ridge) for place, solved in here.items()}
        context.reached(1)
        return found

    def _behind(self, values_BTC: Tensor, batch: Texts) -> Tensor:
        """Return the values of the tokens that decode runs; some families flatten texts and tokens before their MLP."""
        return values_BTC.reshape(len(batch), -1, values_BTC.shape[-1])[:, self.beginning :]


class Solved:
    """The output projection of a narrowed part, whose kept channels take over from the removed ones."""

    def __init__(self, model: BlockModel, shrink: Shrink, mean_C: Tensor) -> None:
        from pdtrim_plugins.recoveries.least_squares import RidgeSums  # noqa: PLC0415 - listings must not import torch

        self._out = output_of(model, (shrink.block, shrink.part))
        self._removed = model.units(shrink.block).numbers(self._out, shrink.part, shrink.units, out=True)
        self._kept = sorted(set(range(self._out.in_features)) - set(self._removed))
        self._mean_C = mean_C.float()
        self._sums = RidgeSums()
        self._what = f"the {shrink.part} of block {shrink.block}"

    def add(self, inputs_NC: Tensor) -> None:
        """Add what some tokens give to the projection."""
        moved_NC = inputs_NC.float() - self._mean_C.to(inputs_NC.device)
        lost_NO = moved_NC[:, self._removed] @ self._out.weight[:, self._removed].float().T
        self._sums.add(moved_NC[:, self._kept], lost_NO)

    def projection(self, ridge: float) -> nn.Module:
        """Return it: the old weights and a bias, where no token was added."""
        import torch  # noqa: PLC0415 - listings must not import torch

        weight_OC, out = self._out.weight.detach(), self._out
        weight_OK, mean_C = weight_OC[:, self._kept].float(), self._mean_C.to(weight_OC.device)
        bias_O = weight_OC[:, self._removed].float() @ mean_C[self._removed]
        if out.bias is not None:
            bias_O += out.bias.detach().float()
        if self._sums.tokens:
            taken_over_OK = self._sums.solved(ridge, f"pruner 'fisher', {self._what}").T.to(weight_OK)
            weight_OK = weight_OK + taken_over_OK
            bias_O -= taken_over_OK @ mean_C[self._kept]
        thin = torch.nn.Linear(len(self._kept), out.out_features, device="meta")
        thin.weight, thin.bias = (
            torch.nn.Parameter(values.to(weight_OC.dtype), requires_grad=False) for values in (weight_OK, bias_O)
        )
        return thin.train(out.training)


def _check_finite(found: Mapping[Place, Tensor], what: str) -> None:
    """Raise `PdtrimError` where a number of a part is not finite."""
    for (block, part), numbers in found.items():
        if not numbers.isfinite().all():
            raise PdtrimError(
                f'pruner \'fisher\': {what} the {part} of block {block} is not finite: say model.dtype = "float32" or "bfloat16"'
            )


def _batches(texts: Texts, tokens: int) -> list[Texts]:
    """Return the texts in batches of so many tokens at most, each with texts of one length, so that none is padded."""
    of_length: dict[int, list[Sequence[int]]] = {}
    for text in texts:
        of_length.setdefault(len(text), []).append(text)
    at_once = {length: max(1, tokens // length) for length in of_length}
    return [
        alike[start : start + at_once[length]]
        for length, alike in of_length.items()
        for start in range(0, len(alike), at_once[length])
    ]


def _ids(model: BlockModel, batch: Texts) -> Tensor:
    import torch  # noqa: PLC0415 - listings must not import torch

    return torch.tensor([list(text) for text in batch], device=model.device)


@contextmanager
def _inputs_of(model: BlockModel, places: Sequence[Place]) -> Iterator[dict[Place, Tensor]]:
    """Inside the context, what last went into the projection out of each part is in the given dictionary."""
    seen: dict[Place, Tensor] = {}
    with ExitStack() as hooks:
        for place in places:

            def take(_module: nn.Module, args: tuple[Any, ...], place: Place = place) -> None:
                seen[place] = args[0]

            hooks.callback(output_of(model, place).register_forward_pre_hook(take).remove)
        yield seen


@contextmanager
def _from_embeddings(model: BlockModel) -> Iterator[None]:
    """Let gradients flow from the embeddings on inside the context: no weight has one."""
    handle = model.model.get_input_embeddings().register_forward_hook(lambda _module, _args, made: made.requires_grad_())
    try:
        yield
    finally:
        handle.remove()
