"""The Dockerfile and the compose file: the servers that they start are those of `pdtrim-core serve`."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pdtrim_core.serving.commands import Engine, Export, Ports, commands_for, open_export
from pdtrim_plugins.exporters.serve_files import connector_files

HERE = Path(__file__).parents[3] / "examples" / "deploy"
HASH = "0123456789ab" + "c" * 52
KNOWN = {"build", "image", "entrypoint", "command", "environment", "volumes", "shm_size", "deploy", "healthcheck", "restart"} | {
    "ports", "depends_on", "stop_grace_period"
}  # fmt: skip
PLACES = {"--host", "--model", "--prefill", "--decode"}
"""Flags whose values are those of the containers."""


@pytest.fixture
def pair(tmp_path: Path) -> Export:
    """What an export has that serving reads."""
    files: dict[str, Any] = {f"serve/{name}": value for name, value in connector_files(range(3)).items()}
    files["serve/plan.json"] = {"plan_hash": HASH, "first_token": "decode", "model": {"name": "org/mine"}}
    for stage in ("prefill", "decode"):
        files[f"{stage}/config.json"] = {"pdtrim": {"plan_hash": HASH}, "dtype": "bfloat16"}
    for name, data in files.items():
        (tmp_path / "pair" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pair" / name).write_text(json.dumps(data))
    return open_export(tmp_path / "pair")


def composed() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((HERE / "compose.yaml").read_text())
    return found


def parsed(words: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for word in words:
        if word.startswith("--"):
            flag = word
            found[flag] = []
        elif found:
            found[flag].append(json.loads(word) if word.startswith("{") else word)
    return {flag: None if flag in PLACES else values for flag, values in found.items()}


@pytest.mark.parametrize("name", ["prefill", "decode", "proxy"])
def test_each_service_starts_what_serve_starts(name: str, pair: Export, tmp_path: Path) -> None:
    (script,) = composed()["services"][name]["command"]
    told = {"NAME": "mine", "PLAN": HASH[:12], "DTYPE": "bfloat16"}
    script = re.sub(r"(?<!\$)\$\{(\w+):\?\}", lambda found: told[found[1]], script).replace("$$", "$")
    script = script.replace("/pair/", f"{pair.folder}/")
    (tmp_path / "python3").write_text("#!/bin/sh\nprintf '%s\\036' \"$@\"\n")
    (tmp_path / "python3").chmod(0o755)
    ran = subprocess.run(
        ["/bin/sh", "-c", script], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=True
    )
    words = ran.stdout.split("\x1e")[:-1]
    (command,) = (one for one in commands_for(pair, Engine("python3", False, {}, {}), Ports(), Path()) if one.name == name)
    assert words[:2] == list(command.words[1:3])
    expected = parsed(list(command.words[1:]))
    assert parsed(words) == ({**expected, "--host": None} if name == "proxy" else expected)
    service = composed()["services"][name]
    if name != "proxy":
        assert service["environment"]["VLLM_NIXL_SIDE_CHANNEL_PORT"] == command.environment["VLLM_NIXL_SIDE_CHANNEL_PORT"]
        assert service["environment"]["VLLM_NIXL_SIDE_CHANNEL_HOST"] == name
    assert f":{command.ports[0]}/health" in service["healthcheck"]["test"][-1]


def test_services_have_only_keys_that_compose_knows_and_reach_each_other() -> None:
    services = composed()["services"]
    for service in services.values():
        assert service.keys() <= KNOWN
        assert set(service.get("depends_on", ())) <= services.keys()
    # The proxy alone is reached from outside.
    assert [name for name, service in services.items() if "ports" in service] == ["proxy"]
    assert services["proxy"]["build"] == services["prefill"]["build"]


def test_the_dockerfile_builds_on_the_version_that_decode_runs() -> None:
    lines = [line for line in (HERE / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    assert {line.split()[0] for line in lines} <= {"ARG", "FROM", "COPY", "WORKDIR", "RUN", "ENTRYPOINT", "CMD"}
    version = next(line.partition("=")[2] for line in lines if line.startswith("ARG VLLM="))
    assert composed()["services"]["decode"]["image"] == f"vllm/vllm-openai:${{VLLM:-{version}}}"
    # On an index there is no pdtrim-core to install by its name.
    assert any("pdtrim_core-*.whl" in line for line in lines if line.startswith("COPY"))
    for line in lines:
        if line.startswith(("ENTRYPOINT", "CMD")):
            json.loads(line.partition(" ")[2])
