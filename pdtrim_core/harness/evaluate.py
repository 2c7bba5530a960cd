"""Tasks of the harness on the variants of a run: each is measured once, and its result is kept in the run folder.

Results of the dense model do not depend on the run. They are also kept in the user's cache, where other runs find them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from pdtrim_core.errors import PdtrimError
from pdtrim_core.files.atomic_files import cache_folder
from pdtrim_core.harness import tasks
from pdtrim_core.harness.model import ROWS, ModelOptions, PdtrimLM
from pdtrim_core.harness.overrides import overridden
from pdtrim_core.harness.results import answers_of, main_of, metrics_of, with_errors
from pdtrim_core.harness.tasks import Source
from pdtrim_core.host.sources import changes, engine
from pdtrim_core.pipeline.executor import Executor
from pdtrim_core.pipeline.open_run import LoadedRun, load_run
from pdtrim_core.pipeline.run_cache import RunCache
from pdtrim_core.pipeline.seen_folders import check_read
from pdtrim_core.plan.plan import FirstToken
from pdtrim_core.results.outcome import versions
from pdtrim_core.results.task_results import CODE, PAIRS, TaskResult, Variant, find_result, write_result

PACKAGES = ("lm_eval", "datasets")


@dataclass(frozen=True)
class Options:
    """How tasks are run, in the harness' words; all but `batch_tokens` and `batch_size` may change the numbers."""

    source: Source = field(default_factory=Source)
    limit: float | None = None
    chat_template: bool = False
    first_token: FirstToken | None = None
    prompt_share: float = 0.0
    max_new_tokens: int | None = None
    batch_tokens: int | None = None
    batch_size: int = ROWS
    runs_code: bool = False


