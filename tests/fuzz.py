"""Broken input for everything that reads: mutations of good files, and values that no one would write.

`python tests/fuzz.py --inputs 20000` prints how many inputs ended in a traceback, how many took over 5 seconds, and the peak of
memory. The same seed gives the same inputs; `--only NUMBER` repeats one of them, with its traceback. No real model is opened.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import io
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import tomli
import tomli_w

from pdtrim_core import Recipe, SavedPlan, apply, load_plugins, read_record
from pdtrim_core.cli import main
from pdtrim_core.errors import PdtrimError
from pdtrim_core.harness.data_files import read_docs
from pdtrim_core.results.fidelity import AnswerSample, Fidelity
from pdtrim_core.results.outcome import Outcome
from pdtrim_core.results.recovery import RecoveryResult
from pdtrim_core.results.run_folder import load_plan, measured_in, open_run_folder
from pdtrim_core.results.task_results import Metric, results_in
from pdtrim_core.serving.commands import open_export
from pdtrim_core.timing.results import read_latencies
from pdtrim_core.timing.shapes import SHAPES, read_shape
from pdtrim_core.wording import LONGEST_LINE

ROOT = Path(__file__).parents[1]
WRITTEN = ROOT / "tests" / "data" / "written-by-0.1"
LONGEST = 5.0
"""Seconds that one input may take."""
TOO_LONG = 60
"""Seconds after which an input is given up."""
MOST_BYTES = 10**9
LOUDEST = 50_000
"""Characters that an error may print at most, with all its problems."""

RECIPE = """\
model = "package:none"
seed = 3
[prune]
blocks = 2
merge_threshold = {quantile = 0.9}
[searcher]
use = "annealing"
t0 = 5.0
[calibration]
use = "jsonl"
files = ["a.jsonl"]
samples = 8
[evaluation]
first_token = "decode"
batch_tokens = 64
"""
SWEEP = """\
sweep = 1
about = "what it is for"
recipe = "recipe.toml"
columns = ["staged", "decode"]
[set]
searcher.t0 = 4
[grid]
"prune.blocks" = [1, 2]
seed = [0, 1]
[[runs]]
name = "one"
set = {scorer = "dot"}
variants = ["staged"]
[evaluate]
tasks = ["piqa"]
items = 5
"""
ITEM = {"id": "a", "query": "Is it?", "choices": ["yes", "no"], "gold": 0}
CONTEXTS = {"contexts": ["It is", "It was"], "continuation": "so", "gold": 1}


def latencies() -> dict[str, Any]:
    timing = {"measure": "decode", "model": "decode", "batch": 1, "tokens": 128, "seconds": 0.1, "dense": 0.2, "ratio": 0.5}
    return {
        "model": "tiny",
        "block_count": 4,
        "plan": None,
        "first_token": "decode",
        "random_weights": False,
        "dtype": "float32",
        "placement": "cpu",
        "machine": "one",
        "threads": 1,
        "versions": {"torch": "2"},
        "settings": {"repeats": 5},
        "timings": [{**timing, "low": 0.4, "high": 0.6, "ideal": 0.5, "repeats": 5}],
        "footprints": [{"model": "dense", "weights": 1, "read_a_token": 1, "kv_a_token": 1, "beside": {"prefill": None}}],
        "notes": ["one"],
        "seconds": 1.5,
        "format": 1,
    }


# What is put in


class Raw(str):
    """Text that stands in a file as it is: what no value of Python becomes."""

    __slots__ = ()


NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, -0.0, 0.5, 1e308, 5e-324, 10**12, 30_000_000, 2**31, 2**63 - 1, 2**63, -(2**63), 10**30),
    *(float("nan"), float("inf"), -float("inf"), 1e15),
    *(
        "",
        " ",
        "\0",
        "a\0b",
        "\ud800",
        "\udfff x",
        "\x1b[31mred",
        "a\nb",
        "\u202e",
        "x" * 10_000,
        "/dev/zero",
        "/dev/stdin",
        "..",
        ".",
    ),
    *(
        "dense",
        "staged",
        "gain",
        "use",
        "a.b",
        "a..b",
        "${data}",
        "%s%n",
        "{0}",
        "../../../etc/passwd",
        "x" * 300,
        "\u00e9",
        "\u2028",
    ),
    *([], {}, [[]], [{}], {"": {}}, {"use": "x"}, [None], list(range(3000)), {str(number): number for number in range(3000)}),
    *({"kind": "drop", "block": 10**12}, {"kind": "merge", "keep": 0, "drop": 10**12, "kv": "shadow"}, ["x" * 100] * 1000),
    *([{"kind": "drop", "block": number} for number in range(3000)], {"kind": "merge", "keep": 0, "drop": 9000, "kv": "shadow"}),
    *(
        Raw("[" * 100 + "]" * 100),
        Raw("[" * 100_000),
        Raw('{"a":' * 5000 + "1" + "}" * 5000),
        Raw("{a = " * 5000),
        Raw("9" * 4000),
    ),
    *(
        Raw("9" * 5000),
        Raw("-1e999"),
        Raw("NaN"),
        Raw("Infinity"),
        Raw('"\\ud800"'),
        Raw("[" + "[]," * 300_000 + "[]]"),
        Raw('"""'),
        Raw("'"),
    ),
    *(
        Raw("0x" + "f" * 300),
        Raw("1979-05-27"),
        Raw("07:32:00"),
        Raw("[[a]]"),
        Raw("a.b.c"),
        Raw("1e5"),
        Raw("\0"),
        Raw("//"),
        Raw("inf"),
    ),
)
TOKENS = (
    *b'{}[]",:=.\n#\\\0\xff\xed',
    b"\\u0000",
    b"\\ud800",
    b"null",
    b"1e999",
    b"[[",
    b"]]",
    b"\xef\xbb\xbf",
    b"'''",
    b'"""',
    b"-",
    b"0x",
    b"\r",
)
KEYS = ("", "\0", "\ud800", "x" * 1000, "a.b", "use", "kind", "format", "__class__", "0", "\x1b[1m", "model", "path")


