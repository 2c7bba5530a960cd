"""What every quantizer must hold to."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from pdtrim_core.api.format_facts import FormatFacts
from pdtrim_core.api.hookspecs import hookimpl
from pdtrim_core.api.layer_kinds import AS_IT_IS, Quantizer
from pdtrim_core.execution.quantized_weights import NumberFormat, quantized_layers, quantized_weights
from pdtrim_core.host.host import Origin
from pdtrim_core.pipeline import pipeline
from pdtrim_core.pipeline.open_run import load_run
from pdtrim_core.pipeline.run_fidelity import RunFidelity
from pdtrim_core.plan.elements import Drop, Removal
from pdtrim_core.plan.plan import Plan
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.testing.contracts.shared import check_component, contract, no_global_randomness
from pdtrim_core.testing.contracts.small_run import tiny_host
from pdtrim_core.testing.contracts.untouched import left_as_it_was
from pdtrim_core.testing.models import tiny_llama

ROWS, INPUTS = 48, 32
"""The shape of a weight that a quantizer with the options of its contract must take, as in `tiny_llama`."""
NEAR = 0.5
"""Share of a weight's length that rounding may move it by: formats of three bits and more stay well below."""
CLOSE = 1e-5
"""What the same computation may differ by from one time to the next, relative."""


