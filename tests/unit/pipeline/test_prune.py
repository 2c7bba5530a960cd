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
from safetensors.torch import load_file
from torch import nn

from pdtrim_core.api import (
    Drop,
    KvOnly,
    Merge,
    PdtrimError,
    Plan,
    PluginError,
    PruneContext,
    Pruned,
    Pruner,
    Removal,
    Shrink,
    hookimpl,
)
from pdtrim_core.data.readings import Candidate
from pdtrim_core.execution.prefix_cache import PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.host.host import Origin
from pdtrim_core.pipeline import losses, pipeline
from pdtrim_core.pipeline.losses import losses_of
from pdtrim_core.pipeline.prune import Pruning
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.search.driver import Ledger
from pdtrim_core.testing import prune_context, tiny_llama, tiny_model
from pdtrim_core.testing.contracts.small_run import TinyModel, tiny_host
from pdtrim_core.testing.models import tiny_transformers
from pdtrim_plugins.pruners import ShortGpt, Sleb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pdtrim_core import Element, Outcome, PluginHost
    from pdtrim_core.api import BlockModel, LoadedModel
    from pdtrim_core.pipeline.objective_value import Measurement

pytestmark = pytest.mark.numeric

SEQUENCES = [Random(number).choices(range(256), k=length) for number, length in enumerate((5, 9, 1, 14, 9))]
CLOSE = 1e-5
"""Relative: float32 logits of around 10, summed in another order."""


def context_of(model: BlockModel, sequences: Sequence[Sequence[int]] = SEQUENCES, **options: Any) -> PruneContext:
    names = ("batch_tokens", "cache_budget", "ledger", "note")
    measuring = {"note": lambda text: None, **{name: options.pop(name) for name in names if name in options}}
    return prune_context(model, sequences, blocks=2, parameters=1000, losses=losses_of(model, **measuring), **options)


def test_windows_are_cut_from_the_joined_sequences_and_the_rest_is_left_out() -> None:
    context = context_of(tiny_llama(), [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11]])
    assert context.windows(5) == [(1, 2, 3, 4, 5), (6, 7, 8, 9, 10)]
    assert context.windows(5, 1) == [(1, 2, 3, 4, 5)]
    assert context.windows(11, 7) == [(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)]


def test_a_window_that_is_not_filled_once_is_refused() -> None:
    with pytest.raises(PdtrimError) as error:
        context_of(tiny_llama(), [[1, 2, 3], [4]]).windows(5)
    assert str(error.value) == (
        "the calibration items have 4 tokens together, too few for a window of 5: ask for shorter windows or for more samples"
    )


def test_the_states_are_those_of_all_sequences() -> None:
    states = context_of(tiny_llama(), batch_tokens=10).states
    assert sum(int(batch.is_token_BT.sum()) for batch in states.batches()) == sum(map(len, SEQUENCES))


def own_loss(model: BlockModel, removal: Removal) -> float:
    """Return the mean loss of the model's own forward with patched blocks, each sequence by itself."""
    forwards: dict[int, Any] = {}
    for element in removal:
        if isinstance(element, Shrink):
            forwards[element.block] = model.narrowed([element], {}).forward
        else:
            forwards[element.blocks[0]] = lambda hidden, *_, **__: hidden
    total = count = 0.0
    with torch.inference_mode(), model.patched(forwards):
        for sequence in SEQUENCES:
            ids = torch.tensor([sequence])
            logits = model.model(ids, use_cache=False).logits[0, :-1].double()
            total += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
            count += len(sequence) - 1
    return total / count


@pytest.mark.parametrize("batch_tokens", [1, 20, 512])
@pytest.mark.parametrize(
    "elements", [[], [Drop(1)], [Drop(0), Drop(5)], [Drop(4), Shrink(2, "mlp", (0, 7))], [Shrink(3, "attention", (1,))]]
)
def test_the_loss_is_that_of_the_models_own_forward(elements: list[Element], batch_tokens: int) -> None:
    removal = Removal(elements)
    loss = context_of(tiny_llama(), batch_tokens=batch_tokens).loss_of(SEQUENCES)
    assert loss(removal) == pytest.approx(own_loss(tiny_llama(), removal), rel=CLOSE)


def test_sequences_of_one_token_have_no_loss() -> None:
    with pytest.raises(PdtrimError) as error:
        context_of(tiny_llama()).loss_of([[1], [], [2]])
    assert str(error.value) == "there are no sequences of two tokens or more to measure a loss on: give longer samples"


def test_a_merge_has_no_loss_for_want_of_its_block() -> None:
    loss = context_of(tiny_llama()).loss_of(SEQUENCES)
    with pytest.raises(PdtrimError, match=r"the plan has 1\+2, but no merged block was given for it"):
        loss(Removal([Merge(1, 2)]))


class Ledgers:
    """Makes ledgers as a run does, and keeps what is measured by part."""

    def __init__(self) -> None:
        self.measured: dict[str, list[Plan]] = {}

    def __call__(self, part: str, measurement: Measurement) -> Ledger:
        plans = self.measured.setdefault(part, [])
        return Ledger(measurement, record=lambda plan, reading: plans.append(plan))


