"""The decode model quantised with calibration (GPTQ, AWQ) by llm-compressor, which runs in an environment of its own."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pdtrim_core.api import Exporter, ExportFacts, PdtrimError, python_reference, reason_of
from pdtrim_plugins.exporters.card import card, write_card
from pdtrim_plugins.exporters.checkpoint_folder import CARD, Storage, export_folder, occupied
from pdtrim_plugins.exporters.checkpoints import no_plan, plan_of, write_decode
from pdtrim_plugins.exporters.configs import numbered, ordinary
from pdtrim_plugins.exporters.older_readers import tell_older_readers
from pdtrim_plugins.exporters.stages import Parts, decode_blocks

if TYPE_CHECKING:
    from pdtrim_core.api import BlockModel, Outcome

SCRIPT, TEXTS, TOOLS = "compress.py", "texts.jsonl", "llm-compressor"
PROBE = "import importlib.metadata as m; print(m.version('llmcompressor'))"
MIXED = (
    "the blocks of decode differ in width, and llm-compressor's environment lacks the class that such a checkpoint needs: "
    "[formats] quantises it here"
)


class LlmCompressor(Exporter):
    """Writes decode/, and quantises it with calibration into decode-gptq/ or decode-awq/ by llm-compressor.

    llm-compressor wants versions of its own of what pdtrim-core needs too, so it runs in another environment, whose interpreter
    `python` names. Without one, llm-compressor/ has the script and the texts to run it with, and its README the command.
    """

    name = "llm-compressor"

    python: str = Field("", description="interpreter of an environment that has llm-compressor; without one nothing is quantised")
    method: Literal["gptq", "awq"] = Field("gptq", description="how weights are rounded")
    scheme: Literal["W4A16", "W8A16", "W8A8", "FP8_DYNAMIC"] = Field("W4A16", description="format of weights and activations")
    group_size: int = Field(64, ge=1, description="weights that share a scale; it must divide the width of every linear layer")
    texts: int = Field(128, ge=1, description="texts to calibrate on: prose of the Python reference")
    tokens: int = Field(256, ge=1, description="tokens of a text at most")

    def problems(self, facts: ExportFacts) -> list[str]:
        """Return what is certain of the model, the folders and the interpreter."""
        if facts.replaced:
            return [no_plan(facts)]
        there = occupied(*(facts.out / name for name in ("decode", TOOLS, self._quantised)))
        return [*numbered(facts.model, facts.text_config), *self._of_run(facts), *there, *self._unfit()]

    def export(self, outcome: Outcome, model: BlockModel, out: Path) -> Iterable[Path]:
        """Write the decode model, the script with its texts, and what the script makes if there is an interpreter for it."""
        self.check(ExportFacts.of_run(outcome, model, out))
        parts = Parts.of_run(model, plan_of(outcome, model), out)
        stored = decode_blocks(parts, outcome.plan.plan)
        if any(block.widths for block in stored):
            try:
                ordinary(model, stored)
            except PdtrimError:
                raise PdtrimError(MIXED) from None
        write_decode(outcome, parts, out, Storage("auto", int(2e9)))
        yield out / "decode"
        with export_folder(out / TOOLS) as folder:
            source = resources.files("pdtrim_plugins") / "exporters" / SCRIPT
            (folder / SCRIPT).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
            lines = (json.dumps({"text": text}) + "\n" for text in self._prose())
            (folder / TEXTS).write_text("".join(lines), encoding="utf-8")
            command = " ".join(self._command("python", Path(TOOLS), Path("decode"), Path(self._quantised)))
            text = (
                f"What quantises ../decode with calibration, in an environment that has llmcompressor; from ..:\n\n    {command}"
            )
            write_card(folder, outcome, card(outcome, model, role="decode", text=text, run=out))
        yield out / TOOLS
        if self.python:
            with export_folder(out / self._quantised) as folder:
                _run(self._command(self.python, out / TOOLS, out / "decode", folder))
                tell_older_readers(folder)
                text = f"The model that decodes, its linear layers in {self.scheme} by {self.method.upper()} (llm-compressor)."
                write_card(folder, outcome, card(outcome, model, role="decode", text=text, run=out))
            yield out / self._quantised

    def remark(self, model: BlockModel) -> str:
        """Tell how to quantise where nothing was."""
        del model
        return (
            ""
            if self.python
            else f"nothing is quantised yet: {TOOLS}/{CARD} has the command, or --set python=INTERPRETER runs it"
        )

    @property
    def _quantised(self) -> str:
        return f"decode-{self.method}"

    def _of_run(self, facts: ExportFacts) -> Iterator[str]:
        if facts.formats:
            yield "decode or prefill has a number format by [formats] already: quantise once, without that table"
        if not facts.uniform:
            yield MIXED

    def _unfit(self) -> Iterator[str]:
        """Yield why the interpreter cannot quantise."""
        if not self.python:
            return
        try:
            done = subprocess.run([self.python, "-c", PROBE], capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
        except (OSError, subprocess.TimeoutExpired) as error:
            yield f"python: {self.python} does not run as a Python interpreter ({reason_of(error)})"
            return
        if done.returncode:
            yield f"python: {self.python} has no llmcompressor: {self.python} -m pip install llmcompressor"

    def _prose(self) -> list[str]:
        """Return so many texts that are long enough to calibrate on; fewer where the prose ends."""
        characters, texts, text = 5 * self.tokens, list[str](), ""
        for paragraph in python_reference():
            text += paragraph + "\n\n"
            if len(text) >= characters:
                texts.append(text[:characters])
                text = ""
            if len(texts) == self.texts:
                break
        return texts or [text]

    def _command(self, python: str, tools: Path, folder: Path, out: Path) -> list[str]:
        options = ["--method", self.method, "--scheme", self.scheme, "--group-size", str(self.group_size)]
        texts = ["--texts", str(tools / TEXTS), "--tokens", str(self.tokens)]
        return [python, str(tools / SCRIPT), str(folder), str(out), *options, *texts]


def _run(command: list[str]) -> None:
    """Run the script. Raises `PdtrimError` with what it said last."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        said = [line for line in re.split(r"[\r\n]+", done.stderr) if line.strip()]
        raise PdtrimError(
            f"llm-compressor failed (exit status {done.returncode}): {said[-1].strip() if said else 'it said nothing'}"
        )
