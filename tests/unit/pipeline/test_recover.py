"""A run's recoveries: one by one, kept where they help, refused where they break the contract, stored and found again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from pdtrim_core import Outcome, PdtrimError, PluginError, PluginHost, hookimpl, load_run
from pdtrim_core.api import Item, LayerOf, Plan, Recovery, RecoveryContext
from pdtrim_core.api.layer_kinds import Contract
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.files.atomic_files import write_whole
from pdtrim_core.host.host import Origin
from pdtrim_core.pipeline import pipeline, recover
from pdtrim_core.pipeline.prepare import open_model
from pdtrim_core.pipeline.recovery_texts import CHECKED
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.testing.contracts.small_run import tiny_host
from tests.unit.pipeline.runs import DATA

TOKENS = 400
RECIPE: dict[str, Any] = {
    **DATA,
    "prune": {"blocks": 2, "merges": False},
    "searcher": "greedy",
    "objective": "kl",
    "splitter": {"use": "kv-tail", "prefill_at_most": 0.95},
    "recovery_data": {"prompt_tokens": 8, "answer_tokens": 8},
    "evaluation": {"threads": 1, "answer_tokens": 4},
}
ASKED: list[RecoveryContext] = []
"""Not an attribute of the class, which is part of what its results are known by."""
FOLD, REFIT = {"use": "fold", "tokens": TOKENS}, {"use": "kv-refit", "tokens": TOKENS}


class Does(Recovery):
    """Does to the pair what a test says."""

    name = "does"
    tokens: int = TOKENS
    word: str = ""
    what: ClassVar[Callable[[RecoveryContext], None]] = staticmethod(lambda context: None)
    keeps: ClassVar[Contract] = "dense-cache"

    @property
    def contract(self) -> Contract:
        return self.keeps

    def recover(self, context: RecoveryContext) -> None:
        ASKED.append(context)
        type(self).what(context)


class DoesPlugin:
    """Offers it."""

    @hookimpl
    def pdtrim_recoveries(self) -> list[type[Recovery]]:
        return [Does]


@pytest.fixture
def host() -> PluginHost:
    host = tiny_host()
    host.register(DoesPlugin(), Origin("does", "0"))
    ASKED.clear()
    Does.keeps = "dense-cache"
    return host


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def ran(host: PluginHost, out: Path, recovery: Any, *, fresh: bool = False, **changes: Any) -> Outcome:
    data = {**RECIPE, **changes, "recovery": recovery}
    return pipeline.run(Recipe.from_data(data, where="x.toml", out=out, host=host), host, fresh=fresh)


def doing(function: Callable[[RecoveryContext], None]) -> Any:
    Does.what = staticmethod(function)
    return ["does"]


def put(context: RecoveryContext, stage: Any, name: str, value: float, number: int = 0) -> None:
    """Give one weight of one layer of a stage one value throughout."""
    layer = context.layers(stage)[number]
    weight = context.module(stage, layer).get_parameter(name)
    context.change(stage, layer, {name: torch.full_like(weight, value)})


def test_a_run_recovers_its_pair_and_all_that_opens_it_sees_the_same_weights(host: PluginHost, tmp_path: Path) -> None:
    outcome = ran(host, tmp_path / "run", [REFIT, FOLD])
    assert [result.name for result in outcome.recovery] == ["kv-refit", "fold"]
    kept = [result for result in outcome.recovery if result.kept]
    assert kept
    assert all(result.after.value < result.before.value for result in kept)
    assert outcome.recovery[0].tokens >= TOKENS
    loaded = load_run(tmp_path / "run", host)
    plan = outcome.plan.plan
    assert {key.plan for key in loaded.modules if isinstance(key, LayerOf)} >= {plan}
    assert outcome.plan.recovered
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["format"] == 2
    assert outcome.fidelity is not None
    figures = {variant: metrics["kl"].value for variant, metrics in outcome.fidelity.variants.items()}
    assert list(figures) == ["dense", "unified", "unrecovered", "staged"]
    assert figures["staged"] != figures["unrecovered"]
    digests = [loaded.plan_digest(variant) for variant in ("staged", "unrecovered", "unified")]
    assert len(set(digests)) == 3


def test_the_pair_in_two_phases_is_what_the_run_measured(host: PluginHost, tmp_path: Path) -> None:
    ran(host, tmp_path / "run", [REFIT, FOLD])
    loaded = load_run(tmp_path / "run", host)
    pair = TwoPhaseModel(loaded.dense, loaded.plan_of("staged"), loaded.modules_of("staged"))
    bare = TwoPhaseModel(loaded.dense, loaded.plan_of("unrecovered"), loaded.modules_of("unrecovered"))
    prompt, answer = [5, 6, 7, 8, 9], [1, 2, 3]
    assert not torch.equal(pair.continuation_logits(prompt, answer), bare.continuation_logits(prompt, answer))


def test_without_a_recovery_nothing_is_different(host: PluginHost, tmp_path: Path) -> None:
    plain, none, empty = (ran(host, tmp_path / name, given) for name, given in (("a", []), ("b", "none"), ("c", [])))
    assert plain.plan == none.plan == empty.plan
    assert not plain.plan.recovered
    assert not (tmp_path / "b" / "recovered").exists()
    assert "recover" not in plain.seconds
    with pytest.raises(PdtrimError, match="has no variant 'unrecovered': its recipe names no recovery"):
        load_run(tmp_path / "a", host).plan_of("unrecovered")


def test_what_makes_the_pair_no_better_is_put_back_and_said(host: PluginHost, tmp_path: Path) -> None:
    worse = doing(lambda context: put(context, "decode", "mlp.down_proj.weight", 3.0))
    outcome = ran(host, tmp_path / "run", worse)
    (result,) = outcome.recovery
    assert not result.kept
    assert result.changed["decode"] > 0
    assert not outcome.plan.recovered
    (note,) = [note for note in outcome.notes if "recovery 'does'" in note]
    assert "brought the pair no nearer" in note
    assert "its weights are left out" in note
    idle = ran(host, tmp_path / "idle", doing(lambda context: None))
    assert any("changed nothing" in note for note in idle.notes)


def test_a_recovery_that_helps_is_kept_behind_one_that_does_not(host: PluginHost, tmp_path: Path) -> None:
    worse = doing(lambda context: put(context, "decode", "mlp.down_proj.weight", 3.0))
    both = ran(host, tmp_path / "both", [*worse, FOLD])
    alone = ran(host, tmp_path / "alone", [FOLD])
    assert [result.kept for result in both.recovery] == [False, alone.recovery[0].kept]
    assert both.recovery[1].after == alone.recovery[0].after
    assert both.plan.recovered == alone.plan.recovered


@pytest.mark.parametrize(
    ("place", "contract", "problem"),
    [
        (("decode", "self_attn.k_proj.weight", 0), "dense-cache", "which makes K/V: with contract"),
        (("decode", "input_layernorm.weight", 0), "dense-cache", "which makes K/V: with contract"),
        (("prefill", "self_attn.v_proj.weight", 0), "dense-cache", "which makes K/V: with contract"),
        (("prefill", "mlp.down_proj.weight", -1), "pair", "a layer of which only K and V are computed"),
    ],
)
def test_a_change_that_breaks_the_contract_is_refused_by_name(
    host: PluginHost, tmp_path: Path, place: tuple[str, str, int], contract: Contract, problem: str
) -> None:
    stage, name, number = place
    Does.keeps = contract
    with pytest.raises(PluginError, match=rf"recovery 'does' .* changed the weight \d+\.{name} of {stage}, {problem}"):
        ran(host, tmp_path / "run", doing(lambda context: put(context, stage, name, 0.1, number)))


def test_a_pair_may_change_all_and_is_measured_with_prefills_own_k_and_v(host: PluginHost, tmp_path: Path) -> None:
    Does.keeps = "pair"

    def change(context: RecoveryContext) -> None:
        for stage in ("prefill", "decode"):
            layer = context.layers(stage)[0]
            weight = context.module(stage, layer).get_parameter("self_attn.k_proj.weight")
            context.change(stage, layer, {"self_attn.k_proj.weight": weight * (1.01 if stage == "prefill" else 0.99)})

    ran(host, tmp_path / "run", doing(change))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(host: PluginHost, tmp_path: Path, value: float) -> None:
    broken = doing(lambda context: put(context, "decode", "mlp.up_proj.weight", value))
    with pytest.raises(
        PluginError, match=r"recovery 'does' .* made the weight \d+\.mlp\.up_proj\.weight of decode NaN or infinite"
    ):
        ran(host, tmp_path / "run", broken)


def test_what_was_recovered_is_found_again_and_only_by_the_same_recipe(host: PluginHost, tmp_path: Path) -> None:
    helps = [{"use": "does"}, FOLD]
    doing(lambda context: None)
    first = ran(host, tmp_path / "run", helps)
    again = ran(host, tmp_path / "run", helps)
    assert len(ASKED) == 1
    assert again.recovery == first.recovery
    assert again.plan == first.plan
    ran(host, tmp_path / "run", helps, fresh=True)
    assert len(ASKED) == 2


def test_damaged_recovered_weights_are_made_again_by_a_run_and_refused_by_what_opens_it(host: PluginHost, tmp_path: Path) -> None:
    first = ran(host, tmp_path / "run", [FOLD])
    assert first.recovery[0].kept
    file = tmp_path / "run" / "recovered" / "decode.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-4] + b"\0\1\2\3")
    with pytest.raises(PdtrimError, match="has not the weights that the plan was recovered with: run the recipe again"):
        _ = load_run(tmp_path / "run", host).modules
    assert ran(host, tmp_path / "run", [FOLD]).plan == first.plan
    file.unlink()
    with pytest.raises(PdtrimError, match="run the recipe again"):
        _ = load_run(tmp_path / "run", host).modules


def test_no_text_that_checks_is_learned_from(host: PluginHost, tmp_path: Path) -> None:
    seen: dict[str, list[Item]] = {}

    def look(context: RecoveryContext) -> None:
        seen.update(texts=list(context.texts), check=list(context.check))

    ran(host, tmp_path / "run", doing(look))
    assert len(seen["check"]) == CHECKED
    assert not {item.prompts[0] + item.choices[0] for item in seen["texts"]} & {
        item.prompts[0] + item.choices[0] for item in seen["check"]
    }


def test_a_unified_plan_is_one_model_whose_stages_change_together(host: PluginHost, tmp_path: Path) -> None:
    outcome = ran(host, tmp_path / "run", [FOLD], splitter="unified", evaluation={"threads": 1, "truncate_prefill": False})
    plan = outcome.plan.plan
    assert plan.prefill == plan.decode
    loaded = load_run(tmp_path / "run", host)
    layers = {key: module for key, module in loaded.modules.items() if isinstance(key, LayerOf)}
    if outcome.recovery[0].kept:
        of_stages = [
            {key.block: module.get_parameter("mlp.down_proj.weight") for key, module in layers.items() if key.stage == stage}
            for stage in ("prefill", "decode")
        ]
        assert of_stages[0].keys() == of_stages[1].keys()
        assert all(torch.equal(of_stages[0][block], of_stages[1][block]) for block in of_stages[0])


def test_the_decode_model_alone_has_decodes_weights_in_both_stages(host: PluginHost, tmp_path: Path) -> None:
    outcome = ran(host, tmp_path / "run", [FOLD])
    loaded = load_run(tmp_path / "run", host)
    plan, unified = outcome.plan.plan, Plan.unified(outcome.plan.plan.decode)
    for key, module in loaded.modules_of("unified").items():
        if isinstance(key, LayerOf) and key.plan == unified:
            assert module is loaded.modules[LayerOf(plan, "decode", key.block)]
    assert not any(isinstance(key, LayerOf) for key in loaded.modules_of("unrecovered"))


def test_losses_of_a_long_training_are_thinned_out() -> None:
    thinned = recover._thinned([float(number) for number in range(1200)])
    assert len(thinned) == 400
    assert thinned[0] == 1.0
    assert recover._thinned([]) == ()


@pytest.mark.parametrize("recovery", [["does"], ["does", {"use": "does", "word": "again"}]])
def test_where_each_recovery_was_left_out_the_pair_is_measured_once(host: PluginHost, tmp_path: Path, recovery: Any) -> None:
    doing(lambda context: put(context, "decode", "mlp.down_proj.weight", 3.0))
    outcome = ran(host, tmp_path / "run", recovery)
    assert not any(result.kept for result in outcome.recovery)
    assert outcome.fidelity is not None
    assert set(outcome.fidelity.variants) == {"dense", "unified", "staged"}
    assert outcome.fidelity.recovered is None
    run = load_run(tmp_path / "run", host)
    said = "has no variant 'unrecovered': each of its recoveries was left out, so that 'staged' is the same"
    with pytest.raises(PdtrimError, match=said):
        run.plan_of("unrecovered")
    plain = ran(host, tmp_path / "plain", [])
    assert plain.fidelity is not None
    assert outcome.fidelity.variants == plain.fidelity.variants


@pytest.mark.parametrize(("numbers", "late"), [((-1, 0), True), ((0, -1), False)])
def test_a_list_in_the_wrong_order_is_noted_and_not_refused(
    host: PluginHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbers: tuple[int, int], late: bool
) -> None:
    goes = iter(numbers)
    ever_nearer = (1 / count for count in range(1, 9))
    monkeypatch.setattr(recover, "_divergences", lambda work: [[next(ever_nearer)]])
    does = doing(lambda context: put(context, "decode", "mlp.down_proj.weight", 0.1, next(goes)))
    outcome = ran(host, tmp_path / "run", [*does, {"use": "does", "word": "again"}], evaluation={"threads": 1, "fidelity": False})
    assert [result.kept for result in outcome.recovery] == [True, True]
    found = [note for note in outcome.notes if "to which" in note]
    block = outcome.plan.plan.layers("decode", outcome.block_count)[-1].block
    said = (
        f"recovery 'does' (2 in the list) changed what comes to block {block} of decode, to which recovery 'does' (1 in the "
        "list) had fitted that block: list recovery 'does' (2 in the list) in front of it, or the other once more behind"
    )
    assert found == ([said] if late else [])


class Mislead:
    """A tokenizer of more tokens than the model has rows, as one that belongs to another model."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __call__(self, text: str, **options: Any) -> Any:
        found = self._inner(text, **options)
        return {"input_ids": [900 if "foreign" in text else token for token in found["input_ids"]]}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            '{"text": "a foreign word"}',
            "the text 1 of recovery_data.sources '.*own.jsonl' has the token 900, and the vocabulary of",
        ),
        ('{"text": [1, 2]}', "'text' of line 2 of .*own.jsonl is no text"),
    ],
)
def test_bad_texts_are_told_before_anything_is_measured(
    host: PluginHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, said: str
) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text('{"text": "' + "a long text. " * 20 + '"}\n' + line + "\n" + '{"text": "' + "more text. " * 900 + '"}\n')

    def mislead(*given: Any) -> Any:
        model = open_model(*given)
        model.tokenizer = Mislead(model.tokenizer)
        return model

    monkeypatch.setattr("pdtrim_core.pipeline.run_inputs.open_model", mislead)
    monkeypatch.setattr(pipeline, "find", lambda *given: pytest.fail("it has begun to search"))
    with pytest.raises(PdtrimError, match=said):
        ran(host, tmp_path / "run", [FOLD], recovery_data={"sources": [str(file)], "prompt_tokens": 8, "answer_tokens": 8})


