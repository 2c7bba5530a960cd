"""What a pruner is given, what becomes of its answer, and what a run checks about it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from torch import nn

from pdtrim_core.api import (
    Drop,
    KvOnly,
    Merge,
    PdtrimError,
    PluginError,
    PruneContext,
    Pruned,
    Pruner,
    Removal,
    Shrink,
    hookimpl,
)
from pdtrim_core.data.readings import Candidate
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.host.host import Origin
from pdtrim_core.model.weights import load_modules
from pdtrim_core.pipeline import losses, pipeline
from pdtrim_core.pipeline.prune import digest_of
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.testing import tiny_llama
from pdtrim_core.testing.contracts.small_run import TinyModel, tiny_host
from pdtrim_core.testing.models import tiny_transformers
from pdtrim_plugins.pruners import ShortGpt, Sleb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pdtrim_core import Outcome, PluginHost
    from pdtrim_core.api import BlockModel, LoadedModel

SEQUENCES = [Random(number).choices(range(256), k=length) for number, length in enumerate((5, 9, 1, 14, 9))]
CLOSE = 1e-5
"""Relative: float32 logits of around 10, summed in another order."""


def test_the_digest_tells_all_that_modules_depend_on() -> None:
    digests = {
        digest_of(pruner, "x", budget=budget, training=training)
        for pruner in (Sleb(), Sleb(window=64), ShortGpt())
        for budget in ((2, 1000), (3, 1000), (2, 999))
        for training in ("", "some tokens")
    }
    assert len(digests) == 18
    one, same = (digest_of(pruner, "x", budget=(2, 1000), training="") for pruner in (Sleb(), Sleb(window=128)))
    assert one == same


class Planted(Pruner):
    """Does what a test says."""

    name = "planted"
    answer: ClassVar[Callable[[PruneContext], Any]]

    def prune(self, context: PruneContext) -> Pruned:
        answer: Pruned = type(self).answer(context)
        return answer


class Listener:
    """Hears what was measured."""

    def __init__(self) -> None:
        self.best: list[float | None] = []
        self.advanced: list[tuple[str, float]] = []

    @hookimpl
    def pdtrim_work_advanced(self, what: str, share: float) -> None:
        self.advanced.append((what, share))

    @hookimpl
    def pdtrim_recovery_advanced(self, name: str, share: float) -> None:
        self.advanced.append((name, share))

    @hookimpl
    def pdtrim_candidate_measured(self, candidate: Candidate) -> None:
        self.best.append(candidate.best)


@pytest.fixture
def with_planted() -> PluginHost:
    host = tiny_host()
    host.register(SimpleNamespace(pdtrim_pruners=hookimpl(lambda: [Planted])), Origin("planted", "planted", "1.0"))
    return host


def run(host: PluginHost, out: Path, answer: Callable[[PruneContext], Any], **changes: Any) -> Outcome:
    Planted.answer = staticmethod(answer)
    data: dict[str, Any] = {
        "model": {"path": "tiny:llama"},
        "pruner": "planted",
        "recovery": "none",
        "prune": {"blocks": 2},
        "calibration": {"samples": 4, "held_out": 2},
        "splitter": {"use": "gain", "threshold": 0},
        "objective": "margin",
        "evaluation": {"threads": 1, "fidelity": False},
    }
    return pipeline.run(Recipe.from_data({**data, **changes}, where="planted.toml", out=out, host=host), host)


LABEL = "pruner 'planted' (planted 1.0)"
UNFIT = f"{LABEL} returned a removal that does not fit"


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (Removal(), f"{LABEL} returned Removal where Pruned is expected"),
        (Pruned(Removal([Merge(1, 2)])), f"{LABEL} merged 1+2, but gave no merged block for it"),
        (Pruned(Removal([Drop(1)]), block_scores=(1.0, 2.0)), f"{LABEL} gave 2 block scores for 6 blocks"),
        (
            Pruned(Removal([Drop(1)]), block_scores=(1.0, 2.0, math.nan, 0.0, math.inf, 1.0)),
            f"{LABEL} gave scores that are not finite, the first at position 2",
        ),
        (
            Pruned(Removal([Drop(6)])),
            f"{UNFIT}: this plan changes block 6, but the model has blocks 0 to 5",
        ),
        (
            Pruned(Removal(map(Drop, range(6)))),
            f"{UNFIT}: this plan leaves decode none of the 6 blocks",
        ),
        (
            Pruned(Removal([KvOnly(1)])),
            f"{UNFIT}: this plan breaks the K/V law: decode has kv:1, but K/V-only is a state of prefill",
        ),
        (
            Pruned(Removal([Shrink(1, "mlp", (3, 48))])),
            f"{UNFIT}: block 1 has MLP channels 0 to 47, and the plan removes 48",
        ),
        (
            Pruned(Removal([Shrink(1, "attention", (0, 1))])),
            f"{UNFIT}: block 1 would lose all of its 2 K/V heads: drop the block, or keep one",
        ),
    ],
    ids=["type", "no module", "too few scores", "nan", "beyond", "all", "kv-only", "no such channel", "all heads"],
)
def test_an_answer_that_does_not_fit_is_refused(with_planted: PluginHost, tmp_path: Path, answer: Any, problem: str) -> None:
    with pytest.raises(PluginError) as error:
        run(with_planted, tmp_path, lambda context: answer)
    assert str(error.value) == problem


def test_shrinks_of_a_family_without_units_are_refused(with_planted: PluginHost, tmp_path: Path) -> None:
    answer = Pruned(Removal([Shrink(1, "mlp", (3,))]))
    with pytest.raises(PluginError, match="block 1 cannot lose MLP channels: this family's projections are fused"):
        run(with_planted, tmp_path, lambda context: answer, model={"path": "tiny:phi3"})


def test_a_pruner_that_fails_is_named(with_planted: PluginHost, tmp_path: Path) -> None:
    with pytest.raises(PluginError) as error:
        run(with_planted, tmp_path, lambda context: 1 / 0)
    assert str(error.value) == f"{LABEL} failed: ZeroDivisionError: division by zero"


@pytest.mark.parametrize(
    ("prune", "blocks", "share"), [({"blocks": 2}, 2, None), ({"fraction": 0.2}, None, 0.2), ({"blocks": 0}, 0, 0.0)]
)
def test_both_budgets_say_the_same(
    with_planted: PluginHost, tmp_path: Path, prune: dict[str, Any], blocks: int | None, share: float | None
) -> None:
    told: list[PruneContext] = []

    def answer(context: PruneContext) -> Pruned:
        told.append(context)
        return Pruned(Removal(map(Drop, range(context.blocks))))

    run(with_planted, tmp_path, answer, prune=prune)
    sizes, (context,) = tiny_llama().sizes, told
    expected = context.blocks * sizes.blocks[0].parameters if share is None else round(share * sizes.parameters)
    assert context.parameters == expected
    assert context.blocks == (sizes.blocks_for(0.2) if blocks is None else blocks)
    assert abs(context.parameters - context.blocks * sizes.blocks[0].parameters) <= sizes.blocks[0].parameters / 2


def test_it_is_told_how_much_was_removed_and_how_much_was_asked_for(with_planted: PluginHost, tmp_path: Path) -> None:
    outcome = run(with_planted, tmp_path, lambda context: Pruned(Removal([Drop(1)])), prune={"fraction": 0.3})
    sizes = tiny_llama().sizes
    gone = 100 * sizes.blocks[1].parameters / sizes.parameters
    assert f"{LABEL} removed {gone:.2f} % of the parameters; 30.00 % were asked for" in outcome.notes


def test_what_decode_loses_is_the_answer_and_prefill_a_subset(with_planted: PluginHost, tmp_path: Path) -> None:
    removal = Removal([Drop(1), Drop(4), Shrink(2, "mlp", (0, 5))])
    scores = (0.5, 1.0, 0.25, 0.125, 0.75, 0.0)
    outcome = run(with_planted, tmp_path, lambda context: Pruned(removal, block_scores=scores))
    plan = outcome.plan.plan
    assert plan.decode == removal
    assert {element for element in plan.prefill if not isinstance(element, KvOnly)} <= set(removal)
    assert outcome.block_scores == scores
    without = run(with_planted, tmp_path / "without", lambda context: Pruned(removal))
    assert without.block_scores == ()


def test_modules_of_a_plan_are_saved_and_no_others(with_planted: PluginHost, tmp_path: Path) -> None:
    merge, shrink, plain, other = Merge(1, 2), Shrink(4, "mlp", (0, 3)), Shrink(4, "attention", (1,)), Merge(0, 1)
    # The dense projection has no bias.
    projection = nn.Linear(46, 32)
    removal = Removal([merge, shrink, plain, Drop(5)])

    def answer(context: PruneContext) -> Pruned:
        blocks = context.model.blocks
        return Pruned(removal, {merge: blocks[1], shrink: projection, other: blocks[0]})

    outcome = run(with_planted, tmp_path, answer, splitter="unified")
    assert outcome.merges == ()
    assert {path.name for path in (tmp_path / "merges").iterdir()} == {"1-2.safetensors", "4.mlp.safetensors"}
    loaded = load_modules(outcome.plan.plan, tiny_llama(), tmp_path / "merges")
    for element, module in ((merge, tiny_llama().blocks[1]), (shrink, projection)):
        assert all(torch.equal(tensor, loaded[element].state_dict()[name]) for name, tensor in module.state_dict().items())


@pytest.mark.numeric
def test_draws_and_sequences_depend_on_the_seed_alone(with_planted: PluginHost, tmp_path: Path) -> None:
    seen: list[tuple[float, Sequence[Sequence[int]]]] = []

    def answer(context: PruneContext) -> Pruned:
        seen.append((context.rng.random(), context.sequences))
        return Pruned(Removal([Drop(1)]))

    for number, seed in enumerate((0, 0, 1)):
        run(with_planted, tmp_path / str(number), answer, seed=seed)
    assert seen[0] == seen[1]
    assert seen[0][0] != seen[2][0]
    assert len(seen[0][1]) == 4


def journal(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


def losses_in(folder: Path) -> list[tuple[str, Any, float]]:
    """Return what the pruner measured: part, decode's removal, loss."""
    return [(line["part"], line["plan"]["decode"], line["mean"]) for line in journal(folder) if line["part"].startswith("losses")]


