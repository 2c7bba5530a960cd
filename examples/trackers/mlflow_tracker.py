"""Writes runs into MLflow: the recipe as parameters, candidates as steps, the outcome as metrics, the plan as an artifact."""

import mlflow

from pdtrim_core.api import hookimpl


@hookimpl
def pdtrim_run_started(recipe, out):
    mlflow.start_run(run_name=out.name)
    mlflow.log_params({"model": recipe["model"]["path"], "seed": recipe["seed"], **recipe.get("prune", {})})


@hookimpl
def pdtrim_candidate_measured(candidate):
    mlflow.log_metrics({} if candidate.best is None else {"best": candidate.best}, step=candidate.number)


@hookimpl
def pdtrim_run_finished(outcome):
    near = {} if outcome.fidelity is None else outcome.fidelity.variants
    mlflow.log_metrics({f"kl.{variant}": metrics["kl"].value for variant, metrics in near.items() if "kl" in metrics})
    mlflow.log_metrics({f"score.{row.name}": row.calibration.score for row in outcome.rows})
    mlflow.log_dict(outcome.saved_plan or {}, "plan.json")


@hookimpl
def pdtrim_run_ended():
    mlflow.end_run()
