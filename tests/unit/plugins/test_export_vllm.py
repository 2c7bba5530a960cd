"""The pair for vLLM: its prefill model fills the cache that its decode model goes on from, as our own two phases do."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from pdtrim_core.api import (
    BlockModel,
    Drop,
    DropPart,
    Element,
    KvOnly,
    Merge,
    PdtrimError,
    Plan,
    Removal,
    SavedPlan,
    Shrink,
    load_modules,
)
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.serving.commands import CPU_ENVIRONMENT, Engine, Ports, commands_for, open_export
from pdtrim_core.testing import tiny_llama, tiny_model
from pdtrim_core.testing.contracts.small_run import run_with_plan
from pdtrim_core.testing.rounding import ROUNDING, units_apart
from pdtrim_plugins.exporters.vllm import Vllm
from pdtrim_plugins.vllm.layout import Layout
from tests.unit.plugins.exported import TOKENS, export, parameters_of, read_back

PROMPT = TOKENS[:1]
HEADS = [Shrink(block, "attention", (1,)) for block in range(6)]
CHANNELS = [Shrink(block, "mlp", (1, 2, 3)) for block in range(6)]
Elements = list[Element]
PLANS: dict[str, tuple[Elements, Elements]] = {
    "drops": ([Drop(1)], [Drop(1), Drop(3)]),
    "first block": ([], [Drop(0)]),
    "last block": ([], [Drop(5)]),
    "shadow of a merge": ([Drop(1)], [Drop(1), Merge(3, 2)]),
    "K/V of a merge alone": ([KvOnly(2)], [Merge(3, 2)]),
    "frozen merge": ([], [Merge(2, 3, "frozen"), Drop(5)]),
    "merge in both, merge at the end": ([Merge(2, 3)], [Merge(2, 3), Merge(4, 5)]),
    "K/V alone in the middle": ([KvOnly(2)], [Drop(4)]),
    "longer run": ([], [Merge(1, 3)]),
}


def check_pair(model: BlockModel, plan: Plan, out: Path, given: Mapping[Any, Any] | None = None) -> tuple[Any, Any]:
    """Export, read back, hand the cache over; return the two models."""
    assert export(Vllm(), model, plan, out, modules=given) == [out / "decode", out / "prefill", out / "serve"]
    prefill, decode = read_back(out / "prefill"), read_back(out / "decode")
    modules = load_modules(plan, model, out / "merges")
    reference = TwoPhaseModel(model, plan, modules)
    wanted = reference.generate(PROMPT[0].tolist(), 8)
    rows = list(islice(decoded(prefill, decode), len(wanted)))
    assert [int(row.argmax()) for row in rows] == wanted
    logits = reference.continuation_logits(PROMPT[0].tolist(), wanted)
    # The exported models lie elsewhere in memory, and may get other kernels.
    assert units_apart(torch.stack(rows), logits) <= ROUNDING
    return prefill, decode


def decoded(prefill: Any, decode: Any) -> Any:
    """Yield the logits of each token that decode makes from prefill's cache."""
    with torch.inference_mode():
        cache = prefill(input_ids=PROMPT[:, :-1]).past_key_values
        token = PROMPT[:, -1:]
        while True:
            row = decode(input_ids=token, past_key_values=cache, use_cache=True).logits[0, -1]
            yield row
            token = row.argmax().reshape(1, 1)


@pytest.mark.numeric
@pytest.mark.parametrize("name", PLANS)
def test_the_pair_makes_the_tokens_of_our_two_phases(name: str, tmp_path: Path) -> None:
    model = tiny_model("qwen3" if "merge" in name else "llama", tie_word_embeddings=name == "drops")
    prefill, decode = PLANS[name]
    plan = Plan(prefill=Removal(prefill), decode=Removal(decode))
    read_prefill, read_decode = check_pair(model, plan, tmp_path)
    assert type(read_decode) is type(model.model)
    assert parameters_of(read_prefill) == model.sizes.kept_parameters(plan.truncated_prefill(6), "prefill")
    assert parameters_of(read_decode) == model.sizes.kept_parameters(plan, "decode")


