"""A prefill checkpoint that is not whole does not start."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from safetensors.torch import load_file, save_file

from pdtrim_core import PdtrimError
from pdtrim_core.serving.servers import running, wait_until_healthy

if TYPE_CHECKING:
    from tests.serve.conftest import Pair, Subject


def test_one_part_of_a_stacked_tensor_is_missed(
    make_tiny: Callable[[str], Subject], make_pair: Callable[..., Pair], tmp_path: Path
) -> None:
    whole = make_tiny("qwen2")
    folder = shutil.copytree(whole.export.folder, tmp_path / "damaged")
    (file,) = (folder / "prefill").glob("*.safetensors")
    tensors = load_file(file)
    del tensors["model.layers.4.shadow.self_attn.v_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    pair = make_pair(replace(whole, export=replace(whole.export, folder=folder)))
    with running([pair.commands["prefill"]], pair.folder) as servers:
        with pytest.raises(PdtrimError, match=r"^prefill ended"):
            wait_until_healthy(servers, 500)
        told = servers[0].log.read_text(errors="replace")
    assert "lacks model.layers.4.shadow.self_attn.v_proj.weight: it is damaged, export it again" in told
