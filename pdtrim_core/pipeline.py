"""A run, step by step: from a recipe to an outcome."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from random import Random
from typing import Self

import torch

from pdtrim_core.budget import removed_blocks
from pdtrim_core.calibration import Calibration, Item, calibrate
from pdtrim_core.components import ModelSource
from pdtrim_core.context import ScoreContext
from pdtrim_core.errors import PdtrimError, PluginError, blame
from pdtrim_core.measuring import Measurement
from pdtrim_core.model import BlockModel
from pdtrim_core.outcome import Cost, Environment, Gain, Outcome, Row, Sets, Value, machine, peak_memory, versions
from pdtrim_core.plan import Plan, SavedPlan
from pdtrim_core.plugins import PluginHost
from pdtrim_core.recipe import Quantile, Recipe
from pdtrim_core.run_folder import RunFolder, open_run_folder
from pdtrim_core.scores import Scores
from pdtrim_core.search import Ledger, Points, drive
from pdtrim_core.space import DEFAULT_QUANTILE, DEFAULT_THRESHOLD, SearchSpace, TwoSets, quantile_threshold, search_space
from pdtrim_core.space import two_sets, without_merges
from pdtrim_core.stages import StagedModel
from pdtrim_core.trunk import PACKING_TOLERANCE, Trunk


def run(recipe: Recipe, host: PluginHost, *, fresh: bool = False) -> Outcome:
    """Carry out a recipe and return what came out; the run folder has it all.

    An interrupted run of the same recipe in the same folder goes on where it stopped, unless `fresh`. Raises
    `PdtrimError` for whatever the user can mend; what was measured until then stays in the journal.
    """
    threads = _threads(recipe.settings.evaluation.threads)
    with open_run_folder(recipe.out, recipe.to_data(), fresh=fresh) as folder, threads, RunLog(host) as log:
        host.tell("pdtrim_run_started", recipe=recipe, out=recipe.out)
        with log.step("open the model"):
            model = open_model(recipe.model, host)
            count = removed_blocks(recipe, model.sizes, model.name)
        with log.step("calibrate"):
            calibration = draw(recipe, host, model)
            environment = _environment(recipe, host, model, calibration)
            folder.check_same({"weights": environment.weights, "data": environment.data})
            folder.write("environment.json", json.dumps(vars(environment), indent=1) + "\n")
        with log.step("score the blocks"):
            scores = score(recipe, host, model, calibration)
            folder.write("scores.json", scores.to_json())
            sets, threshold = sets_of(recipe, scores, count)
            space = search_space(scores, count, _without_merges(sets, scores, log), model.sizes)
        with log.step("measure the dense model", about=1):
            bench = Bench(recipe, host, model, calibration, folder, log)
            bench.dense()
        with log.step("search", about=recipe.searcher.steps(space)):
            found = bench.search(space)
        with log.step("split the stages", about=recipe.splitter.steps(space)):
            plan = bench.split(found, space)
        with log.step("evaluate", about=bench.rows_to_measure):
            rows = bench.rows(found, plan)
        with log.step("write"):
            outcome = Outcome(
                model=model.name,
                license=model.license,
                block_count=model.block_count,
                objective=recipe.objective.name,
                saved_plan=json.loads(_saved(recipe, model, plan).to_json()),
                block_scores=scores.block,
                pair_scores=scores.pair,
                sets=Sets(sets.initial, tuple((p.blocks[0], p.blocks[1]) for p in sets.pairs), sets.drops, threshold),
                rows=rows,
                gains=bench.gains(found, plan),
                costs=costs_of(model, plan),
                notes=tuple(log.notes),
                seconds=log.seconds,
                peak_memory=peak_memory(),
                candidates=vars(bench.ledger.tally),
                environment=environment,
                recipe=recipe.to_data(),
            )
            export(recipe, host, outcome, model)
            folder.write("outcome.json", outcome.to_json())
        host.tell("pdtrim_run_finished", outcome=outcome)
        return outcome


@dataclass
class RunLog:
    """The steps of a run as events, with the seconds that each took and the notes made on the way."""

    host: PluginHost
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.host.tell("pdtrim_run_ended")

    @contextmanager
    def step(self, name: str, about: int | None = None) -> Iterator[None]:
        """Run a step: listeners hear when it begins and when it ends."""
        self.host.tell("pdtrim_step_started", step=name, about=about)
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 3)
        self.host.tell("pdtrim_step_finished", step=name, seconds=self.seconds[name])

    def note(self, text: str) -> None:
        """Say something to the user, now and in the outcome."""
        self.notes.append(text)
        self.host.tell("pdtrim_note_made", note=text)

    def preview(self, text: str) -> None:
        """Say something to the user now; the outcome does not keep it."""
        self.host.tell("pdtrim_note_made", note=text)


class Bench:
    """The measurements of one run: two sets of items, one trunk of kept streams, one ledger each."""

    def __init__(
        self, recipe: Recipe, host: PluginHost, model: BlockModel, calibration: Calibration, folder: RunFolder, log: RunLog
    ) -> None:
        self._recipe = recipe
        self._host = host
        self._model = model
        self._log = log
        self._calibration = calibration
        evaluation = recipe.settings.evaluation
        self._trunk = Trunk(
            model,
            first_token=evaluation.first_token,
            batch_tokens=evaluation.batch_tokens,
            budget=evaluation.cache_budget,
            packed=evaluation.pack_choices and packing_agrees(model, calibration.items, batch_tokens=evaluation.batch_tokens),
        )
        self.ledger = self._ledger("calibration", calibration.items, folder)
        self._apart = self._ledger("held-out", calibration.held_out, folder) if calibration.held_out else None

    def _ledger(self, part: str, items: tuple[Item, ...], folder: RunFolder) -> Ledger:
        objective = self._recipe.objective
        problems = objective.problems(items)
        if problems:
            raise PdtrimError(f"objective '{objective.name}' cannot measure the {part} items: {problems[0]}")
        measurement = Measurement(
            self._trunk,
            objective,
            items,
            label=self._host.label_of(objective),
            early_stop=self._recipe.settings.evaluation.early_stop,
            note=self._log.note,
        )
        return Ledger(
            measurement,
            known=folder.known.get(part),
            record=lambda plan, reading: folder.note(part, plan, reading),
            notify=lambda candidate: self._host.tell("pdtrim_candidate_measured", candidate=candidate),
        )

    def dense(self) -> Points:
        """Measure the dense model, and with it how long a measurement takes."""
        started = time.perf_counter()
        points = self.ledger.exact(Plan())
        self._seconds_each = time.perf_counter() - started
        return points

    def search(self, space: SearchSpace) -> Plan:
        """Let the searcher find what decode loses."""
        self._preview("search", self._recipe.searcher.steps(space))
        searcher = self._recipe.searcher
        label = self._host.label_of(searcher)
        asks = searcher.search(space, self._rng("search"))
        best, _ = drive(asks, self.ledger, label=label, problems=space.problems, note=self._log.note)
        if best is None:
            raise PluginError(f"{label} asked for no plan at all")
        return best.plan

    def split(self, found: Plan, space: SearchSpace) -> Plan:
        """Let the splitter decide what prefill can be spared; then cut prefill's free tail."""
        splitter = self._recipe.splitter
        label = self._host.label_of(splitter)
        asks = splitter.split(found, space, self._rng("split"))

        def problems(plan: Plan) -> Iterable[str]:
            return [] if plan.decode == found.decode else ["a splitter may change prefill only"]

        _, plan = drive(asks, self.ledger, label=label, problems=problems, note=self._log.note)
        if not isinstance(plan, Plan) or plan.decode != found.decode:
            raise PluginError(f"{label} returned {plan}: it must return a plan with the decode that it was given")
        evaluation = self._recipe.settings.evaluation
        tail = evaluation.first_token == "decode" and evaluation.prefill_tail == "free"
        return plan.free_tail(self._model.block_count) if tail else plan

    @property
    def rows_to_measure(self) -> int:
        """About how many measurements the result table takes."""
        return 3 if self._apart is None else 6

    def rows(self, found: Plan, plan: Plan) -> tuple[Row, ...]:
        """Measure dense, unified and staged, on the items that measured and on those kept apart."""
        plans = {"dense": Plan(), "unified": Plan.unified(found.decode), "staged": plan}
        return tuple(
            Row(
                name,
                _value(self.ledger.exact(row), len(self._calibration.items)),
                None if self._apart is None else _value(self._apart.exact(row), len(self._calibration.held_out)),
            )
            for name, row in plans.items()
        )

    def gains(self, found: Plan, plan: Plan) -> tuple[Gain, ...]:
        """Return what it brought to give back each element alone, where that was measured."""
        start = Plan.unified(found.decode)
        before = self.ledger.known(start)
        gains = []
        for element in found.decode:
            after = self.ledger.known(Plan(prefill=start.prefill.without(element), decode=found.decode))
            if before is not None and after is not None and len(found.decode):
                error = after.error_of_gain_over(before)
                gains.append(Gain(str(element), round(after - before, 4), error, spared=element not in plan.prefill))
        return tuple(gains)

    def _preview(self, what: str, steps: int | None) -> None:
        if steps:
            seconds = steps * self._seconds_each
            self._log.preview(
                f"{what}: at most {steps} measurements x {self._seconds_each:.1f} s = about {_duration(seconds)}"
            )

    def _rng(self, step: str) -> Random:
        return Random(f"{self._recipe.settings.seed} {step}")  # noqa: S311 - reproducible draws, nothing secret


