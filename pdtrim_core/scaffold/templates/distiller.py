"""A distiller: trains one block to replace two neighbours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from pydantic import Field

from pdtrim_core.api import Distiller, hookimpl

if TYPE_CHECKING:
    # These load torch, which listings do without.
    from pdtrim_core.api import Student, TeacherBatches


class Example(Distiller):
    """Huber loss of the hidden states behind the pair, on which outliers weigh less than in a squared error."""

    name = "example"

    lr: float = Field(1e-3, gt=0, description="learning rate of Adam")
    epochs: int = Field(10, gt=0, description="times that the training tokens are gone through")
    delta: float = Field(1.0, gt=0, description="error from which on the loss is linear")

    def distil(self, student: Student, batches: TeacherBatches) -> Iterator[float]:
        """Train `student.parameters()` in place; yield the mean loss of each epoch."""
        import torch  # noqa: PLC0415 - listings start without torch

        optimizer = torch.optim.Adam(student.parameters(), lr=self.lr)
        for _ in range(self.epochs):
            total = 0.0
            for batch in batches:
                loss = torch.nn.functional.huber_loss(student(batch), batch.after_BTD, delta=self.delta)
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                total += float(loss.detach())
            yield total / len(batches)


@hookimpl
def pdtrim_distillers() -> Iterable[type[Distiller]]:
    """Yield the distillers of this package."""
    yield Example
