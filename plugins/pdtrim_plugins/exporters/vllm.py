"""A pair for vLLM: the prefill model, the decode model, and the files that start both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdtrim_core.api import ExportFacts, PdtrimError, SavedPlan
from pdtrim_plugins.exporters.card import card, write_card
from pdtrim_plugins.exporters.checkpoint_folder import export_folder, occupied, write_checkpoint
from pdtrim_plugins.exporters.checkpoints import (
    WeightsExporter,
    in_format,
    is_stock,
    no_plan,
    other_dtype,
    plan_of,
    write_decode,
)
from pdtrim_plugins.exporters.configs import formed, ordinary, without_shared
from pdtrim_plugins.exporters.first_tokens import first_token_blocks
from pdtrim_plugins.exporters.serve_files import write_serve
from pdtrim_plugins.exporters.stages import Parts, StoredBlock, decode_blocks, prefill_blocks

if TYPE_CHECKING:
    from pdtrim_core.api import BlockModel, Outcome

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
SERVED = ("W8A16", "W4A16", "W8A8", "FP8_DYNAMIC")
"""Formats whose weights vLLM's compressed-tensors runs, where the machine has a kernel for them."""
FOLDERS = ("decode", "prefill", "serve")
ADVICE = "; --to checkpoints gives one model for both stages"


class Vllm(WeightsExporter):
    """Writes decode/, prefill/ and serve/: a pair of models that two vLLM servers run, and the files that start them.

    decode/ is an ordinary checkpoint that stock vLLM serves, unless its blocks differ in their parts. prefill/ keeps the dense
    model's block numbers and the blocks its plan keeps, with the K/V of merged blocks. Where a checkpoint is not an ordinary
    one vLLM loads it with pdtrim-core installed, too. Prefill is truncated
    after the last K/V that decode reads, which changes no logit of decode. Each of the two has the weights that recovery gave it,
    and its own number format in the form of compressed-tensors.
    """

    name = "vllm"
    carries_parts = True

    def problems(self, facts: ExportFacts) -> list[str]:
        """Return why a pair of such a model cannot be served, as far as the model and the recipe tell."""
        if facts.replaced:
            return [no_plan(facts)]
        found = [*_of_model(facts), *_of_recipe(facts), *other_dtype(facts, self.dtype)]
        return [*found, *occupied(*(facts.out / name for name in FOLDERS))]

    def export(self, outcome: Outcome, model: BlockModel, out: Path) -> Iterable[Path]:
        """Write the three folders, after checking everything that could be refused."""
        from pdtrim_core.api import read_first_tokens  # noqa: PLC0415 - listings must not import torch

        self.check(ExportFacts.of_run(outcome, model, out))
        saved = plan_of(outcome, model)
        _check_heads(model, saved)
        parts = Parts.of_run(model, saved, out)
        _check_decode(model, decode_blocks(parts, saved.plan))
        storage = self._storage
        plan = saved.plan.truncated_prefill(model.block_count)
        prefill = prefill_blocks(parts, plan)
        known, tables = first_token_blocks(parts, saved.plan, read_first_tokens(saved.plan, model, out))
        told = {"format": 1, "plan_hash": saved.digest, "first_token": saved.first_token, **prefill.told, "head": False}
        config, stored = _prefill_config(model, prefill.stored, told)
        # Behind the comparison of blocks, which have no tables of their own.
        config.pdtrim = {**config.pdtrim, **known}
        parts.give_format(config, "prefill")
        write_decode(outcome, parts, out, storage, for_engine=True)
        yield out / "decode"
        with export_folder(out / "prefill") as folder:
            write_checkpoint(folder, model, config, [*stored, *tables], storage)
            formats = in_format(saved, "prefill")
            text = (
                "The model that reads prompts for the decode model next to it. It computes only the K/V that decode needs: "
                "its logits are meaningless. Block numbers are those of the dense model. It runs in vLLM with pdtrim-core "
                f"installed; the folder serve/ has the command lines. It has its {storage.told(model)}{formats}."
            )
            write_card(folder, outcome, card(outcome, model, role="prefill", text=text, run=out, plan=plan))
        yield out / "prefill"
        with export_folder(out / "serve") as folder:
            text = "What starts the pair: `sh serve.sh` on one machine. The script says what to change for two."
            write_card(folder, outcome, card(outcome, model, role="serve", text=text, run=out, plan=plan))
            write_serve(folder, saved, sorted(prefill.told["decode_layer"].values()), stock=is_stock(out / "decode"))
        yield out / "serve"


