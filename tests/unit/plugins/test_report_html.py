"""The page of a run, without a browser: what it says, that it needs nothing else, and that it is the same every time."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest

from pdtrim_core.api import (
    AnswerSample,
    Drop,
    Edges,
    FirstOnly,
    KvOnly,
    Metric,
    Outcome,
    PdtrimError,
    Plan,
    Removal,
    SearchStep,
    read_record,
)
from pdtrim_core.plan.formats import Formats
from pdtrim_core.plan.plan_file import SavedPlan
from pdtrim_core.results.outcome import Gain
from pdtrim_core.results.task_results import write_result
from pdtrim_plugins.reports.html import Html
from pdtrim_plugins.reports.html.sentences import sentence
from pdtrim_plugins.reports.html.tasks import best, by_task, told
from pdtrim_plugins.reports.html.walk import best_of, paths
from pdtrim_plugins.reports.html.wording import change, duration, element, ranges
from tests.browser import runs

if TYPE_CHECKING:
    from pathlib import Path


class Reader(HTMLParser):
    """Reads a page: its sections with their texts, ids, addresses, and what stands for pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sections: dict[str, str] = {"": ""}
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.pictures: list[str] = []
        self.open: list[str] = []
        self._section = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in attrs}
        self.ids += [found["id"]] if "id" in found else []
        self.addresses += [found[key] for key in ("href", "src") if key in found]
        self.pictures += [found["aria-label"]] if found.get("role") == "img" else []
        if tag == "section":
            self._section = found["id"]
            self.sections[self._section] = ""
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.remove(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open and "script" not in self.open and data.strip():
            self.sections[self._section] += data.strip() + "\n"


def page_of(folder: Path) -> Reader:
    return Reader(Html().page([read_record(folder)], folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return page_of(runs.write_run(tmp_path_factory.mktemp("merged") / "run", runs.merged(), tasks=True))


def said(of: Outcome, path: Path) -> str:
    """Return the sentence of an outcome."""
    return sentence(read_record(path, of))


def test_a_page_has_every_section(merged: Reader) -> None:
    expected = "diagram results fidelity tasks costs similarity search gains merges notes serve made"
    assert [name for name in merged.sections if name] == expected.split()


def test_a_page_needs_nothing_but_itself(merged: Reader) -> None:
    assert all(address.startswith(("#", "data:")) for address in merged.addresses)
    wanted = {address[1:] for address in merged.addresses if address.startswith("#")}
    assert wanted <= set(merged.ids)


def test_identities_are_unique_and_tags_are_closed(merged: Reader) -> None:
    assert len(set(merged.ids)) == len(merged.ids)
    assert merged.open == []


def test_every_picture_has_a_description(merged: Reader) -> None:
    titles = [label.partition(".")[0] for label in merged.pictures]
    assert titles == [
        "Block diagram", "Results", "KL divergence from the dense model", "Agreement with the dense model",
        "Benchmarks", "Costs that are left", "Similarity by depth", "Norms by depth",
        "The search", "Gain of each element", "Merge losses",
    ]  # fmt: skip
    assert "merged into one: 8, 12 and 20; gone: 25" in merged.pictures[0]
    assert (
        "Prefill, by block. runs: 0 to 7, 11, 14 to 24 and 26 to 28; merged into one: 8; K/V only: 12 and 29"
        in merged.pictures[0]
    )
    assert "staged: items searched on 66.4 \N{PLUS-MINUS SIGN} 2.8" in merged.pictures[1]
    assert "unified 0.812 \N{PLUS-MINUS SIGN} 0.090, staged 0.401 \N{PLUS-MINUS SIGN} 0.045" in merged.pictures[2]
    assert "same likeliest token: dense 100.0" in merged.pictures[3]
    assert "The threshold is 3.00 points." in merged.pictures[9]
    assert "12+13 from 3.73 to 1.64, a drop 3.33" in merged.pictures[10]


def test_answers_stand_side_by_side_with_the_first_difference_marked(merged: Reader) -> None:
    near = merged.sections["fidelity"]
    asked = "Held-out prompt 1 of 3\n...as every child knows.\nQuestion: Which force pulls a dropped apple toward the ground?"
    assert asked in near
    assert "unified\ndiffers from word 4 on\nthe Earth's gravity,\nand it pulls every apple" in near
    assert "staged\nthe same as dense\nthe Earth's gravity, which pulls" in near
    assert "unified\nends before dense does\nan empty answer" in near
    assert "staged\ndiffers from word 1 on\n<script>alert('x') againagain" in near


def test_only_results_that_the_section_has_are_no_benchmarks(tmp_path: Path) -> None:
    folder = runs.write_run(tmp_path / "run", runs.big())
    near = runs.fidelity()
    write_result(folder, replace(runs.result("fidelity", "staged", Metric(1), "kl"), metrics=near.variants["staged"]))
    assert "tasks" not in page_of(folder).sections
    write_result(folder, runs.result("fidelity", "staged", Metric(0.7, 0.1), "kl", answer_tokens=8))
    assert "fidelity" in page_of(folder).sections["tasks"]


def test_a_run_that_did_not_measure_it_has_no_such_section(tmp_path: Path) -> None:
    assert "fidelity" not in page_of(runs.write_run(tmp_path / "run", runs.joint())).sections


@pytest.fixture(scope="module")
def recovered(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return page_of(runs.write_run(tmp_path_factory.mktemp("recovered") / "run", runs.recovered()))


PM = "\N{PLUS-MINUS SIGN}"


def test_a_section_says_what_recovery_took_away(recovered: Reader) -> None:
    assert list(recovered.sections).index("recovery") == list(recovered.sections).index("fidelity") + 1
    section = recovered.sections["recovery"]
    assert (
        f"On held-out items recovery takes 0.337 {PM} 0.021 nats a token away, 47 % of the distance to dense. "
        "Kept: kv-refit, fold and distill. "
        "Left out, as the pair came no nearer: rescale. All took 37 min 43 s, on texts that do not measure."
    ) in section
    assert f"kv-refit\n0.716 {PM} 0.060\n0.669 {PM} 0.056\n7 %\nprefill\n25,600\n9 s\n" in section
    assert f"rescale\n0.379 {PM} 0.032\n0.401 {PM} 0.033\nleft out\ndecode\n25,600\n4 s\n" in section
    assert "kv-refit, fold and distill then gave the layers that are left other weights." in recovered.sections[""]


def test_pictures_show_the_distance_by_token_position_and_the_loss_of_a_training(recovered: Reader) -> None:
    found = {label.partition(".")[0]: label for label in recovered.pictures}
    by_position = found["KL divergence by token position"]
    assert [clause.partition(":")[0] for clause in by_position.partition(". ")[2].split("; ")] == [
        "before", "after kv-refit", "after fold", "after distill",
    ]  # fmt: skip
    assert "Loss of distill" in found
    assert [title for title in found if title.startswith("Loss of")] == ["Loss of distill"]


def test_the_pair_before_recovery_is_among_the_variants(recovered: Reader) -> None:
    near = recovered.sections["fidelity"]
    assert f"unrecovered\n0.716 {PM} 0.080\n69.5" in near
    assert "unrecovered\ndiffers from word" in near
    kl = next(label for label in recovered.pictures if label.startswith("KL divergence from"))
    assert f"unified 0.812 {PM} 0.090, unrecovered 0.716 {PM} 0.080, staged 0.379 {PM} 0.042" in kl


def test_results_of_the_pair_before_recovery_stand_among_the_benchmarks(tmp_path: Path) -> None:
    folder = runs.write_run(tmp_path / "run", runs.recovered(), tasks=True)
    write_result(folder, runs.result("mmlu", "unrecovered", Metric(0.3123, 0.02), "acc", limit=50))
    assert "task\ndense\nunified\nunrecovered\nstaged" in page_of(folder).sections["tasks"]
    assert f"31.2 {PM} 2.0" in page_of(folder).sections["tasks"]


def test_a_run_without_recovery_has_no_such_section(merged: Reader) -> None:
    assert "recovery" not in merged.sections
    assert "other weights" not in merged.sections[""]


def test_recoveries_that_were_all_left_out_have_no_picture(tmp_path: Path) -> None:
    outcome = replace(runs.recovered(), recovery=(replace(runs.recovery()[2], losses=(1.0,)),), fidelity=None)
    page = page_of(runs.write_run(tmp_path / "run", outcome))
    assert "\nLeft out, as the pair came no nearer: rescale. All took 4 s" in page.sections["recovery"]
    assert not [label for label in page.pictures if label.startswith(("KL", "Loss"))]
    assert "then gave" not in page.sections[""]


def test_many_recoveries_and_huge_losses_are_drawn(tmp_path: Path) -> None:
    huge = replace(runs.recovery()[3], losses=(1e30, 1.0, 0.5), by_position_before=(1e30,), by_position_after=(0.0,))
    page = page_of(runs.write_run(tmp_path / "run", replace(runs.recovered(), recovery=(huge,) * 6)))
    by_position = next(label for label in page.pictures if label.startswith("KL divergence by"))
    assert [f"after distill ({place})" in by_position for place in range(1, 7)] == [False] * 3 + [True] * 3
    assert len(set(page.ids)) == len(page.ids)


def test_runs_with_and_without_recovery_stand_side_by_side(tmp_path: Path) -> None:
    folders = [runs.write_run(tmp_path / "one", runs.big()), runs.write_run(tmp_path / "two", runs.recovered())]
    file = Html().page([read_record(folder) for folder in folders], tmp_path / "comparison.html")
    page = Reader(file.read_text(encoding="utf-8"))
    near = page.sections["fidelity"]
    assert "run\nrecovery\nunified\nunrecovered\nstaged\ntaken away by recovery" in near
    assert f"one\nnone\n0.812 {PM} 0.090\n0.401 {PM} 0.045\n" in near
    assert f"two\nkv-refit, fold, distill\n0.812 {PM} 0.090\n0.716 {PM} 0.080\n0.379 {PM} 0.042\n0.337 {PM} 0.021" in near
    assert "different items" not in near
    moved = replace(runs.recovered(), environment=replace(runs.recovered().environment, data="2" * 64))
    folders[1] = runs.write_run(tmp_path / "three", moved)
    file = Html().page([read_record(folder) for folder in folders], tmp_path / "comparison.html")
    assert "The runs held out different items" in file.read_text(encoding="utf-8")


def test_runs_of_different_objectives_share_no_axis(tmp_path: Path) -> None:
    others = {"one": "kl", "two": "accuracy", "three": "kl"}
    folders = [runs.write_run(tmp_path / name, replace(runs.big(), objective=of)) for name, of in others.items()]
    page = Reader(Html().page([read_record(folder) for folder in folders], tmp_path / "comparison.html").read_text("utf-8"))
    named = [label.partition("; ")[0].partition(", ")[0] for label in page.pictures if label.startswith("Results of")]
    assert len(named) == 2
    assert ["one" in named[1], "two" in named[0]] == [True, True]
    assert "whose scores cannot be compared" in page.sections["results"]
    assert "Objective accuracy" in page.sections["results"]


def test_the_formats_of_runs_stand_in_the_tables_of_what_they_cost_and_save(tmp_path: Path) -> None:
    def with_formats(prefill: str | None, decode: str | None) -> Outcome:
        of, near = runs.big(), runs.fidelity()
        assert of.saved_plan is not None
        saved = replace(SavedPlan.from_data(of.saved_plan), formats=Formats("rtn", prefill, decode, "0" * 64))
        figures = {**near.variants, "unquantized": near.variants["staged"]}
        return replace(of, saved_plan=saved.to_data(), fidelity=replace(near, variants=figures, quantized=Metric(0.05, 0.01)))

    made = {
        "plain": runs.big(),
        "two": with_formats("FP8_DYNAMIC", "W4A16"),
        "same": with_formats("W8A8", "W8A8"),
        "one": with_formats(None, "W8A16"),
    }
    shown = {"plain": "none", "two": "FP8_DYNAMIC/W4A16", "same": "W8A8", "one": "none/W8A16"}
    folders = [runs.write_run(tmp_path / name, of) for name, of in made.items()]
    file = Html().page([read_record(folder) for folder in folders], tmp_path / "comparison.html")
    page = Reader(file.read_text(encoding="utf-8"))
    assert "run\nformats (prefill/decode)\nunified\nunquantized\nstaged\nadded by formats" in page.sections["fidelity"]
    assert page.sections["fidelity"].count(f"\n0.050 {PM} 0.010") == 3
    assert "run\nformats (prefill/decode)\n" in page.sections["costs"]
    for name, text in shown.items():
        assert f"\n{name}\n{text}\n" in page.sections["fidelity"]
        assert f"\n{name}\n{text}\n" in page.sections["costs"]
    plain = Html().page([read_record(folder) for folder in folders[:1] * 2], tmp_path / "plain.html")
    assert "formats (prefill/decode)" not in plain.read_text(encoding="utf-8")


def selecting() -> Outcome:
    """Return a run of whose decode some blocks read less of a prompt."""
    of, near = runs.big(), runs.fidelity()
    assert of.saved_plan is not None
    saved = SavedPlan.from_data(of.saved_plan)
    blocks = [layer.block for layer in saved.plan.layers("decode", saved.block_count)]
    chosen = [Edges(block, 0.15, 0.15) for block in blocks[2:5]] + [FirstOnly(blocks[-1])]
    variants = {**near.variants, "unselected": near.variants["staged"]}
    saved = replace(saved, plan=saved.plan.selecting(chosen))
    return replace(of, saved_plan=saved.to_data(), fidelity=replace(near, variants=variants, selected=Metric(0.05, 0.01)))


def test_a_section_says_which_blocks_read_what(tmp_path: Path) -> None:
    outcome = selecting()
    record = read_record(runs.write_run(tmp_path / "run", outcome))
    page = Reader(Html().page([record], tmp_path / "page.html").read_text("utf-8"))
    section = page.sections["reading"]
    blocks = [selection.block for selection in outcome.plan.plan.selections]
    assert f"\nthe first 15 % and the last 15 %\n{ranges(blocks[:3])}\n40\n308\n2,458\n" in section
    assert f"\nthe first token\n{blocks[-1]}\n1\n1\n1\n" in section
    assert "\nall tokens\n" in section
    assert "4 of decode's" in section
    assert "Reading less of prompts takes the pair" in page.sections["fidelity"]
    assert "\nunselected\n" in page.sections["fidelity"]
    assert "4 blocks of decode then read only some of a prompt." in sentence(record)


def test_a_run_whose_decode_reads_whole_prompts_has_no_such_section(merged: Reader) -> None:
    assert "reading" not in merged.sections


def test_runs_that_read_less_stand_beside_others(tmp_path: Path) -> None:
    made = {"plain": runs.big(), "less": selecting()}
    folders = [runs.write_run(tmp_path / name, of) for name, of in made.items()]
    page = Reader(Html().page([read_record(folder) for folder in folders], tmp_path / "both.html").read_text("utf-8"))
    assert "run\nunified\nunselected\nstaged\nadded by reading less" in page.sections["fidelity"]
    assert page.sections["fidelity"].count(f"\n0.050 {PM} 0.010") == 1


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = runs.write_run(tmp_path / "run", runs.big(), tasks=True)
    first = Html().page([read_record(folder)], folder / "report.html").read_bytes()
    assert Html().page([read_record(folder)], folder / "report.html").read_bytes() == first
    assert Html().report(runs.big(), folder).read_bytes() == first, "an outcome that has been in a file tells the same"


def test_colours_and_the_font_are_those_of_the_page(tmp_path: Path) -> None:
    folder = runs.write_run(tmp_path / "run", runs.merged())
    text = Html().page([read_record(folder)], folder / "report.html").read_text(encoding="utf-8")
    pictures = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert "var(--accent)" in pictures
    assert not re.findall(r"#[0-9a-f]{6}\b(?!\")", re.sub(r"(?:url\(|href=\")#[^)\"]*", "", pictures))
    assert "font-family" not in pictures
    assert "DejaVu" not in text


def test_what_a_run_says_cannot_become_markup(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script> & $x^2$"
    said = AnswerSample(evil, evil, {"dense": evil, "unified": f"{evil} {evil}", evil: "<b>"})
    near = replace(runs.fidelity(), samples=(said,))
    outcome = replace(
        runs.big(), fidelity=near, model=evil, notes=(evil,), gains=(Gain("4", 1.0, 0.5, kept_in_prefill=False),), objective=evil
    )
    text = Html().page([read_record(tmp_path, outcome)], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert Reader(text).open == []


def test_tables_have_the_numbers(merged: Reader) -> None:
    assert "staged\n66.4 \N{PLUS-MINUS SIGN} 2.8\n63.4 \N{PLUS-MINUS SIGN} 2.8" in merged.sections["results"]
    assert "decode weight traffic (bytes a token)\n141.00 G\n122.00 G\n\N{MINUS SIGN}13.5 %" in merged.sections["costs"]
    assert "15+16\n0.9669\n3.73\n3.64\n3.33\nno better than a drop" in merged.sections["merges"]
    assert "pdtrim-core serve" in merged.sections["serve"]
    near = merged.sections["fidelity"]
    assert "Staged is 0.411 \N{PLUS-MINUS SIGN} 0.050 nats a token nearer to dense than unified. Measured on 64 held-out" in near
    assert "unified\n0.812 \N{PLUS-MINUS SIGN} 0.090\n66.4 \N{PLUS-MINUS SIGN} 1.2\n59.4" in near
    assert "57.9 \N{PLUS-MINUS SIGN} 1.3\n14.1\n4.7\n0.04\n16.2 \N{PLUS-MINUS SIGN} 3.0\n1.20" in near
    assert "Linux x86_64, 2 cores" in merged.sections["made"]
    assert 'use = "annealing"' in merged.sections["made"]


def test_a_replaced_model_has_no_block_diagram_and_nothing_to_serve(tmp_path: Path) -> None:
    page = page_of(runs.write_run(tmp_path / "run", runs.replaced()))
    assert "There is no block diagram" in page.sections["diagram"]
    assert "unified is the one that replaced it, in both stages" in page.sections["results"]
    assert "There is no pair to serve" in page.sections["serve"]
    assert "slicegpt replaced " in page.sections[""]
    assert not {"similarity", "search", "gains", "merges"} & set(page.sections)


def test_a_run_that_has_not_finished_shows_what_there_is(tmp_path: Path) -> None:
    page = page_of(runs.write_unfinished(tmp_path / "run"))
    assert "has not finished" in page.sections[""]
    assert "Its score is 59.0" in page.sections["diagram"]
    assert "The plans in the journal, in order; the search has not finished." in page.sections["search"]
    assert "11 candidates, of which 3 cut short. The best is candidate 1 with a score of 59.0." in page.pictures[2]
    assert "Norms by depth are missing" in page.sections["similarity"]
    assert "results" not in page.sections


def test_a_run_that_only_began_has_a_page_too(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text("")
    page = page_of(tmp_path)
    assert "has not finished" in page.sections[""]


def test_a_run_from_before_steps_and_norms_were_kept_shows_its_journal(tmp_path: Path) -> None:
    folder = runs.write_unfinished(tmp_path / "run")
    (folder / "outcome.json").write_text(replace(runs.big(), norms=(), search=()).to_json())
    page = page_of(folder)
    assert "did not record which of them it continued from" in page.sections["search"]
    assert "Norms by depth are missing: no scorer of this run recorded them." in page.sections["similarity"]


def test_several_runs_stand_side_by_side(tmp_path: Path) -> None:
    folders = [
        runs.write_run(tmp_path / "one", runs.big(), tasks=True),
        runs.write_run(tmp_path / "two", runs.merged(), tasks=True),
        runs.write_run(tmp_path / "three", runs.replaced()),
        runs.write_unfinished(tmp_path / "four"),
    ]
    file = Html().page([read_record(folder) for folder in folders], tmp_path / "comparison.html")
    page = Reader(file.read_text(encoding="utf-8"))
    assert "4 runs side by side: one, two, three and four." in page.sections[""]
    assert "Not finished, and shown as far as they have got: four." in page.sections[""]
    assert [label.partition(".")[0] for label in page.pictures] == [
        "one", "two", "Results of all runs", "KL divergence from the dense model", "Benchmarks of all runs", "Costs of all runs",
    ]  # fmt: skip
    assert "arc_challenge (acc): dense " in page.pictures[4]
    assert ", one " in page.pictures[4]
    assert "run\nunified\nstaged" in page.sections["fidelity"]
    assert "one, dense" in page.sections["tasks"]
    assert "three\n\N{MINUS SIGN}12.0 %" in page.sections["costs"]
    assert "two, staged" in page.sections["tasks"]
    assert "pruner.use\nslicegpt" in page.sections["recipes"]
    assert len(set(page.ids)) == len(page.ids)


def test_runs_whose_folders_are_called_the_same_are_told_by_their_paths(tmp_path: Path) -> None:
    folders = [runs.write_run(tmp_path / name / "run", runs.joint()) for name in ("a", "b")]
    file = Html().page([read_record(folder) for folder in folders], tmp_path / "comparison.html")
    assert f"{folders[0]} and {folders[1]}" in file.read_text(encoding="utf-8")


def test_the_sentence_says_what_went_and_why(tmp_path: Path) -> None:
    assert said(runs.joint(), tmp_path) == (
        "Decode runs without 5 blocks of 30 (5 to 9), the best of 37 candidates that annealing tried, by accuracy on 256 items; "
        "prefill keeps 3 of 5 (blocks 7 to 9), which gain at least 3 points each, and of blocks 20 to 29 it "
        "computes only the K/V."
    )
    assert said(runs.narrowed(), tmp_path).startswith(
        "Decode runs 32 of 32 blocks with fewer heads or channels, as llm-pruner chose; prefill keeps 3 of 64"
    )
    assert "runs without 17 blocks of 80 (between 40 and 72)" in said(runs.big(), tmp_path)


def test_the_sentence_gives_no_reason_that_does_not_hold(tmp_path: Path) -> None:
    weak = tuple(replace(gain, gain=1.0) for gain in runs.joint().gains)
    assert "which gain" not in said(replace(runs.joint(), gains=weak), tmp_path)
    plan = Plan.unified(Removal([Drop(3), Drop(4)]))
    strong = runs.outcome(plan, 30)
    assert "prefill loses the same." in said(strong, tmp_path)
    removed = tuple(Gain(str(e), 2.0, 1.0, kept_in_prefill=False) for e in plan.decode)
    assert "since keeping any one of them gains less than 3 points" in said(replace(strong, gains=removed), tmp_path)


def test_the_sentence_of_plans_at_the_edges(tmp_path: Path) -> None:
    assert "nothing was removed" in said(runs.outcome(Plan(), 30), tmp_path)
    kept = Plan(decode=Removal([Drop(3)]))
    assert "prefill keeps all of that" in said(runs.outcome(kept, 30), tmp_path)
    passed = Plan(Removal([KvOnly(29)]), Removal())
    assert "Decode loses nothing" in said(runs.outcome(passed, 30), tmp_path)


def step(score: float | None, floor: float | None = None, *, may_win: bool = True) -> SearchStep:
    return SearchStep("", "", score, score or 0.0, floor, None, may_win)


def test_the_path_begins_without_a_floor_and_goes_on_where_one_is_reached() -> None:
    steps = [step(50), step(40, 45.0), step(60, 30.0), step(None, 55.0), step(60, 55.0)]
    assert paths(steps) == [[0, 2, 4]]
    assert best_of(steps) == 2


def test_every_walk_has_its_own_path_and_the_better_of_two_starts_begins_it() -> None:
    steps = [step(50), step(52, may_win=False), step(51, 40.0), step(45), step(46, 45.0)]
    assert paths(steps) == [[1, 2], [3, 4]]
    assert best_of(steps) == 2


def test_a_search_without_floors_has_no_path() -> None:
    assert paths([step(50), step(60), step(70)]) == []
    assert best_of([]) is None


def test_tasks_that_were_measured_in_several_ways_are_told_apart(tmp_path: Path) -> None:
    runs.write_tasks(tmp_path)
    table = by_task(read_record(tmp_path, runs.big()).results)
    assert [task for task in table if task.startswith("boolq")] == ["boolq (acc, num_fewshot 0)", "boolq (acc, num_fewshot 5)"]
    perplexity = table["wikitext (word_perplexity)"]
    assert told(perplexity["staged"]) == "15.125 \N{PLUS-MINUS SIGN} 0.200"
    assert best(perplexity) == {"staged"}
    assert told(Metric(0.4567)) == "45.7"


def test_a_broken_result_is_named(tmp_path: Path) -> None:
    write_result(tmp_path, runs.result("piqa", "dense", Metric(0.5), "acc"))
    (file,) = (tmp_path / "evaluations").glob("*/*.json")
    file.write_text("{")
    with pytest.raises(PdtrimError, match="is no result of an evaluation: delete it and evaluate again"):
        read_record(tmp_path, runs.big())


@pytest.mark.parametrize(("package", "what"), [("matplotlib", "draws with matplotlib"), ("jinja2", "needs jinja2")])
def test_a_missing_package_is_named(package: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(PdtrimError) as caught:
        Html().report(runs.joint(), tmp_path)
    install = f"pip install {package}, then pdtrim-core report RUN"
    assert str(caught.value) == f"report 'html' {what}, which is not installed: {install}"


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (ranges([0, 1, 2, 4, 6, 7]), "0 to 2, 4, 6 and 7"),
        (ranges([5]), "5"),
        (change(0.132), "\N{MINUS SIGN}13.2 %"),
        (change(0.0), "0.0 %"),
        (change(-0.5), "+50.0 %"),
        (duration(59.6), "1 min 0 s"),
        (duration(3671), "1 h 1 min"),
        (element("13"), "block 13"),
        (element("9+10"), "blocks 9+10"),
        (element("7.mlp-337"), "MLP of block 7"),
    ],
)
def test_wording(made: Any, text: str) -> None:
    assert made == text
