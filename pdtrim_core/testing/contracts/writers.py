"""What every exporter and every report must hold to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pdtrim_core.api.export_facts import ExportFacts
from pdtrim_core.api.writer_kinds import Exporter, Report
from pdtrim_core.errors import PdtrimError
from pdtrim_core.results.outcome import Outcome
from pdtrim_core.testing.contracts.shared import check_component, contract, no_global_randomness
from pdtrim_core.testing.contracts.small_run import small_run
from pdtrim_core.testing.contracts.untouched import left_as_it_was


@contract
class ExporterContract:
    """What every exporter must hold to."""

    component: ClassVar[type[Exporter]]
    options: ClassVar[dict[str, Any]] = {}
    departs: ClassVar[dict[str, str]] = {}

    def test_it_is_a_well_formed_component(self) -> None:
        """See `check_component`."""
        check_component(self.component, Exporter, self.options)

    def test_it_returns_what_it_wrote_under_the_folder(self, tmp_path: Path) -> None:
        """All of it, and nothing beside it."""
        out = tmp_path / "run"
        out.mkdir()
        written = self._export(out)
        assert written
        assert all(path.exists() and path.resolve().is_relative_to(out.resolve()) for path in written)
        told = {file for path in written for file in (path.rglob("*") if path.is_dir() else [path])}
        assert {file for file in tmp_path.rglob("*") if file.is_file()} <= told

    def test_exporting_twice_gives_the_same_files(self, tmp_path: Path) -> None:
        """A run that is resumed exports again into the same folder."""
        first = _contents(self._export(tmp_path))
        assert _contents(self._export(tmp_path)) == first

    def test_the_model_is_left_as_it_was(self, tmp_path: Path) -> None:
        """The next exporter gets the same one."""
        outcome, model = small_run()
        with left_as_it_was(model), no_global_randomness():
            list(self.component(**self.options).export(outcome, model, tmp_path))

    def test_what_it_refuses_it_says_before_a_run_too(self, tmp_path: Path) -> None:
        """What it writes has no problems; a run without a plan is written, or refused before and after; asking writes nothing."""
        exporter, (outcome, model) = self.component(**self.options), small_run()
        facts = ExportFacts.of_run(outcome, model, tmp_path)
        replaced = replace(outcome, saved_plan=None)
        asked = {"a run": facts, "a run without a plan": ExportFacts.of_run(replaced, model, tmp_path)}
        found = {what: exporter.problems(known) for what, known in asked.items()}
        assert found["a run"] == []
        assert all(isinstance(problem, str) and problem.strip() for problem in found["a run without a plan"])
        assert list(tmp_path.iterdir()) == []
        if found["a run without a plan"]:
            with pytest.raises(PdtrimError) as caught:
                list(exporter.export(replaced, model, tmp_path))
            assert found["a run without a plan"][0] in str(caught.value), "`export` must begin with `self.check(...)`"
        else:
            list(exporter.export(replaced, model, tmp_path))

    def _export(self, out: Path) -> list[Path]:
        return list(self.component(**self.options).export(*small_run(), out))


def _contents(paths: Iterable[Path]) -> dict[Path, bytes]:
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path])]
    return {file: file.read_bytes() for file in files if file.is_file()}


@contract
class ReportContract:
    """What every report must hold to."""

    component: ClassVar[type[Report]]
    options: ClassVar[dict[str, Any]] = {}
    departs: ClassVar[dict[str, str]] = {}

    def test_it_is_a_well_formed_component(self) -> None:
        """See `check_component`."""
        check_component(self.component, Report, self.options)

    def test_it_gives_text_in_ascii_or_a_file_under_the_folder(self, tmp_path: Path) -> None:
        """Text goes to terminals of every sort; files may hold what they like."""
        given = self._report(tmp_path)
        if isinstance(given, Path):
            assert given.is_file()
            assert given.resolve().is_relative_to(tmp_path.resolve())
        else:
            assert isinstance(given, str)
            assert given.strip()
            assert given.isascii()

    def test_it_tells_the_same_of_an_outcome_read_from_its_file(self, tmp_path: Path) -> None:
        """`pdtrim-core report` makes reports of runs that have ended long ago."""
        fresh = _text(self._report(tmp_path))
        again = Outcome.from_json(small_run()[0].to_json())
        assert _text(self.component(**self.options).report(again, tmp_path)) == fresh

    def _report(self, out: Path) -> str | Path:
        return self.component(**self.options).report(small_run()[0], out)


def _text(given: str | Path) -> str:
    return given.read_text(encoding="utf-8") if isinstance(given, Path) else given
