"""Ridge regression over tokens that come a batch at a time: only sums are kept, in float64.

Shape suffixes: N tokens, D given numbers, E wanted ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pdtrim_core.api import PdtrimError

if TYPE_CHECKING:
    from torch import Tensor


class RidgeSums:
    """The sums over tokens from which a linear map is solved: the given numbers' Gram matrix, and their products with the wanted.

    `tokens` counts them.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._gram_DD: Tensor | None = None
        self._cross_DE: Tensor | None = None

    def add(self, given_ND: Tensor, wanted_NE: Tensor) -> None:
        """Add some tokens."""
        given_ND, wanted_NE = given_ND.double(), wanted_NE.double()
        if self._gram_DD is None or self._cross_DE is None:
            self._gram_DD, self._cross_DE = given_ND.T @ given_ND, given_ND.T @ wanted_NE
        else:
            # In place: of a large model's MLP either is gigabytes.
            self._gram_DD.addmm_(given_ND.T, given_ND)
            self._cross_DE.addmm_(given_ND.T, wanted_NE)
        self.tokens += len(given_ND)

    def solved(self, ridge: float, what: str) -> Tensor:
        """Return the map `[D, E]` that gives what is wanted with least squares, pulled towards giving nothing.

        `ridge` is the strength of the pull, as a share of the mean diagonal of the Gram matrix. Raises `PdtrimError` that names
        `what` where the tokens do not determine a map.
        """
        import torch  # noqa: PLC0415 - listings must not import torch

        assert self._gram_DD is not None
        assert self._cross_DE is not None
        size, mean = len(self._gram_DD), self._gram_DD.diagonal().mean()
        if not torch.isfinite(mean) or not torch.isfinite(self._cross_DE).all():
            raise PdtrimError(
                f"{what}: hidden states of the texts are NaN or infinite, so no map can be found: load it in float32"
            )
        if mean == 0:
            return torch.zeros_like(self._cross_DE)  # nothing is given, of which any map makes nothing
        pulled_DD = self._gram_DD.clone()
        pulled_DD.diagonal().add_(ridge * mean)
        factor_DD, problem = torch.linalg.cholesky_ex(pulled_DD)
        pivots_D = factor_DD.diagonal().square()
        if int(problem) or pivots_D.min() < size * torch.finfo(torch.float64).eps * pivots_D.max():
            raise PdtrimError(
                f"{what}: {self.tokens:,} tokens do not determine a map of {size} x {size} numbers: give it at least "
                f"{4 * size:,} tokens, or a larger ridge"
            )
        solved_DE: Tensor = torch.cholesky_solve(self._cross_DE, factor_DD)
        return solved_DE
