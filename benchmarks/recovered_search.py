"""Whether a search finds better pairs where it measures its candidates with an estimate of their recovery, in the same minutes.

`recovery.py --search MINUTES` runs it. Each search is followed by the same recovery, and what is compared is the KL of the
recovered pairs, paired over texts and seeds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from searchers import CEILING, FRACTION, LONG

from pdtrim_core import LoadedRun, load_run
from pdtrim_core.data.readings import standard_error
from pdtrim_core.host.host import PluginHost
from pdtrim_core.pipeline.pipeline import run
from pdtrim_core.pipeline.run_cache import RunCache
from pdtrim_core.recipe.recipe import Recipe

SEARCHERS: Mapping[str, Mapping[str, Any]] = {
    "annealing": {"searcher": {"use": "restarts", **LONG}},
    "sequential, 10 candidates": {"searcher": {"use": "sequential", "candidates": 10, "swaps": 9}},
}
RECOVERY = [{"use": use, "tokens": 6_400} for use in ("exact-first-token", "kv-refit", "fold")]
"""The default's recoveries from fewer tokens: a minute instead of five, after each search."""
WAYS = {"as it is": False, "with its estimated recovery": True}
"""What a candidate is measured as."""
Divergences = Mapping[str, Sequence[float]]
Measure = Callable[[Any, Any], Divergences]


@dataclass(frozen=True)
class Searches:
    """Searches of one model, each of so many minutes; a run that `out` has already is not made again."""

    path: str
    minutes: float
    seeds: int
    host: PluginHost
    out: Path
    shared: RunCache = field(default_factory=RunCache)

    def rows(self, measure: Measure) -> Iterator[dict[str, Any]]:
        """Yield a row a searcher and way; `measure` gives the divergences of texts, by kind, of a plan with its modules."""
        for searcher in SEARCHERS:
            found: dict[str, list[Divergences]] = {way: [] for way in WAYS}
            plans: dict[str, list[str]] = {way: [] for way in WAYS}
            for seed in range(self.seeds):
                for way in WAYS:
                    loaded = self._pair(searcher, way, seed)
                    found[way].append(measure(loaded.plan_of("staged"), loaded.modules_of("staged")))
                    plans[way].append(str(loaded.plan_of("staged").decode))
                    means = {kind: round(statistics.fmean(values), 4) for kind, values in found[way][-1].items()}
                    print(f"  {searcher}, {way}, seed {seed}: {plans[way][-1]}  {means}", flush=True)
            yield from (row_of(searcher, way, found, plans[way]) for way in WAYS)

    def _pair(self, searcher: str, way: str, seed: int) -> LoadedRun:
        folder = self.out / f"{searcher} {way} {seed}".replace(" ", "-").replace(",", "")
        recipe = Recipe.from_data(
            {
                "seed": seed,
                "model": {"path": self.path, "placement": "cpu"},
                "calibration": {"use": "mini", "samples": 64, "held_out": 0},
                "prune": {"fraction": FRACTION, "merges": False},
                "search": {"recovered": WAYS[way], "minutes": self.minutes},
                "splitter": {"use": "kv-tail", "prefill_at_most": CEILING},
                "recovery": RECOVERY,
                "evaluation": {"threads": 1, "fidelity": False},
                **SEARCHERS[searcher],
            },
            where="search",
            out=folder,
            host=self.host,
        )
        if not (folder / "outcome.json").is_file():
            run(recipe, self.host, shared=self.shared)
        return load_run(folder, self.host)


def row_of(searcher: str, way: str, found: Mapping[str, Sequence[Divergences]], plans: Sequence[str]) -> dict[str, Any]:
    """Return how far the recovered pairs of a way are, and by how much further than those found as they are."""
    first = next(iter(WAYS))
    row: dict[str, Any] = {"searcher": searcher, "measured": way, "plans": list(plans)}
    for kind in found[way][0]:
        values = [value for of_seed in found[way] for value in of_seed[kind]]
        gaps = [value - other for value, other in zip(values, [v for one in found[first] for v in one[kind]], strict=True)]
        row[kind] = {"kl": statistics.fmean(values), "above_first": statistics.fmean(gaps), "error": standard_error(gaps)}
    return row