def places(data: Any) -> list[tuple[Any, Any]]:
    """Return (container, key) of every value in data."""
    found, level = [], [data]
    while level:
        inner = []
        for value in level:
            keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
            found += [(value, key) for key in keys]
            inner += [value[key] for key in keys]
        level = inner
    return found


def nasty(rng: Random) -> Any:
    """Return a value that no one would write, and no one else has: what is changed later must not contain itself."""
    return copy.deepcopy(rng.choice(NASTY))


def changed(data: Any, rng: Random) -> Any:
    """Return a copy of data with a few values, keys or entries that are others."""
    whole = {"whole": json.loads(json.dumps(data))}
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        container, key = rng.choice(places(whole))
        value = container[key]
        match rng.randrange(10):
            case 0 | 1 | 2 | 3:
                container[key] = nasty(rng)
            case 4 if container is not whole:
                del container[key]
            case 5:
                other, its = rng.choice(places(whole))
                container[key] = copy.deepcopy(other[its])
            case 6 if isinstance(container, dict) and container is not whole:
                container[rng.choice(KEYS)] = value
            case 7 if isinstance(value, list) and len(value) < 1000:
                container[key] = value * rng.choice((2, 3, 100))
            case 8 if isinstance(value, int | float):
                container[key] = rng.choice((value + 1, value - 1, -value, value * 10**6, str(value), float(value)))
            case 9:
                container[key] = [value] if rng.random() < 0.5 else {"a": value}
            case _:
                container[key] = nasty(rng)
    return whole["whole"]


def marked(data: Any, raws: list[Raw]) -> Any:
    """Return data with a mark in place of each raw text."""
    if isinstance(data, Raw):
        raws.append(data)
        return f"@raw{len(raws) - 1}@"
    if isinstance(data, dict):
        return {key: marked(value, raws) for key, value in data.items()}
    return [marked(value, raws) for value in data] if isinstance(data, list) else data


