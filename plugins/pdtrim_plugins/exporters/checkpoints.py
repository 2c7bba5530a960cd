"""Checkpoints of transformers: the decode model, and the same model for both stages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pdtrim_core.api import Exporter, ExportFacts, PdtrimError, SavedPlan, Stage
from pdtrim_plugins.architectures import LAYOUTS
from pdtrim_plugins.exporters.card import card, write_card
from pdtrim_plugins.exporters.checkpoint_folder import (
    Storage,
    export_folder,
    link_checkpoint,
    occupied,
    write_checkpoint,
)
from pdtrim_plugins.exporters.configs import formed, numbered, ordinary, uncounted, without_shared
from pdtrim_plugins.exporters.stages import Parts, StoredBlock, decode_blocks, own_prefill_blocks

if TYPE_CHECKING:
    from pdtrim_core.api import BlockModel, Outcome

Format = Literal["auto", "float32", "float16", "bfloat16"]
OUR_PREFIX = "pdtrim_"
FORMAT_HELP = "number format of the weights; auto: that of the source, or the one that model.dtype asks for"
SHARD_HELP = "largest file of weights, in GB"


class WeightsExporter(Exporter):
    """An exporter that writes weights: in which number format, and in files of which size."""

    dtype: Format = Field("auto", description=FORMAT_HELP)
    max_shard: float = Field(2.0, gt=0, description=SHARD_HELP)

    def remark(self, model: BlockModel) -> str:
        """Tell the number format."""
        return self._storage.told(model)

    @property
    def _storage(self) -> Storage:
        return Storage(self.dtype, int(self.max_shard * 1e9))


class Checkpoints(WeightsExporter):
    """Writes decode/ and unified/: the decode model as a checkpoint that transformers and engines load.

    A prefill that keeps experts of its own is written, too, into prefill/. The other two hold the same weights, since a unified
    model is decode's removal in both stages; the second one is made of hard links where the disk allows them. Blocks are
    renumbered; a merged block is stored as any other block, and a recovered layer with its recovered weights, and one that has a
    number format of its own in the form of compressed-tensors.
    Where all blocks have one width and both parts the checkpoint is an ordinary one of its family; otherwise it needs
    `import pdtrim_plugins.checkpoints` to be loaded.
    """

    name = "checkpoints"
    carries_parts = True

    def problems(self, facts: ExportFacts) -> list[str]:
        """Return what is certain of the model and the folders."""
        if facts.replaced:
            return [no_plan(facts)]
        there = occupied(facts.out / "decode", facts.out / "unified", facts.out / "prefill")
        found = numbered(facts.model, facts.text_config) or uncounted(facts.model, facts.config)
        return [*found, *other_dtype(facts, self.dtype), *there]

    def export(self, outcome: Outcome, model: BlockModel, out: Path) -> Iterable[Path]:
        """Write both folders."""
        self.check(ExportFacts.of_run(outcome, model, out))
        saved, storage = plan_of(outcome, model), self._storage
        write_decode(outcome, Parts.of_run(model, saved, out), out, storage)
        yield out / "decode"
        with export_folder(out / "unified") as folder:
            link_checkpoint(out / "decode", folder)
            formats = in_format(saved, "decode")
            text = (
                f"One model for both stages, the same as in decode/; {storage.told(model)}{formats}.\n\n{_usage(out / 'decode')}"
            )
            write_card(folder, outcome, card(outcome, model, role="unified", text=text, run=out))
        yield out / "unified"
        yield from _write_prefill(outcome, Parts.of_run(model, saved, out), out, storage)


def _write_prefill(outcome: Outcome, parts: Parts, out: Path, storage: Storage) -> Iterator[Path]:
    """Write prefill/ where prefill has experts of its own, so that it is neither the dense model nor the decode model."""
    stored = own_prefill_blocks(parts, outcome.plan.plan)
    if not stored:
        return
    config = _config(parts.model, stored, {"format": 1, "plan_hash": outcome.plan.digest})
    with export_folder(out / "prefill") as folder:
        write_checkpoint(folder, parts.model, config, stored, storage)
        what = "The model that reads prompts: it has more experts than the one in decode/, which takes its K/V as they are"
        text = f"{what}; {storage.told(parts.model)}.\n\n{_usage(folder)}"
        write_card(folder, outcome, card(outcome, parts.model, role="prefill", text=text, run=out))
    yield out / "prefill"


def no_plan(facts: ExportFacts) -> str:
    """Return why the other model of a pruner cannot be written."""
    return (
        f"the pruner replaces the whole of {facts.model}, and the blocks of what it gives have shapes that no class of "
        "transformers or of an engine has, so that it cannot be exported: load the run with pdtrim_core.load_run"
    )


def other_dtype(facts: ExportFacts, dtype: str) -> list[str]:
    """Return why weights cannot have another number format than the source where some of them are quantised."""
    if not facts.formats or dtype == "auto":
        return []
    return [f"dtype = {dtype!r}: the scales of quantised weights have the number format of the source model: leave dtype out"]


def plan_of(outcome: Outcome, model: BlockModel) -> SavedPlan:
    """Return the plan of a run. Raises `PdtrimError` for a model that it was not made for."""
    saved = outcome.plan
    saved.check_meets(model.name, model.fingerprint)
    return saved


def write_decode(outcome: Outcome, parts: Parts, out: Path, storage: Storage, *, for_engine: bool = False) -> None:
    """Write decode/: an ordinary checkpoint where the family's config can describe its blocks, else one of our own class.

    With `for_engine`, widths that all blocks share stand in the family's own keys even then, where an engine looks for them.
    """
    model, saved = parts.model, outcome.plan
    stored = decode_blocks(parts, saved.plan)
    told = {"format": 1, "plan_hash": saved.digest}
    config = _config(model, stored, told, for_engine=for_engine)
    parts.give_format(config, "decode")
    with export_folder(out / "decode") as folder:
        write_checkpoint(folder, model, config, stored, storage)
        what = "The model that decodes: block by block what is left of the dense one, renumbered"
        text = f"{what}; {storage.told(model)}{in_format(saved, 'decode')}.\n\n{_usage(folder)}"
        write_card(folder, outcome, card(outcome, model, role="decode", text=text, run=out))


def in_format(saved: SavedPlan, stage: Stage) -> str:
    """Return what to say of the number format of a stage's linear layers; nothing where it is that of all weights."""
    scheme = saved.formats.of(stage) if saved.formats is not None else None
    return (
        ""
        if scheme is None
        else f"; those of linear layers in {scheme} (compressed-tensors), which needs `pip install compressed-tensors`"
    )