def open_model(source: ModelSource, host: PluginHost) -> BlockModel:
    """Open a model and find its blocks. Raises `PdtrimError` for a model that cannot be pruned, with the reason."""
    with blame(host.label_of(source)):
        loaded = source.open()
    with blame("the search for the model's blocks"):
        place = host.hook.pdtrim_find_blocks(model=loaded.model)
    if place is None:
        raise PdtrimError(
            f"{loaded.name}: no plugin knows where the architecture '{loaded.model.config.model_type}' keeps its blocks; "
            "a plugin can say so with the hook pdtrim_find_blocks"
        )
    model = BlockModel(loaded.model, loaded.tokenizer, place, name=loaded.name, license_id=loaded.license)
    model.check_finite()
    return model


def draw(recipe: Recipe, host: PluginHost, model: BlockModel) -> Calibration:
    """Draw the samples that measure and those kept apart, and tokenise them."""
    source = recipe.calibration
    rng = Random(f"{recipe.settings.seed} calibration")  # noqa: S311 - reproducible draws, nothing secret
    with blame(host.label_of(source)):
        apart = source.draw_held_out(source.held_out, rng) if source.held_out else []
        if apart is None:
            drawn = list(islice(source.draw(source.samples + source.held_out, rng), source.samples + source.held_out))
            drawn, apart = drawn[: source.samples], drawn[source.samples :]
        else:
            drawn, apart = list(islice(source.draw(source.samples, rng), source.samples)), list(apart)
    return calibrate(drawn, apart, model.tokenizer)


