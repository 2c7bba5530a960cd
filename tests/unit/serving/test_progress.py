"""What is said of a server while it starts."""

from __future__ import annotations

from pdtrim_core.serving.progress import Progress, doing_in

LOG = """
INFO [cpu_model_runner.py:68] Starting to load model pair/prefill...
INFO [default_loader.py:502] Loading weights took 0.51 seconds
INFO [cpu_model_runner.py:87] Warming up model for the compilation...
INFO [entry.py:140] Starting vLLM server on http://127.0.0.1:8100
"""


def test_each_step_is_told_with_its_seconds_and_a_long_one_again() -> None:
    progress = Progress(100.0)
    said = [text for lines, now in ((1, 101.0), (2, 105.0), (2, 130.0), (3, 140.0), (3, 169.0), (3, 171.0), (4, 300.0))
            for text in progress.news("\n".join(LOG.splitlines()[:lines]), "", now)]  # fmt: skip
    assert said == [
        "loads the model, 5 s after its start (starts: 5 s)",
        "compiles and measures its memory, 40 s after its start (loads the model: 35 s)",
        "compiles and measures its memory for 31 s",
        "compiles and warms up, 200 s after its start (compiles and measures its memory: 160 s)",
    ]


def test_a_long_wait_says_why() -> None:
    assert list(Progress(0.0).news("", "a first prompt is being handed over", 31.0)) == [
        "starts for 31 s; a first prompt is being handed over"
    ]


def test_the_last_sign_counts() -> None:
    assert doing_in(LOG) == "begins to answer"
    assert doing_in("nothing of the kind") == "starts"