def measuring(*, fail_after: int | None = None) -> Callable[[PruneContext], Pruned]:
    """Return an answer that measures six losses, three each on two sets of windows, and drops the best two blocks."""

    def answer(context: PruneContext) -> Pruned:
        def asked() -> Iterator[tuple[float, int]]:
            for length in (16, 32):
                loss = context.loss_of(context.windows(length, 4))
                for block in (1, 2, 3):
                    yield loss(Removal([Drop(block)])), block

        losses = []
        for loss in asked():
            losses.append(loss)
            if len(losses) == fail_after:
                raise RuntimeError("the power went")
        best = sorted(losses[3:])[:2]
        return Pruned(Removal(Drop(block) for _, block in best))

    return answer


@pytest.mark.numeric
def test_losses_measured_before_an_interruption_are_not_measured_again(with_planted: PluginHost, tmp_path: Path) -> None:
    whole = run(with_planted, tmp_path / "whole", measuring())
    for fail_after in (2, 5):
        with pytest.raises(PluginError, match="the power went"):
            run(with_planted, tmp_path / "cut", measuring(fail_after=fail_after))
        assert losses_in(tmp_path / "cut") == losses_in(tmp_path / "whole")[:fail_after]
    again = run(with_planted, tmp_path / "cut", measuring())
    assert losses_in(tmp_path / "cut") == losses_in(tmp_path / "whole")
    assert len(losses_in(tmp_path / "cut")) == 6
    assert again.saved_plan == whole.saved_plan
    # The same blocks were measured on both sets of windows, and what they gave is not the same.
    first, second = (losses_in(tmp_path / "cut")[start : start + 3] for start in (0, 3))
    assert [plan for _, plan, _ in first] == [plan for _, plan, _ in second]
    assert len({part for part, _, _ in (*first, *second)}) == 2
    assert all(a[2] != b[2] for a, b in zip(first, second, strict=True))


