"""A pair for vLLM: the prefill model, the decode model, and the files that start both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from pdtrim_core.api import Exporter, PdtrimError, SavedPlan, Shrink
from pdtrim_plugins.exporters.card import card
from pdtrim_plugins.exporters.checkpoint_folder import CARD, Storage, export_folder, write_checkpoint
from pdtrim_plugins.exporters.checkpoints import FORMAT_HELP, SHARD_HELP, Format, plan_of, write_decode
from pdtrim_plugins.exporters.configs import formed, ordinary
from pdtrim_plugins.exporters.serve_files import write_serve
from pdtrim_plugins.exporters.stages import Parts, StoredBlock, decode_blocks, prefill_blocks

if TYPE_CHECKING:
    from pdtrim_core.api import BlockModel, Outcome

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
ADVICE = "; --to checkpoints gives one model for both stages"


class Vllm(Exporter):
    """Writes decode/, prefill/ and serve/: a pair of models that two vLLM servers run, and the files that start them.

    decode/ is an ordinary checkpoint that stock vLLM serves. prefill/ keeps the dense model's block numbers and
    the blocks its plan keeps, with the K/V of merged blocks; vLLM loads it with pdtrim-core installed too. Prefill is truncated
    after the last K/V that decode reads, which changes no logit of decode.
    """

    name = "vllm"

    dtype: Format = Field("auto", description=FORMAT_HELP)
    max_shard: float = Field(2.0, gt=0, description=SHARD_HELP)

    def remark(self, model: BlockModel) -> str:
        """Tell the number format."""
        return self._storage.told(model)

    @property
    def _storage(self) -> Storage:
        return Storage(self.dtype, int(self.max_shard * 1e9))

    def export(self, outcome: Outcome, model: BlockModel, out: Path) -> Iterable[Path]:
        """Write the three folders, after checking everything that could be refused."""
        saved = plan_of(outcome, model)
        _refuse(model, saved)
        parts = Parts(model, out / "merges")
        _check_decode(model, decode_blocks(parts, saved.plan))
        storage = self._storage
        plan = saved.plan.truncated_prefill(model.block_count)
        prefill = prefill_blocks(parts, plan)
        told = {"format": 1, "plan_hash": saved.digest, "first_token": saved.first_token, **prefill.told, "head": False}
        config, stored = _prefill_config(model, prefill.stored, told)
        write_decode(outcome, model, saved, out, storage)
        yield out / "decode"
        with export_folder(out / "prefill") as folder:
            write_checkpoint(folder, model, config, stored, storage)
            text = (
                "The model that reads prompts for the decode model next to it. It computes only the K/V that decode needs: "
                "its logits are meaningless. Block numbers are those of the dense model. It runs in vLLM with pdtrim-core "
                f"installed; the folder serve/ has the command lines. It has its {storage.told(model)}."
            )
            (folder / CARD).write_text(card(outcome, model, role="prefill", text=text, run=out, plan=plan), encoding="utf-8")
        yield out / "prefill"
        with export_folder(out / "serve") as folder:
            text = "What starts the pair: `sh serve.sh` on one machine. The script says what to change for two."
            (folder / CARD).write_text(card(outcome, model, role="serve", text=text, run=out, plan=plan), encoding="utf-8")
            write_serve(folder, saved, len(prefill.told["decode_index"]))
        yield out / "serve"


def _refuse(model: BlockModel, saved: SavedPlan) -> None:
    """Raise `PdtrimError` with the reason where vLLM cannot serve a pair."""
    config, family = model.config, model.model.config.model_type
    if getattr(config, "kv_lora_rank", None):
        raise PdtrimError(
            f"{model.name} has latent attention (MLA), whose cache vLLM hands over in rows of several layers: a pair cannot be "
            f"served{ADVICE}"
        )
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if kinds or (getattr(config, "sliding_window", None) and not hasattr(config, "layer_types")):
        raise PdtrimError(
            f"{model.name} has {', '.join(sorted(kinds)) or 'sliding_attention'} beside or instead of full attention: vLLM puts "
            f"such blocks into cache groups of their own, and prefill's and decode's would not match{ADVICE}"
        )
    if family not in FAMILIES:
        raise PdtrimError(f"a pair for vLLM can be of the families {', '.join(FAMILIES)}, and {model.name} is {family}{ADVICE}")
    if saved.first_token != "decode":
        raise PdtrimError(
            'the run measured with first_token = "prefill", and in vLLM decode makes the first token: what was measured would '
            'not be served; run the recipe with evaluation.first_token = "decode"'
        )
    sliced = [source.block for source in saved.plan.kv_map(model.block_count) if source.removed_heads]
    if sliced:
        raise PdtrimError(
            f"decode has fewer K/V heads than prefill in the blocks {', '.join(map(str, sliced))}: K/V widths by block need a "
            f"plugin on the decode side, which is stock here{ADVICE}; or let both stages lose the same heads"
        )
    attention = any(isinstance(e, Shrink) and e.part == "attention" for e in saved.plan.decode)
    if attention and family == "qwen2":
        raise PdtrimError(
            f"vLLM's {family} takes the size of a head from the number of heads, so it cannot have fewer heads{ADVICE}; or prune "
            "channels and blocks alone"
        )


def _check_decode(model: BlockModel, stored: Sequence[StoredBlock]) -> None:
    """Raise `PdtrimError` unless decode is a checkpoint that stock vLLM loads."""
    try:
        ordinary(model, stored)
    except PdtrimError as error:
        if not any(block.widths for block in stored):
            raise
        raise PdtrimError(
            f"decode is stock vLLM, whose blocks all have the same shape, and this decode model's do not ({error}): say "
            f'width = "uniform" in the pruner{ADVICE}'
        ) from error


def _prefill_config(model: BlockModel, stored: Sequence[StoredBlock], told: Mapping[str, Any]) -> tuple[Any, list[StoredBlock]]:
    """Return prefill's config, and its blocks without the widths that all of them share.

    Raises `PdtrimError` where blocks differ in their K/V heads, because vLLM's cache has one shape.
    """
    heads: set[Any] = {block.widths.get("attention") for block in stored}
    if len(heads) > 1:
        raise PdtrimError(
            f"{model.name}: prefill's blocks differ in their K/V heads, and K/V widths by block need a plugin on the decode "
            f"side, which is stock here{ADVICE}; or let both stages lose the same heads"
        )
    channels: set[Any] = {block.widths.get("mlp") for block in stored if block.parts is None}
    shared = {"attention": heads, "mlp": channels}
    common: dict[str, int] = {part: next(iter(found)) for part, found in shared.items() if len(found) == 1 and None not in found}
    thin = [
        replace(block, widths={part: width for part, width in block.widths.items() if part not in common}) for block in stored
    ]
    config = formed(model, thin, told, common=common)
    # Nothing reads prefill's logits, so its head has no weights of its own: with tied embeddings a stock class expects none.
    config.tie_word_embeddings = True
    return config, thin