def as_json(data: Any, rng: Random) -> bytes:
    raws: list[Raw] = []
    text = json.dumps(marked(data, raws), ensure_ascii=rng.random() < 0.8, indent=rng.choice((None, 1)))
    return unmarked(text, raws)


def as_toml(data: Any) -> bytes:
    raws: list[Raw] = []
    return unmarked(tomli_w.dumps(marked(without_none(data), raws)), raws)


def without_none(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: without_none(value) for key, value in data.items() if value is not None}
    return [without_none(value) for value in data if value is not None] if isinstance(data, list) else data


def unmarked(text: str, raws: list[Raw]) -> bytes:
    whole = re.sub(r'"@raw(\d+)@"', lambda found: raws[int(found[1])], text)
    return whole.encode("utf-8", "surrogatepass")


def scrambled(content: bytes, rng: Random) -> bytes:
    """Return bytes with a few cuts, repeats and insertions."""
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = rng.randrange(len(content) + 1)
        until = min(len(content), at + rng.choice((1, 2, 10, 100)))
        token = rng.choice(TOKENS)
        new = bytes([token]) if isinstance(token, int) else token
        match rng.randrange(5):
            case 0:
                content = content[:at] + content[until:]
            case 1:
                content = content[:at] + content[at:until] * rng.choice((2, 3, 1000)) + content[until:]
            case 2:
                content = content[:at] + new * rng.choice((1, 1, 2, 5000)) + content[at:]
            case 3:
                content = content[:at] + new + content[at + 1 :]
            case _:
                content = content[:at]
    return content[:3_000_000]


def broken(content: bytes, name: str, rng: Random) -> bytes:
    """Return a file's content, broken in one of several ways that suit its format."""
    kind = rng.random()
    if kind < 0.25:
        return scrambled(content, rng)
    if kind < 0.28:
        value = nasty(rng)
        return as_json(value, rng) if not isinstance(value, str) else value.encode("utf-8", "surrogatepass")
    if name.endswith(".toml"):
        # What TOML cannot say.
        with contextlib.suppress(TypeError, ValueError, AttributeError):
            return as_toml(changed(tomli.loads(content.decode()), rng))
        return scrambled(content, rng)
    if name.endswith(".jsonl"):
        lines = content.splitlines() or [b"{}"]
        for _ in range(rng.choice((1, 1, 3))):
            number = rng.randrange(len(lines))
            with contextlib.suppress(ValueError, RecursionError):
                lines[number] = as_json(changed(json.loads(lines[number]), rng), rng).replace(b"\n", b" ")
        return b"\n".join(lines) + b"\n" * rng.choice((0, 1, 1))
    return as_json(changed(json.loads(content), rng), rng)


def put(file: Path, content: bytes, rng: Random) -> None:
    """Write broken content over a good file, or put something else in its place."""
    if rng.random() > 0.03:
        file.write_bytes(broken(content, file.name, rng))
        return
    file.unlink()
    match rng.randrange(7):
        case 0:
            file.mkdir()
        case 1:
            os.mkfifo(file)
        case 2:
            file.symlink_to("/dev/zero")
        case 3:
            file.symlink_to(file)
        case 4:
            file.touch()
        case 5:
            with file.open("wb") as hole:
                hole.truncate(2**36)
        case _:
            pass


# What it is put into


