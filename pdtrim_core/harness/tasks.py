"""The harness' tasks: by name from the hub, or defined here over a folder of files.

A task over files has the harness' name, prompts, metrics and averages; its items are what `data_files` reads. `query` already is
the harness' own prompt, with the description of its subject in front for those that have subjects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pdtrim_core.errors import PdtrimError, did_you_mean, reason_of
from pdtrim_core.harness import data_files, scorers
from pdtrim_core.harness.data_files import Doc

BOTH, ACC = ("acc", "acc_norm"), ("acc",)
CHOICES: Mapping[str, tuple[str, ...]] = {
    "mmlu": ACC,
    "cmmlu": BOTH,
    "arc_easy": BOTH,
    "arc_challenge": BOTH,
    "piqa": BOTH,
    "winogrande": ACC,
    "hellaswag": BOTH,
    "boolq": ACC,
    "mathqa": BOTH,
    "wnli": ACC,
    "sst2": ACC,
    "rte": ACC,
    "cb": ACC,
}
"""Tasks of multiple choice with the metrics that the harness reports."""
SUBJECTS = ("mmlu", "cmmlu")
NAMES = (*CHOICES, "wikitext", "humaneval", "ifeval")
"""Tasks that can be read from files."""
RUNS_CODE = ("humaneval", "humaneval_instruct", "humaneval_plus", "mbpp", "mbpp_instruct", "mbpp_plus")


@dataclass(frozen=True)
class Source:
    """Where the items of tasks come from: the hub, or a folder; and which of them.

    `items` is how many items of a task are used, evenly spaced over its file; `shots` the few-shot examples in front of each.
    """

    data: Path | None = None
    items: int | None = None
    shots: int | None = None

    def settings(self, task: str, hub: Any) -> dict[str, Any]:
        """Return what tells the items of a task from others. `hub` is the harness' list of its own tasks, if it is used."""
        if self.data is None:
            return {"data": f"hub, {_definition(hub, task)}", "shots": self.shots}
        test = data_files.test_file(self.data, task)
        found = {"data": data_files.digest_of(test), "items": self.items, "shots": self.shots}
        return {**found, "shots_data": data_files.digest_of(data_files.shots_file(self.data, task))} if self.shots else found


@dataclass(frozen=True)
class Loaded:
    """A task or a group of tasks of the harness, ready to be run, and what must be said of it."""

    task: Any
    notes: list[str] = field(default_factory=list)


def check_names(names: Sequence[str], source: Source, hub: Any, *, runs_code: bool, files: bool = True) -> list[str]:
    """Return tasks by name, each once; the harness' tags are expanded to their tasks.

    Raises `PdtrimError` for tasks that do not exist or whose `files` do not, or that run code without consent.
    """
    tasks = list(dict.fromkeys(task for name in names for task in _tagged(name, hub)))
    for task in tasks:
        if source.data is not None and task not in NAMES:
            raise PdtrimError(
                f"unknown task '{task}'{did_you_mean(task, NAMES)} From files there are {', '.join(NAMES)}; other tasks of the "
                "harness come from the hub, without --data"
            )
        if source.data is None and task not in hub.all_tasks:
            raise PdtrimError(f"lm-evaluation-harness has no task '{task}'{did_you_mean(task, hub.all_tasks)}")
        if task in RUNS_CODE and not runs_code:
            raise PdtrimError(
                f"{task} runs programs that the model writes, on this machine: allow it with --confirm-run-unsafe-code"
            )
    for task in tasks if files and source.data is not None else ():
        source.settings(task, hub)
    return tasks


def _tagged(name: str, hub: Any) -> list[str]:
    entry = None if hub is None else hub.task_index.get(name)
    return sorted(entry.tags) if entry is not None and entry.kind.name == "TAG" else [name]


@cache
def hub_tasks() -> Any:
    """Return the harness' list of its own tasks; reading it takes seconds. Code of a data set never runs."""
    import datasets  # noqa: PLC0415 - heavy
    from lm_eval.tasks import TaskManager  # noqa: PLC0415 - heavy

    # Versions before 4 ask on the terminal where nobody has said so.
    datasets.config.HF_DATASETS_TRUST_REMOTE_CODE = False
    return TaskManager()


def load_task(task: str, source: Source, hub: Any) -> Loaded:
    """Return a task with its items. Raises `PdtrimError` where they cannot be had."""
    if source.data is not None:
        return _from_files(task, source, source.data)
    try:
        found = hub.load([task])
    except Exception as error:
        # Whatever keeps the harness from loading a task: no network, a package that is missing, a data set that is gone.
        here = "read it from files with --data DIR, or " if task in NAMES else ""
        raise PdtrimError(
            f"the hub did not give the items of '{task}' ({reason_of(error, kind=True)}): {here}connect to the network"
        ) from error
    return Loaded(found["groups"].get(task) or list(found["tasks"].values()))


def _definition(hub: Any, task: str) -> str:
    """Return the version that the harness gives a task's definition."""
    entry = hub.task_index.get(task)
    version = ((entry.cfg or {}).get("metadata") or {}).get("version") if entry is not None else None
    return f"{task} {version if version is not None else 'without version'}"


