"""What is known of an export before there is a plan: what a recipe says, and the model's config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pdtrim_core.files.paths import PathLike
from pdtrim_core.plan.elements import Shrink, ShrunkPart, Stage
from pdtrim_core.plan.plan import FirstToken

if TYPE_CHECKING:
    from pdtrim_core.model.block_model import BlockModel
    from pdtrim_core.results.outcome import Outcome


@dataclass(frozen=True)
class ExportFacts:
    """What an exporter can know of a run that has not begun, or that has ended.

    `model` is the model's name in messages, and `open_config` opens its config. `out` is the folder to write under, and
    `first_token` the stage that makes the first token. `replaced` tells that the pruner gives a whole other model, so that
    there is no plan. `narrows` has the parts of blocks that are certain to lose heads, channels or experts; `uniform` is False
    where it is certain that blocks will then have different shapes. `formats` has the number formats of stages that have one of
    their own. `selects` tells that blocks of decode may read only some of a prompt's K/V, `drops_parts` that blocks of either
    stage may run without their attention or their MLP. `tokenizer` is None where the model itself was not opened. `offloaded`
    tells that some of its weights found no room where they compute.
    """

    model: str
    out: Path
    open_config: Callable[[], Any]
    first_token: FirstToken = "decode"
    replaced: bool = False
    narrows: frozenset[ShrunkPart] = frozenset()
    uniform: bool = True
    formats: Mapping[Stage, str] = field(default_factory=dict)
    selects: bool = False
    drops_parts: bool = False
    tokenizer: Any = None
    offloaded: bool = False

    @classmethod
    def of_run(cls, outcome: Outcome, model: BlockModel, out: PathLike) -> Self:
        """Return the facts of a run that has ended. Whether its blocks have one shape only its plan tells."""
        facts: dict[str, Any] = {
            "model": model.name,
            "out": Path(out),
            "open_config": lambda: model.model.config,
            "tokenizer": model.tokenizer,
            "offloaded": model.offloaded,
        }
        if outcome.saved_plan is None:
            return cls(**facts, replaced=True)
        saved = outcome.plan
        narrows = frozenset(element.part for element in saved.plan.decode if isinstance(element, Shrink))
        stages: tuple[Stage, ...] = ("prefill", "decode")
        named = {stage: saved.formats.of(stage) for stage in stages} if saved.formats is not None else {}
        formats = {stage: scheme for stage, scheme in named.items() if scheme is not None}
        return cls(
            **facts,
            first_token=saved.first_token,
            narrows=narrows,
            formats=formats,
            selects=bool(saved.plan.selections),
            drops_parts=saved.plan.drops_parts,
        )

    @cached_property
    def config(self) -> Any:
        """The model's transformers config, opened when it is first asked for. Raises `PdtrimError` where it cannot be."""
        return self.open_config()

    @property
    def text_config(self) -> Any:
        """The part of the config that is about the language model."""
        return self.config.get_text_config()

    @property
    def family(self) -> str:
        """The `model_type` of the config."""
        return str(self.config.model_type)
