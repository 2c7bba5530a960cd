"""What a pair is compared with: the models of its run in this process, or a server that has the whole model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdtrim_core.errors import PdtrimError
from pdtrim_core.files.reading import UnreadableError, read_json
from pdtrim_core.serving.engine import Served
from pdtrim_core.serving.verification import BYTES, TIES, Behind, Expected, Shape

if TYPE_CHECKING:
    from pdtrim_core.execution.two_phase import TwoPhaseModel
    from pdtrim_core.pipeline.open_run import LoadedRun

VOCABULARY = 1000
"""Tokens that prompts are drawn from where no checkpoint says how many there are."""


def expected_of_run(run: LoadedRun, checkpoint: Path | None) -> Expected:
    """Return what a run measured. Raises `PdtrimError` for runs that vLLM cannot serve."""
    if run.outcome.saved_plan is None:
        raise PdtrimError(f"{run.path} has no plan, and no pair that is served")
    pair = run.two_phase("staged")
    config = config_of(checkpoint) if checkpoint else None
    shape = shape_of(config) if config else None
    dtype = shape.dtype if shape else "float32"
    saved = run.outcome.plan
    vocabulary = int(run.dense.config.get_text_config().vocab_size)
    return Expected(behind_of(pair), TIES[dtype], vocabulary, saved.digest, shape)


def expected_of_server(served: Served, model: str | None, checkpoint: Path | None) -> Expected:
    """Return what a server of the whole model answers; its name is asked for where none is given."""
    config = config_of(checkpoint) if checkpoint else None
    shape = shape_of(config) if config else None
    name = model or served.models()[0]
    vocabulary = config.get("vocab_size") if config else None

    def behind(prompt: Sequence[int], answer: Sequence[int]) -> Sequence[float]:
        return served.behind(name, prompt, answer)

    tie = TIES[shape.dtype if shape else "bfloat16"]
    return Expected(behind, tie, vocabulary if isinstance(vocabulary, int) else VOCABULARY, None, shape)


def behind_of(pair: TwoPhaseModel) -> Behind:
    """Return how far each token of an answer is behind the likeliest one, by the models of a run."""

    def behind(prompt: Sequence[int], answer: Sequence[int]) -> Sequence[float]:
        logits_TV = pair.continuation_logits(prompt, answer)
        return [float(row.max() - row[token]) for row, token in zip(logits_TV, answer, strict=True)]

    return behind


def config_of(checkpoint: Path) -> dict[str, Any]:
    """Return the config of a checkpoint's text model."""
    file = checkpoint / "config.json"
    try:
        found = read_json(file)
    except FileNotFoundError:
        raise PdtrimError(f"--checkpoint: there is no {file}") from None
    except UnreadableError as error:
        raise PdtrimError(f"--checkpoint: {file} is damaged ({error.reason})") from None
    if not isinstance(found, dict):
        raise PdtrimError(f"--checkpoint: {file} holds no JSON object")
    text = found.get("text_config")
    return {**found, **text} if isinstance(text, dict) else found


def shape_of(config: dict[str, Any]) -> Shape | None:
    """Return what decides how many bytes a prompt is, None where a config does not say it."""
    heads = config.get("num_attention_heads")
    width, size = config.get("hidden_size"), config.get("head_dim")
    if isinstance(heads, int) and isinstance(width, int) and not isinstance(size, int):
        size = width // heads
    found = [config.get("num_hidden_layers"), config.get("num_key_value_heads", heads), size]
    dtype = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
    if dtype not in BYTES or not all(isinstance(number, int) for number in found):
        return None
    layers, kv_heads, head_size = (int(number or 0) for number in found)
    return Shape(layers, kv_heads, head_size, dtype)
