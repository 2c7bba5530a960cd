"""Values of plans that workers measure: asked for ahead, waited for where they are needed. What they decide is decided here.

Splitting a list of plans among workers would be simpler, but a plan is given up by what others of its list have on the same
items. So workers are asked for values alone, of some plans on one batch of items, and every decision falls in the same order as
without workers, on the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, NamedTuple

from pdtrim_core.data.items import Item
from pdtrim_core.execution.look_ahead import LookAhead, answers_of
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.stage_modules import Modules
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.execution.threads import threads
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.pipeline.elsewhere_opened import check_weights, model_in_worker, recipe_in_worker
from pdtrim_core.pipeline.executor import Executor
from pdtrim_core.pipeline.item_values import item_values
from pdtrim_core.pipeline.run_cache import RunCache
from pdtrim_core.pipeline.run_keys import keys_of
from pdtrim_core.pipeline.shipped_modules import Arrived, Shipped, Shipping, UnshippableError
from pdtrim_core.plan.plan import Plan
from pdtrim_core.recipe.recipe import Recipe

MOST_PLANS = 8
"""Plans that one job measures at most: they begin alike, and what they share is run once."""
JOBS_A_WORKER = 4
"""Jobs a worker that a request is cut into, if it has as many: the last ones then end at about the same time."""

Group = tuple[Item, ...]
"""Items that run as one batch."""


class Measured(NamedTuple):
    """What one job measures: the values of plans, with their modules, on groups of items."""

    plans: tuple[Plan, ...]
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Subject:
    """What a worker needs to measure as this process would: the recipe, and what was found out about it.

    `weights` is the exact fingerprint of the model, `packed` whether items may share a row, `batch_tokens` the tokens of a batch,
    `threads` those of a worker, `share` the part of the memory for hidden states that it may take: all may be on one machine.
    """

    recipe: Mapping[str, Any]
    weights: str
    packed: bool
    batch_tokens: int
    threads: int
    share: float


class MeasuredElsewhere:
    """The values of plans of one recipe, measured by workers."""

    def __init__(self, executor: Executor, subject: Callable[[], Subject], model: BlockModel) -> None:
        self._executor = executor
        self._subject = subject
        self._shipping = Shipping(model, executor)
        self._coming: dict[tuple[Plan, Group], tuple[Future[list[list[float]]], int]] = {}

    @property
    def count(self) -> int:
        """The number of workers."""
        return self._executor.count

    @contextmanager
    def asked(
        self,
        wanted: Mapping[Group, Sequence[Plan]],
        modules_of: Callable[[Plan], Modules],
        *,
        whole: bool,
    ) -> Iterator[None]:
        """Inside the context, have workers measure plans on groups of items; what nobody waits for any more is not begun.

        With `whole` a job is plans on all groups, so that each block of a model on the disk is read once for them. A plan whose
        modules cannot be sent is not asked for.
        """
        subject = self._subject()
        shipped = self._shipped({plan for plans in wanted.values() for plan in plans}, modules_of)
        there = {group: [plan for plan in plans if plan in shipped] for group, plans in wanted.items()}
        asked: list[tuple[Plan, Group]] = []
        for job in jobs(there, self.count, whole=whole):
            of_plans = [shipped[plan] for plan in job.plans]
            future = self._executor.submit(values_in_worker, subject, job, of_plans, near=job.groups[0])
            for number, (group, plan) in enumerate(product(job.groups, job.plans)):
                self._coming[plan, group] = future, number
                asked.append((plan, group))
        try:
            yield
        finally:
            for key in asked:
                future, _ = self._coming.pop(key)
                future.cancel()

    def _shipped(self, plans: Collection[Plan], modules_of: Callable[[Plan], Modules]) -> dict[Plan, dict[Any, Shipped]]:
        """Return the modules of plans, of those whose modules can be sent."""
        found = {}
        for plan in plans:
            with suppress(UnshippableError):
                found[plan] = self._shipping.ship(plan, modules_of(plan))
        return found

    def values(self, plan: Plan, group: Group) -> list[float] | None:
        """Return the values of a plan on a group of items that were asked for, once they are there; None where they were not."""
        if (plan, group) not in self._coming:
            return None
        future, number = self._coming[plan, group]
        return future.result()[number]


def jobs(wanted: Mapping[Group, Sequence[Plan]], workers: int, *, whole: bool = False) -> Iterator[Measured]:
    """Yield the jobs that measure plans on groups of items, in the order in which their values are waited for."""
    if whole:
        plans = list(dict.fromkeys(plan for of_group in wanted.values() for plan in of_group))
        groups = tuple(group for group, of_group in wanted.items() if of_group)
        step = max(1, -(-len(plans) // workers))
        yield from (Measured(tuple(plans[start : start + step]), groups) for start in range(0, len(plans), step))
        return
    step = max(1, min(MOST_PLANS, sum(map(len, wanted.values())) // (JOBS_A_WORKER * workers)))
    for group, of_group in wanted.items():
        yield from (Measured(tuple(of_group[start : start + step]), (group,)) for start in range(0, len(of_group), step))


def values_in_worker(
    cache: RunCache, subject: Subject, job: Measured, shipped: Sequence[Mapping[Any, Shipped]]
) -> list[list[float]]:
    """Return the values of the job's plans on its groups, the plans of a group together."""
    with threads(subject.threads):
        recipe = recipe_in_worker(cache, subject.recipe)
        prefix_cache, arrived = _opened(cache, recipe, subject)
        model, label = prefix_cache.model, recipe.host.label_of(recipe.objective)
        modules = {plan: arrived.modules(own) for plan, own in zip(job.plans, shipped, strict=True)}

        def values(plan: Plan, group: Group, ahead: LookAhead | None) -> list[float]:
            staged = StagedModel(prefix_cache, plan, modules[plan], ahead=ahead)
            return item_values(recipe.objective, label, staged, group)

        if not model.streams:
            return [values(plan, group, None) for group, plan in product(job.groups, job.plans)]
        items = [item for group in job.groups for item in group]
        step, found = prefix_cache.plans_at_once(items), dict[tuple[Group, Plan], list[float]]()
        for start in range(0, len(job.plans), step):
            pairs = list(product(job.groups, job.plans[start : start + step]))
            found |= zip(pairs, answers_of(model, [partial(values, plan, group) for group, plan in pairs]), strict=True)
        return [found[pair] for pair in product(job.groups, job.plans)]


def _opened(cache: RunCache, recipe: Recipe, subject: Subject) -> tuple[PrefixCache, Arrived]:
    """Return what holds hidden states in this worker, and the modules that have arrived: made once for a recipe."""
    model = model_in_worker(cache, recipe)
    # One that took the place of a lost worker opens the model here.
    check_weights(subject.weights, model.exact_fingerprint, model.name)
    evaluation = recipe.settings.evaluation

    def make() -> tuple[PrefixCache, Arrived]:
        options = ExecutionOptions(
            first_token=evaluation.first_token,
            batch_tokens=subject.batch_tokens,
            budget=evaluation.cache_budget,
            share=subject.share,
            packed=subject.packed,
            shared_tokens=evaluation.share_tokens,
            reuse_plans=evaluation.reuse_plans,
        )
        return PrefixCache(model, options), Arrived(model)

    key = (*keys_of(recipe).prefix_cache, f"{subject.packed} {subject.batch_tokens}")
    return cache.latest("prefix cache at a worker", key, make)
