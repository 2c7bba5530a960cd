"""Distillers: train one block to replace two neighbours (PDTrim, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from pdtrim_core.api import Distiller, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from pdtrim_core.api import Student, TeacherBatch, TeacherBatches

Loss = Callable[["Student", "TeacherBatch"], "Tensor"]
LR = Field(1e-3, gt=0, description="learning rate of Adam (the paper: 1e-5, which takes far more steps)")
EPOCHS = Field(10, gt=0, description="passes over the training tokens")


class Mse(Distiller):
    """Mean squared difference of the hidden states after the pair."""

    name = "mse"
    cites = "PDTrim, Sec. 3.1 and App. C (arXiv:2509.04467)"
    streams: ClassVar[bool] = True

    lr: float = LR
    epochs: int = EPOCHS

    def distil(self, student: Student, batches: TeacherBatches) -> Iterator[float]:
        """Train with Adam."""
        yield from _train(student, batches, _mse, lr=self.lr, epochs=self.epochs)


class CosineLoss(Distiller):
    """One minus the cosine of the hidden states after the pair."""

    name = "cosine-loss"
    streams: ClassVar[bool] = True

    lr: float = LR
    epochs: int = EPOCHS

    def distil(self, student: Student, batches: TeacherBatches) -> Iterator[float]:
        """Train with Adam."""
        yield from _train(student, batches, _cosine, lr=self.lr, epochs=self.epochs)


class MseCosine(Distiller):
    """Mean squared difference plus one minus the cosine."""

    name = "mse+cosine"
    streams: ClassVar[bool] = True

    lr: float = LR
    epochs: int = EPOCHS
    cosine_weight: float = Field(1.0, gt=0, description="weight of the cosine part")

    def distil(self, student: Student, batches: TeacherBatches) -> Iterator[float]:
        """Train with Adam."""

        def loss(student: Student, batch: TeacherBatch) -> Tensor:
            return _mse(student, batch) + self.cosine_weight * _cosine(student, batch)

        yield from _train(student, batches, loss, lr=self.lr, epochs=self.epochs)


class LogitKl(Distiller):
    """KL divergence of the dense model's token distribution from the student's; runs all blocks after the pair."""

    name = "logit-kl"

    lr: float = LR
    epochs: int = EPOCHS

    def distil(self, student: Student, batches: TeacherBatches) -> Iterator[float]:
        """Train with Adam."""
        yield from _train(student, batches, _logit_kl, lr=self.lr, epochs=self.epochs)


def _mse(student: Student, batch: TeacherBatch) -> Tensor:
    from torch.nn.functional import mse_loss  # noqa: PLC0415 - listings must not import torch

    return mse_loss(student(batch).float(), batch.after_BTD.float())


def _cosine(student: Student, batch: TeacherBatch) -> Tensor:
    from torch.nn.functional import cosine_similarity  # noqa: PLC0415 - listings must not import torch

    similarity: Tensor = cosine_similarity(student(batch).float(), batch.after_BTD.float(), dim=-1)
    return 1 - similarity.mean()


def _logit_kl(student: Student, batch: TeacherBatch) -> Tensor:
    import torch  # noqa: PLC0415 - listings must not import torch
    from torch.nn.functional import kl_div  # noqa: PLC0415 - the same

    parts = []
    for ours, theirs in zip(student.logits(batch, student(batch)), student.logits(batch, batch.after_BTD), strict=True):
        dense = theirs.detach().log_softmax(-1)
        parts.append(kl_div(ours.log_softmax(-1), dense, reduction="sum", log_target=True))
    total: Tensor = torch.stack(parts).sum()
    return total / batch.after_BTD.shape[:2].numel()


def _train(student: Student, batches: TeacherBatches, loss: Loss, *, lr: float, epochs: int) -> Iterator[float]:
    """Make `epochs` passes over the batches with Adam; yield the mean loss of each."""
    from torch.optim import Adam  # noqa: PLC0415 - listings must not import torch

    optimizer = Adam(student.parameters(), lr=lr)
    for _ in range(epochs):
        total = 0.0
        for batch in batches:
            optimizer.zero_grad()
            value = loss(student, batch)
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += float(value.detach())
        yield total / len(batches)


@hookimpl
def pdtrim_distillers() -> Iterable[type[Distiller]]:
    """Yield the distillers."""
    yield from (Mse, CosineLoss, MseCosine, LogitKl)
