"""The table [evaluate] of a sweep: the benchmarks that its runs are compared by."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from pdtrim_core.results.task_results import Variant


class Evaluate(BaseModel):
    """The benchmarks that every run of a sweep is evaluated on when it is done, as by `pdtrim-core eval`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: tuple[str, ...] = Field(description="tasks by the names of lm-evaluation-harness")
    variants: tuple[Variant, ...] = Field(("staged",), description="what answers; a row of the table each")
    data: str = Field("", description="folder with the items as files (default: from the hub)")
    items: int | None = Field(None, ge=1, description="items of each file, evenly spaced (default: all)")
    limit: float | None = Field(
        None, gt=0, description="use only the first items of each task: a number, or below 1 a share (default: all)"
    )
    num_fewshot: int | None = Field(None, ge=0, description="examples in front of each item (default: the task's)")
    apply_chat_template: bool = Field(default=False, description="whether prompts are put into the chat template")
    max_new_tokens: int | None = Field(None, ge=1, description="most tokens that are generated (default: the task's)")
    prompt_share: float = Field(0.0, ge=0, lt=1, description="share of each window of running text that is prompt")

    @property
    def problems(self) -> list[str]:
        """What is wrong with it beyond single values."""
        return [f"evaluate.{key}: name at least one" for key in ("tasks", "variants") if not getattr(self, key)]
