"""What a latency benchmark found, as data: times of models beside the dense one, what sizes promise, memory; its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from pdtrim_core.errors import PdtrimError
from pdtrim_core.files.atomic_files import write_whole
from pdtrim_core.files.reading import UnreadableError, read_json
from pdtrim_core.wording import shown

LATENCY_FORMAT = 1
Measure = Literal["forward", "prefill", "decode"]
"""`forward`: a prompt with logits behind every token; `prefill`: a prompt into the cache, with logits where the stage makes a
token; `decode`: one token of each sequence in a batch behind a context in the cache."""
ModelName = Literal["dense", "unified", "prefill", "decode"]
"""Which model ran: the dense one; decode's removal in both stages; the prefill model; the decode model."""


@dataclass(frozen=True)
class Timing:
    """One model's time for one thing, beside the dense model's; the two ran in turn.

    `tokens` is the length of the prompt, or of the context in the cache. `seconds` and `dense` are medians for one forward.
    `ratio` is the median over repeats of this model's time over the dense one's in the same repeat, `low` and `high` are its
    quartiles; `ideal` is that ratio by FLOPs (forward, prefill) or by bytes read (decode).
    """

    measure: Measure
    model: ModelName
    batch: int
    tokens: int
    seconds: float
    dense: float
    ratio: float
    low: float
    high: float
    ideal: float
    repeats: int

    @property
    def setting(self) -> tuple[Measure, int, int]:
        """What was measured, whatever the model."""
        return self.measure, self.batch, self.tokens


@dataclass(frozen=True)
class Footprint:
    """What one model needs: bytes of its weights, of them read a token in decode, and K/V bytes a prompt token.

    `beside` has the most bytes in use beside the weights while prefill read the longest prompt, or decode ran the largest
    batch and context; None where the system does not tell.
    """

    model: ModelName
    weights: int
    read_a_token: int
    kv_a_token: int
    beside: Mapping[str, int | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Latencies:
    """All that one benchmark found, with what it depends on."""

    model: str
    block_count: int
    plan: Mapping[str, Any] | None
    first_token: str
    random_weights: bool
    dtype: str
    device: str
    machine: str
    threads: int
    versions: Mapping[str, str]
    settings: Mapping[str, Any]
    timings: tuple[Timing, ...] = ()
    footprints: tuple[Footprint, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    format: int = field(default=LATENCY_FORMAT)

    @property
    def subject(self) -> dict[str, Any]:
        """What the times depend on: times of equal subjects belong together."""
        own = ("model", "plan", "first_token", "dtype", "device", "machine", "threads", "versions", "settings")
        plain = TypeAdapter(Latencies).dump_python(self, mode="json")
        return {key: plain[key] for key in own}

    def to_json(self) -> str:
        """Return the text of `bench.json`."""
        return TypeAdapter(Latencies).dump_json(self, indent=1).decode() + "\n"


def write_latencies(path: Path, found: Latencies) -> Path:
    """Write what a benchmark found, whole or not at all."""
    return write_whole(path, found.to_json())


def read_latencies(path: Path) -> Latencies:
    """Read what `write_latencies` wrote. Raises `PdtrimError` naming the file when it is something else."""
    try:
        data = read_json(path)
        found = data["format"]
        if found != LATENCY_FORMAT:
            raise PdtrimError(f"{path} has latency format {shown(found)}, this version reads {LATENCY_FORMAT}: measure again")
        return TypeAdapter(Latencies).validate_python(data)
    except FileNotFoundError:
        raise PdtrimError(f"{path} does not exist") from None
    except UnreadableError as error:
        reason = "" if error.syntax else f" ({error.reason})"
        raise PdtrimError(f"{path} is no result of a latency benchmark{reason}: measure again") from error
    except (KeyError, TypeError, ValidationError) as error:
        raise PdtrimError(f"{path} is no result of a latency benchmark: measure again") from error