@pytest.mark.numeric
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_every_family_of_pairs_comes_back(family: str, tmp_path: Path) -> None:
    plan = Plan(prefill=Removal([Drop(0), KvOnly(4)]), decode=Removal([Drop(0), Merge(2, 3), Drop(5)]))
    prefill, _ = check_pair(tiny_model(family), plan, tmp_path)
    assert type(prefill).__name__ == {"qwen2": "PDTrimQwen2ForCausalLM", "qwen3": "PDTrimQwen3ForCausalLM"}.get(
        family, f"PDTrim{family.capitalize()}ForCausalLM"
    )


@pytest.mark.numeric
@pytest.mark.parametrize(("prefill", "decode"), [(CHANNELS, CHANNELS), (CHANNELS[2:3], CHANNELS), (HEADS, HEADS)])
def test_one_width_in_decode_can_be_another_in_prefill_but_for_heads(prefill: Elements, decode: Elements, tmp_path: Path) -> None:
    check_pair(tiny_llama(), Plan(prefill=Removal(prefill), decode=Removal(decode)), tmp_path)
    config = json.loads((tmp_path / "prefill" / "config.json").read_text())
    # What all blocks share stands where an engine looks for it.
    assert config["num_key_value_heads"] == (1 if prefill == HEADS else 2)
    assert config["pdtrim"]["widths"] == ({"2": {"mlp": 45}} if len(prefill) == 1 else {})


@pytest.mark.numeric
@pytest.mark.parametrize("heads", [[], HEADS])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
def test_mlps_may_differ_between_blocks_and_get_biases(family: str, heads: Elements, tmp_path: Path) -> None:
    model = tiny_model(family, tie_word_embeddings=not heads)
    thin = [Shrink(block, "mlp", tuple(range(1 + block))) for block in (1, 3, 4)]
    modules = {shrink: biased(model, shrink) for shrink in (thin[0], thin[2])}
    plan = Plan(Removal([*heads[:5], KvOnly(5), thin[1], thin[2]]), Removal([*heads, *thin]))
    check_pair(model, plan, tmp_path, modules)
    configs = {stage: json.loads((tmp_path / stage / "config.json").read_text()) for stage in ("prefill", "decode")}
    width = model.config.intermediate_size
    found = {stage: config["pdtrim"]["widths"] for stage, config in configs.items()}
    both = {"3": {"mlp": width - 4}, "4": {"mlp": width - 5, "bias": ["mlp"]}}
    assert found == {"prefill": both, "decode": {"1": {"mlp": width - 2, "bias": ["mlp"]}, **both}}
    assert {config["num_key_value_heads"] for config in configs.values()} == {1 if heads else 2}
    layouts = {stage: Layout.of(read_back(tmp_path / stage).config) for stage in configs}
    assert (layouts["prefill"].head, layouts["decode"].head) == (False, True)
    assert layouts["decode"].biased == {1: ("mlp",), 4: ("mlp",)}
    # Each has the class of ours, and the script lets both servers have it.
    assert "VLLM_PLUGINS" not in (tmp_path / "serve" / "serve.sh").read_text()
    assert "it needs vLLM, NIXL and pdtrim-core" in (tmp_path / "serve" / "serve.sh").read_text()