def test_losses_of_other_weights_are_not_taken_for_these(
    with_planted: PluginHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PluginError, match="the power went"):
        run(with_planted, tmp_path, measuring(fail_after=1))
    opened = TinyModel.open

    def open_other(self: TinyModel) -> LoadedModel:
        return replace(opened(self), model=tiny_transformers("llama", seed=1))

    monkeypatch.setattr(TinyModel, "open", open_other)
    with pytest.raises(PdtrimError, match="holds measurements made with other weights: start anew"):
        run(with_planted, tmp_path, measuring())


def test_measurements_are_heard_without_a_best(with_planted: PluginHost, tmp_path: Path) -> None:
    listener = Listener()
    with_planted.register(listener, Origin("listener", "listener"))

    def answer(context: PruneContext) -> Pruned:
        context.loss_of(SEQUENCES)(Removal([Drop(1)]))
        assert listener.best == [None]
        return Pruned(Removal([Drop(1)]))

    run(with_planted, tmp_path, answer)
    assert any(best is not None for best in listener.best)


@pytest.mark.numeric
def test_the_cache_budget_of_a_recipe_holds_for_pruning_too(
    with_planted: PluginHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[ExecutionOptions] = []

    def prefix_cache(model: BlockModel, options: ExecutionOptions) -> PrefixCache:
        made.append(options)
        return PrefixCache(model, options)

    monkeypatch.setattr(losses, "PrefixCache", prefix_cache)
    run(with_planted, tmp_path, measuring(), evaluation={"threads": 1, "cache_budget": 0, "batch_tokens": 64})
    assert made == [ExecutionOptions(batch_tokens=64, budget=0)] * 2


@pytest.mark.numeric
def test_another_family_prunes_by_loss_too(with_planted: PluginHost, tmp_path: Path) -> None:
    outcome = run(with_planted, tmp_path, measuring(), model={"path": "tiny:gpt-neox"})
    assert len(outcome.plan.plan.decode) == 2


def test_a_pruner_is_given_the_training_prompts_with_the_dense_models_greedy_answers(
    with_planted: PluginHost, tmp_path: Path
) -> None:
    given: list[tuple[int, ...]] = []
    seen: list[tuple[BlockModel, Sequence[Sequence[int]]]] = []

    def answer(context: PruneContext) -> Pruned:
        given.extend(context.answered_prompts(7))
        seen.append((context.model, context.sequences))
        return Pruned(Removal(map(Drop, (1, 2))))

    lengths = {"prompt_tokens": 8, "answer_tokens": 6}
    run(with_planted, tmp_path, answer, calibration={"use": "mini", "samples": 4, "held_out": 2}, recovery_data=lengths)
    ((model, measured),) = seen
    assert 0 < len(given) <= 7
    for text in given:
        # Whole prompts, of which recoveries take ends; the text goes on from each as the dense model does.
        ends = [end for end in range(len(text) - 6, len(text)) if model.tokenizer.decode(text[:end]).endswith("Answer:")]
        (end,) = ends
        with torch.no_grad():
            logits_TV = model.model(torch.tensor([text]), use_cache=False).logits[0]
        assert logits_TV[end - 1 : -1].argmax(dim=-1).tolist() == list(text[end:])
    asked, chosen_on = ({model.tokenizer.decode(text).partition("Answer:")[0] for text in texts} for texts in (given, measured))
    assert len(asked) == len(given)
    assert asked.isdisjoint(chosen_on)


def test_people_hear_how_far_a_pruner_and_its_texts_are(
    with_planted: PluginHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    listener = Listener()
    with_planted.register(listener, Origin("listener", "listener"))

    def answer(context: PruneContext) -> Pruned:
        context.answered_prompts(7)
        context.written_texts(7)
        for share in (0.0, 0.5, 2.0):
            context.reached(share)
        return Pruned(Removal(map(Drop, (1, 2))))

    lengths = {"prompt_tokens": 8, "answer_tokens": 6}
    run(with_planted, tmp_path, answer, calibration={"use": "mini", "samples": 4, "held_out": 2}, recovery_data=lengths)
    assert [share for what, share in listener.advanced if what == "planted"] == [0.0, 0.5, 1.0]
    texts = [share for what, share in listener.advanced if what == "texts"]
    begun = texts.index(0.0)
    answered, written = texts[:begun], texts[begun:]
    for shares in (answered, written):
        assert len(set(shares)) > 4
        assert shares == sorted(shares)
        assert shares[-1] == pytest.approx(1.0)
