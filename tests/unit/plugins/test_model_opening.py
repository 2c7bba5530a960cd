"""What other libraries say while a checkpoint is opened: nothing while all is well, and what matters when it is not."""

from __future__ import annotations

import json
import logging
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from pdtrim_core.api import PdtrimError
from pdtrim_core.testing.models import save_tiny_model
from pdtrim_plugins.model_sources import FolderModel
from pdtrim_plugins.model_sources.opening import opening


def failing_with(*logged: str, printed: str = "", error: Exception) -> str:
    """Return the message of an opening that fails after warnings."""

    def fail() -> None:
        for line in logged:
            logging.getLogger("transformers.modeling_utils").warning(line)
        print(printed, file=sys.stderr)
        raise error

    with pytest.raises(PdtrimError) as caught, opening("./tiny"):
        fail()
    return str(caught.value)


def test_an_error_is_shown_with_its_cause_and_not_by_its_first_line() -> None:
    error = OSError("Can't load the model.\nIt has no weights.")
    error.__cause__ = KeyError("weight_map")
    told = failing_with(error=error)
    assert told.startswith(
        "cannot open the model ./tiny: Can't load the model. It has no weights. (because: KeyError: 'weight_map')"
    )


def test_what_was_kept_quiet_is_shown_when_it_fails(capsys: pytest.CaptureFixture[str]) -> None:
    told = failing_with("\x1b[1mLOAD REPORT\x1b[0m\nlayer 3 | MISMATCH", error=RuntimeError("see the report"))
    assert told.endswith("; it said before: LOAD REPORT layer 3 | MISMATCH")
    assert capsys.readouterr().err == ""


def test_what_was_printed_is_shown_when_it_fails_but_for_progress_bars() -> None:
    printed = "Loading:  50%|#####     | 1/2 [00:00<00:00]\nblk.0 has an unknown type"
    told = failing_with(printed=printed, error=ValueError("type 99 is unknown"))
    assert told.endswith("; it said before: blk.0 has an unknown type")


def test_warnings_of_other_libraries_are_as_before_afterwards() -> None:
    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    failing_with(error=ValueError("it is damaged"))
    assert [(logger.handlers, logger.level, logger.propagate) for logger in loggers] == before


@pytest.mark.parametrize("content", ["", "{", '{"model_type": "llama", "hidden_size": "wide"}', "\x1b[31m", "[]"])
def test_a_damaged_config_is_one_line_of_plain_text(content: str, tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    (tmp_path / "config.json").write_text(content)
    for look in (FolderModel(path=str(tmp_path)).open, FolderModel(path=str(tmp_path)).check_weights):
        with pytest.raises(PdtrimError) as caught:
            look()
        assert str(caught.value).startswith(f"cannot open the model {tmp_path}: ")
        assert str(caught.value).isprintable()


def with_own_code(folder: Path, where: str) -> Path:
    """Write a checkpoint that comes with a Python file, which leaves a mark when it runs."""
    save_tiny_model(folder)
    (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nraise SystemExit('it ran')\n")
    if where == "config":
        config = json.loads((folder / "config.json").read_text())
        own = {"model_type": "ownllama", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
        (folder / "config.json").write_text(json.dumps({**config, **own}))
    else:
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        own = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}}
        (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **own}))
    return folder


OPEN = "from pdtrim_plugins.model_sources import FolderModel; FolderModel(path={!r}, placement='cpu').open()"


@pytest.mark.parametrize("stdin", ["terminal", "closed", "yes"])
@pytest.mark.parametrize("where", ["config", "tokenizer"])
def test_code_of_a_checkpoint_never_runs_and_nothing_is_asked(where: str, stdin: str, tmp_path: Path) -> None:
    folder = with_own_code(tmp_path / "own", where)
    command = [sys.executable, "-W", "ignore", "-c", OPEN.format(str(folder))]
    if stdin == "terminal":
        ours, theirs = pty.openpty()
        os.write(ours, b"y\ny\ny\n")
        done = subprocess.run(command, stdin=theirs, capture_output=True, text=True, check=False, timeout=60)
        os.close(ours)
        os.close(theirs)
    elif stdin == "closed":
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60)
    else:
        done = subprocess.run(command, input="y\ny\ny\n", capture_output=True, text=True, check=False, timeout=60)
    assert not (folder / "ran").exists()
    assert "[y/N]" not in done.stdout + done.stderr
    assert done.stderr.splitlines()[-1] == (
        f"pdtrim_core.errors.PdtrimError: cannot open the model {folder}: it comes with code of its own (auto_map), which "
        "pdtrim-core does not run; take a checkpoint of an architecture that transformers has"
    )


def test_code_beside_an_architecture_that_transformers_has_is_not_needed(tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "own.Model"}}))
    (tmp_path / "own.py").write_text("raise SystemExit('it ran')\n")
    assert FolderModel(path=str(tmp_path), placement="cpu").open().model.config.model_type == "llama"


@pytest.mark.parametrize(
    ("model_type", "said"),
    [
        ("banana", "this version of transformers does not know its model_type 'banana'"),
        ("pdtrim_llama", "it is said to be an export of pdtrim-core, and its config.json does not describe one"),
        ("pdtrim_banana", "it is said to be an export of pdtrim-core, and its config.json does not describe one"),
        ("clip", "transformers has no causal language model of CLIPConfig"),
    ],
)
def test_types_that_transformers_does_not_open_are_refused_in_our_own_words(model_type: str, said: str, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "tiny")
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(PdtrimError) as told:
        FolderModel(path=str(folder)).open()
    assert str(told.value).startswith(f"cannot open the model {folder}: {said}")
    assert "pip install" not in str(told.value)
    assert "\n" not in str(told.value)