class Evaluation:
    """Evaluates one run; `say` is called with what begins and what was found.

    The workers of an `executor` measure tasks side by side; they read the folder of the run, and all is written here.
    """

    def __init__(
        self,
        run: LoadedRun,
        options: Options,
        say: Callable[[str], None] = lambda text: None,
        *,
        executor: Executor | None = None,
    ) -> None:
        self._run = run
        self._options = options
        self._say = say
        self._executor = executor
        self._coming: dict[tuple[str, Variant], Future[TaskResult]] = {}
        self._place = ""
        self._models: dict[Variant, PdtrimLM] = {}

    @cached_property
    def _hub(self) -> Any:
        """The harness' own tasks, where they are used."""
        return tasks.hub_tasks() if self._options.source.data is None else None

    def check(self, names: Sequence[str]) -> None:
        """Raise `PdtrimError` for tasks, or files of theirs, that do not exist; no model is opened."""
        with _quiet():
            self._known(names)

    def _known(self, names: Sequence[str]) -> list[str]:
        return tasks.check_names(names, self._options.source, self._hub, runs_code=self._options.runs_code)

    def results(self, names: Sequence[str], variants: Sequence[Variant], *, fresh: bool = False) -> Iterator[TaskResult]:
        """Yield each task's result on each variant, the variants of a task together; `fresh` measures what is known again.

        Variants that run the same plan on the same model are measured once.
        """
        with _quiet():
            known = self._known(names)
            for variant in variants:
                self._run.plan_of(variant)
            if self._executor is not None:
                self._ask(self._executor, known, variants, fresh=fresh)
            for row, task in enumerate(known):
                done: dict[Variant, TaskResult] = {}
                for column, variant in enumerate(variants, start=1):
                    self._place = f"{row * len(variants) + column} of {len(known) * len(variants)}"
                    done[variant] = self._result(task, variant, done, fresh=fresh)
                    yield done[variant]

    def _ask(self, executor: Executor, names: Sequence[str], variants: Sequence[Variant], *, fresh: bool) -> None:
        """Have workers measure what is not known; what runs the same as another variant is measured once."""
        folders = [self._run.path, *([self._options.source.data] if self._options.source.data else [])]
        check_read(executor, folders)
        for task, variant in product(names, variants):
            settings, same = self.settings(task, variant), self._run.same_as(variant)
            known = not fresh and any(self._find(task, other, settings) for other in same)
            if not known and not any((task, other) in self._coming for other in same):
                sent = (str(self._run.path), self._options, task, variant, settings)
                self._coming[task, variant] = executor.submit(measured_in_worker, *sent, near=variant)

    def _result(self, task: str, variant: Variant, done: Mapping[Variant, TaskResult], *, fresh: bool) -> TaskResult:
        """Return the result of a variant: `done` by one that runs the same, in a file (not if `fresh`), or measured now."""
        settings = self.settings(task, variant)
        for same in self._run.same_as(variant):
            found = done.get(same) or (None if fresh else self._find(task, same, settings))
            if found is not None:
                self._say(f"{task}, {variant}: known" if same == variant else f"{task}, {variant}: known, the same as {same}")
                return self._keep(replace(found, variant=variant, settings=settings), fresh=fresh)
        self._say(f"{task}, {variant}: running, {self._place}")
        coming = self._coming.pop((task, variant), None)
        return self._keep(self.measure(task, variant, settings) if coming is None else coming.result(), fresh=fresh)

    def _places(self, variant: Variant) -> tuple[Path, ...]:
        """Return the folders in which results of a variant are kept."""
        return (self._run.path, cache_folder()) if variant == "dense" else (self._run.path,)

    def _find(self, task: str, variant: Variant, settings: Mapping[str, Any]) -> TaskResult | None:
        """Return a result that the same code measured with the same settings; say so where other code did."""
        own = {**self.settings(task, variant), CODE: settings[CODE]}
        known = []
        for place in self._places(variant):
            try:
                result = find_result(place, task, variant, own)
            except PdtrimError as error:
                self._say(f"{task}, {variant}: measured again: {error}")
                continue
            known += [] if result is None else [result]
        for result in known:
            if result.settings.get(CODE) == own[CODE]:
                return result
        for result in known[:1]:
            before = result.settings.get(CODE) or {}
            changed = changes(before, own[CODE]) if before else ["an earlier version of pdtrim-core measured it"]
            self._say(f"{task}, {variant}: measured again: {'; '.join(changed)}")
        return None

    def _keep(self, result: TaskResult, *, fresh: bool) -> TaskResult:
        for place in self._places(result.variant):
            if fresh or not self._has(place, result):
                write_result(place, result)
        return result

    def _has(self, place: Path, result: TaskResult) -> bool:
        """Return whether a folder has this result already, of the same code."""
        try:
            before = find_result(place, result.task, result.variant, result.settings)
        except PdtrimError:
            return False
        return before is not None and before.settings.get(CODE) == result.settings[CODE]

    def _model(self, variant: Variant) -> PdtrimLM:
        if variant not in self._models:
            options = self._options
            of_model = ModelOptions(
                stage=variant,
                first_token=options.first_token,
                prompt_share=options.prompt_share,
                batch_tokens=options.batch_tokens,
                batch_size=options.batch_size,
            )
            self._models[variant] = PdtrimLM(self._run, of_model)
        return self._models[variant]

    def settings(self, task: str, variant: Variant) -> dict[str, Any]:
        """Return all that decides the numbers of a task on a variant."""
        options, model = self._options, self._model(variant)
        return {
            "weights": self._run.outcome.environment.weights,
            "plan": None if variant == "dense" else self._run.plan_digest(variant),
            "first_token": model.first_token if variant in PAIRS else None,
            "dtype": str(next(model.blocks.model.parameters()).dtype).removeprefix("torch."),
            "window": model.max_length,
            **options.source.settings(task, self._hub),
            "limit": options.limit,
            "chat_template": _digest(self._template(model)) if options.chat_template else None,
            "prompt_share": options.prompt_share,
            "max_new_tokens": options.max_new_tokens,
            "tokenizer": self._tokenizer,
            "harness": versions(PACKAGES)["lm_eval"],
            CODE: self._code,
        }

    @cached_property
    def _tokenizer(self) -> str:
        """A hash of the tokenizer, which all variants have."""
        return _digest(_words_of(self._run.dense.tokenizer))

    @cached_property
    def _code(self) -> dict[str, str]:
        """The code that measures, by what it is; that of a pruner is part of it where it makes the model that is run."""
        run = self._run
        pruner = run.recipe.pruner if run.replaced is not None else None
        own = {"the model": run.dense.exact_fingerprint[:12]}
        return {**engine(), **own, **({} if pruner is None else {f"pruner '{pruner.name}'": run.host.source_of(pruner)})}

    def _template(self, model: PdtrimLM) -> str:
        template = getattr(model.tokenizer, "chat_template", None)
        if template is None:
            raise PdtrimError(f"the tokenizer of {model.blocks.name} has no chat template: leave out --apply-chat-template")
        return json.dumps(template)

    def measure(self, task: str, variant: Variant, settings: dict[str, Any]) -> TaskResult:
        """Return the result of a task on a variant, measured now in this process; `settings` are those of both."""
        from lm_eval import simple_evaluate  # noqa: PLC0415 - heavy
        from lm_eval.tasks import TaskManager  # noqa: PLC0415 - the same

        options, model = self._options, self._model(variant)
        loaded = tasks.load_task(task, options.source, self._hub)
        model.start_notes()
        started = time.perf_counter()
        found = simple_evaluate(
            model=model,
            tasks=loaded.task,
            task_manager=self._hub or TaskManager(include_defaults=False),
            num_fewshot=options.source.shots if options.source.data is None else None,
            limit=options.limit,
            apply_chat_template=options.chat_template,
            gen_kwargs={"max_gen_toks": options.max_new_tokens} if options.max_new_tokens else None,
            confirm_run_unsafe_code=options.runs_code,
        )
        answers = answers_of(found["samples"])
        metrics = with_errors(metrics_of(found, task), answers)
        return TaskResult(
            task=task,
            variant=variant,
            metrics=metrics,
            main=main_of(metrics),
            answers=answers,
            settings=settings,
            versions=versions(PACKAGES),
            seconds=round(time.perf_counter() - started, 2),
            notes=(*loaded.notes, *model.notes),
        )


