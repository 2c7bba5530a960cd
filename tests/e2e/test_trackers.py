"""The examples of trackers: plugins that listen to a run and write it into MLflow, or into Weights & Biases."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

EXAMPLES = Path(__file__).parents[2] / "examples" / "trackers"
FAKE = """
def init(**given): print('init', given['name'], given['config']['prune']['blocks'], file=open('told', 'a'))
def log(figures): print('log', *figures, file=open('told', 'a'))
def finish(): print('finish', file=open('told', 'a'))
"""


def tracked(recipe: Path, name: str, folder: Path, **environment: str) -> None:
    text = recipe.read_text().replace("fidelity = false", "answer_tokens = 4")
    path = folder / "tracked.toml"
    path.write_text(f'plugins = ["{EXAMPLES / name}"]\n{text}')
    command = [sys.executable, "-m", "pdtrim_core", "run", str(path), "--out", "here"]
    done = subprocess.run(command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "muted" not in done.stderr


@pytest.mark.parametrize("name", ["mlflow_tracker.py", "wandb_tracker.py"])
def test_a_tracker_is_short(name: str) -> None:
    lines = [line for line in (EXAMPLES / name).read_text().splitlines() if line.strip()]
    assert len(lines) < 30


@pytest.mark.skipif(find_spec("mlflow") is None, reason="no mlflow here: pip install mlflow-skinny")
def test_a_run_lands_in_the_files_of_mlflow(recipe: Path, tmp_path: Path) -> None:
    given = {"MLFLOW_TRACKING_URI": (tmp_path / "mlruns").as_uri(), "MLFLOW_ALLOW_FILE_STORE": "true"}
    tracked(recipe, "mlflow_tracker.py", tmp_path, **given)
    (run,) = [path for path in (tmp_path / "mlruns" / "0").iterdir() if (path / "metrics").is_dir()]
    assert (run / "params" / "blocks").read_text() == "2"
    assert {"best", "kl.staged", "kl.unified", "score.dense"} <= {path.name for path in (run / "metrics").iterdir()}
    assert '"prefill"' in (run / "artifacts" / "plan.json").read_text()
    assert "status: 3" in (run / "meta.yaml").read_text()  # finished


def test_a_run_lands_in_what_has_the_names_of_weights_and_biases(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "wandb.py").write_text(FAKE)
    tracked(recipe, "wandb_tracker.py", tmp_path, PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    told = (tmp_path / "told").read_text().splitlines()
    assert told[0] == "init here 2"
    assert "log candidate best" in told
    assert any(line.startswith("log ") and "kl/staged" in line for line in told)
    assert told[-1] == "finish"