@contract
class QuantizerContract:
    """What every quantizer must hold to; `options` must let it take rows of 32 and of 48 weights."""

    component: ClassVar[type[Quantizer]]
    options: ClassVar[dict[str, Any]] = {}
    departs: ClassVar[dict[str, str]] = {}

    def test_it_is_a_well_formed_component(self) -> None:
        """See `check_component`."""
        check_component(self.component, Quantizer, self.options)

    def test_it_names_its_formats(self) -> None:
        """At least one, each once; `none` is what recipes say of a stage that stays as it is."""
        assert self.component.schemes, "it has no formats: set schemes"
        assert len(set(self.component.schemes)) == len(self.component.schemes)
        assert AS_IT_IS not in self.component.schemes

    def test_a_weight_comes_back_nearly_as_it_was(self) -> None:
        """In the same shape, finite, and no further off than half its length."""
        for scheme in self.component.schemes:
            weight = _weight()
            again = self._made.dequantize(self._made.quantize(weight, scheme), scheme)
            assert again.shape == weight.shape
            assert float((again - weight).norm()) < NEAR * float(weight.norm()), f"{scheme} moves a weight by half its length"

    def test_a_row_of_zeros_stays_one(self) -> None:
        """Pruned channels leave such rows: no scale may be 0, and nothing NaN."""
        for scheme in self.component.schemes:
            weight = _weight()
            weight[3] = 0
            again = self._made.dequantize(self._made.quantize(weight, scheme), scheme)
            assert torch.equal(again[3], weight[3]), f"{scheme} makes something of a row of zeros"

    def test_what_is_stored_is_smaller(self) -> None:
        """Than the weight in 16 bits, with its scales; it is for nothing else."""
        for scheme in self.component.schemes:
            weight = _weight(rows=512, inputs=ROWS * INPUTS).to(torch.bfloat16)
            stored = self._made.quantize(weight, scheme)
            assert sum(tensor.nbytes for tensor in stored.values()) < weight.nbytes, f"{scheme} takes more room than 16 bits"

    def test_what_is_stored_can_be_written(self) -> None:
        """Tensors with names that have no dot, contiguous and on no device of their own."""
        for scheme in self.component.schemes:
            stored = self._made.quantize(_weight(), scheme)
            assert stored
            assert all(name.isidentifier() for name in stored), "the names in a linear layer have no dots"
            assert all(isinstance(tensor, Tensor) and tensor.is_contiguous() for tensor in stored.values())

    def test_a_weight_in_bfloat16_comes_back_as_one(self) -> None:
        """The number format is that of the checkpoint, which scales have, too."""
        for scheme in self.component.schemes:
            weight = _weight().to(torch.bfloat16)
            assert self._made.dequantize(self._made.quantize(weight, scheme), scheme).dtype == torch.bfloat16

    def test_the_same_weight_gives_the_same(self) -> None:
        """No randomness, no memory of an earlier call."""
        for scheme in self.component.schemes:
            with no_global_randomness():
                one, other = (self._made.quantize(_weight(), scheme) for _ in range(2))
            assert one.keys() == other.keys()
            assert all(torch.equal(_bits(tensor), _bits(other[name])) for name, tensor in one.items())

    def test_the_model_is_left_as_it_was(self) -> None:
        """See `left_as_it_was`; the weights that it is given are the dense model's own."""
        model, plan = tiny_llama(), Plan(decode=Removal([Drop(2)]))
        for scheme in self.component.schemes:
            with left_as_it_was(model):
                one = NumberFormat(self._made, scheme)
                tensors = quantized_weights(model, plan, "decode", {}, one)
                quantized_layers(model, plan, "decode", {}, one, tensors=tensors)

    def test_inputs_are_rounded_token_by_token(self) -> None:
        """Whatever stands beside a token, and however tokens are laid out; in the shape and number format that they have."""
        for scheme in filter(self._made.rounds_inputs, self.component.schemes):
            inputs = torch.randn(2, 5, INPUTS, generator=torch.Generator().manual_seed(1))
            inputs[1, 2] *= 100
            together = self._made.round_inputs(inputs, scheme)
            assert together.shape == inputs.shape
            alone = torch.stack([self._made.round_inputs(token[None], scheme)[0] for token in inputs.flatten(0, 1)])
            assert torch.equal(together.flatten(0, 1), alone), f"{scheme} rounds a token by what stands beside it"
            assert self._made.round_inputs(inputs.to(torch.bfloat16), scheme).dtype == torch.bfloat16

    def test_its_config_is_data(self) -> None:
        """What JSON holds, with the name by which loaders know the format."""
        for scheme in self.component.schemes:
            config = self._made.config(scheme)
            assert json.loads(json.dumps(config)) == config
            assert isinstance(config.get("quant_method"), str), "loaders look for quant_method"

    def test_what_it_does_not_refuse_it_can_do(self) -> None:
        """Rows of odd lengths, as pruned channels leave them: `problems` says before a run what cannot be."""
        for scheme in self.component.schemes:
            for inputs in (INPUTS, 47, 17):
                facts = FormatFacts("tiny", "llama", (scheme,), {"mlp.down_proj": inputs})
                problems = self._made.problems(facts)
                assert not (problems and inputs == INPUTS), f"it refuses rows of {INPUTS} weights: {problems[0]}"
                if not problems:
                    weight = _weight(inputs=inputs)
                    assert self._made.dequantize(self._made.quantize(weight, scheme), scheme).shape == weight.shape

    def test_a_run_measures_what_its_folder_holds(self, tmp_path: Path) -> None:
        """A whole recipe: search, split, quantise, measure; opened again, the pair is as far from the dense model."""
        scheme = self.component.schemes[0]
        data = {
            "model": {"path": "tiny:llama"},
            "prune": {"blocks": 1, "merges": False},
            "calibration": {"use": "mini", "samples": 4, "held_out": 2},
            "searcher": "greedy",
            "splitter": "dense-prefill",
            "formats": {"use": f"contract/{self.component.name}", "decode": scheme, **self.options},
            "report": [],
            "evaluation": {"threads": 1, "answer_tokens": 3},
        }
        host = tiny_host()
        # A plain file's quantizer is not installed.
        host.register(SimpleNamespace(pdtrim_quantizers=hookimpl(lambda: [self.component])), Origin("contract", "contract"))
        outcome = pipeline.run(Recipe.from_data(data, where="formats.toml", out=tmp_path / "run", host=host), host)
        assert outcome.plan.formats is not None
        assert outcome.plan.formats.decode == scheme
        assert outcome.fidelity is not None
        (again,) = RunFidelity(load_run(tmp_path / "run", host)).results(("staged",), fresh=True)
        measured = outcome.fidelity.variants["staged"]["kl"].value
        assert again.metrics["kl"].value == pytest.approx(measured, rel=CLOSE, abs=CLOSE)
        assert outcome.cost("weights of decode").plan < outcome.cost("weights of decode").dense

    @property
    def _made(self) -> Quantizer:
        return self.component(**self.options)


def _weight(*, rows: int = ROWS, inputs: int = INPUTS) -> Tensor:
    weight = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(0))
    return weight / math.sqrt(inputs)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)