@pytest.mark.numeric
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_blocks_may_lack_a_part_in_either_stage(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    plan = Plan(
        Removal([DropPart(2, "mlp"), KvOnly(5)]),
        Removal([DropPart(1, "attention"), DropPart(2, "mlp"), DropPart(3, "mlp"), Drop(4)]),
    )
    check_pair(model, plan, tmp_path)
    prefill, decode = (json.loads((tmp_path / stage / "config.json").read_text())["pdtrim"] for stage in ("prefill", "decode"))
    assert (prefill["without"], decode["without"]) == ({"2": "mlp"}, {"1": "attention", "2": "mlp", "3": "mlp"})
    # Decode's block 1 has no K/V: its other blocks have places in the cache that are not their numbers.
    assert prefill["decode_index"] == {"0": 0, "2": 1, "3": 2, "5": 3}
    assert Layout.of(read_back(tmp_path / "prefill").config).decode_index == {0: 0, 2: 2, 3: 3, 5: 4}
    assert Layout.of(read_back(tmp_path / "decode").config).lost == {1: "attention", 2: "mlp", 3: "mlp"}
    shared = json.loads((tmp_path / "serve" / "prefill.json").read_text())["kv_connector_extra_config"]["shared_layers"]
    assert shared == [f"model.layers.{number}.self_attn.attn" for number in (0, 2, 3, 4)]


def biased(model: BlockModel, shrink: Shrink) -> torch.nn.Module:
    """Return an output projection of a narrowed MLP with numbers of its own."""
    torch.manual_seed(shrink.block)
    return torch.nn.Linear(model.config.intermediate_size - len(shrink.units), model.config.hidden_size, bias=True)


def test_the_config_says_what_a_model_class_needs(tmp_path: Path) -> None:
    model = tiny_llama()
    plan = Plan(prefill=Removal([Drop(1)]), decode=Removal([Drop(1), Merge(3, 2)]))
    outcome = run_with_plan(model, plan, tmp_path)
    list(Vllm().export(outcome, model, tmp_path))
    config = json.loads((tmp_path / "prefill" / "config.json").read_text())
    told = config["pdtrim"]
    assert (config["model_type"], config["architectures"]) == ("pdtrim_llama", ["PDTrimLlamaForCausalLM"])
    assert (config["num_hidden_layers"], config["tie_word_embeddings"], told["head"]) == (6, True, False)
    assert (told["removed"], told["kv_only"], told["shadows"], told["tail"]) == ([1], [5], [2], 5)
    assert told["merged"] == {"2": {"blocks": [2, 3], "keep": 3, "kv": "shadow", "prefill": "blocks"}}
    assert told["decode_index"] == {"0": 0, "2": 1, "4": 2, "5": 3}
    assert told["first_token"] == "decode"
    hashes = {
        json.loads((tmp_path / folder / "config.json").read_text())["pdtrim"]["plan_hash"] for folder in ("decode", "prefill")
    }
    assert hashes == {outcome.plan.digest}


def test_a_stock_class_does_not_load_a_prefill_model_with_holes(tmp_path: Path) -> None:
    from safetensors import safe_open

    export(Vllm(), tiny_llama(), [Drop(1)], tmp_path)
    with safe_open(tmp_path / "prefill" / "model.safetensors", "pt") as weights:
        names = set(weights.keys())
    assert {name for name in names if ".5." in name} == {
        f"model.layers.5.{part}.weight" for part in ("input_layernorm", "self_attn.k_proj", "self_attn.v_proj")
    }
    assert not any(".1." in name or "lm_head" in name for name in names)
    program = f"from transformers import AutoConfig; AutoConfig.from_pretrained({str(tmp_path / 'prefill')!r})"
    ran = subprocess.run([os.sys.executable, "-c", program], capture_output=True, text=True, check=False)  # type: ignore[attr-defined]
    assert "pdtrim_llama" in ran.stderr


def test_the_connector_files_name_decodes_layers(tmp_path: Path) -> None:
    model = tiny_llama()
    outcome = run_with_plan(model, Plan.unified(Removal([Drop(1), Drop(2)])), tmp_path)
    list(Vllm().export(outcome, model, tmp_path))
    files = {
        file.name: json.loads(file.read_text())
        for file in (tmp_path / "serve").glob("*.json")
        if file.name != "pdtrim-export.json"
    }
    plan = files.pop("plan.json")
    assert next(iter(plan)) == "plan_hash"
    assert plan["plan_hash"] == outcome.plan.digest
    assert SavedPlan.from_json(json.dumps(plan)) == outcome.plan
    assert {name: file["kv_connector"] for name, file in files.items()} == {
        "prefill.json": "PDTrimNixlConnector",
        "decode.json": "NixlConnector",
        "prefill-example.json": "PDTrimExampleConnector",
        "decode-example.json": "ExampleConnector",
    }
    for name, file in files.items():
        ours = name.startswith("prefill")
        assert file["kv_role"] == ("kv_producer" if ours else "kv_consumer")
        assert file["kv_load_failure_policy"] == "fail"
        assert ("kv_connector_module_path" in file) is ours
        shared = file["kv_connector_extra_config"].get("shared_layers")
        assert shared == ([f"model.layers.{index}.self_attn.attn" for index in range(4)] if ours else None)


FAKE_PYTHON = """#!/bin/sh
echo "$@" >> "$LOG"
"""


@pytest.mark.parametrize("device", ["", "cpu"])
def test_the_script_starts_both_servers_and_the_router(device: str, tmp_path: Path) -> None:
    export(Vllm(), tiny_llama(), [Drop(1)], tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(FAKE_PYTHON)
    (tmp_path / "bin" / "python").chmod(0o755)
    told = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "LOG": str(tmp_path / "log"), "PDTRIM_DEVICE": device}
    ran = subprocess.run([tmp_path / "serve" / "serve.sh"], env=told, capture_output=True, text=True, timeout=20, check=False)
    assert ran.returncode == 0, ran.stderr
    started = (tmp_path / "log").read_text()
    assert started.count("vllm.entrypoints.openai.api_server") == 2
    assert "--prefill http://127.0.0.1:8100 --decode http://127.0.0.1:8200 --host 127.0.0.1 --port 8000" in started
    assert started.count('"kv_buffer_device": "cpu"') == (2 if device else 0)
    plan = json.loads((tmp_path / "serve" / "plan.json").read_text())["plan_hash"]
    name = open_export(tmp_path).name
    assert started.count(f"--served-model-name {name} {name}@{plan[:12]} ") == 2
    assert started.count('--compilation-config {"cudagraph_mode":"NONE"}') == (0 if device else 1)
    assert started.count("--no-enable-prefix-caching") == 1
    assert 'VLLM_PLUGINS="" python -m' in (tmp_path / "serve" / "serve.sh").read_text()
    assert started.count(" --dtype float32") == 2
    (tmp_path / "log").unlink()
    run_in = {**told, "DTYPE": "float16"}
    subprocess.run([tmp_path / "serve" / "serve.sh"], env=run_in, capture_output=True, timeout=20, check=True)
    assert re.findall("--dtype [a-z0-9]+", (tmp_path / "log").read_text()) == ["--dtype float16"] * 2
    (tmp_path / "decode" / "config.json").write_text('{"pdtrim": {"plan_hash": "0"}}')
    ran = subprocess.run([tmp_path / "serve" / "serve.sh"], env=told, capture_output=True, text=True, timeout=20, check=False)
    assert (ran.returncode, ran.stderr) == (1, "prefill/ and decode/ are from different exports: export the run again\n")


SORTING_PYTHON = """#!/bin/sh
printf '%s\\036' "$@" > "$LOG.$$"
env | sed -n '/^VLLM_\\|^OMP_/p' > "$LOG.$$.env"
"""


@pytest.mark.parametrize("device", ["", "cpu"])
def test_the_script_and_the_command_start_the_same_servers(device: str, tmp_path: Path) -> None:
    export(Vllm(), tiny_llama(), [Drop(1)], tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(SORTING_PYTHON)
    (tmp_path / "bin" / "python").chmod(0o755)
    told = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "LOG": str(tmp_path / "log"), "PDTRIM_DEVICE": device}
    subprocess.run([tmp_path / "serve" / "serve.sh"], env=told, capture_output=True, timeout=20, check=True)

    def parsed(words: list[str]) -> dict[str, Any]:
        """Return each flag with its values; JSON as what it says, and the place of a model by its name."""
        found: dict[str, Any] = {}
        for word in words:
            if word.startswith("--"):
                flag = word
                found[flag] = []
            elif found:
                found[flag].append(json.loads(word) if word.startswith("{") else word)
        for name in found.get("--model", ()):
            found["--model"] = [Path(name).name]
        return found

    commands = commands_for(open_export(tmp_path), Engine("python", bool(device), {}, {}), Ports(), Path())
    logs = [file for file in tmp_path.glob("log.*") if file.suffix != ".env"]
    assert len(logs) == 3
    for log in logs:
        started = parsed(log.read_text().split("\x1e")[:-1])
        (command,) = (one for one in commands if str(one.ports[0]) in started["--port"])
        expected = parsed(list(command.words))
        if command.name == "proxy":
            assert started.pop("--host") == ["127.0.0.1"]
        assert started == expected
        environment = dict(line.split("=", 1) for line in Path(f"{log}.env").read_text().splitlines())
        for name in ("VLLM_PLUGINS", "VLLM_NIXL_SIDE_CHANNEL_HOST"):
            environment.pop(name, None)
        ours = {name: value for name, value in environment.items() if command.name != "proxy" or name not in CPU_ENVIRONMENT}
        assert ours == command.environment


def refused(model: BlockModel, plan: Plan, out: Path, **more: Any) -> str:
    with pytest.raises(PdtrimError) as caught:
        export(Vllm(), model, plan, out, **more)
    assert not [folder for folder in ("decode", "prefill", "serve") if (out / folder).exists()]
    return str(caught.value)


DROP = Plan(decode=Removal([Drop(1)]))


def test_what_cannot_be_served_is_refused_with_the_reason(tmp_path: Path) -> None:
    advice = "; --to checkpoints gives one model for both stages"
    groups = "vLLM tells by a block's number how it looks, and prefill's blocks have the numbers of decode's" + advice
    assert refused(tiny_model("gemma3"), DROP, tmp_path) == (
        f"tiny gemma3 has sliding_attention beside or instead of full attention: {groups}"
    )
    assert refused(tiny_model("mistral", sliding_window=8), DROP, tmp_path) == (
        f"tiny mistral has sliding_attention beside or instead of full attention: {groups}"
    )
    assert refused(tiny_model("opt"), DROP, tmp_path) == (
        f"a pair for vLLM can be of the families llama, mistral, qwen2, qwen3, and tiny opt is opt{advice}"
    )
    latent = tiny_llama()
    latent.config.kv_lora_rank = 8
    assert "has latent attention (MLA), whose cache vLLM hands over in rows of several layers" in refused(latent, DROP, tmp_path)
    assert refused(tiny_llama(), DROP, tmp_path, first="prefill") == (
        'with first_token = "prefill" something else is measured than what vLLM would serve, where decode makes the first token: '
        'run the recipe with evaluation.first_token = "decode"'
    )


def test_heads_by_block_are_refused_with_the_reason(tmp_path: Path) -> None:
    heads = Plan(decode=Removal([Shrink(2, "attention", (1,))]))
    assert "decode has fewer K/V heads than prefill in the blocks 2, and vLLM hands over all heads or none" in refused(
        tiny_llama(), heads, tmp_path
    )
    assert "decode's blocks differ in their K/V heads, and vLLM's cache has one shape" in refused(
        tiny_llama(), Plan.unified(Removal(HEADS[:1])), tmp_path
    )
    assert "vLLM's qwen2 takes the size of a head from the number of heads" in refused(
        tiny_model("qwen2"), Plan.unified(Removal(HEADS)), tmp_path
    )
    # Decode lost block 1 whole, and prefill has it with all its heads.
    some = Removal([shrink for shrink in HEADS if shrink.block != 1])
    mixed = Plan(prefill=some, decode=some.with_(Drop(1)))
    assert "prefill's blocks differ in their K/V heads" in refused(tiny_llama(), mixed, tmp_path)