def _from_files(task: str, source: Source, data: Path) -> Loaded:
    docs = data_files.spread(data_files.read_docs(data_files.test_file(data, task), task), source.items)
    shots = data_files.read_docs(data_files.shots_file(data, task), task) if source.shots else []
    notes: list[str] = []
    if task in SUBJECTS:
        return Loaded(_group(task, docs, shots, source.shots or 0), notes)
    config = {**_config(task, notes), "num_fewshot": _fitting_shots(source.shots or 0, shots, task)}
    return Loaded([_task(task, config, docs, shots)], notes)


def _fitting_shots(wanted: int, shots: Sequence[Doc], name: str) -> int:
    if len(shots) < wanted:
        raise PdtrimError(f"there are {len(shots)} few-shot examples for {name}, not {wanted}: lower --num-fewshot")
    return wanted


def _config(task: str, notes: list[str]) -> dict[str, Any]:
    """Return the harness' configuration of a task over files; what must be said of its scorer goes into the notes."""
    if task == "wikitext":
        return _wikitext()
    if task == "humaneval":
        return _humaneval(notes)
    if task == "ifeval":
        return _ifeval(notes)
    config = {
        "output_type": "multiple_choice",
        "doc_to_text": "query",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [_metric(name) for name in CHOICES[task]],
    }
    if task == "winogrande":
        # The harness' form for choices that lie in the context: the text is the number of the right one.
        return {**config, "doc_to_text": "gold", "doc_to_choice": "contexts", "doc_to_target": "continuation"}
    if task == "cb":
        config["metric_list"] = [_metric("acc"), {**_metric("f1"), "aggregation": scorers.macro_f1()}]
    return config


def _metric(name: str) -> dict[str, Any]:
    return {"metric": name, "aggregation": "mean", "higher_is_better": True}


def _wikitext() -> dict[str, Any]:
    detokenised, counted = scorers.wikitext()
    names = ("word_perplexity", "byte_perplexity", "bits_per_byte")
    aggregations = ("weighted_perplexity", "weighted_perplexity", "bits_per_byte")
    return {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": detokenised,
        "process_results": counted,
        "metric_list": [
            {"metric": name, "aggregation": how, "higher_is_better": False} for name, how in zip(names, aggregations, strict=True)
        ],
    }


def _humaneval(notes: list[str]) -> dict[str, Any]:
    metric, note = scorers.pass_at_1()
    notes += [note] if note else []
    return {
        "output_type": "generate_until",
        "unsafe_code": True,
        "doc_to_text": "prompt",
        "doc_to_target": "{{test}}\ncheck({{entry_point}})",
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True}],
        "generation_kwargs": {
            "until": ["\nclass", "\ndef", "\n#", "\nif", "\nprint"],
            "max_gen_toks": 1024,
            "do_sample": False,
        },
        "filter_list": [{"name": "create_test", "filter": [{"function": "custom", "filter_fn": scorers.complete}]}],
    }


def _ifeval(notes: list[str]) -> dict[str, Any]:
    checked, mean_of_instructions, note = scorers.ifeval()
    notes += [note] if note else []
    return {
        "output_type": "generate_until",
        "doc_to_text": "prompt",
        "doc_to_target": 0,
        "process_results": checked,
        "metric_list": [
            {**_metric(f"{level}_level_{how}_acc"), **({"aggregation": mean_of_instructions} if level == "inst" else {})}
            for how in ("strict", "loose")
            for level in ("prompt", "inst")
        ],
        "generation_kwargs": {"until": [], "do_sample": False, "temperature": 0.0, "max_gen_toks": 1280},
    }


def _task(name: str, config: Mapping[str, Any], docs: Sequence[Doc], shots: Sequence[Doc], **more: Any) -> Any:
    """Return a task of the harness over items that are in memory."""
    import datasets  # noqa: PLC0415 - heavy
    from lm_eval.api.task import ConfigurableTask  # noqa: PLC0415 - heavy

    parts = {"test": datasets.Dataset.from_list(list(docs))}
    if shots:
        parts["shots"] = datasets.Dataset.from_list(list(shots))
    return ConfigurableTask(
        config={
            **config,
            "task": name,
            "custom_dataset": lambda **_: parts,
            "test_split": "test",
            "fewshot_split": "shots" if shots else None,
            "metadata": {"version": "files 1"},
            **more,
        }
    )


def _group(task: str, docs: Sequence[Doc], shots: Sequence[Doc], wanted: int) -> Any:
    """Return the harness' group over subjects: a task a subject, averaged by their numbers of items."""
    from lm_eval.api.group import Group  # noqa: PLC0415 - heavy

    metrics = [{"metric": name, "weight_by_size": True} for name in CHOICES[task]]
    group = Group.from_config({"group": task, "task": [], "aggregate_metric_list": metrics, "metadata": {"version": "files 1"}})
    config = {**_config(task, []), "doc_to_text": "question", "description": "description"}
    for subject in sorted({str(doc.get("subject", "all")) for doc in docs}):
        of_subject, its_shots = (
            [_parted(doc) for doc in some if str(doc.get("subject", "all")) == subject] for some in (docs, shots)
        )
        more: dict[str, Any] = {"num_fewshot": _fitting_shots(wanted, its_shots, f"{task}, {subject}")}
        if its_shots:
            more["fewshot_config"] = {"sampler": "first_n"}
        group.add(_task(f"{task}_{subject}", config, of_subject, its_shots, task_alias=subject, **more))
    return group


def _parted(doc: Doc) -> Doc:
    """Return an item whose subject description is separate from its question; the harness puts it first, once."""
    description, gap, question = doc["query"].partition("\n\n")
    return {**doc, "description": description + gap if question else "", "question": question or description}
