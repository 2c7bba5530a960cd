"""Whether a pair that is served is the pair that was measured: its tokens, and what its servers count.

Silent failures are what it looks for: a decode that computes prompts itself, K/V that come to the wrong layers, a partner of
another plan, another number format. All of them answer, and look well.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pdtrim_core.errors import PdtrimError
from pdtrim_core.serving.engine import Counts, Served

LENGTHS = (2, 31, 32, 33, 64, 65, 129, 200, 257)
"""Prompts of one cache block and of several, whole ones, and one token more or less."""
NEW_TOKENS = 16
SHARE = 0.99
AT_ONCE = 8
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
TIES = {"float32": 0.01, "float16": 0.15, "bfloat16": 0.5}
"""How far behind the likeliest a token may be, in log-probabilities: that two programs differ by rounding."""

Behind = Callable[[Sequence[int], Sequence[int]], Sequence[float]]
"""Of a prompt and an answer, how far each token is behind the likeliest one by the reference."""


@dataclass(frozen=True)
class Shape:
    """What of a decode checkpoint decides how many bytes a prompt is."""

    layers: int
    heads: int
    size: int
    dtype: str

    def bytes_of(self, prompts: Iterable[Sequence[int]], block: int) -> int:
        """Return the bytes of the K/V of prompts, which are handed over in whole cache blocks."""
        blocks = sum(-(-len(prompt) // block) for prompt in prompts)
        return 2 * self.layers * self.heads * self.size * BYTES[self.dtype] * block * blocks


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: what was found, what it should be, and whether it is; None where it could not be told."""

    name: str
    found: str
    wanted: str
    ok: bool | None


@dataclass(frozen=True)
class Pair:
    """Where a pair is: what clients talk to, and its servers."""

    front: Served
    prefill: Sequence[Served]
    decode: Sequence[Served]


@dataclass(frozen=True)
class Expected:
    """What a pair should be: the reference of its tokens, the tie that it allows, its plan and the shape of decode, if known."""

    behind: Behind
    tie: float
    vocabulary: int
    plan: str | None = None
    shape: Shape | None = None


def verify(
    pair: Pair,
    expected: Expected,
    *,
    seed: int,
    lengths: Sequence[int] = LENGTHS,
    tell: Callable[[str], None] = lambda what: None,
) -> list[Check]:
    """Ask a pair, and return what was found; `tell` is told what takes its time now.

    Raises `PdtrimError` where something does not answer.
    """
    model, checks = _model_of(pair, expected)
    if any(check.ok is False for check in checks):
        # What servers of two plans answer together says nothing, and the proxy gives none.
        return checks
    most = min((limit for limit in (served.limit() for served in (*pair.prefill, *pair.decode)) if limit), default=None)
    draw = random.Random(seed)  # noqa: S311 - prompts
    lengths = [length for length in lengths if most is None or length + NEW_TOKENS <= most]
    if not lengths:
        raise PdtrimError(f"the servers take {most} tokens at most: too few for a prompt of 2 and {NEW_TOKENS} behind it")
    rounds = [[[draw.randrange(expected.vocabulary) for _ in range(length)] for length in lengths] for _ in range(2)]
    tell(f"asking for answers to {len(lengths)} prompts, one after the other")
    # What others asked before is surely counted once another answer is here.
    pair.front.answer(model, [draw.randrange(expected.vocabulary) for _ in range(lengths[0])], NEW_TOKENS)
    before = [_settled(served) for served in pair.decode]
    fallen, answers = _asked_one_by_one(pair, model, rounds[0])
    moved = _moved(pair, before, expected.shape, rounds[0])
    tell(f"asking for answers to {len(lengths)} prompts, {AT_ONCE} at once")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers += pool.map(lambda prompt: pair.front.answer(model, prompt, NEW_TOKENS), rounds[1])
    prompts = rounds[0] + rounds[1]
    after = [_settled(served) for served in pair.decode]
    tell("comparing with what the answers should be, which are computed token by token")
    return [
        *checks,
        _tokens(prompts, answers, expected),
        *_of_decode(before, after, prompts, fallen),
        moved,
    ]


def _model_of(pair: Pair, expected: Expected) -> tuple[str, list[Check]]:
    """Return the name to ask for: that with the plan where all servers have one."""
    names = [set(served.models()) for served in (*pair.prefill, *pair.decode)]
    everywhere = set.intersection(*names)
    planned = sorted(name for name in everywhere if "@" in name)
    told = ", ".join(sorted(set.union(*names)))
    if expected.plan is not None:
        right = [name for name in planned if expected.plan.startswith(name.rpartition("@")[2])]
        return (right or ["none"])[0], [Check("plan of all servers", told, f"MODEL@{expected.plan[:12]}", bool(right))]
    if not planned and any("@" in name for found in names for name in found):
        return "none", [Check("plan of all servers", told, "the same MODEL@PLAN", ok=False)]
    return (planned or pair.front.models())[0], []


