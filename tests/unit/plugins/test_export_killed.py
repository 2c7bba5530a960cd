"""An export that is killed at any point leaves no folder that looks whole and is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import os, shutil, signal, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from pdtrim_core import Drop, Plan, Removal
from pdtrim_core.testing import tiny_llama
from pdtrim_core.testing.contracts.small_run import run_with_plan
from pdtrim_plugins.exporters.checkpoints import Checkpoints

EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "shutil.rmtree"}
root = Path(sys.argv[1])
model = tiny_llama()
models = [run_with_plan(model, Plan.unified(Removal([Drop(block)])), root / "merges") for block in (1, 2)]
exporter = Checkpoints(max_shard=2e-4)

def content(out):
    return {str(f.relative_to(out)): f.read_bytes() for f in sorted(out.rglob("*")) if f.is_file()}

def begin(out):
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(root / "first", out)

def again(out, limit):
    # Runs in a child of its own: a hook of this sort cannot be taken away again.
    seen = 0
    def hook(event, args):
        nonlocal seen
        if event in EVENTS and any(str(out) in str(arg) for arg in args[:2]):
            seen += 1
            if seen == limit:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    list(exporter.export(models[1], model, out))
    os._exit(0)

out = root / "out"
(root / "first").mkdir()
list(exporter.export(models[0], model, root / "first"))
begin(out)
old = content(out)
list(exporter.export(models[1], model, out))
new = content(out)
assert old != new
limit, missing = 0, 0
while True:
    limit += 7
    begin(out)
    child = os.fork()
    if child == 0:
        again(out, limit)
    if os.waitpid(child, 0)[1] == 0:
        break
    for name in ("decode", "unified"):
        if not (out / name).exists():
            missing += 1
            continue
        found = content(out / name)
        wanted = [{f.split("/", 1)[1]: b for f, b in whole.items() if f.startswith(name + "/")} for whole in (old, new)]
        assert found in wanted, (limit, name, sorted(found))
    if limit % 70:
        continue
    # The next export goes on as if nothing had been, and leaves nothing beside the folders.
    list(exporter.export(models[1], model, out))
    assert content(out) == new, (limit, sorted(content(out)))
    assert sorted(path.name for path in out.iterdir()) == ["decode", "unified"], sorted(out.iterdir())
print(limit, missing)
"""


def test_a_killed_export_leaves_the_old_or_the_new_or_none(tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, "-c", PROGRAM, tmp_path], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    killed, missing = map(int, ran.stdout.split())
    # Between two renames there is neither of the two: at one point for each of the two folders.
    assert killed > 50
    assert missing <= 2