@cache
def model() -> Any:
    """The model of the runs that version 0.1 wrote: 4 blocks of 16 numbers."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(WRITTEN / "model")


@cache
def host() -> Any:
    return load_plugins()


_spent: list[float] = []
"""Seconds of each call while an input is looked at."""


@contextlib.contextmanager
def timed() -> Iterator[None]:
    """Note how long a call takes; what the making of the input took does not count."""
    begun = time.process_time()
    try:
        yield
    finally:
        _spent.append(time.process_time() - begun)


def run_command(*words: object) -> None:
    """Run the command line; an `AssertionError` for an exit code that is none or a message that is no good."""
    before, out, err = sys.argv, io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    sys.argv = ["pdtrim-core", *map(str, words)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), timed():
            main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv = before
    told = err.getvalue()
    assert code in (0, 1, 2), f"exit code {code}"
    assert "Traceback" not in told, told[-2000:]
    check_message(told)
    assert code in (0, 2) or told or out.tell(), "an exit code of 1 without a word"


def check_message(told: str) -> None:
    assert len(told) < LOUDEST, f"a message of {len(told)} characters, which begins with {told[:300]!r}"
    assert all(len(line) < 2 * LONGEST_LINE for line in told.splitlines()), f"a line of a message is too long: {told[:300]!r}"
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f]", told), f"control characters in {told[:300]!r}"


def call(function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """Call a function of the library, which may refuse."""
    try:
        with timed():
            function(*arguments, **options)
    except PdtrimError as error:
        check_message(str(error))


def in_run(rng: Random) -> None:
    """A file of a run's folder is broken; something reads the run."""
    name = rng.choice(("joint", "merged"))
    run = Path(shutil.copytree(WRITTEN / name, name))
    shutil.copytree(WRITTEN / name, "other")
    if rng.random() < 0.3:
        (run / "outcome.json").unlink()
    file = rng.choice([path for path in sorted(run.rglob("*")) if path.suffix in (".json", ".jsonl", ".toml")])
    put(file, file.read_bytes(), rng)
    ways: list[Callable[[], None]] = [
        lambda: run_command("show", run),
        lambda: run_command("show", run, "--json"),
        lambda: run_command("show", run, "other"),
        lambda: run_command("report", run),
        lambda: run_command("report", run, "other"),
        lambda: run_command("compare", run, "other", "--variants", "staged,unified,dense"),
        lambda: run_command("compare", run, rng.choice(("--json", "--markdown", "--latex"))),
        lambda: run_command("runs", "."),
        lambda: run_command("runs", ".", "--json"),
        lambda: run_command("check", run / "recipe.toml"),
        lambda: run_command("show", run / "plan.json"),
        lambda: call(load_plan, run),
        lambda: call(measured_in, run),
        lambda: call(results_in, run),
        lambda: call(read_record, run),
        lambda: call(go_on, run),
    ]
    if file.suffix == ".json" and rng.random() < 0.1:
        shutil.copytree(WRITTEN / "model", "model")
        ways = [lambda: run_command("export", run, "--to", "plan", "--out", "out"), lambda: call(apply, run, model())]
    rng.choice(ways)()


def recovered_run(rng: Random) -> None:
    """What a recovered run says of itself is broken; something reads it."""
    run = Path(shutil.copytree(WRITTEN / "joint", "run"))
    shutil.copytree(WRITTEN / "joint", "other")
    data = json.loads(recovered())
    part = rng.choice(("recovery", "fidelity", "saved_plan"))
    data[part] = changed(data[part], rng)
    (run / "outcome.json").write_bytes(as_json(data, rng))
    variants = ("--variants", rng.choice(("unrecovered", "unrecovered,staged,dense")))
    ways: list[Callable[[], None]] = [
        lambda: run_command("show", run),
        lambda: run_command("report", run),
        lambda: run_command("report", run, "other"),
        lambda: run_command("compare", run, "other", *variants),
        lambda: run_command("compare", run, *variants, rng.choice(("--json", "--markdown", "--latex"))),
        lambda: call(read_record, run),
    ]
    rng.choice(ways)()


