"""What serves an exported pair on one machine: the commands of prefill, decode and the proxy in front of them.

Nothing here runs anything, and nothing imports vLLM, which usually lives in an environment of its own.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from pdtrim_core.errors import PdtrimError
from pdtrim_core.files.reading import UnreadableError, read_json
from pdtrim_core.results.run_folder import refuse_recipe_file
from pdtrim_core.wording import shortened

Connector = Literal["nixl", "example"]
HASH_SHOWN = 12
SERVED = "vllm"
"""The exporter that writes what is served."""
KEY = "VLLM_API_KEY"
"""The environment variable with the key that all three require of clients."""
OWN_FLAGS = ("--model", "--host", "--port", "--served-model-name", "--kv-transfer-config")
CPU_BLOCK = 32
"""Tokens of a cache block on a processor: vLLM's attention there takes multiples of this."""
CPU_ENVIRONMENT = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1"}
"""On a processor both servers share the cores, and take 1 GiB of cache each by default."""
DTYPES = ("float32", "float16", "bfloat16")
"""Number formats of checkpoints that vLLM computes in."""
EVERYWHERE = ("0.0.0.0", "::", "localhost")  # noqa: S104 - what a user may say
SIDE_CHANNEL = "VLLM_NIXL_SIDE_CHANNEL_PORT"


@dataclass(frozen=True)
class Export:
    """An exported pair: its folder, the name that clients call it by, and the hash of its plan."""

    folder: Path
    name: str
    plan_hash: str

    @property
    def checked_name(self) -> str:
        """The model name that the proxy sends to both servers, so that a server of another plan refuses the request."""
        return f"{self.name}@{self.plan_hash[:HASH_SHOWN]}"

    def connector(self, stage: str, connector: Connector) -> dict[str, Any]:
        """Return the `--kv-transfer-config` that the export has for a stage."""
        suffix = "" if connector == "nixl" else f"-{connector}"
        return _json_of(self.folder / "serve" / f"{stage}{suffix}.json")

    def dtype(self, stage: str) -> str | None:
        """Return the number format that a stage's checkpoint is in, None where it does not say one that vLLM computes in."""
        config = _json_of(self.folder / stage / "config.json")
        told = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
        return told if told in DTYPES else None


@dataclass(frozen=True)
class Ports:
    """The ports of the three servers, and of NIXL's side channel."""

    proxy: int = 8000
    prefill: int = 8100
    decode: int = 8200
    nixl: int = 5600


@dataclass(frozen=True)
class ProxyOptions:
    """What the proxy may be told beside the servers of this machine; each field is one of its own options, with its default."""

    host: str = "127.0.0.1"
    health_seconds: float = 30.0
    token_seconds: float = 120.0
    request_seconds: float = 3600.0
    body_seconds: float = 60.0
    drain_seconds: float = 30.0
    at_once: int = 256
    answer_tokens: int | None = None
    prefill: tuple[str, ...] = ()
    decode: tuple[str, ...] = ()
    """Servers elsewhere that take turns with those of this machine."""

    def words(self) -> Iterator[str]:
        """Yield what is not the default. Raises `PdtrimError` for what the proxy would refuse."""
        for field in fields(self):
            value, flag = getattr(self, field.name), f"--{field.name.replace('_', '-')}"
            if value == field.default:
                continue
            if isinstance(value, (float, int)) and not 0 < value < float("inf"):
                raise PdtrimError(f"{flag} is {value:g}: give a number that is more than 0")
            for one in value if isinstance(value, tuple) else (value,):
                if isinstance(value, tuple) and not one.startswith(("http://", "https://")):
                    raise PdtrimError(f"--more{flag[1:]} is {one}: give an address like http://HOST:PORT")
                yield from (flag, f"{one:g}" if isinstance(one, float) else str(one))


@dataclass(frozen=True)
class Engine:
    """How to start vLLM: the interpreter that has it, and whether it computes on the processor.

    `arguments` and `environment` are for both servers ("both") or for one of them ("prefill", "decode").
    """

    python: str
    cpu: bool
    arguments: Mapping[str, Sequence[str]]
    environment: Mapping[str, Mapping[str, str]]
    connector: Connector = "nixl"