def measured_in_worker(  # noqa: PLR0917 - what tells a measurement from others
    cache: RunCache, path: str, options: Options, task: str, variant: Variant, settings: dict[str, Any]
) -> TaskResult:
    """Measure a task on a variant of a run. Raises `PdtrimError` where the same settings are not the same here."""

    # Plugins that the run names were allowed where it was asked for.
    def make() -> Evaluation:
        return Evaluation(load_run(path, shared=cache, trust=True), options)

    evaluation = cache.latest("evaluation", (f"evaluation of {path}", repr(options)), make)
    with _quiet():
        own = evaluation.settings(task, variant)
        others = [name for name, value in settings.items() if own.get(name) != value]
        if others:
            raise PdtrimError(f"a worker would measure {task} with other {', '.join(others)}: give all workers the same")
        return evaluation.measure(task, variant, settings)


def _words_of(tokenizer: Any) -> str:
    """Return what decides how a tokenizer splits text, as one text; how it pads and cuts is decided by its caller."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return json.dumps({**json.loads(backend.to_str()), "padding": None, "truncation": None})
    vocabulary = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else {}
    return f"{type(tokenizer).__name__} {sorted(vocabulary.items())}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the harness and its libraries say along the way out of the results, and its bars from the terminal.

    Those are of work that takes no time, such as making texts and tokens; the bar of the items that are measured is ours.
    """
    import datasets  # noqa: PLC0415 - heavy
    from lm_eval import evaluator  # noqa: PLC0415 - the same
    from lm_eval.api import model, task  # noqa: PLC0415 - the same

    logs = [logging.getLogger(name) for name in ("lm_eval", "datasets", "evaluate")]
    levels = [log.level for log in logs]
    bars = datasets.are_progress_bars_disabled()
    try:
        for log in logs:
            log.setLevel(logging.ERROR)
        datasets.disable_progress_bars()
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            stack.enter_context(warnings.catch_warnings())
            # A class without items has no F1; scikit-learn takes 0 and says so each time.
            warnings.filterwarnings("ignore", message="F-score is ill-defined")
            # It queries git and pip about the folder and the machine, which takes seconds and which nobody reads here.
            stack.enter_context(overridden(evaluator, get_git_commit_hash=lambda: None, add_env_info=lambda results: None))
            for module in (model, task):
                stack.enter_context(overridden(module, tqdm=_without_bar))
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()


def _without_bar(things: Any, **_: Any) -> Any:
    return things
