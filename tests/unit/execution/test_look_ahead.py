"""Questions about plans on a model on the disk: answered together, with one reading of each block."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pdtrim_core.api import Drop, Plan, Removal
from pdtrim_core.execution.look_ahead import LookAhead, answers_of
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.pipeline.prepare import open_model
from pdtrim_core.testing.models import save_tiny_model
from pdtrim_plugins.model_sources import FolderModel
from tests.unit.execution.test_staged_model import some_items

if TYPE_CHECKING:
    from pdtrim_core import PluginHost
    from pdtrim_core.api import BlockModel

PLANS = [Plan.unified(Removal([Drop(block)])) for block in (1, 4)]


@pytest.fixture
def models(tmp_path: Path, host: PluginHost) -> tuple[BlockModel, BlockModel]:
    folder = str(save_tiny_model(tmp_path / "tiny"))
    streamed, ordinary = (open_model(FolderModel(path=folder, placement=placement), host) for placement in ("stream", "cpu"))
    return streamed, ordinary


def question(cache: PrefixCache, plan: Plan, ahead: LookAhead | None) -> tuple[object, object]:
    """Two in one, the second of which is only asked once the first is answered."""
    staged, items = StagedModel(cache, plan, ahead=ahead), some_items()
    return staged.scores(items), staged.divergences(items, "right")


def test_answers_are_those_of_a_model_in_memory_and_their_batches_go_together(models: tuple[BlockModel, BlockModel]) -> None:
    found = []
    for model in models:
        cache = PrefixCache(model, ExecutionOptions(batch_tokens=32))
        before = model.on_disk.bytes_read if model.on_disk else 0
        found.append(answers_of(model, [partial(question, cache, plan) for plan in PLANS]))
        if model.on_disk:
            blocks = sum(weight.nbytes for block in model.blocks for weight in block.parameters())
            head = model.model.get_output_embeddings().weight.nbytes
            # Once for each of the two that are asked one behind the other, whatever the number of plans and batches.
            assert model.on_disk.bytes_read - before <= 2 * (blocks + head)
    assert found[0] == found[1]


def test_an_error_of_who_asks_is_raised(models: tuple[BlockModel, BlockModel]) -> None:
    def wrong(ahead: LookAhead | None) -> None:
        raise ValueError(f"{ahead is not None}")

    for model, said in zip(models, ("True", "False"), strict=True):
        with pytest.raises(ValueError, match=said):
            answers_of(model, [wrong])


def test_no_questions_have_no_answers(models: tuple[BlockModel, BlockModel]) -> None:
    assert [answers_of(model, []) for model in models] == [[], []]