@dataclass(frozen=True)
class Command:
    """One process: its words, what it finds in its environment beside everything else, and where it answers."""

    name: str
    words: tuple[str, ...]
    environment: Mapping[str, str]
    url: str

    @property
    def ports(self) -> tuple[int, ...]:
        """The ports that it listens at."""
        side = self.environment.get(SIDE_CHANNEL)
        return (int(self.url.rpartition(":")[2]), *([int(side)] if side else []))

    def __str__(self) -> str:
        settings = [f"{key}={shlex.quote(value)}" for key, value in self.environment.items()]
        return " ".join([*settings, shlex.join(self.words)])


def open_export(path: Path, name: str | None = None) -> Export:
    """Return the export in a folder; `pdtrim-core export` writes it into the folder of its run by default.

    Raises `PdtrimError` where there is none, where prefill and decode are of two plans, and for plans whose first token
    prefill makes: on vLLM decode makes it.
    """
    refuse_recipe_file(path)
    if not path.is_dir():
        raise PdtrimError(f"{path} is not a folder: name the folder of a run, or of an export for vLLM")
    folder = path.resolve()
    if not (folder / "serve" / "plan.json").is_file():
        run = (path / "outcome.json").is_file()
        advice = f"run: pdtrim-core export {path} --to {SERVED}" if run else "name the folder of a run, or of an export for vLLM"
        raise PdtrimError(f"{path} has no serve/plan.json: {advice}")
    plan = _json_of(folder / "serve" / "plan.json")
    _check_hashes(folder, plan)
    if plan.get("first_token") == "prefill":
        raise PdtrimError(
            f'{folder} is of a plan with first_token = "prefill", but on vLLM decode makes the first token: run the recipe with '
            "--set evaluation.first_token=decode, and export again"
        )
    model = plan.get("model")
    name = name or _short(str(model.get("name", "")) if isinstance(model, dict) else "")
    if not name or "@" in name or any(letter.isspace() for letter in name):
        raise PdtrimError(f"'{shortened(name)}' cannot be a model's name here: give one without @ and spaces, with --name")
    return Export(folder, name, str(plan["plan_hash"]))


def _check_hashes(folder: Path, plan: Mapping[str, Any]) -> None:
    hashes = {"serve/plan.json": plan.get("plan_hash")}
    for stage in ("prefill", "decode"):
        told = _json_of(folder / stage / "config.json").get("pdtrim")
        hashes[f"{stage}/config.json"] = told.get("plan_hash") if isinstance(told, Mapping) else None
    missing = [file for file, found in hashes.items() if not isinstance(found, str) or not found]
    if missing:
        raise PdtrimError(f"{folder / missing[0]} has no plan hash: export the run again")
    if len(set(hashes.values())) > 1:
        parts = ", ".join(f"{file} has {str(found)[:HASH_SHOWN]}" for file, found in hashes.items())
        raise PdtrimError(f"the parts of {folder} are of different plans ({parts}): export the run again")


def _short(model: str) -> str:
    """Return the last part of a model's path or id."""
    return model.rstrip("/").rpartition("/")[2].rpartition(":")[2].removesuffix(".gguf").replace(" ", "-")


def commands_for(
    export: Export, engine: Engine, ports: Ports, storage: Path, options: ProxyOptions = ProxyOptions()
) -> tuple[Command, ...]:
    """Return what to start, in order: prefill, decode, proxy. `storage` is where the example connector keeps K/V.

    Raises `PdtrimError` for arguments that only this module may give, and for ports that are named twice.
    """
    _check_ports(ports)
    for words in engine.arguments.values():
        for word in words:
            if word.partition("=")[0] == "--api-key":
                raise PdtrimError(
                    f"--api-key: set the variable {KEY} instead, which the proxy reads, too, and no list of processes shows"
                )
            if word.partition("=")[0] in OWN_FLAGS:
                raise PdtrimError(f"{word.partition('=')[0]} is not yours to give: pdtrim-core serve sets it, see its options")
    prefill = _server(export, engine, "prefill", (ports.prefill, ports.nixl), storage)
    decode = _server(export, engine, "decode", (ports.decode, ports.nixl + 1), storage)
    proxy = [engine.python, "-m", "pdtrim_plugins.vllm.proxy", "--prefill", prefill.url, "--decode", decode.url]
    proxy += ["--port", str(ports.proxy), *options.words(), *(["--storage"] if engine.connector == "example" else [])]
    host = "127.0.0.1" if options.host in EVERYWHERE else options.host
    url = f"http://[{host}]:{ports.proxy}" if ":" in host else f"http://{host}:{ports.proxy}"
    return prefill, decode, Command("proxy", tuple(proxy), {}, url)


