"""Blocks that torch.compile made faster give the same plan, and a machine that cannot compile is told so.

These are not among the numeric tests: the kernels are torch.compile's own, and what it keeps of them for the next process does
not say for which instructions it was made, so that a run with others fails on it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pdtrim_core import PdtrimError
from pdtrim_core.execution.prefix_cache import PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.testing import tiny_llama
from tests.unit.execution.test_prefix_cache import WALK, run_with
from tests.unit.execution.test_staged_model import some_items


def test_a_machine_that_cannot_compile_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import InternalTorchDynamoError

    def fail(*args: object, **kwargs: object) -> None:
        raise InternalTorchDynamoError("no C++ compiler found")

    model = tiny_llama()
    model.compiles = True
    monkeypatch.setitem(vars(model), "_compiled_run", fail)
    with pytest.raises(PdtrimError) as caught:
        StagedModel(PrefixCache(model), WALK[0]).loglikelihoods(some_items())
    assert str(caught.value) == (
        "the blocks cannot be compiled here (no C++ compiler found): leave out evaluation.compile, or install what torch.compile "
        "needs, such as a C++ compiler"
    )


@pytest.mark.skipif(not shutil.which("c++"), reason="there is no C++ compiler")
@pytest.mark.filterwarnings("ignore:.torch.jit")  # torch's own, when its compiler is imported
def test_compiling_changes_neither_the_plan_nor_its_score(tmp_path: Path) -> None:
    plan, score = run_with(tmp_path / "usual", {})
    other_plan, other_score = run_with(tmp_path / "compiled", {"compile": True})
    assert plan == other_plan
    # As for the switches that only save time: rounding is far below a hundredth of a percent.
    assert score == pytest.approx(other_score, abs=0.01)
