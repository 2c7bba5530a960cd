"""Every built-in component holds to the contract of its kind."""

from __future__ import annotations

import sys
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from pdtrim_core.testing import (
    CalibrationContract,
    DistillerContract,
    ExporterContract,
    KvSelectorContract,
    ModelSourceContract,
    ObjectiveContract,
    PrunerContract,
    QuantizerContract,
    RecoveryContract,
    ReportContract,
    ScorerContract,
    SearcherContract,
    SplitterContract,
    TinyModel,
    tiny_transformers,
)
from pdtrim_core.testing.contracts import small_run
from pdtrim_plugins.calibrations import Jsonl, Mini, Text
from pdtrim_plugins.distillers import CosineLoss, LogitKl, Mse, MseCosine
from pdtrim_plugins.exporters.checkpoints import Checkpoints
from pdtrim_plugins.exporters.draft import Draft
from pdtrim_plugins.exporters.gguf_file import Gguf
from pdtrim_plugins.exporters.llm_compressor import LlmCompressor
from pdtrim_plugins.exporters.plan import PlanFile
from pdtrim_plugins.exporters.vllm import Vllm
from pdtrim_plugins.kv_selectors.paper import Paper
from pdtrim_plugins.kv_selectors.plain import All, FirstOnlySelector
from pdtrim_plugins.model_sources import FolderModel, GgufModel, HubModel, PackageModel
from pdtrim_plugins.objectives import Acceptance, Accuracy, Divergence, Margin, Perplexity
from pdtrim_plugins.pruners import (
    Fisher,
    Flap,
    Frequency,
    LaCo,
    LlmDrop,
    LlmPruner,
    Reap,
    ShortenedPpl,
    ShortenedTaylor,
    ShortGpt,
    Sleb,
    SliceGpt,
    Streamline,
    TorchPruning,
)
from pdtrim_plugins.quantizers.rtn import RoundToNearest
from pdtrim_plugins.recoveries import Distill, ExactFirstToken, Fold, KvRefit
from pdtrim_plugins.reports.html import Html
from pdtrim_plugins.reports.table import Table
from pdtrim_plugins.scorers import Cosine, Dot, Euclidean, Norm
from pdtrim_plugins.searchers import Annealing, Beam, Exhaustive, Greedy, Joint, RandomChoice, Restarts, Sequential
from pdtrim_plugins.splitters import Budget, DensePrefill, Experts, Gain, KeepSearchResult, KvTail, MixedTail, Pop, Unified
from tests.unit.plugins.gguf_files import signs_of_bytes, write_gguf

if TYPE_CHECKING:
    from pdtrim_core import PluginHost

MINI = str(resources.files("pdtrim_plugins") / "data" / "mini")
COMMIT = "0" * 40
PROSE = str(Path(__file__).resolve())


@pytest.mark.numeric
class TestCosine(ScorerContract):
    component = Cosine


@pytest.mark.numeric
class TestDot(ScorerContract):
    component = Dot
    departs: ClassVar[dict[str, str]] = {
        "test_a_silent_block_is_ranked_first": "a dot product grows with the norms of the states, which grow with depth",
    }


@pytest.mark.numeric
class TestEuclidean(ScorerContract):
    component = Euclidean


@pytest.mark.numeric
class TestNorm(ScorerContract):
    component = Norm
    departs: ClassVar[dict[str, str]] = {
        "test_a_silent_block_is_ranked_first": "a norm tells how long a state is, not what the block did to it",
    }


class TestFlap(PrunerContract):
    component = Flap
    options: ClassVar[dict[str, Any]] = {"tokens": 16}


class TestUniformFlap(PrunerContract):
    component = Flap
    options: ClassVar[dict[str, Any]] = {"tokens": 16, "structure": "UL-UM", "compat": "paper", "metric": "WIFN"}


class TestFisher(PrunerContract):
    component = Fisher
    options: ClassVar[dict[str, Any]] = {"texts": 8, "beginning": 4}


class TestLaCo(PrunerContract):
    component = LaCo


class TestLaCoAsItsAuthorsCode(PrunerContract):
    component = LaCo
    options: ClassVar = {"merge": "laco-code", "layers": 2, "interval": 2}


