"""The model class `pdtrim` of lm-evaluation-harness: one variant of a finished run.

All that surrounds the model is the harness' own: where context and continuation part, the token in front of an empty context,
rolling windows, chat templates, stop sequences. Only what runs is ours, and one thing of the tokens: where a tokenizer puts
special tokens behind a text, the harness would score continuations and generate behind those, and lose a continuation's first
token. They are left out here, as in the items of a run.
"""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import simple_parse_args_string
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from pdtrim_core.data.items import Item
from pdtrim_core.data.tokens import PLAIN, in_front
from pdtrim_core.errors import PdtrimError, did_you_mean
from pdtrim_core.execution.packing import packing_agrees
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.staged_model import Scored, StagedModel
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.files.paths import PathLike
from pdtrim_core.harness.requests import Request, fitted, items_of, with_prompt
from pdtrim_core.pipeline.open_run import LoadedRun, load_run
from pdtrim_core.plan.elements import KvOnly
from pdtrim_core.plan.plan import FirstToken, Plan
from pdtrim_core.results.task_results import PAIRS, Variant

ROWS = 16
"""Prompts that generate together, where nobody says how many."""
PACKING_TRIALS = 4
"""Items on which it is tried whether a model's numbers stay the same when items share rows."""
NOT_OURS = ("device", "max_batch_size")
"""What the harness says to every model; the recipe of a run says where its model goes, and batches do not grow here."""


@dataclass(frozen=True)
class ModelOptions:
    """Options of a variant of a run, by the names that `--model_args` of the harness uses.

    `first_token` is the stage that makes the first output token (default: the run's own). `prompt_share` is the share of each
    window of running text that counts as prompt and is not scored. `batch_tokens` are the tokens of a batch that is scored,
    `batch_size` the prompts that generate together. `trust` runs the plugin files that the run names. The last three are the
    harness' own.
    """

    stage: Variant = "staged"
    first_token: FirstToken | None = None
    prompt_share: float = 0.0
    batch_tokens: int | None = None
    batch_size: int | str = ROWS
    trust: bool = False
    max_length: int | None = None
    add_bos_token: bool | None = None
    prefix_token_id: int | None = None


DEFAULTS = ModelOptions()


