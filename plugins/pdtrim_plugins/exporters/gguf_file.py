"""One GGUF file for llama.cpp."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pdtrim_core.api import Exporter, ExportFacts, PdtrimError
from pdtrim_plugins.exporters.card import card, write_card
from pdtrim_plugins.exporters.checkpoint_folder import export_folder, occupied, outside
from pdtrim_plugins.exporters.checkpoints import no_plan, plan_of
from pdtrim_plugins.exporters.configs import family_of
from pdtrim_plugins.exporters.gguf_blocks import (
    ARCHITECTURES,
    DECI,
    LLAMA,
    architecture_of,
    block_problems,
    counts_of,
    with_words_for,
)
from pdtrim_plugins.exporters.gguf_tokenizer import copy_fields, tokenizer_problems, write_fields
from pdtrim_plugins.exporters.stages import Parts, StoredBlock, decode_blocks
from pdtrim_plugins.model_sources.package import gguf_behind

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFWriter
    from torch import Tensor

    from pdtrim_core.api import BlockModel, Outcome

TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
SILU = ("silu", "swish")
PERMUTED = (".attn_q.", ".attn_k.")
"""llama.cpp's llama and deci apply rotary embeddings to neighbouring components of a head, transformers to the two halves."""


class Gguf(Exporter):
    """Writes gguf/: one file with the decode model for llama.cpp, which runs both stages on it.

    llama.cpp cannot hand K/V from one model to another, so there is no pair. The tokenizer of a model from a GGUF file is
    copied unchanged. Recovered weights are those of decode. Blocks of several shapes, or without their attention or their MLP,
    are of llama.cpp's architecture deci.
    """

    name = "gguf"
    carries_parts = True

    dtype: Literal["auto", "float32", "float16", "bfloat16", "q8_0"] = Field(
        "auto", description="number format of the matrices; auto: that of the source; vectors stay in float32"
    )
    pre: str | None = Field(
        None, description="llama.cpp's name for the tokenizer's way of splitting text; by default found from the tokenizer"
    )

    def problems(self, facts: ExportFacts) -> list[str]:
        """Return why such a model cannot be written; that of its tokenizer only where the model was opened."""
        if facts.replaced:
            return [no_plan(facts)]
        found = [*_of_model(facts), *_of_formats(facts), *block_problems(facts), *occupied(facts.out / "gguf")]
        if family_of(facts.config) in ARCHITECTURES and facts.tokenizer is not None and not _copied_from(facts.model, self.pre):
            found += tokenizer_problems(facts.tokenizer, facts.text_config.vocab_size, self.pre)
        return found

    def export(self, outcome: Outcome, model: BlockModel, out: Path) -> Iterable[Path]:
        """Write the folder: the file and its card."""
        self.check(ExportFacts.of_run(outcome, model, out))
        saved = plan_of(outcome, model)
        stored = decode_blocks(Parts.of_run(model, saved, out), saved.plan)
        architecture, config = architecture_of(model, stored)
        kind = TYPES[_dtype_of(model) if self.dtype == "auto" else self.dtype]
        name = model.name.rstrip("/").rsplit("/", 1)[-1].removeprefix("package:").removesuffix(".gguf").replace(" ", "-")
        file = f"{name}-{kind}.gguf"
        with export_folder(out / "gguf") as folder:
            text = f"One model for both stages, for llama.cpp ({self.remark(model)}):\n\n```sh\nllama-cli -m {file}\n```"
            write_card(folder, outcome, card(outcome, model, role="gguf", text=text, run=out))
            self._write(folder / file, model, config, _Tensors(model, stored, architecture), kind)
        yield out / "gguf"

    def remark(self, model: BlockModel) -> str:
        """Tell the number format."""
        dtype, measured = _dtype_of(model) if self.dtype == "auto" else self.dtype, str(model.dtype).removeprefix("torch.")
        why = "as the option dtype says" if self.dtype != "auto" else "as in the source" if model.dtypes else "as it was loaded"
        return f"matrices in {dtype}, {why}, vectors in float32{f'; measured in {measured}' if measured != dtype else ''}"

    def _write(self, path: Path, model: BlockModel, config: Any, tensors: _Tensors, kind: str) -> None:
        import gguf  # noqa: PLC0415 - listings do without

        writer = gguf.GGUFWriter(path, tensors.architecture)
        try:
            # Two passes over the tensors: the header of the file has the sizes of all of them.
            shapes = {}
            for name, tensor in tensors.named():
                shapes[name], stored_as = tuple(tensor.shape), _stored_as(tensor, kind)
                writer.add_tensor_info(name, *_described(shapes[name], stored_as), raw_dtype=stored_as)
            _write_settings(writer, model, config, kind)
            _write_counts(writer, model, shapes, config.num_hidden_layers)
            source = _copied_from(model.name, self.pre)
            if source is not None:
                copy_fields(source, writer)
            else:
                write_fields(model.tokenizer, config.vocab_size, self.pre, writer)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for _, tensor in tensors.named():
                writer.write_tensor_data(_numbers(tensor, _stored_as(tensor, kind)))
        finally:
            writer.close()