class TestShortGpt(PrunerContract):
    component = ShortGpt


class TestShortGptRun(PrunerContract):
    component = ShortGpt
    options: ClassVar[dict[str, Any]] = {"choose": "run", "average": "last-token", "last_block": "behind-norm"}


class TestShortGptPadded(PrunerContract):
    component = ShortGpt
    options: ClassVar[dict[str, Any]] = {"padding": "counted"}


class TestLlmDrop(PrunerContract):
    component = LlmDrop


class TestLlmDropOfBoth(PrunerContract):
    component = LlmDrop
    options: ClassVar[dict[str, Any]] = {"drop": "both"}


EIGHT: dict[str, Any] = {"num_local_experts": 8}
"""Of six blocks with so many experts, as many parameters as two blocks have can go in experts."""


class TestReap(PrunerContract):
    component = Reap
    family = "mixtral"
    settings = EIGHT


class TestReapPerBlock(PrunerContract):
    component = Reap
    options: ClassVar[dict[str, Any]] = {"width": "per-block"}
    family = "mixtral"
    settings = EIGHT


class TestFrequency(PrunerContract):
    component = Frequency
    family = "mixtral"
    settings = EIGHT


class TestSleb(PrunerContract):
    component = Sleb


# The plus keeps all six blocks of a tiny model.
class TestShortenedPpl(PrunerContract):
    component = ShortenedPpl
    options: ClassVar[dict[str, Any]] = {"plus": False}


class TestShortenedTaylor(PrunerContract):
    component = ShortenedTaylor
    options: ClassVar[dict[str, Any]] = {"plus": False}


@pytest.mark.numeric
class TestSliceGpt(PrunerContract):
    component = SliceGpt


class TestLlmPruner(PrunerContract):
    component = LlmPruner


class TestLlmPrunerOverBlocks(PrunerContract):
    component = LlmPruner
    options: ClassVar[dict[str, Any]] = {"taylor": "param_mix", "scope": "global", "width": "per-block", "gqa": "peer"}


class TestTorchPruning(PrunerContract):
    component = TorchPruning


class TestTorchPruningAtRandom(PrunerContract):
    component = TorchPruning
    options: ClassVar[dict[str, Any]] = {"importance": "random"}


class TestTorchPruningByGradients(PrunerContract):
    component = TorchPruning
    options: ClassVar[dict[str, Any]] = {"importance": "taylor", "scope": "global", "width": "per-block"}


class TestStreamline(PrunerContract):
    component = Streamline


class TestAnnealing(SearcherContract):
    component = Annealing


class TestGreedy(SearcherContract):
    component = Greedy


class TestJoint(SearcherContract):
    component = Joint


class TestJointUnderACeiling(SearcherContract):
    component = Joint
    options: ClassVar[dict[str, Any]] = {"prefill_at_most": 0.6}


class TestRandomChoice(SearcherContract):
    component = RandomChoice


STEPWISE = {
    "test_it_copes_with_candidates_that_miss_their_floor": "it has no floors, and on another table it asks for other plans first",
}


class TestSequential(SearcherContract):
    component = Sequential
    options: ClassVar[dict[str, Any]] = {"protect_first": 0, "protect_last": 0}
    departs = STEPWISE


class TestBeam(SearcherContract):
    component = Beam
    options: ClassVar[dict[str, Any]] = {"protect_first": 0, "protect_last": 0}
    departs = STEPWISE


class TestExhaustive(SearcherContract):
    component = Exhaustive


class TestRestarts(SearcherContract):
    component = Restarts


@pytest.mark.numeric
class TestMse(DistillerContract):
    component = Mse


@pytest.mark.numeric
class TestCosineLoss(DistillerContract):
    component = CosineLoss


@pytest.mark.numeric
class TestMseCosine(DistillerContract):
    component = MseCosine


@pytest.mark.numeric
class TestLogitKl(DistillerContract):
    component = LogitKl


class TestGain(SplitterContract):
    component = Gain


class TestGainInPercent(SplitterContract):
    component = Gain
    options: ClassVar[dict[str, Any]] = {"unit": "relative"}


