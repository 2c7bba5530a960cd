"""The decode model as a draft for speculative decoding: the dense model's own output, written faster where the draft is right."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pdtrim_core.api import ExportFacts, PdtrimError
from pdtrim_plugins.exporters.card import card, write_card
from pdtrim_plugins.exporters.checkpoint_folder import export_folder, occupied, write_checkpoint
from pdtrim_plugins.exporters.checkpoints import WeightsExporter, in_format, no_plan, other_dtype, plan_of
from pdtrim_plugins.exporters.configs import numbered, ordinary
from pdtrim_plugins.exporters.stages import Parts, decode_blocks

if TYPE_CHECKING:
    from pdtrim_core.api import BlockModel, Outcome

FOLDER = "draft"
MOST = 8
"""Tokens that a draft writes ahead, at most, in the table."""
OTHER_METHODS = ("eagle-", "eagle3", "dflash", "dspark")
"""Parts of a path by which vLLM takes a draft for one of another method, whatever it is told."""
GREEDY, SAMPLED = "top1", "acceptance"
"""The figures of fidelity that say how often a drafted token is taken, where the output is greedy and where it is sampled."""


class Draft(WeightsExporter):
    """Writes draft/: the decode model as a checkpoint of its family, and how vLLM takes it as the draft of the dense model.

    A draft writes a few tokens ahead, and the dense model checks them all at once: the output is the dense model's own. The draft
    reads its own prompt, so it is the pair's decode in both stages, and its figures are those of the variant `unified`.
    """

    name = "draft"
    cites = "Leviathan et al. (arXiv:2211.17192)"

    def problems(self, facts: ExportFacts) -> list[str]:
        """Return why such a model can be no draft, as far as the model and the recipe tell."""
        if facts.replaced:
            return [no_plan(facts)]
        found = [*numbered(facts.model, facts.text_config), *_of_engine(facts), *other_dtype(facts, self.dtype)]
        return [*found, *occupied(facts.out / FOLDER)]

    def export(self, outcome: Outcome, model: BlockModel, out: Path) -> Iterable[Path]:
        """Write the folder."""
        self.check(ExportFacts.of_run(outcome, model, out))
        saved, storage = plan_of(outcome, model), self._storage
        parts = Parts.of_run(model, saved, out)
        stored = decode_blocks(parts, saved.plan)
        try:
            config = ordinary(model, stored)
        except PdtrimError as error:
            raise PdtrimError(f"no engine has a class for such a draft: {error}") from None
        config.pdtrim = {"format": 1, "plan_hash": saved.digest}
        parts.give_format(config, "decode")
        with export_folder(out / FOLDER) as folder:
            write_checkpoint(folder, model, config, stored, storage)
            what = f"A draft of {model.name} for speculative decoding; {storage.told(model)}{in_format(saved, 'decode')}."
            text = f"{what}\n\n{usage(outcome, out / FOLDER)}"
            write_card(folder, outcome, card(outcome, model, role="draft", text=text, run=out))
        yield out / FOLDER


def _of_engine(facts: ExportFacts) -> Iterator[str]:
    """Yield why vLLM would not take a draft."""
    folder = facts.out / FOLDER
    # As it is given and where links lead: vLLM may be told either.
    taken = [(path, part) for path in (folder, folder.resolve()) for part in OTHER_METHODS if part in str(path).lower()]
    for path, part in taken[:1]:
        yield f"{path}: vLLM takes a draft with '{part}' in its path for one of another method: choose another with --out"
    kinds = set(getattr(facts.text_config, "layer_types", None) or ())
    if len(kinds) > 1:
        yield f"{facts.model} has {' and '.join(sorted(kinds))}: vLLM wants all K/V of a draft in one cache group"
    if not facts.uniform:
        yield "the blocks of decode differ in width, and no engine has a class for such a draft"


def speed_up(taken: float, cost: float, ahead: int) -> float:
    """Return how many times as fast the dense model writes with a draft (Leviathan et al., Theorem 3.8).

    `taken` is the share of drafted tokens that it takes, `cost` that of a token of the draft by one of its own, and `ahead` how
    many tokens are drafted at once.
    """
    written = ahead + 1.0 if taken == 1 else (1 - taken ** (ahead + 1)) / (1 - taken)
    return written / (ahead * cost + 1)


def best(taken: float, cost: float) -> int:
    """Return how many tokens ahead are fastest."""
    return max(range(1, MOST + 1), key=lambda ahead: speed_up(taken, cost, ahead))


def usage(outcome: Outcome, folder: Path) -> str:
    """Return how vLLM takes the draft, and what is expected of it."""
    cost = outcome.cost("decode weight traffic")
    ratio = cost.plan / cost.dense
    figures = {} if outcome.fidelity is None else outcome.fidelity.variants.get("unified", {})
    taken = {name: figures[name].value for name in (GREEDY, SAMPLED) if name in figures}
    ahead = best(taken[GREEDY], ratio) if GREEDY in taken else 1
    config = json.dumps({"method": "draft_model", "model": str(folder), "num_speculative_tokens": ahead})
    command = f"python -m vllm.entrypoints.openai.api_server --model DENSE --speculative-config {shlex.quote(config)}"
    note = 'DENSE is the dense model as vLLM loads it. Where output is sampled, add `"draft_sample_method": "probabilistic"`.'
    return "\n\n".join([f"```sh\n{command}\n```", note, *_expected(taken, ratio)])


def _expected(taken: dict[str, float], ratio: float) -> Sequence[str]:
    """Return a table of the speed that is expected, and whether it pays."""
    if GREEDY not in taken or SAMPLED not in taken:
        return ["What to expect of it is not known: the run did not measure its fidelity (`evaluation.fidelity`)."]
    about = (
        f"A token of the draft costs {ratio:.2f} of one of the dense model, by the bytes of their weights. The dense model takes "
        f"{taken[GREEDY]:.0%} of the draft's tokens where output is greedy (top-1 agreement) and {taken[SAMPLED]:.0%} where it "
        "is sampled (acceptance), measured on the run's held-out prompts with this model in both stages. Expected speed, as a "
        "multiple of the dense model's alone:"
    )
    rows = [
        f"| {ahead} | " + " | ".join(_cell(taken[name], ratio, ahead) for name in (GREEDY, SAMPLED)) + " |"
        for ahead in range(1, MOST + 1)
    ]
    table = "\n".join(["| tokens ahead | greedy | sampled |", "| --- | --- | --- |", *rows])
    pays = any(speed_up(share, ratio, best(share, ratio)) > 1 for share in taken.values())
    verdict = "" if pays else "No number of tokens pays: a draft must cost much less than the dense model or be right more often."
    return [part for part in (about, table, verdict) if part]


def _cell(taken: float, ratio: float, ahead: int) -> str:
    figure = f"{speed_up(taken, ratio, ahead):.2f}"
    return f"**{figure}**" if ahead == best(taken, ratio) else figure
