"""`pdtrim-core verify` from the outside: a table and an exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.unit.serving.served_pair import CONFIG, pretended

if TYPE_CHECKING:
    from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e


def test_a_table_and_an_exit_code_tell(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pretended() as (pair, urls):
        pair.names = {"prefill": ["stock"], "decode": ["stock"]}
        words = ("verify", urls["front"], "--prefill", urls["prefill"], "--decode", urls["decode"], "--unified", urls["decode"])
        done = cli(*words, "--checkpoint", tmp_path, "--seed", 3)
        assert done.code == 0
        assert done.err.splitlines() == [
            "verify: asking for answers to 9 prompts, one after the other",
            "verify: asking for answers to 9 prompts, 8 at once",
            "verify: comparing with what the answers should be, which are computed token by token",
        ]
        assert done.out.splitlines()[-1] == "the pair is what it should be; prompts of seed 3"
        pair.fault = "shifted"
        done = cli(*words, "--json")
        assert done.code == 1
        assert [check["name"] for check in json.loads(done.out) if check["ok"] is False] == ["tokens as the reference's"]
        done = cli(*words, "--seed", 3)
        assert done.code == 1
        assert done.out.splitlines()[-1] == "1 of 7 checks failed; prompts of seed 3"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "name what to compare with: the folder of the run, or --unified URL of a server with the whole model"),
        (
            ("--unified", "http://a"),
            "name the servers with --prefill URL and --decode URL: what they count tells silent failures",
        ),
        (("--unified", "a", "--prefill", "http://p", "--decode", "http://d"), "a is no address: give one like http://HOST:PORT"),
        (
            ("--unified", "http://a", "--prefill", "http://p", "--decode", "http://d", "--checkpoint", "nowhere"),
            "--checkpoint: there is no nowhere/config.json",
        ),
    ],
)
def test_what_users_get_wrong(cli: Cli, words: tuple[str, ...], message: str) -> None:
    done = cli("verify", "http://x", *words)
    assert (done.code, done.err) == (1, f"error: {message}\n")