class TestGainInStandardErrors(SplitterContract):
    component = Gain
    options: ClassVar[dict[str, Any]] = {"unit": "errors"}


class TestGainOneByOne(SplitterContract):
    component = Gain
    options: ClassVar[dict[str, Any]] = {"mode": "cumulative"}


class TestUnified(SplitterContract):
    component = Unified


class TestDensePrefill(SplitterContract):
    component = DensePrefill
    departs: ClassVar[dict[str, str]] = {
        "test_a_silent_block_stays_out_of_prefill": "its prefill runs every block, useful or not",
    }


class TestExperts(SplitterContract):
    component = Experts
    departs: ClassVar[dict[str, str]] = {
        "test_a_silent_block_stays_out_of_prefill": "its prefill runs every block, and loses experts alone",
    }


class TestBudget(SplitterContract):
    component = Budget
    # A lower ceiling than a removal of no block can keep to is an error for the user.
    options: ClassVar[dict[str, Any]] = {"prefill_at_most": 1.0}


class TestKeepSearchResult(SplitterContract):
    component = KeepSearchResult


class TestKvTail(SplitterContract):
    component = KvTail
    departs: ClassVar[dict[str, str]] = {
        "test_a_silent_block_stays_out_of_prefill": "above the tail its prefill runs every block, useful or not",
    }


class TestKvTailOverWhatDecodeRuns(SplitterContract):
    component = KvTail
    options: ClassVar[dict[str, Any]] = {"rest": "decode"}


class TestMixedTail(SplitterContract):
    component = MixedTail


class TestMixedTailUnderALowCeiling(SplitterContract):
    component = MixedTail
    options: ClassVar[dict[str, Any]] = {"prefill_at_most": 0.3}


class TestPop(SplitterContract):
    component = Pop


class TestPopUnderALowCeiling(SplitterContract):
    component = Pop
    options: ClassVar[dict[str, Any]] = {"prefill_at_most": 0.3}


@pytest.mark.numeric
class TestExactFirstToken(RecoveryContract):
    component = ExactFirstToken


@pytest.mark.numeric
class TestFold(RecoveryContract):
    component = Fold


class TestFoldOfDecode(RecoveryContract):
    component = Fold
    options: ClassVar[dict[str, Any]] = {"stage": "decode"}


class TestDistill(RecoveryContract):
    component = Distill
    options: ClassVar[dict[str, Any]] = {"steps": 12, "batch": 4, "lr": 2e-3, "check_every": 3, "train": "full"}


class TestDistillOfPair(RecoveryContract):
    component = Distill
    options: ClassVar[dict[str, Any]] = {**TestDistill.options, "contract": "pair", "save_every": 4}


@pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed")
class TestDistillByAdapters(RecoveryContract):
    component = Distill
    options: ClassVar[dict[str, Any]] = {**TestDistill.options, "train": "lora"}


@pytest.mark.numeric
class TestKvRefit(RecoveryContract):
    component = KvRefit


@pytest.mark.numeric
@pytest.mark.skipif(find_spec("compressed_tensors") is None, reason="compressed-tensors is not installed")
class TestRoundToNearest(QuantizerContract):
    component = RoundToNearest
    options: ClassVar[dict[str, Any]] = {"group_size": 16}


@pytest.mark.numeric
class TestPaper(KvSelectorContract):
    component = Paper
    options: ClassVar[dict[str, Any]] = {"gamma": 0.3}


@pytest.mark.numeric
class TestPaperRemoving(KvSelectorContract):
    component = Paper
    options: ClassVar[dict[str, Any]] = {"gamma": 0.0, "share": "removed", "texts": 2}


@pytest.mark.numeric
class TestFirstOnly(KvSelectorContract):
    component = FirstOnlySelector


@pytest.mark.numeric
class TestAll(KvSelectorContract):
    component = All


@pytest.mark.numeric
class TestAccuracy(ObjectiveContract):
    component = Accuracy


@pytest.mark.numeric
class TestAccuracyPerByte(ObjectiveContract):
    component = Accuracy
    options: ClassVar[dict[str, Any]] = {"per_byte": True}


