"""The exporter of llm-compressor: what it writes alone, and with an environment that runs, lacks it, or fails."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from pdtrim_core.api import Drop, ExportFacts, PdtrimError, Plan, Removal
from pdtrim_core.testing import tiny_llama
from pdtrim_plugins.exporters.compress import recipe_of
from pdtrim_plugins.exporters.llm_compressor import MIXED, LlmCompressor
from tests.unit.plugins.exported import export, parameters_of, read_back, thin

PLAN = Plan(Removal(), Removal([Drop(2)]))
RUNS = 'mkdir -p "$3"; echo "$*" > "$3/asked"; cp "$2/config.json" "$3"'
"""What a stand-in does with the script, the checkpoint and the folder that it is given."""


def interpreter(folder: Path, does: str = RUNS, *, has: bool = True) -> str:
    """Return a program in the place of an interpreter: it tells its version when it is looked at, and then does something."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\nif [ "$1" = -c ]; then {"echo 0.14" if has else "exit 1"}; exit; fi\n{does}\n')
    path.chmod(0o755)
    return str(path)


def test_without_an_interpreter_the_script_its_texts_and_the_command_are_written(tmp_path: Path) -> None:
    exporter = LlmCompressor(texts=3, tokens=20)
    paths = export(exporter, tiny_llama(), PLAN, tmp_path / "out")
    assert [path.name for path in paths] == ["decode", "llm-compressor"]
    tools = tmp_path / "out" / "llm-compressor"
    compile((tools / "compress.py").read_text(), "compress.py", "exec")
    texts = [json.loads(line)["text"] for line in (tools / "texts.jsonl").read_text().splitlines()]
    assert [len(text) for text in texts] == [100] * 3
    assert (
        "python llm-compressor/compress.py decode decode-gptq --method gptq --scheme W4A16" in (tools / "README.md").read_text()
    )
    assert "--set python=" in exporter.remark(tiny_llama())
    assert parameters_of(read_back(tmp_path / "out" / "decode")) < parameters_of(tiny_llama().model)


@pytest.mark.parametrize(("shape", "counted"), [((1, 5, 3), (1, 4, 3)), ((7, 3), (7, 3))])
def test_gptq_counts_all_tokens_but_the_first_of_a_text(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], counted: tuple[int, ...]
) -> None:
    class Gptq:
        def __init__(self, **options: Any) -> None:
            self.options = options

        def calibrate_module(self, module: Any, args: tuple[torch.Tensor, ...], output: Any) -> None:
            del module, output
            (self.given,) = args

    pytest.importorskip("compressed_tensors")
    for name in ("", ".modifiers", ".modifiers.gptq", ".modifiers.quantization"):
        monkeypatch.setitem(sys.modules, f"llmcompressor{name}", types.ModuleType(f"llmcompressor{name}"))
    monkeypatch.setattr(sys.modules["llmcompressor.modifiers.gptq"], "GPTQModifier", Gptq, raising=False)
    monkeypatch.setattr(sys.modules["llmcompressor.modifiers.quantization"], "QuantizationModifier", None, raising=False)
    (modifier,) = recipe_of("gptq", "W4A16", 16)
    inputs = torch.arange(float(torch.Size(shape).numel())).view(shape)
    modifier.calibrate_module(None, (inputs,), None)
    assert modifier.given.shape == counted
    assert torch.equal(modifier.given.flatten(), inputs.flatten()[-modifier.given.numel() :])
    assert modifier.options["config_groups"]["group_0"].weights.group_size == 16


def test_an_interpreter_that_has_it_quantises_the_decode_model(tmp_path: Path) -> None:
    exporter = LlmCompressor(python=interpreter(tmp_path), method="awq", scheme="W8A16", group_size=16, texts=1, tokens=20)
    *_, quantised = export(exporter, tiny_llama(), PLAN, tmp_path / "out")
    assert quantised == tmp_path / "out" / "decode-awq"
    asked = (quantised / "asked").read_text().split()
    assert asked[1] == str(tmp_path / "out" / "decode")
    assert asked[3:9] == ["--method", "awq", "--scheme", "W8A16", "--group-size", "16"]
    assert "W8A16 by AWQ" in (quantised / "README.md").read_text()
    assert exporter.remark(tiny_llama()) == ""


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        (lambda folder: interpreter(folder, has=False), r"python: .* has no llmcompressor: .* -m pip install llmcompressor"),
        (lambda folder: str(folder / "nowhere"), r"python: .*nowhere does not run as a Python interpreter \(.*No such file"),
        (str, r"python: .* does not run as a Python interpreter \(.*Permission denied"),
    ],
)
def test_an_interpreter_that_cannot_is_known_before_a_run(tmp_path: Path, made: Any, problem: str) -> None:
    facts = ExportFacts("tiny", tmp_path / "out", lambda: tiny_llama().model.config)
    (told,) = LlmCompressor(python=made(tmp_path)).problems(facts)
    with pytest.raises(PdtrimError, match=problem):
        raise PdtrimError(told)


def test_what_the_script_ends_with_is_told_and_nothing_half_made_is_left(tmp_path: Path) -> None:
    fails = f"{RUNS}; echo 'loading' >&2; echo 'OSError: No space left on device' >&2; exit 3"
    exporter = LlmCompressor(python=interpreter(tmp_path, fails), texts=1, tokens=20)
    with pytest.raises(PdtrimError, match=r"^llm-compressor failed \(exit status 3\): OSError: No space left on device$"):
        export(exporter, tiny_llama(), PLAN, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == ["decode", "llm-compressor"]


def test_what_is_quantised_already_is_not_quantised_again(tmp_path: Path) -> None:
    facts = ExportFacts("tiny", tmp_path / "out", lambda: tiny_llama().model.config, formats={"decode": "W8A16"})
    assert LlmCompressor().problems(facts) == [
        "decode or prefill has a number format by [formats] already: quantise once, without that table"
    ]


def test_blocks_of_several_widths_are_refused_as_early_as_it_is_certain(tmp_path: Path) -> None:
    facts = ExportFacts("tiny", tmp_path / "out", lambda: tiny_llama().model.config, uniform=False)
    assert LlmCompressor().problems(facts) == [MIXED]
    model = tiny_llama()
    with pytest.raises(PdtrimError, match="the blocks of decode differ in width, and llm-compressor's environment"):
        export(LlmCompressor(), model, thin(model, 1, [0, 1, 2]), tmp_path / "out")