def score(recipe: Recipe, host: PluginHost, model: BlockModel, calibration: Calibration) -> Scores:
    """Let the scorer score the blocks over prompts with their right continuations."""
    sequences = [item.tokens for item in calibration.items]
    context = ScoreContext(model, sequences, batch_tokens=recipe.settings.evaluation.batch_tokens)
    label = host.label_of(recipe.scorer)
    with blame(label):
        scores = recipe.scorer.score(context)
    if not isinstance(scores, Scores):
        raise PluginError(f"{label} returned {type(scores).__name__} where Scores are expected")
    problems = scores.problems(model.block_count)
    if problems:
        raise PluginError(f"{label} returned {problems[0]}")
    return scores


def sets_of(recipe: Recipe, scores: Scores, count: int) -> tuple[TwoSets, float]:
    """Return the two sets and the threshold d_T that made them."""
    given = recipe.settings.prune.merge_above
    if given is None:
        given = DEFAULT_THRESHOLD if scores.similarity else Quantile(quantile=DEFAULT_QUANTILE)
    if isinstance(given, Quantile):
        threshold = quantile_threshold(scores, given.quantile)
    elif scores.similarity or given > 1:
        threshold = given
    else:
        raise PdtrimError(
            f"prune.merge_above = {given} is a cosine, but the scores of '{recipe.scorer.name}' are not: say "
            "merge_above = {quantile = 0.9}, or 1.1 for no merges"
        )
    return two_sets(scores, count, threshold), threshold


