"""Recipes drawn by hypothesis, for the tests of reading them and of their schema."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

BASE: dict[str, Any] = {"model": {"path": "package:none"}, "prune": {"blocks": 1}}
NUMBERS = st.floats(min_value=0.01, max_value=0.99)
COUNTS = st.integers(min_value=1, max_value=999)
PLAIN = st.text("abcxyz-_.", min_size=1, max_size=8)


def options(*required: str, **optional: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"use": st.sampled_from(required)} if required else {}, optional=optional)


PRUNES = st.fixed_dictionaries(
    {},
    optional={
        "merge_threshold": st.one_of(NUMBERS, st.integers(min_value=0, max_value=2), NUMBERS.map(lambda q: {"quantile": q}))
    },
)
RECIPES = st.fixed_dictionaries(
    {
        "model": st.one_of(
            st.just("package:none"),
            st.fixed_dictionaries(
                {"path": st.sampled_from(["package:none", "./x.gguf", "./folder", "owner/name"])},
                optional={"dtype": st.sampled_from(["auto", "float32", "bfloat16"]), "placement": PLAIN},
            ),
            st.fixed_dictionaries({"path": st.just("owner/name"), "use": st.just("hub"), "revision": PLAIN}),
        ),
        "prune": st.one_of(
            st.builds(lambda a, b: {**a, "blocks": b}, PRUNES, st.integers(min_value=0, max_value=99)),
            st.builds(lambda a, b: {**a, "fraction": b}, PRUNES, NUMBERS),
        ),
    },
    optional={
        "recipe": st.just(1),
        "seed": st.integers(min_value=0, max_value=2**40),
        "out": st.text(min_size=1, max_size=8).filter(lambda text: text.isprintable()),
        "plugins": st.lists(PLAIN, max_size=2),
        "scorer": st.sampled_from(["cosine", "dot", {"use": "euclidean"}, "pdtrim-core/cosine"]),
        "searcher": st.one_of(
            st.sampled_from(["annealing", "greedy"]),
            options(t0=NUMBERS, alpha=NUMBERS),
            options("random", tries=COUNTS),
        ),
        "splitter": st.one_of(
            st.sampled_from(["unified", "dense-prefill"]),
            options("gain", threshold=NUMBERS, unit=st.sampled_from(["score", "relative"])),
        ),
        "recovery": st.one_of(
            st.sampled_from(["none", [], "fold", "pdtrim-core/kv-refit", ["kv-refit", "fold"], ["fold", "fold"]]),
            options("fold", tokens=COUNTS, ridge=NUMBERS, stage=st.sampled_from(["decode", "prefill", "both"])),
            st.lists(options("fold", "kv-refit", tokens=COUNTS, ridge=NUMBERS), max_size=3),
        ),
        "recovery_data": st.fixed_dictionaries(
            {},
            optional={
                "sources": st.lists(st.sampled_from(["generated", "calibration", "./own.jsonl"]), min_size=1, max_size=3),
                "prompt_tokens": st.integers(min_value=2, max_value=999),
                "answer_tokens": st.integers(min_value=2, max_value=999),
            },
        ),
        "formats": st.fixed_dictionaries(
            {},
            optional={
                "use": st.sampled_from(["rtn", "pdtrim-core/rtn"]),
                "decode": st.sampled_from(["W4A16", "W8A8", "none"]),
                "prefill": st.sampled_from(["FP8_DYNAMIC", "W8A16", "none"]),
                "group_size": st.integers(min_value=8, max_value=256),
            },
        ),
        "objective": st.sampled_from(["accuracy", "margin", {"use": "perplexity"}, {"use": "kl", "along": "right"}]),
        "calibration": options("mini", samples=COUNTS, held_out=COUNTS),
        "exporter": st.sampled_from(["plan", [], ["plan"], [{"use": "plan"}]]),
        "report": st.sampled_from(["table", [], ["table", {"use": "table"}]]),
        "evaluation": options(
            first_token=st.sampled_from(["decode", "prefill"]),
            truncate_prefill=st.booleans(),
            batch_tokens=COUNTS,
            cache_budget=st.integers(min_value=0, max_value=2**50),
            threads=COUNTS,
            early_stop=st.booleans(),
            pack_rows=st.booleans(),
            compile=st.booleans(),
            share_tokens=st.booleans(),
            reuse_plans=st.booleans(),
            fidelity=st.booleans(),
            answer_tokens=COUNTS,
            own_answers=COUNTS,
        ),
    },
)
