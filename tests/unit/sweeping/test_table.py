"""The table of a sweep, from its data."""

from __future__ import annotations

from typing import Any

from pdtrim_core.sweeping.table import COLUMNS, DEFAULT_COLUMNS, short_keys, shown, table_of


def value(points: float) -> dict[str, Any]:
    return {"mean": points / 100, "score": points, "error": 2.25, "items": 8}


def row(**changes: Any) -> dict[str, Any]:
    names = ("dense", "unified", "staged")
    return {
        "run": "t0=5",
        "name": "",
        "settings": {"searcher.t0": 5},
        "state": "done",
        "values": {name: {"calibration": value(60 + i), "held_out": value(50 + i)} for i, name in enumerate(names)},
        "kl": {
            "unified": {"value": 0.5, "error": 0.02, "higher_is_better": False},
            "staged": {"value": 0.25, "error": 0.0123, "higher_is_better": False},
        },
        "decode": ["1", "3+4"],
        "prefill": ["1", "kv:5"],
        "saved": {"prefill work for 1024 tokens": 0.125, "K/V shipped to decode": 0.4},
        "selections": ["2 first", "5 edges 0.15+0.15"],
        "sets": {"initial": [14, 17]},
        "merges": [{"pair": [3, 4], "kept": True}, {"pair": [5, 6], "kept": False}],
        "recovery": [{"name": "kv-refit", "kept": True}, {"name": "rescale", "kept": False}, {"name": "fold", "kept": True}],
        "block_scores": [0.5, 12345.678],
        "candidates": {"measured": 7, "cut_short": 3, "remembered": 9},
        "seconds": {"search": 2.4, "evaluate": 1.3},
        **changes,
    }


def data(*rows: dict[str, Any], settings: list[str] | None = None) -> dict[str, Any]:
    return {"columns": list(COLUMNS), "settings": ["searcher.t0"] if settings is None else settings, "rows": list(rows)}


def test_a_run_gives_a_row_with_every_column() -> None:
    heading, rows = table_of(data(row()))
    assert dict(zip(heading, rows[0], strict=True)) == {
        "t0": "5",
        "searched": "61.0 +- 2.2",
        "dense": "50.0 +- 2.2",
        "unified": "51.0 +- 2.2",
        "staged": "52.0 +- 2.2",
        "KL, nats": "0.250 +- 0.012",
        "decode loses": "1, 3+4",
        "prefill loses": "1, kv:5",
        "best scores": "14, 17",
        "merges to choose": "3+4",
        "recovery": "kv-refit, fold",
        "prefill work": "-12.5 %",
        "K/V shipped": "-40.0 %",
        "blocks that read less": "2",
        "measured": "10",
        "s": "4",
        "block scores": "0.5, 1.235e+04",
    }


def test_data_from_before_there_was_recovery_have_none() -> None:
    before = {key: value for key, value in row().items() if key != "recovery"}
    heading, rows = table_of({**data(before), "columns": ["recovery"]})
    assert (heading, rows) == (["t0", "recovery"], [["5", "-"]])


def test_data_from_before_there_were_selections_have_none() -> None:
    before = {key: value for key, value in row().items() if key != "selections"}
    assert table_of({**data(before), "columns": ["selected"]})[1] == [["5", "-"]]


def test_without_fidelity_there_is_no_column_of_it_and_of_a_run_without_it_an_empty_cell() -> None:
    before = {key: value for key, value in row().items() if key != "kl"}
    heading, _ = table_of(data(before, row(kl={})))
    assert "KL, nats" not in heading
    heading, rows = table_of(data(before, row()))
    assert [cells[heading.index("KL, nats")] for cells in rows] == ["", "0.250 +- 0.012"]


def test_the_divergence_of_a_replaced_model_is_that_of_the_whole_and_may_have_no_error() -> None:
    heading, rows = table_of(data(row(kl={"unified": {"value": 1.5, "error": None, "higher_is_better": False}})))
    assert rows[0][heading.index("KL, nats")] == "1.500"


def test_a_replaced_model_has_no_plan_and_nothing_staged() -> None:
    values = {name: {"calibration": value(60), "held_out": value(50)} for name in ("dense", "unified")}
    heading, rows = table_of(data(row(values=values, decode=None, prefill=None)))
    cells = dict(zip(heading, rows[0], strict=True))
    assert (cells["unified"], cells["staged"]) == ("50.0 +- 2.2", "")
    assert cells["decode loses"] == cells["prefill loses"] == "another model"


def test_without_items_kept_apart_the_values_are_those_searched_on() -> None:
    values = {name: {"calibration": value(60), "held_out": None} for name in ("dense", "unified", "staged")}
    heading, rows = table_of(data(row(values=values)))
    assert rows[0][heading.index("staged")] == "60.0 +- 2.2"


def test_names_that_were_given_stand_in_front() -> None:
    heading, rows = table_of(data(row(name="quick"), row(), settings=[]))
    assert (heading[0], rows[0][0], rows[1][0]) == ("run", "quick", "-")


def test_a_run_that_failed_has_its_settings_and_no_more() -> None:
    failed = {"run": "t0=5", "name": "", "settings": {"searcher.t0": 5}, "state": "failed", "problem": "x"}
    assert table_of(data(failed))[1] == [["5", *["failed"] * (len(COLUMNS) - 1)]]  # no run has the KL


def test_a_setting_that_a_run_does_not_have_is_left_open() -> None:
    assert table_of(data(row(settings={})))[1][0][0] == ""


def test_a_key_is_shortened_where_that_leaves_it_clear() -> None:
    keys = ["searcher.t0", "searcher.use", "a.threshold", "b.threshold", "seed"]
    assert list(short_keys(keys).values()) == ["t0", "searcher.use", "a.threshold", "b.threshold", "seed"]


def test_values_are_shown_as_a_recipe_says_them() -> None:
    given = ["text", 0.5, True, [1, 2], {"use": "random", "tries": 3}, {"use": "random"}, {"quantile": 0.9}]
    assert [shown(each) for each in given] == [
        "text",
        "0.5",
        "true",
        "[1, 2]",
        "random (tries = 3)",
        "random",
        '{"quantile": 0.9}',
    ]


def test_the_default_columns_exist() -> None:
    assert set(DEFAULT_COLUMNS) <= set(COLUMNS)