@cache
def recovered() -> str:
    """What a run on the model of version 0.1 would say, had it recovered the pair."""
    before = Outcome.from_json((WRITTEN / "joint" / "outcome.json").read_text())
    saved = replace(before.plan, recovered="f" * 64).to_data()
    recipe = {**before.recipe, "report": ["table", "html"]}
    nats, counts = Metric(0.7, 0.1, higher_is_better=False), {"prefill": 8, "decode": 64}
    fold = RecoveryResult("fold", nats, Metric(0.4), 8, 512, 1.5, True, counts, (2.0, 1.5), (0.9, 0.5), (0.5, 0.3))
    variants = {name: {"kl": nats, "tau": Metric(2.5)} for name in ("dense", "unified", "unrecovered", "staged")}
    samples = (AnswerSample("a", "Is it?", dict.fromkeys(variants, "yes")),)
    near = Fidelity(4, 8, variants, Metric(0.1, 0.02), samples, Metric(0.3, 0.02))
    results = (fold, replace(fold, name="rescale", kept=False, losses=()))
    return replace(before, saved_plan=saved, recipe=recipe, fidelity=near, recovery=results).to_json()


def go_on(run: Path) -> None:
    with open_run_folder(run, tomli.loads(RECIPE)):
        pass


def recipe_file(rng: Random) -> None:
    Path("recipe.toml").write_text(RECIPE)
    put(Path("recipe.toml"), RECIPE.encode(), rng)
    run_command("check", "recipe.toml", *(["--json"] if rng.random() < 0.3 else []))


def recipe_data(rng: Random) -> None:
    data = changed(tomli.loads(RECIPE), rng)
    call(Recipe.from_data, data if isinstance(data, dict) else {"model": data}, host=host())


def settings(rng: Random) -> None:
    Path("recipe.toml").write_text(RECIPE)
    keys = ["seed", "prune.blocks", "searcher", "searcher.t0", "model", "model.path", "calibration.files", "out", "exporter"]
    keys += ["a" + ".a" * 5000, "evaluation" + ".x" * 60, "\udcff", "", ".", "prune..blocks", "\x1b[1m", "plugins", "x" * 5000]
    value = nasty(rng)
    text = value if isinstance(value, str) else as_json(value, rng).decode("utf-8", "surrogatepass")
    if rng.random() < 0.3:
        text = scrambled(text.encode("utf-8", "surrogatepass"), rng).decode("utf-8", "surrogateescape")
    run_command("check", "recipe.toml", "--set", f"{rng.choice(keys)}={text}")


def sweep_file(rng: Random) -> None:
    Path("recipe.toml").write_text(RECIPE)
    Path("sweep.toml").write_text(SWEEP)
    file = Path(rng.choice(("sweep.toml", "sweep.toml", "recipe.toml")))
    put(file, file.read_bytes(), rng)
    run_command("check", "sweep.toml")


def json_text(rng: Random) -> None:
    run = WRITTEN / rng.choice(("joint", "merged"))
    of: Callable[[str], Any]
    file, of = rng.choice([(run / "plan.json", SavedPlan.from_json), (run / "outcome.json", Outcome.from_json)])
    call(of, broken(file.read_bytes(), file.name, rng).decode("utf-8", "replace"))


def bench_result(rng: Random) -> None:
    content = json.dumps(latencies()).encode()
    Path("bench.json").write_bytes(content)
    put(Path("bench.json"), content, rng)
    call(read_latencies, Path("bench.json"))


def shape_file(rng: Random) -> None:
    import torch

    content = json.dumps({**SHAPES[rng.choice(("llama-2-7b", "qwen3-8b"))], "num_hidden_layers": 2}).encode()
    Path("config.json").write_bytes(content)
    put(Path("config.json"), content, rng)
    call(read_shape, "config.json", host(), torch.bfloat16)


def data_file(rng: Random) -> None:
    content = b"\n".join(json.dumps(rng.choice((ITEM, CONTEXTS))).encode() for _ in range(4))
    Path("d.jsonl").write_bytes(content)
    put(Path("d.jsonl"), content, rng)
    source = {"model": "package:none", "prune": {"blocks": 1}, "calibration": {"use": "jsonl", "files": ["d.jsonl"]}}
    way = rng.randrange(3)
    if way == 0:
        call(read_docs, Path("d.jsonl"), rng.choice(("piqa", "winogrande", "ifeval", "humaneval", "wikitext")))
        return
    if way == 1:
        source["calibration"] = {"use": "text", "files": ["d.jsonl"], "words": 4}
    calibration = Recipe.from_data(source, host=host()).calibration
    call(lambda: list(calibration.draw(rng.choice((1, 10**15)), rng)))


