"""The model that plans are measured on: what its values depend on, the modules that plans have, the states that are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch

from pdtrim_core.execution.packing import packing_agrees
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.staged_model import Replacements
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.pipeline.estimated_recovery import EstimatedRecovery
from pdtrim_core.pipeline.executor import Executor
from pdtrim_core.pipeline.measured_elsewhere import Subject
from pdtrim_core.pipeline.run_cache import Key
from pdtrim_core.pipeline.run_context import RunContext
from pdtrim_core.pipeline.run_inputs import RunInputs
from pdtrim_core.pipeline.run_keys import keys_of, values_keys
from pdtrim_core.plan.plan import Plan


@dataclass(frozen=True)
class ModuleSet:
    """The replacement modules that plans are measured with, and a hash of what made them.

    `trained` is False while the search measures the blocks that training will start from. `recovered` has a hash of the recovered
    weights of each plan that has some. With `estimated`, plans are measured with what recovery would make of them.
    """

    modules: Replacements
    digest: str
    trained: bool = True
    recovered: Mapping[Plan, str] = field(default_factory=dict)
    estimated: EstimatedRecovery | None = None


class MeasuredModel:
    """The model of one run, dense or a whole other one that replaced it, with the modules that plans are measured with."""

    def __init__(self, context: RunContext, inputs: RunInputs, module_set: ModuleSet, replaced: BlockModel | None = None) -> None:
        self._context = context
        self._inputs = inputs
        self._module_set = module_set
        self._replaced = replaced
        self.model = replaced or inputs.model
        # A model that replaced the dense one is compared with that.
        self._models = [self.model] if replaced is None else [self.model, inputs.model]
        training = module_set.digest if module_set.trained else "untrained"
        self._key_of_plan = values_keys(
            context.recipe,
            weights=" ".join(f"{model.exact_fingerprint} {model.layout}" for model in self._models),
            data=inputs.calibration.digest,
            training=training,
        )

    def key_of(self, plan: Plan) -> Key:
        """Return what the values of a plan depend on."""
        recovered, estimated = self._module_set.recovered.get(plan), self._module_set.estimated
        if estimated is not None and (plan.prefill or plan.decode):
            return (*self._key_of_plan(plan), f"estimated {estimated.digest}")
        return self._key_of_plan(plan) if recovered is None else (*self._key_of_plan(plan), f"recovered {recovered}")

    def modules_of(self, plan: Plan) -> Replacements:
        """Return the modules that a plan is measured with."""
        estimated = self._module_set.estimated
        return self._module_set.modules if estimated is None else {**self._module_set.modules, **estimated.modules(plan)}

    @cached_property
    def prefix_cache(self) -> PrefixCache:
        """Made when something is measured: a run that only goes through its journal needs none."""
        if self._replaced is not None:
            # Measured once and by no other run, so nothing of it is kept.
            return self._new_prefix_cache()
        return self._context.cache.latest("prefix cache", keys_of(self._context.recipe).prefix_cache, self._new_prefix_cache)

    def _new_prefix_cache(self) -> PrefixCache:
        evaluation, dense = self._context.recipe.settings.evaluation, self._inputs.model
        items, batch_tokens = self._inputs.calibration.items, evaluation.batch_tokens
        options = ExecutionOptions(
            first_token=evaluation.first_token,
            batch_tokens=batch_tokens,
            budget=evaluation.cache_budget if self._replaced is None else 0,
            packed=evaluation.pack_rows
            and all(packing_agrees(model, items, batch_tokens=batch_tokens) for model in self._models),
            shared_tokens=evaluation.share_tokens,
            reuse_plans=evaluation.reuse_plans,
        )
        return PrefixCache(self.model, options, dense=None if self._replaced is None else dense)

    @property
    def executor(self) -> Executor | None:
        """The workers that measure; None where this process does, which also measures a model that replaced the dense one."""
        return self._context.executor if self._replaced is None else None

    def subject(self) -> Subject:
        """Return what workers need to know now: batches become smaller where a device runs out of memory."""
        assert self._context.executor is not None
        cache = self.prefix_cache
        return Subject(
            self._context.recipe.to_data(),
            self.model.exact_fingerprint,
            packed=cache.packs,
            batch_tokens=cache.batch_tokens,
            threads=torch.get_num_threads(),
            share=1 / self._context.executor.count,
        )