def test_a_loss_is_measured_once_and_each_set_of_sequences_has_a_part_of_its_own() -> None:
    ledgers = Ledgers()
    context = context_of(tiny_llama(), ledger=ledgers)
    short, long = context.loss_of(SEQUENCES[:2]), context.loss_of(SEQUENCES)
    losses = [loss(Removal([Drop(block)])) for loss in (short, long) for block in (1, 1, 2)]
    context.loss_of(SEQUENCES[:2])
    assert losses[0] == losses[1] != losses[3] == losses[4]
    plans = [Plan.unified(Removal([Drop(block)])) for block in (1, 2)]
    assert list(ledgers.measured.values()) == [plans, plans]
    assert all(part.startswith("losses ") for part in ledgers.measured)


def test_a_batch_that_does_not_fit_is_halved_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    measure = StagedModel.loglikelihoods
    failures = [torch.OutOfMemoryError("no memory"), torch.OutOfMemoryError("still none")]

    def loglikelihoods(self: StagedModel, items: Any) -> Any:
        if failures:
            raise failures.pop()
        return measure(self, items)

    monkeypatch.setattr(StagedModel, "loglikelihoods", loglikelihoods)
    loss = context_of(tiny_llama(), batch_tokens=80, note=notes.append).loss_of(SEQUENCES)
    assert loss(Removal()) == pytest.approx(own_loss(tiny_llama(), Removal()), rel=CLOSE)
    assert notes == [f"out of memory on the device: going on with batches of {size} tokens" for size in (40, 20)]


def test_kept_streams_take_no_more_than_their_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    budgets: list[int | None] = []

    class Spied(PrefixCache):
        def __init__(self, model: BlockModel, *, budget: int | None = None, **options: Any) -> None:
            budgets.append(budget)
            super().__init__(model, budget=budget, **options)

    monkeypatch.setattr(losses, "PrefixCache", Spied)
    context_of(tiny_llama(), cache_budget=0).loss_of(SEQUENCES)(Removal())
    context_of(tiny_llama()).loss_of(SEQUENCES)
    assert budgets == [0, None]


def digest_of(pruner: Pruner, *, blocks: int = 2, parameters: int = 1000) -> str:
    return Pruning(pruner, Pruned(Removal()), blocks=blocks, parameters=parameters).digest


def test_the_digest_tells_all_that_modules_depend_on() -> None:
    digests = {
        digest_of(pruner, **budget)
        for pruner in (Sleb(), Sleb(window=64), ShortGpt())
        for budget in ({"blocks": 2}, {"blocks": 3}, {"parameters": 999})
    }
    assert len(digests) == 9
    assert digest_of(Sleb()) == digest_of(Sleb(window=128))


def test_modules_of_a_plan_are_saved_and_no_others(tmp_path: Path) -> None:
    merge, shrink, plain, other = Merge(1, 2), Shrink(4, "mlp", (0, 3)), Shrink(4, "attention", (1,)), Merge(0, 1)
    modules: dict[Merge | Shrink, nn.Module] = {element: nn.Linear(3, 2) for element in (merge, shrink, other)}
    removal = Removal([merge, shrink, plain, Drop(5)])
    saved = Pruning(Sleb(), Pruned(removal, modules), blocks=2, parameters=1000)
    plan = Plan.unified(removal)
    saved.save(plan, tiny_llama(), tmp_path)
    files = {path.name: load_file(path) for path in (tmp_path / "merges").iterdir()}
    assert files.keys() == {"1-2.safetensors", "4.mlp.safetensors"}
    for name, element in (("1-2", merge), ("4.mlp", shrink)):
        assert torch.equal(files[f"{name}.safetensors"]["weight"], modules[element].weight)  # type: ignore[arg-type]
    assert saved.results(plan) == ()
    assert not saved.put_off


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
        "prune": {"blocks": 2},
        "calibration": {"samples": 4, "held_out": 2},
        "splitter": {"use": "gain", "threshold": 0},
        "objective": "margin",
        "evaluation": {"threads": 1},
    }
    return pipeline.run(Recipe.from_data({**data, **changes}, where="planted.toml", out=out, host=host), host)


LABEL = "pruner 'planted' (planted 1.0)"
UNFIT = f"{LABEL} returned a removal that does not fit"


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (Removal(), f"{LABEL} returned Removal where Pruned is expected"),
        (Pruned(Removal([Merge(1, 2)])), f"{LABEL} merged 1+2, but gave no block that stands for it"),
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


def test_the_cache_budget_of_a_recipe_holds_for_pruning_too(
    with_planted: PluginHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []

    def prefix_cache(model: BlockModel, **options: Any) -> PrefixCache:
        made.append(options)
        return PrefixCache(model, **options)

    monkeypatch.setattr(losses, "PrefixCache", prefix_cache)
    run(with_planted, tmp_path, measuring(), evaluation={"threads": 1, "cache_budget": 0, "batch_tokens": 64})
    assert made == [{"batch_tokens": 64, "budget": 0}] * 2


def test_another_family_prunes_by_loss_too(with_planted: PluginHost, tmp_path: Path) -> None:
    outcome = run(with_planted, tmp_path, measuring(), model={"path": "tiny:gpt-neox"})
    assert len(outcome.plan.plan.decode) == 2
    loss = context_of(tiny_model("gpt-neox")).loss_of(SEQUENCES)
    assert loss(Removal()) == pytest.approx(own_loss(tiny_model("gpt-neox"), Removal()), rel=CLOSE)