@register_model("pdtrim")
class PdtrimLM(HFLM):  # type: ignore[misc]  # the harness has no types
    """One variant of a finished run, which may also be named by its folder."""

    def __init__(self, run: PathLike | LoadedRun, options: ModelOptions = DEFAULTS) -> None:
        opened = run if isinstance(run, LoadedRun) else load_run(run, trust=options.trust)
        self.variant = options.stage
        self.plan = opened.plan_of(self.variant)
        self.first_token = _checked(options.first_token, self.variant, opened)
        self.prompt_share = _share(options.prompt_share)
        self.blocks = opened.model_of(self.variant)
        self.start_notes()
        self.modules = opened.modules_of(self.variant)
        self._batch_tokens = options.batch_tokens or self.blocks.fitting_batch
        self._packed: bool | None = None
        self._open(opened, options)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> Self:
        """Return what `--model_args run=FOLDER,stage=staged` of the harness' command line says."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> Self:
        """Return what `model_args={"run": FOLDER, "stage": "staged"}` says: the run, and the options by name."""
        more = {key: value for key, value in (additional_config or {}).items() if value is not None}
        options = {key: value for key, value in {**arg_dict, **more}.items() if key not in NOT_OURS}
        run, known = options.pop("run", None), [option.name for option in fields(ModelOptions)]
        if run is None:
            raise PdtrimError("model_args: name the folder of a finished run, as run=FOLDER")
        for name in options:
            if name not in known:
                raise PdtrimError(f"model_args: there is no '{name}'{did_you_mean(name, ['run', *known])}")
        return cls(run, ModelOptions(**options))

    def _open(self, run: LoadedRun, options: ModelOptions) -> None:
        """Let the harness set itself up around the dense model, whose tokenizer, window and templates all variants share."""
        tokenizer = run.dense.tokenizer
        if not isinstance(tokenizer, PreTrainedTokenizerBase) or tokenizer.eos_token_id is None:
            raise PdtrimError(
                f"the harness needs a tokenizer of transformers with an end-of-text token; {run.dense.name} has none"
            )
        log = logging.getLogger("lm_eval.models.huggingface")
        level = log.level
        log.setLevel(logging.ERROR)  # it warns of models that are open already
        try:
            # A copy, because the harness may give it a padding token.
            super().__init__(
                pretrained=run.dense.model,
                tokenizer=copy.deepcopy(tokenizer),
                batch_size=ROWS if str(options.batch_size).startswith("auto") else int(options.batch_size),
                max_length=options.max_length,
                add_bos_token=options.add_bos_token,
                prefix_token_id=options.prefix_token_id,
            )
        finally:
            log.setLevel(level)

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,  # noqa: FBT001 - the harness' form
        left_truncate_len: int | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """Return the tokens of a text as the harness has them, without special tokens behind it."""
        encode = super().tok_encode
        usual = in_front(encode(PLAIN, add_special_tokens, **kwargs), encode(PLAIN, add_special_tokens=False, **kwargs))
        bare = encode(string, add_special_tokens=False, **kwargs)
        tokens = [*in_front(encode(string, add_special_tokens, **kwargs), bare, usual), *bare]
        return tokens[-left_truncate_len:] if left_truncate_len else tokens

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,  # noqa: FBT001, FBT002 - the harness' form
    ) -> tuple[Tensor, Tensor]:
        """Return the tokens of texts, padded, and which of them are no padding, without special tokens behind the texts."""
        if self._appends:
            rows = {"input_ids": [self.tok_encode(string) for string in strings]}
            padded = self.tokenizer.pad(rows, padding="longest", padding_side=padding_side, return_tensors="pt")
            tokens, mask = padded["input_ids"], padded["attention_mask"]
        else:
            tokens, mask = super().tok_batch_encode(strings, padding_side, None, truncation)
        if left_truncate_len:
            self.crowded += int((mask.sum(dim=1) > left_truncate_len).sum())
            tokens, mask = tokens[:, -left_truncate_len:], mask[:, -left_truncate_len:]
        return tokens, mask

    @property
    def _appends(self) -> bool:
        """Whether the tokenizer puts special tokens behind a text."""
        return len(super().tok_encode("a")) > len(self.tok_encode("a"))

    @property
    def notes(self) -> list[str]:
        """What a reader of the results must know, of all that was scored since the last `start_notes`."""
        found = []
        if self.cut:
            found.append(f"prompts longer than the model's {self.max_length} tokens were cut from the left: {self.cut}")
        if self.crowded:
            found.append(
                f"prompts that left no room in the model's {self.max_length} tokens for what is generated behind them were cut "
                f"from the left: {self.crowded}"
            )
        if self.rolled and self.prompt_share:
            found.append(
                f"the first {self.prompt_share:.0%} of each window of text is prompt and is not scored; what follows counts for "
                "the whole window"
            )
        elif self.rolled:
            found.append("running text has no prompt: every token is decode's, and prefill has no part in these figures")
        return found

    def start_notes(self) -> None:
        """Forget what the notes count."""
        self.cut = self.crowded = self.rolled = 0

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:  # noqa: FBT001, FBT002 - the harness' form
        """Score continuations; bars are for terminals."""
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm or not sys.stderr.isatty())

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:  # noqa: FBT001, FBT002 - the same
        """Score running text, window by window."""
        return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm or not sys.stderr.isatty())

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:  # noqa: FBT001, FBT002 - the same
        """Generate behind prompts, up to a stop sequence."""
        return super().generate_until(requests, disable_tqdm=disable_tqdm or not sys.stderr.isatty())

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, Sequence[int], Sequence[int]]],
        disable_tqdm: bool = False,  # noqa: FBT001, FBT002 - the harness' form
        **_options: Any,
    ) -> list[tuple[float, bool]]:
        """Return the summed log-probability (nats) of each continuation, and whether it is what greedy decoding makes."""
        prepared, weights = [], []
        for text, context, continuation in requests:
            whole = Request(tuple(context), tuple(continuation))
            request = fitted(whole, self.max_length)
            said = f"the request {text[0][-40:]!r}" if text is not None else "a window of running text"
            self.blocks.check_tokens(request.context + request.continuation, said, more=-1)
            self.cut += len(request.context) < len(whole.context)
            # A window of running text has no text of its own here.
            rolling = text is None
            self.rolled += rolling
            scored = with_prompt(request, self.prompt_share) if rolling and self.prompt_share else request
            prepared.append(scored)
            weights.append(len(request.continuation) / len(scored.continuation))
        of_items = items_of(prepared)
        scores = self._scores(of_items.items, silent=disable_tqdm)
        answers = []
        for (text, _, _), (item, choice), weight in zip(requests, of_items.places, weights, strict=True):
            answer = (scores[item][choice].logprob * weight, scores[item][choice].greedy)
            answers.append(answer)
            if text is not None:
                self.cache_hook.add_partial("loglikelihood", text, answer)
        return answers

    def _scores(self, items: Sequence[Item], *, silent: bool) -> list[tuple[Scored, ...]]:
        if self._packed is None:
            self._packed = packing_agrees(self.blocks, tuple(items[:PACKING_TRIALS]), batch_tokens=self._batch_tokens)
        found: dict[Item, tuple[Scored, ...]] = {}
        groups = self._prefix_cache().groups(items)
        bar = tqdm(total=len(items), desc=f"{self.variant}", unit=" items", disable=silent or not sys.stderr.isatty())
        while groups:
            group = groups.pop(0)
            try:
                # A prefix cache for each group: nothing is kept, however many items there are.
                found.update(zip(group, self._staged().scores(group), strict=True))
                bar.update(len(group))
            except torch.OutOfMemoryError:
                if self._batch_tokens < 2 or len(group) == 1:
                    raise PdtrimError("the device has no memory left, even for the smallest batch") from None
                self._batch_tokens //= 2
                groups = self._prefix_cache().groups([*group, *(item for other in groups for item in other)])
        bar.close()
        return [found[item] for item in items]

    def _prefix_cache(self) -> PrefixCache:
        return PrefixCache(
            self.blocks,
            ExecutionOptions(first_token=self.first_token, batch_tokens=self._batch_tokens, budget=0, packed=bool(self._packed)),
        )

    def _staged(self) -> StagedModel:
        return StagedModel(self._prefix_cache(), self.plan, self.modules)

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        """Return prompts with what follows them, in two phases with a hand-over of K/V."""
        from lm_eval.models.utils_hf import stop_sequences_criteria  # noqa: PLC0415 - only tasks that generate want it

        if not options.get("do_sample"):
            # Zero temperature means greedy to the harness, and nothing that transformers would take.
            options = {**options, "do_sample": False}
            options.pop("temperature", None)
        mask = options.pop("attention_mask", None)
        two_phase = TwoPhaseModel(self.blocks, self.plan, self.modules, first_token=self.first_token)
        return two_phase.generate_batch(
            context,
            torch.ones_like(context) if mask is None else mask,
            max_length=max_length,
            stopping_criteria=stop_sequences_criteria(self.tokenizer, stop, context.shape[1], context.shape[0]),
            pad_token_id=self.tokenizer.pad_token_id,
            **options,
        )

    def get_model_info(self) -> dict[str, Any]:
        """Return what the harness writes of a model."""
        return {"model_name": self.blocks.name, "stage": self.variant, "first_token": self.first_token, "plan": str(self.plan)}


def _checked(first_token: FirstToken | None, variant: Variant, run: LoadedRun) -> FirstToken:
    """Return who makes the first token. Raises `PdtrimError` where prefill cannot."""
    if variant not in PAIRS:
        return "decode"  # it is the same model in both stages, so nothing depends on it
    saved = run.outcome.plan
    wanted = first_token or saved.first_token
    if wanted not in ("decode", "prefill"):
        raise PdtrimError(f"first_token is decode or prefill, not '{wanted}'")
    if wanted == "prefill" and saved.first_token == "decode" and _freed(saved.plan, saved.block_count):
        raise PdtrimError(
            f"prefill of {run.path} computes nothing behind the last K/V that decode reads, so it makes no token: run its recipe "
            "with evaluation.first_token = 'prefill', or leave out --first-token"
        )
    return wanted


def _freed(plan: Plan, block_count: int) -> bool:
    """Tell whether prefill computes nothing behind the last K/V that decode reads."""
    return KvOnly(plan.slots(block_count)[-1].block) in plan.prefill


def _share(share: float) -> float:
    if not 0 <= share < 1:
        raise PdtrimError(f"prompt_share is a share from 0 up to, but not, 1; it is {share}")
    return float(share)