@pytest.mark.numeric
class TestMargin(ObjectiveContract):
    component = Margin


@pytest.mark.numeric
class TestPerplexity(ObjectiveContract):
    component = Perplexity


@pytest.mark.numeric
class TestDivergence(ObjectiveContract):
    component = Divergence


@pytest.mark.numeric
class TestAcceptance(ObjectiveContract):
    component = Acceptance


class TestMini(CalibrationContract):
    component = Mini


class TestJsonl(CalibrationContract):
    component = Jsonl
    options: ClassVar[dict[str, Any]] = {"files": [f"{MINI}/calibration.jsonl"]}


class TestJsonlWithFilesApart(CalibrationContract):
    component = Jsonl
    options: ClassVar[dict[str, Any]] = {
        "files": [f"{MINI}/calibration.jsonl"],
        "held_out_files": [f"{MINI}/evaluation.jsonl"],
    }


class TestText(CalibrationContract):
    component = Text


class TestTextOfFiles(CalibrationContract):
    component = Text
    options: ClassVar[dict[str, Any]] = {"files": [PROSE], "words": 4}


class TestFolderModel(ModelSourceContract):
    component = FolderModel
    missing = "./no-such-folder"

    def example(self, folder: Path) -> str:
        return write_checkpoint(folder / "tiny")


class TestGgufModel(ModelSourceContract):
    component = GgufModel
    missing = "no-such-file.gguf"

    @pytest.fixture(autouse=True)
    def _cache(self, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))

    def example(self, folder: Path) -> str:
        return write_gguf(folder / "tiny.gguf")


class TestPackageModel(ModelSourceContract):
    component = PackageModel
    missing = "package:no_such_package"

    @pytest.fixture(autouse=True)
    def _paths(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.syspath_prepend(tmp_path)

    def example(self, folder: Path) -> str:
        (folder / "pdtrim_tiny_package").mkdir()
        (folder / "pdtrim_tiny_package" / "__init__.py").write_text("raise RuntimeError('it is never imported')\n")
        write_gguf(folder / "pdtrim_tiny_package" / "tiny.gguf")
        return "package:pdtrim_tiny_package"


class TestHubModel(ModelSourceContract):
    component = HubModel
    path = "tiny/llama"
    missing = "tiny/no-such-model"

    @pytest.fixture(autouse=True)
    def _cached_copy_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Give the hub's client a cache with one model in it, and no network."""
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        cached = tmp_path / "models--tiny--llama"
        write_checkpoint(cached / "snapshots" / COMMIT)
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text(COMMIT)


class TestTinyModel(ModelSourceContract):
    component = TinyModel
    path = "tiny:llama"
    missing = "tiny:lama"


class TestPlanFile(ExporterContract):
    component = PlanFile


class TestCheckpoints(ExporterContract):
    component = Checkpoints


class TestVllm(ExporterContract):
    component = Vllm


class TestDraft(ExporterContract):
    component = Draft


class TestLlmCompressor(ExporterContract):
    component = LlmCompressor


class TestGguf(ExporterContract):
    component = Gguf

    @pytest.fixture(autouse=True)
    def _real_tokenizer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A GGUF file needs a vocabulary; the tiny models' tokenizer of bytes has none to give."""
        outcome, model = small_run()
        model.tokenizer = byte_level_tokenizer()
        monkeypatch.setattr("pdtrim_core.testing.contracts.writers.small_run", lambda: (outcome, model))


def byte_level_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


class TestTable(ReportContract):
    component = Table


class TestHtml(ReportContract):
    component = Html


def write_checkpoint(folder: Path) -> str:
    """Write a tiny Llama with a tokenizer of bytes as a transformers checkpoint."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tiny_transformers("llama").save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE(vocab={sign: number for number, sign in enumerate(signs_of_bytes())}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return str(folder)


def test_every_built_in_component_has_its_contract_test(host: PluginHost) -> None:
    here = vars(sys.modules[__name__]).values()
    tested = {getattr(test, "component", None) for test in here if isinstance(test, type)} - {None}
    built_in = {p.component for p in host.provided if p.origin.source == "pdtrim-core"}
    assert built_in <= tested