def _without_merges(sets: TwoSets, scores: Scores, log: RunLog) -> TwoSets:
    if sets.pairs:
        log.note(f"{len(sets.pairs)} pairs reach merge_above, but this version trains no merges: every block is searched as a drop")
    return without_merges(sets, scores)


def packing_agrees(model: BlockModel, items: tuple[Item, ...], *, batch_tokens: int) -> bool:
    """Tell whether all choices of an item may share one row: tried on the first group, since not every family can."""
    forked = [item for item in items if item.one_prompt and len(item.choices) > 1 and not item.one_token]
    if not forked:
        return True
    trunks = [Trunk(model, batch_tokens=batch_tokens, budget=0, packed=packed) for packed in (True, False)]
    group = trunks[0].groups(forked)[0]
    try:
        shared, apart = (StagedModel(trunk, Plan()).loglikelihoods(group) for trunk in trunks)
    except (RuntimeError, TypeError, ValueError, IndexError, PdtrimError):
        # A family that cannot take a mask or positions of ours says so in its own way; its choices get rows of their own.
        return False
    gaps = [abs(a - b) for one, other in zip(shared, apart, strict=True) for a, b in zip(one, other, strict=True)]
    return max(gaps) <= PACKING_TOLERANCE * _scale(model)


def _scale(model: BlockModel) -> float:
    """How much coarser than float32 the weights' number format is."""
    dtype = next(model.model.parameters()).dtype
    return torch.finfo(dtype).eps / torch.finfo(torch.float32).eps


def costs_of(model: BlockModel, plan: Plan) -> tuple[Cost, ...]:
    """Return what the plan saves, beside the dense model."""
    sizes, dense = model.sizes, Plan()
    return (
        Cost("parameters of prefill", "weights", sizes.parameters, sizes.kept_parameters(plan, "prefill")),
        Cost("parameters of decode", "weights", sizes.parameters, sizes.kept_parameters(plan, "decode")),
        Cost("prefill work for 1024 tokens", "FLOPs", sizes.prefill_flops(dense), sizes.prefill_flops(plan)),
        Cost("decode weight traffic", "bytes a token", sizes.decode_bytes(dense), sizes.decode_bytes(plan)),
        Cost("K/V shipped to decode", "bytes a prompt token", sizes.kv_bytes(dense), sizes.kv_bytes(plan)),
    )


def export(recipe: Recipe, host: PluginHost, outcome: Outcome, model: BlockModel) -> None:
    """Let the exporters write. Raises `PluginError` for one that writes outside the run folder."""
    for exporter in recipe.exporters:
        label = host.label_of(exporter)
        with blame(label):
            paths = list(exporter.export(outcome, model, recipe.out))
        for path in paths:
            if not path.resolve().is_relative_to(recipe.out.resolve()):
                raise PluginError(f"{label} wrote {path}, which is not under {recipe.out}")


def _saved(recipe: Recipe, model: BlockModel, plan: Plan) -> SavedPlan:
    first_token = recipe.settings.evaluation.first_token
    return SavedPlan(plan, model.name, model.fingerprint, model.block_count, first_token)


def _environment(recipe: Recipe, host: PluginHost, model: BlockModel, calibration: Calibration) -> Environment:
    recipe_text = json.dumps(recipe.to_data(), sort_keys=True)
    sources = tuple({origin.source for origin in host.origins if origin.version})
    return Environment(
        versions=versions(sources),
        machine=machine(),
        threads=torch.get_num_threads(),
        device=str(model.device),
        weights=model.fingerprint,
        data=calibration.digest,
        recipe=hashlib.sha256(recipe_text.encode()).hexdigest(),
    )


def _value(points: Points, items: int) -> Value:
    mean = points.reading.mean
    assert mean is not None
    return Value(mean=mean, points=float(points), error=round(points.error, 4), items=items)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count or before)
        yield
    finally:
        torch.set_num_threads(before)


