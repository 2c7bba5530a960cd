"""The blocks of a stage's checkpoint as its config describes them, and the engine's names of their K/V. No torch, no vLLM."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from pdtrim_core import PdtrimError

FORMATS = (1, 2)
"""Of entries, and of those that tell of blocks without their attention or their MLP."""
PARTS = ("attention", "mlp")
OWN = "prefill_layers"
"""Replaces `layers` in the name of a block whose K/V decode does not read, so that it never has the name of a decode layer."""


@dataclass(frozen=True)
class Layout:
    """What a stage does at each block. Prefill has the block numbers of the dense model; decode runs all it has, under its own.

    A block in `shadows` runs, and the K/V of the merged block are computed on the same input. `decode_index` gives the decode
    layer that reads the K/V of a block, or of its shadow. `widths` has the MLP widths that differ from the config's, and `biased`
    the parts whose output projection has a bias that the config does not tell of. The blocks in `lost` run without that part.
    `first_tokens` are the tokens that are known where they begin a prompt, -1 standing for all others: the blocks in
    `first_states` have a table of the hidden states in front of them, and those in `first_kv`, which compute only K/V or have a
    shadow, one of the K/V.
    """

    removed: frozenset[int]
    kv_only: frozenset[int]
    shadows: frozenset[int]
    decode_index: Mapping[int, int]
    head: bool
    widths: Mapping[int, int]
    biased: Mapping[int, tuple[str, ...]]
    lost: Mapping[int, str]
    first_tokens: tuple[int, ...] = ()
    first_states: frozenset[int] = frozenset()
    first_kv: frozenset[int] = frozenset()

    @classmethod
    def of(cls, config: Any) -> Self:
        """Read the `pdtrim` block of a config. Raises `PdtrimError` where it is missing or of another format."""
        block = getattr(config, "pdtrim", None)
        if not isinstance(block, Mapping):
            raise PdtrimError("config.json has no 'pdtrim' block: this is not what pdtrim-core export wrote for vLLM")
        if block.get("format") not in FORMATS:
            raise PdtrimError(
                f"config.json has pdtrim format {block.get('format')}, this version reads {FORMATS[-1]}: export again"
            )
        try:
            firsts = block.get("first_tokens", {"tokens": (), "states": (), "kv": ()})
            sizes = {int(number): told for number, told in block.get("widths", {}).items()}
            biases = {number: told["bias"] for number, told in sizes.items() if "bias" in told}
            if "place" in block and "removed" not in block:
                block = {**block, **_decode(config.num_hidden_layers)}
            return cls(
                removed=frozenset(block["removed"]),
                kv_only=frozenset(block["kv_only"]),
                shadows=frozenset(block["shadows"]),
                decode_index={int(number): index for number, index in block.get("decode_layer", block["decode_index"]).items()},
                head=bool(block["head"]),
                widths={number: told["mlp"] for number, told in sizes.items() if "mlp" in told},
                biased={number: tuple(part for part in PARTS if part in told) for number, told in biases.items()},
                lost={int(number): part for number, part in block.get("without", {}).items()},
                first_tokens=tuple(firsts["tokens"]),
                first_states=frozenset(firsts["states"]),
                first_kv=frozenset(firsts["kv"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PdtrimError(f"the 'pdtrim' block of config.json is damaged ({error!r}): export again") from error

    def own_prefix(self, prefix: str) -> str:
        """Return the name of a block's own attention, given the one that vLLM would use, such as `model.layers.7`."""
        parent, number = _split(prefix)
        if number in self.decode_index and number not in self.shadows:
            return self.decode_prefix(prefix)
        return f"{parent.removesuffix('layers')}{OWN}.{number}"

    def decode_prefix(self, prefix: str) -> str:
        """Return the name of the decode layer whose K/V this block or its shadow computes."""
        parent, number = _split(prefix)
        if number not in self.decode_index:
            raise PdtrimError(f"the 'pdtrim' block of config.json gives block {number} no decode_index: export again")
        return f"{parent}.{self.decode_index[number]}"


def _decode(block_count: int) -> dict[str, Any]:
    """Return what the entry of a decode checkpoint leaves unsaid: all of its blocks run, and their K/V are decode's own."""
    names = {number: number for number in range(block_count)}
    return {"removed": (), "kv_only": (), "shadows": (), "decode_index": names, "head": True}


def _split(prefix: str) -> tuple[str, int]:
    parent, _, number = prefix.rpartition(".")
    return parent, int(number)


def missing_tensors(parameters: Iterable[str], stacked: Mapping[str, tuple[str, ...]], found: set[str]) -> list[str]:
    """Return the checkpoint tensors that a model needs and that were not among those it was given, in order.

    `parameters` are the model's own names; `stacked` maps the full name of a module to the checkpoint modules it is made of.
    vLLM itself does not notice that one of several stacked tensors is missing.
    """
    return sorted(name for parameter in parameters for name in _sources(parameter, stacked) if name not in found)


def _sources(parameter: str, stacked: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    module, _, leaf = parameter.rpartition(".")
    for source in stacked.get(module, (module,)):
        yield f"{source}.{leaf}"