def exported(rng: Random) -> None:
    plan = {"format": 1, "plan_hash": "abc", "first_token": "decode", "model": {"name": "tiny", "fingerprint": "0", "blocks": 4}}
    content = {Path("x/serve/plan.json"): plan}
    content |= {Path(f"x/{stage}/config.json"): {"pdtrim": {"plan_hash": "abc"}} for stage in ("prefill", "decode")}
    for file, data in content.items():
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(data))
    file = rng.choice(list(content))
    put(file, file.read_bytes(), rng)
    call(open_export, Path("x"))


ENTRIES: dict[Callable[[Random], None], int] = {
    in_run: 8,
    recovered_run: 4,
    recipe_file: 3,
    recipe_data: 3,
    settings: 2,
    sweep_file: 3,
    json_text: 6,
    bench_result: 2,
    shape_file: 1,
    data_file: 2,
    exported: 1,
}
"""What is called, and how often beside the others."""


# Counting


class HangError(BaseException):
    """An input that took too long: no error that anything catches."""


def _give_up(_signal: int, _frame: FrameType | None) -> None:
    raise HangError


@dataclass
class Found:
    """What came of all inputs."""

    inputs: int = 0
    tracebacks: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    slowest: float = 0.0

    @property
    def peak(self) -> int:
        """The most bytes of memory that the process had."""
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def __str__(self) -> str:
        counts = f"{self.inputs} inputs, {len(self.tracebacks)} tracebacks, {len(self.hangs)} hangs"
        return f"{counts}, slowest {self.slowest:.1f} s, peak memory {self.peak / 1e6:.0f} MB"

    @property
    def good(self) -> bool:
        return not self.tracebacks and not self.hangs and self.peak < MOST_BYTES


def one(number: int, found: Found) -> None:
    """Make the input of this number, give it to its reader, and note what is wrong."""
    rng = Random(number)
    entry = rng.choices(list(ENTRIES), list(ENTRIES.values()))[0]
    what = f"input {number} ({entry.__name__})"
    _spent.clear()
    signal.alarm(TOO_LONG)
    try:
        entry(rng)
    except HangError:
        found.hangs.append(f"{what} was given up\n{traceback.format_exc()}")
    except Exception:  # noqa: BLE001 - that is what is looked for
        found.tracebacks.append(f"{what}\n{traceback.format_exc()}")
    finally:
        signal.alarm(0)
    found.inputs += 1
    took = sum(_spent)
    found.slowest = max(found.slowest, took)
    if LONGEST < took < TOO_LONG:
        found.hangs.append(f"{what} took {took:.1f} s")


@contextlib.contextmanager
def _folder() -> Iterator[None]:
    """An empty folder to work in."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def fuzz(numbers: range, seconds: float | None = None, say: Callable[[str], None] = lambda text: None) -> Found:
    """Go through inputs, at most so many seconds long."""
    found, begun = Found(), time.monotonic()
    before = signal.signal(signal.SIGALRM, _give_up)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for number in numbers:
                if seconds is not None and time.monotonic() - begun > seconds:
                    break
                known = len(found.tracebacks), len(found.hangs)
                with _folder():
                    one(number, found)
                for text in found.tracebacks[known[0] :] + found.hangs[known[1] :]:
                    say(text)
                if found.inputs % 1000 == 0:
                    gc.collect()
                    say(str(found))
    finally:
        signal.signal(signal.SIGALRM, before)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Give broken input to everything that reads.")
    parser.add_argument("--inputs", type=int, default=1000, help="how many (default: 1000)")
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    parser.add_argument("--only", type=int, help="one input, by its number")
    asked = parser.parse_args()
    first, count = (asked.first, asked.inputs) if asked.only is None else (asked.only, 1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    result = fuzz(range(first, first + count), say=lambda text: print(text, flush=True))
    print(result)
    sys.exit(not result.good)
