"""Adam (Kingma and Ba, arXiv:1412.6980) for parameters that are tensors of many independent rows.

`torch.optim` keeps its state by leaf; here rows leave while others go on, and each parameter has a unit of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FIRST, SECOND = 0.9, 0.99   # the averages' memories
NOISE = 1e-12               # below this a gradient counts as zero


@dataclass(eq=False)
class Moments:
    """The averages of a gradient and of its square, shaped as their parameter."""

    mean: Tensor
    square: Tensor

    @staticmethod
    def of(p: Tensor) -> Moments:
        return Moments(torch.zeros_like(p), torch.zeros_like(p))

    def take(self, rows: Tensor) -> Moments:
        """Those of some rows (the leading axis)."""
        return Moments(self.mean[rows], self.square[rows])

    def direction(self, g: Tensor, k: int) -> Tensor:
        """Where step k (from 0) goes after the gradient g, in steps of length about one."""
        self.mean.mul_(FIRST).add_(g, alpha=1 - FIRST)
        self.square.mul_(SECOND).addcmul_(g, g, value=1 - SECOND)
        scale = (1 - SECOND ** (k + 1)) ** 0.5 / (1 - FIRST ** (k + 1))
        return scale * self.mean / (self.square.sqrt() + NOISE)
