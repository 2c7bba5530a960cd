"""What is left behind on a model is found and named, whatever it is; what was put back is not."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from pdtrim_core.api import BlockModel, ScoreContext
from pdtrim_core.testing import tiny_llama, tiny_model
from pdtrim_core.testing.contracts.untouched import left_as_it_was
from pdtrim_core.testing.models import save_tiny_model

Deed = Callable[[BlockModel], object]
WEIGHT = "self_attn.q_proj.weight"
NAMED = f"model.layers.0.{WEIGHT}"


def weight(model: BlockModel) -> nn.Parameter:
    found: nn.Parameter = model.blocks[0].get_parameter(WEIGHT)
    return found


def hook_behind_gradient(parameter: nn.Parameter) -> None:
    parameter.requires_grad = True
    parameter.register_post_accumulate_grad_hook(nothing)  # type: ignore[no-untyped-call]
    parameter.requires_grad = False


def nothing(*_: object, **__: object) -> None:
    """Watch, and change nothing."""


def buffer_of(model: BlockModel) -> torch.Tensor:
    found: torch.Tensor = model.model.get_buffer("model.rotary_emb.inv_freq")
    return found


def mlp(model: BlockModel) -> nn.Module:
    found: nn.Module = model.blocks[2].get_submodule("mlp")
    return found


def replaced_weight(model: BlockModel) -> None:
    part = model.blocks[0].get_submodule("self_attn.q_proj")
    part.weight = nn.Parameter(weight(model).detach().clone(), requires_grad=False)


LEFT: list[tuple[str, Deed, str]] = [
    (
        "gradient",
        lambda model: setattr(weight(model), "grad", torch.zeros_like(weight(model))),
        f"the gradient of {NAMED} was left",
    ),
    ("takes gradients", lambda model: weight(model).requires_grad_(), f"requires_grad of {NAMED} was left True"),
    ("mode", lambda model: model.blocks[2].get_submodule("mlp").train(), "model.layers.2.mlp was left in train() mode"),
    ("mode of all", lambda model: model.model.train(), "the model was left in train() mode"),
    (
        "forward hook",
        lambda model: model.blocks[1].register_forward_hook(nothing),
        "a hook of model.layers.1 was left behind or taken away (forward_hooks)",
    ),
    (
        "pre-hook",
        lambda model: model.model.register_forward_pre_hook(nothing, with_kwargs=True),
        "a hook of the model was left behind or taken away (forward_pre_hooks)",
    ),
    (
        "backward hook",
        lambda model: model.blocks[1].get_submodule("mlp.up_proj").register_full_backward_hook(nothing),
        "a hook of model.layers.1.mlp.up_proj was left behind or taken away (backward_hooks)",
    ),
    (
        "backward pre-hook",
        lambda model: model.model.lm_head.register_full_backward_pre_hook(nothing),
        "a hook of lm_head was left behind or taken away (backward_pre_hooks)",
    ),
    (
        "hook of a weight",
        lambda model: weight(model).requires_grad_().register_hook(nothing),  # type: ignore[no-untyped-call]
        f"requires_grad of {NAMED} was left True (and 1 more)",
    ),
    (
        "hook of a weight behind its gradient",
        lambda model: hook_behind_gradient(weight(model)),
        f"a hook of the weight {NAMED} was left behind or taken away",
    ),
    (
        "patched block",
        lambda model: vars(model.blocks[4]).update(forward=model.blocks[4].forward),
        "the method forward of model.layers.4 was left patched",
    ),
    (
        "patched part",
        lambda model: vars(model.blocks[4].get_submodule("mlp")).update(forward=nothing),
        "the method forward of model.layers.4.mlp was left patched",
    ),
    ("patched BlockModel", lambda model: vars(model).update(run=model.run), "the method run of BlockModel was left patched"),
    ("weight", lambda model: weight(model).data.add_(1e-6), f"the weight {NAMED} was changed"),
    ("format", lambda model: model.model.double(), "was changed (and "),
    ("buffer", lambda model: buffer_of(model).mul_(1.0001), "the buffer model.rotary_emb.inv_freq was changed"),
    (
        "module",
        lambda model: model.blocks[3].set_submodule("mlp", copy.deepcopy(model.blocks[3].get_submodule("mlp"))),
        "the module model.layers.3.mlp was replaced (and ",
    ),
    ("new module", lambda model: model.model.add_module("probe", nn.Identity()), "the module probe was added"),
    (
        "new buffer",
        lambda model: model.blocks[0].register_buffer("seen", torch.zeros(1)),
        "the buffer model.layers.0.seen was added",
    ),
    ("equal weight", replaced_weight, f"the weight {NAMED} was replaced by another of the same numbers"),
    (
        "new attribute",
        lambda model: setattr(mlp(model), "importance", torch.ones(3)),
        "the attribute importance of model.layers.2.mlp was added",
    ),
    (
        "attribute of a module",
        lambda model: setattr(model.model.model, "gradient_checkpointing", True),
        "the attribute gradient_checkpointing of model was changed from False to True",
    ),
    (
        "removed attribute",
        lambda model: delattr(mlp(model), "hidden_size"),
        "the attribute hidden_size of model.layers.2.mlp was removed",
    ),
    (
        "attribute that is no plain data",
        lambda model: setattr(mlp(model), "config", copy.deepcopy(model.model.config)),
        "the attribute config of model.layers.2.mlp was changed",
    ),
    (
        "config",
        lambda model: setattr(model.model.config, "use_cache", False),
        "use_cache of the config of the model was changed from True to False",
    ),
    (
        "hidden setting of a config",
        lambda model: setattr(model.model.config, "_attn_implementation", "eager"),
        "of the config of the model was changed from 'sdpa' to 'eager'",
    ),
    (
        "table in a config",
        lambda model: model.model.config.rope_parameters.update(rope_theta=2.0),
        "rope_parameters of the config of the model was changed",
    ),
    (
        "generation config",
        lambda model: setattr(model.model.generation_config, "max_new_tokens", 1),
        "max_new_tokens of the generation_config of the model was changed from None to 1",
    ),
    ("tokenizer's id", lambda model: setattr(model.tokenizer, "pad_token_id", 3), "pad_token_id of the tokenizer was added"),
    ("other tokenizer", lambda model: setattr(model, "tokenizer", copy.copy(model.tokenizer)), "the tokenizer was changed"),
    ("grad mode", lambda _: torch.set_grad_enabled(False), "the grad mode of torch was changed from True to False"),
    ("threads", lambda _: torch.set_num_threads(torch.get_num_threads() + 1), "the number of threads of torch was changed from "),
    (
        "algorithms",
        lambda _: torch.use_deterministic_algorithms(mode=True, warn_only=True),
        "the use of deterministic algorithms of torch was changed",
    ),
    (
        "default dtype",
        lambda _: torch.set_default_dtype(torch.float64),
        "the default dtype of torch was changed from torch.float32 to torch.float64",
    ),
    ("anomaly mode", lambda _: torch.autograd.set_detect_anomaly(True), "the anomaly mode of torch was changed"),
    (
        "precision",
        lambda _: torch.set_float32_matmul_precision("medium"),
        "the precision of matrix products of torch was changed from 'highest' to 'medium'",
    ),
    (
        "hook for all modules",
        lambda _: nn.modules.module.register_module_forward_hook(nothing),
        "torch's global_forward_hooks for all modules was changed",
    ),
    (
        "backward hook for all modules",
        lambda _: nn.modules.module.register_module_full_backward_hook(nothing),
        "torch's global_backward_hooks for all modules was changed",
    ),
]


@pytest.fixture
def torch_put_back() -> Iterator[None]:
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_grad_enabled(True)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(mode=False)
    torch.set_default_dtype(torch.float32)
    torch.autograd.set_detect_anomaly(False)
    torch.set_float32_matmul_precision(precision)
    for name, hooks in vars(nn.modules.module).items():
        if name.startswith("_global_") and isinstance(hooks, dict):
            hooks.clear()
    nn.modules.module._global_is_full_backward_hook = None


@pytest.mark.usefixtures("torch_put_back")
@pytest.mark.parametrize(("deed", "words"), [pytest.param(deed, words, id=name) for name, deed, words in LEFT])
def test_what_is_left_behind_is_named(deed: Deed, words: str) -> None:
    model = tiny_llama()
    with pytest.raises(AssertionError) as caught, left_as_it_was(model):
        deed(model)
    said = str(caught.value).splitlines()[0]
    assert said.startswith("the model must be left as it was: ")
    assert words in said


def test_a_hook_that_is_taken_away_is_named() -> None:
    model = tiny_llama()
    handle = model.blocks[0].register_forward_hook(nothing)
    with pytest.raises(AssertionError, match=r"a hook of model\.layers\.0 was left behind or taken away"), left_as_it_was(model):
        handle.remove()


@pytest.mark.parametrize("family", ["llama", "gemma3", "mixtral", "opt", "gpt-neox"])
def test_a_model_that_was_only_used_is_as_it_was(family: str) -> None:
    model = tiny_model(family)
    with left_as_it_was(model), ScoreContext(model, [[1, 2, 3], [4, 5]], gradients=True) as context:
        handles = [block.register_forward_hook(nothing) for block in model.blocks]
        for batch in context.token_batches():
            context.loss(batch).backward()  # type: ignore[no-untyped-call]
        list(context.batches())
        with model.patched({1: model.blocks[1].forward}):
            model.record(torch.zeros((1, 600), dtype=torch.long) if family == "llama" else torch.zeros((1, 9), dtype=torch.long))
        for handle in handles:
            handle.remove()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def with_tokenizer(checkpoint: Path) -> BlockModel:
    from transformers import AutoTokenizer

    model = tiny_llama()
    model.tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    return model


def test_a_tokenizer_of_transformers_that_was_only_used_is_as_it_was(checkpoint: Path) -> None:
    model = with_tokenizer(checkpoint)
    with left_as_it_was(model):
        tokens = model.tokenizer("What is this?" * 99)["input_ids"]
        assert model.tokenizer.decode(tokens).startswith("What")
        torch.manual_seed(torch.initial_seed() + 1)  # the generator may move


@pytest.mark.parametrize(
    ("deed", "words"),
    [
        (lambda model: setattr(model.tokenizer, "pad_token_id", 3), "_special_tokens_map of the tokenizer was changed"),
        (
            lambda model: setattr(model.tokenizer, "padding_side", "middle"),
            "padding_side of the tokenizer was changed from",
        ),
        (lambda model: model.tokenizer.add_tokens(["<stage>"]), "the vocabulary of the tokenizer was changed"),
    ],
)
def test_a_changed_tokenizer_of_transformers_is_named(deed: Deed, words: str, checkpoint: Path) -> None:
    model = with_tokenizer(checkpoint)
    with pytest.raises(AssertionError) as caught, left_as_it_was(model):
        deed(model)
    assert words in str(caught.value)


def test_a_config_inside_a_config_is_compared() -> None:
    model = tiny_llama()
    model.model.config.inner = copy.deepcopy(model.model.config)
    with pytest.raises(AssertionError, match="use_cache of inner in the config of the model was changed"), left_as_it_was(model):
        model.model.config.inner.use_cache = False


def test_an_error_inside_is_the_one_that_is_raised() -> None:
    model = tiny_llama()

    def fail_halfway() -> None:
        model.model.train()
        raise LookupError

    with pytest.raises(LookupError), left_as_it_was(model):
        fail_halfway()