def _config(model: BlockModel, stored: Sequence[StoredBlock], told: dict[str, Any], *, for_engine: bool = False) -> Any:
    """Return the family's own config, or one of our class where the family's cannot describe the blocks."""
    try:
        config = ordinary(model, stored)
    except PdtrimError:
        if not any(block.widths or block.lost for block in stored):
            raise
        common, thin = without_shared(stored) if for_engine else ({}, stored)
        return formed(model, thin, told, common=common)
    config.pdtrim = told
    return config


def is_stock(folder: Path) -> bool:
    """Whether the class of a checkpoint is its family's own."""
    return not _model_type(folder).startswith(OUR_PREFIX)


def _model_type(folder: Path) -> str:
    return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"])


def _usage(folder: Path) -> str:
    """Return how a checkpoint is loaded."""
    family, ours = _model_type(folder).removeprefix(OUR_PREFIX), not is_stock(folder)
    note = (
        "Its blocks differ from one another, so its class comes with pdtrim-core, which has to be installed.\n\n" if ours else ""
    )
    # Importing the package registers the built-in families; the class of a plugin's family is made by `classes_of`.
    known = "import pdtrim_plugins.checkpoints  # registers the class"
    other = f'from pdtrim_plugins.checkpoints import classes_of\n\nclasses_of("{family}")  # registers the class'
    first = f"{known if family in LAYOUTS else other}\n" if ours else ""
    return (
        f"{note}```python\n{first}from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("this folder")\n'
        'tokenizer = AutoTokenizer.from_pretrained("this folder")\n```'
    )