def _of_model(facts: ExportFacts) -> Iterator[str]:
    """Yield the first reason why vLLM cannot serve a pair of such a model; the others would follow from it."""
    config, name = facts.text_config, facts.model
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if getattr(config, "kv_lora_rank", None):
        yield (
            f"{name} has latent attention (MLA), whose cache vLLM hands over in rows of several layers: a pair cannot be "
            f"served{ADVICE}"
        )
    elif kinds or (getattr(config, "sliding_window", None) and not hasattr(config, "layer_types")):
        yield (
            f"{name} has {', '.join(sorted(kinds)) or 'sliding_attention'} beside or instead of full attention: vLLM "
            f"tells by a block's number how it looks, and prefill's blocks have the numbers of decode's{ADVICE}"
        )
    elif facts.family not in FAMILIES:
        yield f"a pair for vLLM can be of the families {', '.join(FAMILIES)}, and {name} is {facts.family}{ADVICE}"


def _of_recipe(facts: ExportFacts) -> Iterator[str]:
    """Yield what a recipe says that vLLM cannot do."""
    if facts.first_token != "decode":
        yield (
            'with first_token = "prefill" something else is measured than what vLLM would serve, where decode makes the first '
            'token: run the recipe with evaluation.first_token = "decode"'
        )
    others = sorted({scheme for scheme in facts.formats.values() if scheme not in SERVED})
    if others:
        yield f"vLLM is known to serve the formats {', '.join(SERVED)}, and not {', '.join(others)}{ADVICE}"
    if not facts.uniform and facts.narrows != {"mlp"}:
        yield (
            f"vLLM's cache has one shape for all blocks, and those that the pruner gives may differ in their K/V heads: let it "
            f'narrow MLPs alone (such as parts = "mlp"), or all blocks alike (such as width = "uniform"){ADVICE}'
        )
    if "attention" in facts.narrows and facts.family == "qwen2":
        yield (
            f"vLLM's {facts.family} takes the size of a head from the number of heads, so it cannot have fewer heads{ADVICE}; or "
            "prune channels and blocks alone"
        )


def _check_heads(model: BlockModel, saved: SavedPlan) -> None:
    """Raise `PdtrimError` where decode has fewer K/V heads than prefill, which only the plan tells."""
    sliced = [source.block for source in saved.plan.kv_map(model.block_count) if source.removed_heads]
    if sliced:
        raise PdtrimError(
            f"decode has fewer K/V heads than prefill in the blocks {', '.join(map(str, sliced))}, and vLLM hands over all heads "
            f"or none{ADVICE}; or let both stages lose the same heads"
        )


def _check_decode(model: BlockModel, stored: Sequence[StoredBlock]) -> None:
    """Raise `PdtrimError` unless vLLM has a class for decode: the family's own, or ours where blocks differ."""
    _, thin = without_shared(stored)
    if any("attention" in block.widths for block in thin):
        raise PdtrimError(_other_heads(model, "decode"))
    if not any(block.widths or block.lost for block in thin):
        ordinary(model, stored)


def _other_heads(model: BlockModel, stage: str) -> str:
    return (
        f"{model.name}: {stage}'s blocks differ in their K/V heads, and vLLM's cache has one shape{ADVICE}; or let all blocks of "
        "both stages lose as many heads"
    )


def _prefill_config(model: BlockModel, stored: Sequence[StoredBlock], told: Mapping[str, Any]) -> tuple[Any, list[StoredBlock]]:
    """Return prefill's config, and its blocks without the widths that all of them share.

    Raises `PdtrimError` where blocks differ in their K/V heads, because vLLM's cache has one shape.
    """
    common, thin = without_shared(stored)
    if any("attention" in block.widths for block in thin):
        raise PdtrimError(_other_heads(model, "prefill"))
    config = formed(model, thin, told, common=common)
    # Nothing reads prefill's logits, so its head has no weights of its own: with tied embeddings a stock class expects none.
    config.tie_word_embeddings = True
    return config, thin