def _asked_one_by_one(pair: Pair, model: str, prompts: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """Return the lengths of the prompts that decode computed itself, and all answers."""
    fallen, answers = [], []
    for prompt in prompts:
        before = [served.counts() for served in pair.decode]
        answers.append(pair.front.answer(model, prompt, NEW_TOKENS))
        after = [_settled(served) for served in pair.decode]
        if sum(map(_computed, after)) - sum(map(_computed, before)) > max(1, len(prompt) // 2):
            fallen.append(len(prompt))
    return fallen, answers


def _settled(served: Served) -> Counts:
    """Return the counts of a decode server when nothing is running there any more."""
    last: list[float] = []

    def quiet(counts: Counts) -> bool:
        now = _prompt_tokens(counts)
        running = (counts.of("vllm:num_requests_running") or 0) + (counts.of("vllm:num_requests_waiting") or 0)
        last.append(now)
        return not running and len(last) > 1 and last[-2] == now

    return served.counts_when(quiet)


def _prompt_tokens(counts: Counts) -> float:
    found = counts.of("vllm:prompt_tokens")
    if found is None:
        raise PdtrimError("decode's /metrics has no vllm:prompt_tokens: it is no vLLM, or runs with --disable-log-stats")
    return found


def _computed(counts: Counts) -> float:
    """Return the prompt tokens that a server computed itself."""
    found = counts.of("vllm:prompt_tokens_by_source", source="local_compute")
    if found is None:
        raise PdtrimError("decode's /metrics has no vllm:prompt_tokens_by_source: this needs a newer vLLM")
    return found


def _grown(before: Sequence[Counts], after: Sequence[Counts], name: str) -> float | None:
    pairs = [(old.of(name), new.of(name)) for old, new in zip(before, after, strict=True)]
    if all(new is None for _, new in pairs):
        return None
    return sum((new or 0) - (old or 0) for old, new in pairs)


def _tokens(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], expected: Expected) -> Check:
    most, wrong = 0.0, []
    for prompt, answer in zip(prompts, answers, strict=True):
        if len(answer) != NEW_TOKENS:
            wrong.append(len(prompt))
            continue
        behind = max(expected.behind(prompt, answer))
        most = max(most, behind)
        if behind > expected.tie:
            wrong.append(len(prompt))
    found = f"{len(prompts) - len(wrong)} of {len(prompts)} answers; a token is at most {most:.3g} behind the likeliest"
    if wrong:
        found += f"; wrong: prompts of {', '.join(map(str, sorted(set(wrong))))} tokens"
    return Check("tokens as the reference's", found, f"{len(prompts)} answers, at most {expected.tie:g}", not wrong)


def _of_decode(
    before: Sequence[Counts], after: Sequence[Counts], prompts: Sequence[Sequence[int]], fallen: Sequence[int]
) -> Iterable[Check]:
    asked, total = sum(map(len, prompts)), sum(map(_prompt_tokens, after)) - sum(map(_prompt_tokens, before))
    yield Check("prompt tokens at decode", f"{total:g}", f"{asked} (nobody else asks)", total == asked)
    computed = sum(map(_computed, after)) - sum(map(_computed, before))
    # Decode runs the last token of each prompt, which is no fallback.
    share = 1 - max(0.0, computed - len(prompts)) / max(1, asked - len(prompts))
    yield Check("prompt tokens handed over", f"{share:.1%}", f"{SHARE:.0%} or more", share >= SHARE)
    told = f"{len(fallen)}{' of ' + ', '.join(map(str, fallen)) + ' tokens' if fallen else ''}"
    yield Check("prompts that decode computed itself", told, "0", not fallen)
    for name, what in (
        ("vllm:nixl_num_failed_transfers", "transfers that failed"),
        ("vllm:num_preemptions", "preemptions at decode"),
    ):
        grown = _grown(before, after, name)
        yield Check(what, "not counted" if grown is None else f"{grown:g}", "0", None if grown is None else grown == 0)


def _moved(pair: Pair, before: Sequence[Counts], shape: Shape | None, prompts: Sequence[Sequence[int]]) -> Check:
    name, what = "vllm:nixl_bytes_transferred_sum", "bytes handed over"
    wanted = None
    block = before[0].label("vllm:cache_config_info", "block_size")
    if shape is not None and block and block.isdecimal():
        wanted = shape.bytes_of(prompts, int(block))

    def grown() -> float | None:
        return _grown(before, [served.counts() for served in pair.decode], name)

    if wanted is not None:
        pair.decode[0].counts_when(lambda _: grown() in (None, wanted))
    found = grown()
    shown = "not counted" if found is None else f"{found:,.0f}"
    if wanted is None:
        return Check(what, shown, "not known: name decode's checkpoint with --checkpoint", None)
    return Check(what, shown, f"{wanted:,.0f}", None if found is None else found == wanted)
