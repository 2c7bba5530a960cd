"""What every calibration source must hold to."""

from __future__ import annotations

from itertools import islice
from typing import Any, ClassVar

from pdtrim_core.api.item_kinds import CalibrationSource
from pdtrim_core.data.items import Sample, encode
from pdtrim_core.errors import PdtrimError
from pdtrim_core.testing.contracts.shared import check_component, contract, no_global_randomness, rng_of
from pdtrim_core.testing.models import ByteTokenizer


@contract
class CalibrationContract:
    """What every calibration source must hold to. It must be able to draw 24 samples."""

    component: ClassVar[type[CalibrationSource]]
    options: ClassVar[dict[str, Any]] = {}
    departs: ClassVar[dict[str, str]] = {}

    def test_it_is_a_well_formed_component(self) -> None:
        """See `check_component`."""
        check_component(self.component, CalibrationSource, self.options)

    def test_it_draws_as_many_samples_as_it_is_asked_for(self) -> None:
        """The core takes the first ones of a longer result, so a shorter one is what must not be."""
        assert [len(self._draw(count)) for count in (1, 5, 16)] == [1, 5, 16]

    def test_the_same_seed_draws_the_same_samples(self) -> None:
        """Also for the held-out ones."""
        with no_global_randomness():
            assert self._draw(8) == self._draw(8)
            assert self._both() == self._both()

    def test_another_seed_draws_other_samples(self) -> None:
        """Of five seeds, two at least draw unlike: where all samples are drawn, their order may be the same."""
        if len(self._draw(9)) > 8:
            assert len({tuple(sample.content for sample in self._draw(8, seed)) for seed in range(5)}) > 1

    def test_what_is_kept_apart_does_not_measure(self) -> None:
        """By content, spacing and case aside."""
        drawn, held_out = self._both()
        assert len(held_out) == 8
        assert not {sample.content for sample in drawn} & {sample.content for sample in held_out}

    def test_every_sample_can_be_tokenised(self) -> None:
        """Prompts and choices have tokens, there is a prompt a choice or one for all, and the answer is one of them."""
        for sample in (*self._draw(16), *self._both()[1]):
            item = encode(sample, ByteTokenizer())
            assert 0 <= item.answer < len(item.choices)

    def test_what_it_trains_on_is_text_and_the_same_for_a_seed(self) -> None:
        """Training texts, and prompts that the dense model answers, of which there may be none."""
        made = self.component(**self.options)
        for training in (made.training_texts, made.training_prompts):
            with no_global_randomness():
                first, again = (list(islice(training(rng_of(0)), 64)) for _ in range(2))
            assert all(isinstance(text, str) for text in first)
            assert first == again

    def test_more_than_there_is_gives_fewer_or_says_so(self) -> None:
        """A request for a million samples returns what there is, or raises an error for the user."""
        try:
            drawn = self._draw(1_000_000)
        except PdtrimError as error:
            assert "1000000" in str(error)  # noqa: PT017 - either outcome is right, and this one must name the number
        else:
            assert len(drawn) <= 1_000_000

    def _draw(self, count: int, seed: int = 0) -> list[Sample]:
        return list(islice(self.component(**self.options).draw(count, rng_of(seed)), count))

    def _both(self, measured: int = 16, kept: int = 8) -> tuple[list[Sample], list[Sample]]:
        """Draw as a run does."""
        made, rng = self.component(**self.options), rng_of(0)
        held_out = made.draw_held_out(kept, rng)
        if held_out is None:
            drawn = list(islice(made.draw(measured + kept, rng), measured + kept))
            return drawn[:measured], drawn[measured:]
        return list(islice(made.draw(measured, rng), measured)), list(held_out)
