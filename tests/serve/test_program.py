"""`pdtrim-core serve` from the outside, with the real model: it starts, says how to ask, answers, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.serve.conftest import Subject

pytestmark = pytest.mark.model
MAIN = "import sys; from pdtrim_core.cli import main; main()"


@dataclass
class Program:
    process: subprocess.Popen[str]
    subject: Subject
    url: str
    curl: str

    def post(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return (
                    [json.loads(line[6:]) for line in answer if line.startswith(b"data: {")]
                    if body.get("stream")
                    else json.load(answer)
                )
        except urllib.error.HTTPError as error:
            # The status alone does not say what went wrong.
            raise AssertionError(f"{error}: {error.read().decode()}") from error


@pytest.fixture(scope="module")
def program(real: Subject, tmp_path_factory: pytest.TempPathFactory, free_ports: Any) -> Iterator[Program]:
    ports = free_ports(4)
    words = [sys.executable, "-c", MAIN, "serve", real.export.folder, "--python", os.environ["PDTRIM_SERVE_PYTHON"]]
    words += ["--name", "smollm", "--logs", tmp_path_factory.mktemp("logs")]
    for option, port in zip(("--port", "--prefill-port", "--decode-port", "--nixl-port"), ports, strict=True):
        words += [option, port]
    words += ["--prefill-args", '--additional-config \'{"pdtrim_kv_only": "cache"}\'']
    words += ["--", "--dtype", "float32", "--enforce-eager", "--max-model-len", "640", "--max-num-seqs", "16"]
    said = tmp_path_factory.mktemp("said") / "stderr"
    with (
        said.open("w") as errors,
        subprocess.Popen(
            list(map(str, words)),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "VLLM_NO_USAGE_STATS": "1"},
        ) as process,
    ):
        assert process.stdout is not None
        curl = process.stdout.readline()
        assert curl, said.read_text()
        yield Program(process, real, f"http://127.0.0.1:{ports[0]}", curl)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(60)
    assert "are both of plan" in said.read_text()


def test_the_command_that_it_prints_works(program: Program) -> None:
    words = shlex.split(program.curl)
    assert words[0] == "curl"
    done = subprocess.run(["curl", "--silent", *words[1:]], capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)["choices"][0]
    model = program.subject.model
    prompt = model.tokenizer("The capital of France is")["input_ids"]
    expected = program.subject.expected(prompt)
    assert answer["text"] == model.tokenizer.decode(expected, skip_special_tokens=True)


def test_tokens_are_those_of_the_reference(program: Program) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def ask(prompt: tuple[int, ...]) -> list[int]:
        body = {"model": "smollm", "prompt": prompt, "max_tokens": 16, "temperature": 0, "return_token_ids": True}
        tokens: list[int] = program.post("/v1/completions", body)["choices"][0]["token_ids"]
        return tokens

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, program.subject.prompts)) == list(map(program.subject.expected, program.subject.prompts))


def test_a_chat_is_answered_as_the_reference_answers_it(program: Program) -> None:
    messages = [{"role": "user", "content": "Name three colours."}]
    model = program.subject.model
    prompt = model.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    body = {"model": "smollm", "messages": messages, "max_tokens": 24, "temperature": 0, "return_token_ids": True}
    expected = program.subject.expected(prompt, tokens=24)
    assert program.post("/v1/chat/completions", body)["choices"][0]["token_ids"] == expected
    events = program.post("/v1/chat/completions", {**body, "stream": True, "logprobs": True, "stop": ["never said"]})
    text = "".join(event["choices"][0]["delta"].get("content") or "" for event in events if event["choices"])
    assert text == model.tokenizer.decode(expected, skip_special_tokens=True)


def test_ctrl_c_stops_everything(program: Program) -> None:
    import psutil

    started = psutil.Process(program.process.pid).children(recursive=True)
    assert len(started) > 3
    program.process.send_signal(signal.SIGINT)
    assert program.process.wait(60) == 0
    _, left = psutil.wait_procs(started, timeout=20)
    assert not left
