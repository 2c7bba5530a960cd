"""The keys of a recipe that are no components: how much goes, how plans are measured."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from pdtrim_core.plan.plan import FirstToken


class Quantile(BaseModel):
    """A threshold given as the share of pair scores that lie below it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    quantile: float = Field(ge=0, le=1, description="share of the pairs that lie below the threshold")


def _sort_of_threshold(given: Any) -> str:
    return "tag:table" if isinstance(given, dict | Quantile) else "tag:number"


# With a tag for each sort a wrong value gets one message, about the sort that was meant.
Threshold = Annotated[
    Annotated[float, Tag("tag:number")] | Annotated[Quantile, Tag("tag:table")], Discriminator(_sort_of_threshold)
]


class Prune(BaseModel):
    """How much decode loses, and when two blocks are merged."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    blocks: int | None = Field(None, ge=0, description="number of blocks that decode loses")
    fraction: float | None = Field(None, ge=0, lt=1, description="share of all parameters that decode loses, instead of blocks")
    merges: bool = Field(
        default=False,
        description="whether two neighbouring blocks may be merged into one, which is trained first; a recipe that gives "
        "merge_threshold alone means true",
    )
    parts: bool = Field(
        default=False,
        description="whether the attention and the MLP of a block may go apart; blocks, or fraction, are then a budget of bytes",
    )
    merge_threshold: Threshold | None = Field(
        None,
        description="pair score from which two blocks may be merged, d_T (default: 0.95 for cosines, quantile 0.9 for others)",
    )

    @model_validator(mode="before")
    @classmethod
    def _threshold_means_merges(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("merge_threshold") is not None:
            return {"merges": True, **given}
        return given


class Search(BaseModel):
    """How sure a search is of what it gives up and of what it takes; the paper's search is `mode = "exact"`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mode: Literal["paired", "exact"] = Field(
        "paired",
        description="paired: a candidate is given up once it is surely worse, item by item, than what it is compared with; "
        "exact: once it is for certain (the paper)",
    )
    error: float = Field(
        0.05, gt=0, lt=1, description="with paired: the probability, at most, that a request gives up a candidate wrongly"
    )
    finalists: int | None = Field(
        None,
        ge=1,
        description="best plans that are measured again on fresh items (default: 4; with exact 1, which is not)",
    )
    fresh: int | None = Field(
        None, ge=0, description="items on which finalists are measured again (default: half of calibration.samples; with exact 0)"
    )
    caution: float | None = Field(
        None,
        ge=0,
        description="standard errors by which a finalist must be better than the first removal to be taken (default: 2; with "
        "exact 0)",
    )
    recovered: bool = Field(
        default=False,
        description="whether a candidate is measured with what the recipe's recoveries would make of it, estimated from the "
        "dense model; of the built-in ones fold and kv-refit can be estimated",
    )
    recovered_tokens: int = Field(4096, gt=0, description="tokens of text that such an estimate is made from")
    minutes: float | None = Field(
        None,
        gt=0,
        description="time after which a search ends with the best plan that it has; where none is of full size yet, its best "
        "beginning is filled up by block scores (default: no limit). What is found then depends on the machine",
    )
    prefill: Literal["splitter", "decode"] | None = Field(
        None,
        description="what prefill loses while decode is searched: what the splitter makes of it, where it can tell that without "
        "measuring, or the same as decode (default: splitter; with exact decode)",
    )

    @property
    def exact(self) -> bool:
        """Whether nothing is decided by likelihood unless the recipe says so."""
        return self.mode == "exact"

    @property
    def finalists_wanted(self) -> int:
        """How many plans are measured again, with the default of the mode."""
        return self.finalists if self.finalists is not None else 1 if self.exact else 4

    @property
    def caution_wanted(self) -> float:
        """By how many standard errors a finalist must be better, with the default of the mode."""
        return self.caution if self.caution is not None else 0.0 if self.exact else 2.0

    @property
    def under_splitter(self) -> bool:
        """Whether decode is searched under the prefill that the splitter will make."""
        return self.prefill == "splitter" if self.prefill is not None else not self.exact

    def fresh_wanted(self, samples: int) -> int:
        """Return how many fresh items are drawn beside so many samples, with the default of the mode."""
        return self.fresh if self.fresh is not None else 0 if self.exact else samples // 2


