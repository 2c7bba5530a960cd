"""The training of a run's merges: on texts that do not measure, each merge once, and what is said of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pdtrim_core import Merge, PdtrimError, Plan, Removal
from pdtrim_core.api import Sample, hookimpl
from pdtrim_core.data.items import Calibration, calibrate
from pdtrim_core.host.host import Origin
from pdtrim_core.pipeline.run_context import RunContext
from pdtrim_core.pipeline.train_merges import Training
from pdtrim_core.testing import ByteTokenizer, tiny_llama, tiny_model
from pdtrim_plugins.calibrations import Mini
from pdtrim_plugins.distillers import Mse
from tests.unit.pipeline.runs import DATA, Begin, inputs_of
from tests.unit.tokenizers_of_five_kinds import KINDS, tokenizer_of

PAIR, OTHER = Merge(keep=3, drop=2), Merge(keep=5, drop=4)


def training(
    begin: Begin, name: str = "run", *, calibration: Calibration | None = None, **distiller: Any
) -> tuple[Training, RunContext]:
    context = begin(name, distiller={**DATA["distiller"], **distiller})
    return Training(context, inputs_of(tiny_llama(), calibration=calibration), otherwise="do without"), context


def test_a_merge_is_trained_once_and_told(begin: Begin) -> None:
    trainer, context = training(begin)
    heard: list[tuple[Merge, float, float]] = []
    listener = SimpleNamespace(
        pdtrim_merge_trained=hookimpl(lambda merge, trained, untrained: heard.append((merge, trained, untrained)))
    )
    context.host.register(listener, Origin("listener", "listener"))
    record = trainer.train(PAIR)
    assert trainer.train(PAIR) is record
    assert trainer.records == {PAIR: record}
    assert list(trainer.modules) == [PAIR]
    assert heard == [(PAIR, record.trained, record.untrained)]


def test_another_run_finds_the_merge_again(begin: Begin) -> None:
    (one, _), (other, _) = (training(begin, name) for name in ("one", "other"))
    assert one.train(PAIR) == other.train(PAIR)
    assert one.digest == other.digest != ""


def test_a_loss_that_rises_is_said(begin: Begin) -> None:
    trainer, context = training(begin, lr=0.3)
    losses = trainer.train(PAIR).losses
    assert losses[-1] > losses[0]
    assert context.events.notes == [
        f"merge 2+3: its training loss rose from {losses[0]:.4g} to {losses[-1]:.4g}; a smaller distiller.lr may help"
    ]


def test_a_loss_that_stays_is_said_with_what_to_change(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mse, "distil", lambda *_: iter([0.125, 0.125]))
    trainer, context = training(begin)
    assert not trainer.train(PAIR).moved
    assert context.events.notes == [
        "merge 2+3: its training loss did not fall from 0.125: raise one of distiller.lr, distiller.epochs, distiller.tokens"
    ]


def test_one_epoch_alone_tells_nothing_of_a_loss_but_the_error_does(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mse, "distil", lambda *_: iter([0.125]))
    trainer, context = training(begin)
    trainer.train(PAIR)
    (told,) = context.events.notes
    assert told.startswith("merge 2+3: training lowered its error by less than 5 %, from ")


def test_an_error_that_falls_is_not_worth_a_note(begin: Begin) -> None:
    trainer, context = training(begin, lr=5e-3, epochs=10)
    record = trainer.train(PAIR)
    assert record.trained < 0.95 * record.untrained
    assert context.events.notes == []


@pytest.mark.parametrize("distiller", ["mse", "cosine-loss"])
def test_an_error_that_hardly_falls_is_said_with_what_to_change(begin: Begin, distiller: str) -> None:
    trainer, context = training(begin, use=distiller, lr=1e-5)
    record = trainer.train(PAIR)
    assert 0.95 * record.untrained < record.trained
    (told,) = context.events.notes
    assert told == (
        f"merge 2+3: training lowered its error by less than 5 %, from {record.untrained:.4g} to {record.trained:.4g}: raise one "
        "of distiller.lr, distiller.epochs, distiller.tokens"
    )


def test_by_default_training_lowers_the_error_clearly(begin: Begin) -> None:
    """Whatever the default sizes of steps are, with the default tokens they must do something."""
    defaults = {name: field.default for name, field in Mse.model_fields.items()}
    trainer, context = training(begin, **defaults)
    record = trainer.train(PAIR)
    assert record.trained < 0.9 * record.untrained
    assert context.events.notes == []


def test_texts_that_measure_do_not_train(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = Sample("Which of these is a line of prose that a source trains on", (" this one", " that one"))
    texts = [f"{sample.prompt} that one", *(f"Another line of prose, the one with number {n}." for n in range(20))]
    monkeypatch.setattr(Mini, "training_texts", lambda _self, _rng: texts)
    digests = []
    for number, (measured, expected) in enumerate(((sample, texts[1:]), (Sample("Else", (" or", " not")), texts))):
        trainer, _ = training(begin, str(number), calibration=calibrate([measured], (), ByteTokenizer()))
        tokens = bytes(token for sequence in trainer.sequences() for token in sequence)
        assert tokens == "".join(expected).encode()[:512]
        trainer.merge_of(PAIR)
        digests.append(trainer.digest)
    assert digests[0] != digests[1]


def test_sequences_have_one_length_and_no_more_tokens_than_asked_for(begin: Begin) -> None:
    trainer, _ = training(begin, tokens=200)
    assert [len(sequence) for sequence in trainer.sequences()] == [64, 64, 64]


@pytest.mark.parametrize("kind", KINDS)
def test_sequences_begin_as_prompts_do_and_texts_in_them_neither_begin_nor_end(begin: Begin, kind: str) -> None:
    trainer, _ = training(begin, tokens=200)
    trainer._inputs.model.tokenizer = tokenizer_of(kind)
    sequences = trainer.sequences()
    begins = kind in ("bos", "both", "metaspace")
    assert [len(sequence) for sequence in sequences] == [64, 64, 64]
    assert [sequence.count(256) for sequence in sequences] == [int(begins)] * 3
    assert all((sequence[0] == 256) is begins for sequence in sequences)
    assert not any(257 in sequence for sequence in sequences)


def test_nothing_is_read_until_a_merge_is_asked_for(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mini, "training_texts", lambda _self, _rng: ["A short text."])
    trainer, _ = training(begin)
    assert (trainer.digest, trainer.results(Plan(), kept=(), score_of=lambda _: None)) == ("", ())
    with pytest.raises(PdtrimError) as caught:
        trainer.train(PAIR)
    assert str(caught.value) == (
        "calibration 'mini' gave 13 training tokens, too few to merge blocks: give it more text, or do without"
    )


def test_chosen_merges_are_written_beside_their_plan_and_no_others(begin: Begin, tmp_path: Path) -> None:
    trainer, _ = training(begin)
    for merge in (OTHER, PAIR):
        trainer.train(merge)
    plan = Plan.unified(Removal([PAIR]))
    trainer.save(plan, tmp_path / "merges")
    assert [path.name for path in (tmp_path / "merges").iterdir()] == ["2-3.safetensors"]
    results = trainer.results(plan, kept=[PAIR], score_of=lambda merge: float(merge.keep))
    assert [(result.pair, result.score, result.kept, result.chosen) for result in results] == [
        ((2, 3), 3.0, True, True),
        ((4, 5), 5.0, False, False),
    ]
    for result, merge in zip(results, (PAIR, OTHER), strict=True):
        record = trainer.records[merge]
        assert result.drop == min(record.drop_first, record.drop_second)
        assert (result.untrained, result.trained) == (record.untrained, record.trained)


def test_texts_with_tokens_beyond_the_vocabulary_do_not_train(begin: Begin) -> None:
    model = tiny_llama(vocab_size=64, bos_token_id=1, eos_token_id=2, pad_token_id=3)
    with pytest.raises(PdtrimError, match=r"the training text 0 of calibration '.*' has the token \d+, and the vocabulary of"):
        Training(begin(), inputs_of(model), otherwise="do without").sequences()


def test_a_model_with_fewer_positions_than_a_training_sequence_is_refused(begin: Begin) -> None:
    model = tiny_model("opt", max_position_embeddings=63)
    with pytest.raises(PdtrimError) as caught:
        Training(begin(), inputs_of(model), otherwise="do without").sequences()
    assert str(caught.value) == (
        "merges are trained on sequences of 64 tokens, and tiny opt has learned 63 positions: do without"
    )


def test_listeners_hear_how_far_the_merges_are(begin: Begin) -> None:
    trainer, context = training(begin, epochs=2)
    heard: list[tuple[str, int, int, float]] = []
    listener = SimpleNamespace(
        pdtrim_work_advanced=hookimpl(lambda what, number, count, share: heard.append((what, number, count, share)))
    )
    context.host.register(listener, Origin("listener", "listener"))
    trainer.train(PAIR)
    assert heard == []
    assert [record.merge for record in trainer.train_all([PAIR, OTHER, Merge(keep=1, drop=0)])] == [
        PAIR,
        OTHER,
        Merge(keep=1, drop=0),
    ]
    shares = [(number, share) for _, number, _, share in heard]
    assert shares == [(1, 0.0), (1, 0.25), (1, 0.5), (2, 0.5), (2, 0.75), (2, 1.0)]
    assert {(what, count) for what, _, count, _ in heard} == {("merges", 2)}
