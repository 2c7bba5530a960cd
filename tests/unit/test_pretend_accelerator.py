"""The pretended accelerator of the tests is as strict as one that is there."""

from __future__ import annotations

import pytest
import torch

from tests.pretend_accelerator import PretendAccelerator


def test_tensors_of_two_devices_do_not_meet() -> None:
    with PretendAccelerator(2) as there:
        one, other = (torch.ones(3, device=device) for device in there.devices)
        assert (one + 1).device == there.devices[0]
        for pair in ((one, other), (one, torch.ones(3)), (torch.ones(3), other)):
            with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
                torch.add(*pair)
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            torch.stack([one, other])
        with pytest.raises(RuntimeError, match="invalid device ordinal"):
            torch.ones(3, device="lazy:2")
        assert torch.equal(one, other.to(one.device))


def test_numbers_are_real_and_what_the_host_waits_for_is_counted() -> None:
    with PretendAccelerator() as there:
        values = torch.tensor([3.0, 4.0], device="lazy").requires_grad_()
        norm = values.square().sum().sqrt()
        norm.backward()  # type: ignore[no-untyped-call]
        assert there.waits == 0
        assert norm.item() == 5
        assert values.grad is not None
        assert values.grad.tolist() == pytest.approx([0.6, 0.8])
        assert values[values > 3].detach().cpu().tolist() == [4]
        assert there.waits == 4


def test_a_model_on_two_devices_gives_the_numbers_of_one() -> None:
    ids = torch.arange(8)[None]
    logits = []
    for count in (1, 2):
        with PretendAccelerator(count) as there:
            model = there.tiny()
            assert {weight.device for weight in model.model.parameters()} == set(there.devices)
            logits.append(model.model(input_ids=ids.to(model.device)).logits.cpu())
    assert torch.equal(*logits)