class Evaluation(BaseModel):
    """How plans are measured; nothing here but `first_token` and `truncate_prefill` changes what is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    first_token: FirstToken = Field(
        "decode", description="stage that makes the first output token: decode as in vLLM, or prefill"
    )
    truncate_prefill: bool = Field(
        default=True,
        description="where decode makes the first token, leave out what prefill computes behind the last K/V that decode reads",
    )
    batch_tokens: int | None = Field(
        None,
        gt=0,
        description="tokens a batch, with padding (default: 512 on a CPU, 1024 with 16-bit weights, 8192 on an accelerator)",
    )
    cache_budget: int | None = Field(
        None,
        ge=0,
        description="bytes for what is kept between measurements: hidden states, and the dense model's log-probabilities "
        "(default: hidden states of three plans, at most a quarter of the free memory in all)",
    )
    threads: int | None = Field(
        None, gt=0, le=1024, description="CPU threads of torch (default: its own number or one, whichever is faster at the start)"
    )
    early_stop: bool = Field(default=True, description="stop measuring a candidate once it cannot be accepted any more")
    pack_rows: bool = Field(
        default=True,
        description="run the choices of an item, and several items, in one row, where the model gives the same numbers",
    )
    share_tokens: bool = Field(
        default=True, description="in such a row, run once the tokens that several choices of an item begin with"
    )
    reuse_plans: bool = Field(
        default=True, description="begin a candidate where it first differs from candidates before it, as cache_budget allows"
    )
    compile: bool = Field(
        default=False,
        description="compile blocks before they run (torch.compile): faster after half a minute, with other last digits",
    )

    fidelity: bool = Field(
        default=True, description="at the end, compare the variants with the dense model, on the held-out items"
    )
    answer_tokens: int = Field(64, gt=0, le=4096, description="tokens of an answer at most in that comparison")
    own_answers: int = Field(
        32, gt=0, description="prompts that the variants answer on their own in it, for loops and lengths, at most"
    )

    @property
    def truncates_prefill(self) -> bool:
        """Whether prefill computes nothing behind the last K/V that decode reads."""
        return self.first_token == "decode" and self.truncate_prefill


GENERATED, OF_CALIBRATION = "generated", "calibration"
"""Sources of texts for recoveries that are no files."""


class RecoveryData(BaseModel):
    """What recoveries are computed from; none of it may measure."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    sources: tuple[str, ...] = Field(
        ("generated",),
        min_length=1,
        description="where texts come from, in equal parts: generated (the dense model writes them), calibration (the training "
        "texts of the calibration source), or the path of a .jsonl or text file",
    )
    prompt_tokens: int = Field(64, ge=2, le=65_536, description="tokens of a prompt at most; each has another length")
    answer_tokens: int = Field(64, ge=2, le=65_536, description="tokens of what follows a prompt")

    @property
    def text_tokens(self) -> int:
        """Tokens of a text: of its prompt and of what follows."""
        return self.prompt_tokens + self.answer_tokens

    @property
    def files(self) -> tuple[str, ...]:
        """The sources that are paths of files."""
        return tuple(source for source in self.sources if source not in (GENERATED, OF_CALIBRATION))


class Settings(BaseModel):
    """The keys of a recipe that are no components."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    recipe: int = Field(1, ge=1, le=1, description="format of the recipe")
    seed: int = Field(0, ge=0, description="seed of everything random")
    out: str = Field("", description="folder of the run (default: runs/ and the recipe's name)")
    plugins: tuple[str, ...] = Field((), description="plugins that are plain Python files, beside the recipe")
    prune: Prune = Field(default_factory=Prune, description="how much goes")
    search: Search = Field(default_factory=Search, description="how sure a search is")
    recovery_data: RecoveryData = Field(default_factory=RecoveryData, description="what recoveries are computed from")
    evaluation: Evaluation = Field(default_factory=Evaluation, description="how plans are measured")
