"""The functions that score answers, where a task names one: the harness' own where they load, else our replacements."""

from __future__ import annotations

import contextlib
import functools
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pdtrim_core.errors import PdtrimError
from pdtrim_core.harness.execution import passes
from pdtrim_core.harness.overrides import overridden

OWN_RUNNER = "programs ran in pdtrim-core's own runner, for the harness' (code_eval of evaluate) must be fetched from the hub"
UNTRAINED = (
    "sentences were split by nltk's untrained splitter, for its data punkt_tab are not installed (python -m nltk.downloader "
    "punkt_tab); this touches instructions that count sentences"
)


def macro_f1() -> Callable[..., Any]:
    """Return the harness' F1 over the three classes of CommitmentBank."""
    from lm_eval.tasks.super_glue.cb.aggregate import cb_multi_fi  # noqa: PLC0415 - imports scikit-learn

    function: Callable[..., Any] = cb_multi_fi
    return function


def wikitext() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return the harness' own detokeniser of WikiText, and what counts the words and bytes of an article."""
    from lm_eval.tasks.wikitext import preprocess_wikitext as own  # noqa: PLC0415 - only one task wants it

    return own.wikitext_detokenizer, own.process_results


def complete(answers: Sequence[Sequence[str]], docs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return programs: the prompts of HumanEval with what was generated behind them."""
    return [[doc["prompt"] + answer for answer in of_doc] for of_doc, doc in zip(answers, docs, strict=True)]


def pass_at_1() -> tuple[Callable[..., Any], str | None]:
    """Return what gives the share of programs that pass their tests, and what must be said of it."""
    os.environ["HF_ALLOW_CODE_EVAL"] = "1"  # the harness' runner requires it; the user has confirmed on the command line
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            from lm_eval.tasks.humaneval.utils import pass_at_k  # noqa: PLC0415 - fetches its runner from the hub
    except Exception:  # noqa: BLE001 - whatever keeps a foreign module from loading, ours replaces it
        return _pass_at_1, OWN_RUNNER

    def pass_at_1(references: list[str], predictions: list[list[str]], **_: Any) -> Any:
        return pass_at_k(references=references, predictions=predictions, k=[1])

    return pass_at_1, None


def _pass_at_1(references: list[str], predictions: list[list[str]], **_: Any) -> dict[str, float]:
    passed = [
        passes(f"{program}\n{test}") for test, programs in zip(references, predictions, strict=True) for program in programs
    ]
    return {"pass@1": sum(passed) / len(passed)}


def ifeval() -> tuple[Callable[..., Any], Callable[..., Any], str | None]:
    """Return the harness' own check of instructions, the mean over instructions, and what must be said of them.

    Raises `PdtrimError` where the packages that they need are missing.
    """
    try:
        # It looks for data of nltk's when it is imported, tries to fetch them, and prints.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            from lm_eval.tasks.ifeval import utils  # noqa: PLC0415 - needs packages that others do not
    except ModuleNotFoundError as error:
        raise PdtrimError(f"ifeval needs the package {error.name}: pip install 'pdtrim-core[eval]'") from None
    if _has_sentences():
        return utils.process_results, utils.agg_inst_level_acc, None

    def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> Any:
        with _untrained():
            return utils.process_results(doc, results)

    return process_results, utils.agg_inst_level_acc, UNTRAINED


def _has_sentences() -> bool:
    import nltk  # noqa: PLC0415 - only one task wants it

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return False
    return True


@contextmanager
def _untrained() -> Iterator[None]:
    """Let the harness' checks split sentences without the data that it would fetch."""
    import nltk  # noqa: PLC0415 - only one task wants it
    from lm_eval.tasks.ifeval import instructions_util  # noqa: PLC0415 - the same

    words = functools.partial(nltk.word_tokenize, preserve_line=True)
    splitter = nltk.tokenize.punkt.PunktSentenceTokenizer()
    with overridden(instructions_util, _get_sentence_tokenizer=lambda: splitter), overridden(nltk, word_tokenize=words):
        yield