@pytest.mark.parametrize(
    ("writer", "name"),
    [
        ("pdtrim_core.model.weights.write_whole", "decode.safetensors"),
        ("pdtrim_core.pipeline.recover.write_whole", "recovery.json"),
        ("pdtrim_core.pipeline.written_texts.write_whole", "json"),
    ],
)
def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(
    host: PluginHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str, name: str
) -> None:
    def no_room(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    def full(path: Path, content: Any) -> Path:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", no_room)
            return write_whole(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(writer, full)
        with pytest.raises(
            PdtrimError, match=rf"^cannot write .*{name}: No space left on device; what was measured before is kept"
        ):
            ran(host, tmp_path / "run", [FOLD])
    assert not (tmp_path / "run" / "outcome.json").exists()
    outcome, undisturbed = ran(host, tmp_path / "run", [FOLD]), ran(host, tmp_path / "other", [FOLD])
    assert outcome.plan.recovered == undisturbed.plan.recovered != ""
    assert not [
        path for path in (tmp_path / "run" / "recovered").iterdir() if path.name not in ("decode.safetensors", "recovery.json")
    ]


@pytest.mark.parametrize("name", ["embed_tokens.weight", "lm_head.weight", "model.norm.weight", "model.embed_tokens.weight"])
def test_embeddings_and_head_belong_to_no_layer_so_that_no_recovery_reaches_them(
    host: PluginHost, tmp_path: Path, name: str
) -> None:
    def train(context: RecoveryContext) -> None:
        weight = context.model.model.get_input_embeddings().weight
        for layer in context.layers("decode"):
            context.change("decode", layer, {name: weight})

    with pytest.raises(PdtrimError, match=rf"a layer was given the weight {name} of shape .*, and it has none of that name"):
        ran(host, tmp_path / "run", doing(train))


def test_an_optional_recovery_that_fails_is_left_out_and_one_that_a_recipe_insists_on_ends_the_run(
    host: PluginHost, tmp_path: Path
) -> None:
    def fail(context: RecoveryContext) -> None:
        put(context, "decode", "mlp.down_proj.weight", 0.0)
        raise PdtrimError("the texts are too few")

    doing(fail)
    outcome = ran(host, tmp_path / "run", [{"use": "does", "optional": True}, {"use": "fold", "tokens": TOKENS}])
    assert [result.name for result in outcome.recovery] == ["fold"]
    assert any("the texts are too few: it is left out" in note for note in outcome.notes)
    alone = ran(host, tmp_path / "alone", [FOLD])
    assert outcome.recovery[0].before == alone.recovery[0].before
    with pytest.raises(PdtrimError, match="the texts are too few"):
        ran(host, tmp_path / "other", ["does"])


def test_a_broken_optional_recovery_ends_the_run(host: PluginHost, tmp_path: Path) -> None:
    doing(lambda context: [].pop())
    with pytest.raises(PluginError, match="IndexError"):
        ran(host, tmp_path / "run", [{"use": "does", "optional": True}])


def test_an_optional_recovery_with_nothing_to_change_is_not_spoken_of(host: PluginHost, tmp_path: Path) -> None:
    outcome = ran(host, tmp_path / "run", [{"use": "fold", "stage": "prefill", "optional": True, "tokens": TOKENS}, FOLD])
    assert [result.name for result in outcome.recovery] == ["fold"]
    assert not any("changed nothing" in note for note in outcome.notes)


def test_where_all_is_optional_texts_that_are_not_there_end_recovery_and_not_the_run(host: PluginHost, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("a few words\n\nand some more " + "that go on " * 40, encoding="utf-8")
    data = {"sources": [str(short)], "prompt_tokens": 8, "answer_tokens": 8}
    few = [{"use": "fold", "tokens": 100_000}]
    with pytest.raises(PdtrimError, match=r"short\.txt"):
        ran(host, tmp_path / "one", few, recovery_data=data)
    outcome = ran(host, tmp_path / "run", [{**few[0], "optional": True}], recovery_data=data)
    assert outcome.recovery == ()
    assert any("short.txt" in note and "no recovery is done" in note for note in outcome.notes)
