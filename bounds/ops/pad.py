"""Padding with one constant, and cropping where a pad is negative."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bounds.ops.base import Affine, Shape


@dataclass(frozen=True, eq=False)
class Pad(Affine):
    """`pads`: (before, after) for each axis (without the batch axis); `value` fills what is new."""

    pads: tuple[tuple[int, int], ...]
    value: float = 0.0
    kind: ClassVar[str] = "Pad"
    moves_only: ClassVar[bool] = True

    def _pad(self, x: Tensor, value: float, sign: int = 1) -> Tensor:
        return F.pad(x, [sign * n for pair in reversed(self.pads) for n in pair], value=value)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._pad(inputs[0], self.value)

    def linear(self, *inputs: Tensor) -> Tensor:
        return self._pad(inputs[0], 0.0)

    def terms(self, input_shapes: tuple[Shape, ...], output_shape: Shape) -> int:
        return 0 if self.value == 0.0 else 2

    def offset_size(self, input_shapes: tuple[Shape, ...]) -> Tensor | None:
        return None if self.value == 0.0 else self.forward(torch.zeros(1, *input_shapes[0])).abs()

    def pull_back(self, A: Tensor, input_shapes: tuple[Shape, ...]) -> tuple[Tensor, ...]:
        return (self._pad(A, 0.0, -1),)

    def constant(self, A: Tensor) -> Tensor | None:
        if self.value == 0.0:
            return None
        inside = [n - before - after for n, (before, after) in zip(A.shape[1:], self.pads, strict=True)]
        border = self._pad(torch.zeros(1, *inside, dtype=A.dtype, device=A.device), 1.0)
        return self.value * (A * border).flatten(1).sum(1)