def _server(export: Export, engine: Engine, stage: str, ports: tuple[int, int], storage: Path) -> Command:
    port, nixl_port = ports
    return Command(
        stage,
        (
            *(engine.python, "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(export.folder / stage)),
            *("--served-model-name", export.name, export.checked_name),
            *("--host", "127.0.0.1", "--port", str(port)),
            *("--kv-transfer-config", json.dumps(_transfer(export, engine, stage, storage))),
            *_dtype_flag(export, engine, stage),
            *_stage_flags(stage, engine),
            *engine.arguments.get("both", ()),
            *engine.arguments.get(stage, ()),
        ),
        {
            **(CPU_ENVIRONMENT if engine.cpu else {}),
            **({SIDE_CHANNEL: str(nixl_port)} if engine.connector == "nixl" else {}),
            **engine.environment.get("both", {}),
            **engine.environment.get(stage, {}),
        },
        f"http://127.0.0.1:{port}",
    )


def _transfer(export: Export, engine: Engine, stage: str, storage: Path) -> dict[str, Any]:
    """Return a stage's connector; decode never computes a prompt by itself, whatever the file says."""
    config = export.connector(stage, engine.connector)
    config["kv_load_failure_policy"] = "fail"
    if engine.connector == "nixl" and engine.cpu:
        config["kv_buffer_device"] = "cpu"
    if engine.connector == "example":
        config["kv_connector_extra_config"] = {
            **config.get("kv_connector_extra_config", {}),
            "shared_storage_path": str(storage),
        }
    return config


def _dtype_flag(export: Export, engine: Engine, stage: str) -> Iterator[str]:
    """Yield the checkpoint's number format: by itself vLLM would take float32 for bfloat16, which is not what was measured."""
    given = (*engine.arguments.get("both", ()), *engine.arguments.get(stage, ()))
    dtype = export.dtype(stage)
    if dtype and not any(word.partition("=")[0] == "--dtype" for word in given):
        yield from ("--dtype", dtype)


def _stage_flags(stage: str, engine: Engine) -> Iterator[str]:
    if engine.cpu:
        yield from ("--block-size", str(CPU_BLOCK))
    if stage == "decode":
        # K/V that decode computed itself while generating differ from those that prefill would compute for the same tokens.
        yield "--no-enable-prefix-caching"
    elif not engine.cpu:
        # A graph of a prompt's pass would hold our own operation, which vLLM does not split graphs at.
        yield from ("--compilation-config", json.dumps({"cudagraph_mode": "NONE"}))


def _check_ports(ports: Ports) -> None:
    numbers = [ports.proxy, ports.prefill, ports.decode, ports.nixl, ports.nixl + 1]
    for number in numbers:
        if not 0 < number < 2**16:
            raise PdtrimError(f"{number} is no port: ports go from 1 to 65535")
        if numbers.count(number) > 1:
            raise PdtrimError(
                f"port {number} is named twice: the proxy, prefill, decode and NIXL (two ports in a row) each need one"
            )


def example_request(export: Export, url: str, *, key: bool = False) -> str:
    """Return a command that sends the pair a request; with `key` it sends the API key of the environment."""
    body = json.dumps({"model": export.name, "prompt": "The capital of France is", "max_tokens": 16, "temperature": 0})
    more = f' -H "Authorization: Bearer ${KEY}"' if key else ""
    return f"curl {url}/v1/completions{more} -H 'Content-Type: application/json' -d {shlex.quote(body)}"


def _json_of(file: Path) -> dict[str, Any]:
    try:
        found = read_json(file)
    except FileNotFoundError:
        raise PdtrimError(f"{file} does not exist: export the run again") from None
    except UnreadableError as error:
        raise PdtrimError(f"{file} is damaged ({error.reason}): export the run again") from None
    if not isinstance(found, dict):
        raise PdtrimError(f"{file} is damaged (it holds no JSON object): export the run again")
    return found
