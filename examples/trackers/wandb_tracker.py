"""Writes runs into Weights & Biases, or anything with its `init`, `log` and `finish`; WANDB_MODE=offline needs no account."""

import wandb

from pdtrim_core.api import hookimpl


@hookimpl
def pdtrim_run_started(recipe, out):
    wandb.init(project="pdtrim", name=out.name, config=recipe)


@hookimpl
def pdtrim_candidate_measured(candidate):
    if candidate.best is not None:
        wandb.log({"candidate": candidate.number, "best": candidate.best})


@hookimpl
def pdtrim_run_finished(outcome):
    near = {} if outcome.fidelity is None else outcome.fidelity.variants
    wandb.log({f"kl/{variant}": metrics["kl"].value for variant, metrics in near.items() if "kl" in metrics})
    wandb.log({f"score/{row.name}": row.calibration.score for row in outcome.rows})


@hookimpl
def pdtrim_run_ended():
    wandb.finish()