@dataclass(frozen=True)
class _Tensors:
    """The tensors of a file, by GGUF's names: made when they are asked for, one block after the other."""

    model: BlockModel
    stored: Sequence[StoredBlock]
    architecture: str

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors with their names."""
        from pdtrim_core.api import head_dim_of  # noqa: PLC0415 - listings must not import torch

        config = self.model.config
        yield from self._renamed(outside(self.model, head=True)).items()
        for block in self.stored:
            found = self._renamed(block.tensors(self.model.layout.blocks))
            if self.architecture == DECI:
                found = with_words_for(found, block.index, config.hidden_size, head_dim_of(config))
            yield from found.items()

    def _renamed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        import gguf  # noqa: PLC0415 - listings do without

        arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == self.architecture)
        names, found = gguf.get_tensor_name_map(arch, len(self.stored)), {}
        for name, tensor in tensors.items():
            known = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if known is None:
                raise PdtrimError(f"{self.model.name}: GGUF has no name for the tensor {name} of this family")
            permuted = self.architecture in (LLAMA, DECI) and any(part in known for part in PERMUTED)
            found[known] = _permuted(tensor, self.model) if permuted else tensor
        return found


def _copied_from(model: str, pre: str | None) -> Path | None:
    """Return the GGUF file whose tokenizer is copied, if there is one and nobody says how text is split."""
    return gguf_behind(model) if pre is None else None


def _of_formats(facts: ExportFacts) -> Iterator[str]:
    if facts.formats:
        named = ", ".join(sorted(set(facts.formats.values())))
        yield (
            f"a GGUF file has number formats of its own, and cannot hold {named}, which the recipe gives: leave formats out, and "
            "export with dtype = q8_0, or quantise the file with llama-quantize; or export --to checkpoints"
        )


def _of_model(facts: ExportFacts) -> Iterator[str]:
    family, config = family_of(facts.config), facts.text_config
    if family not in ARCHITECTURES:
        yield (
            f"GGUF files are written of the families {', '.join(ARCHITECTURES)}, which were read back and compared, and "
            f"{facts.model} is {family}: export --to checkpoints, and convert unified/ with llama.cpp's convert_hf_to_gguf.py"
        )
        return
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        yield (
            f"{facts.model} has {rope['rope_type']} rotary embeddings, which no available reader reads back from a GGUF file: "
            "export --to checkpoints, and convert unified/ with llama.cpp's convert_hf_to_gguf.py"
        )
    if config.hidden_act not in SILU:
        has = f"has the activation {config.hidden_act} in its MLPs, and llama.cpp's {family} has silu"
        yield f"{facts.model} {has}: its results would differ"
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if kinds or (getattr(config, "sliding_window", None) and not hasattr(config, "layer_types")):
        yield f"{facts.model} has a sliding window, which llama.cpp's {family} does not have: its results would differ"


def _dtype_of(model: BlockModel) -> str:
    return str(model.stored_dtype()).removeprefix("torch.")


def _write_settings(writer: GGUFWriter, model: BlockModel, config: Any, kind: str) -> None:
    import gguf  # noqa: PLC0415 - listings do without

    from pdtrim_core.api import head_dim_of  # noqa: PLC0415 - listings must not import torch

    head_dim = head_dim_of(model.config)
    writer.add_name(model.name)
    if model.license:
        writer.add_license(model.license)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32 if kind == "F32" else gguf.LlamaFileType[f"MOSTLY_{kind}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _write_counts(writer: GGUFWriter, model: BlockModel, shapes: Mapping[str, tuple[int, ...]], blocks: int) -> None:
    from pdtrim_core.api import head_dim_of  # noqa: PLC0415 - listings must not import torch

    for key, counts in counts_of(shapes, blocks, head_dim_of(model.config)).items():
        getattr(writer, f"add_{key}")(counts)


def _permuted(tensor: Tensor, model: BlockModel) -> Tensor:
    """Return the rows of Q or K in llama.cpp's order: the halves of a head interleaved."""
    from pdtrim_core.api import head_dim_of  # noqa: PLC0415 - listings must not import torch

    head_dim = head_dim_of(model.config)
    heads = tensor.shape[0] // head_dim
    return tensor.reshape(heads, 2, head_dim // 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def _stored_as(tensor: Tensor, kind: str) -> Any:
    """Return GGUF's type of a tensor: vectors are in float32, and rows that q8_0 cannot divide into blocks in float16."""
    import gguf  # noqa: PLC0415 - listings do without

    if tensor.dim() == 1:
        return gguf.GGMLQuantizationType.F32
    wanted = gguf.GGMLQuantizationType[kind]
    block, _ = gguf.GGML_QUANT_SIZES[wanted]
    return wanted if tensor.shape[-1] % block == 0 else gguf.GGMLQuantizationType.F16


def _described(shape: tuple[int, ...], stored_as: Any) -> tuple[tuple[int, ...], Any, int]:
    """Return the writer's arguments for a tensor: shape, number format and size in bytes, as in the file."""
    import gguf  # noqa: PLC0415 - listings do without
    import numpy as np  # noqa: PLC0415 - comes with torch

    plain = {gguf.GGMLQuantizationType.F32: np.float32, gguf.GGMLQuantizationType.F16: np.float16}
    if stored_as in plain:
        return shape, np.dtype(plain[stored_as]), int(np.prod(shape)) * np.dtype(plain[stored_as]).itemsize
    of_bytes = gguf.quants.quant_shape_to_byte_shape(shape, stored_as)
    return of_bytes, np.dtype(np.uint8), int(np.prod(of_bytes))


def _numbers(tensor: Tensor, stored_as: Any) -> np.ndarray[Any, Any]:
    import gguf  # noqa: PLC0415 - listings do without

    return gguf.quants.quantize(tensor.float().cpu().contiguous().numpy(), stored_as)  # type: ignore[no-any-return]
