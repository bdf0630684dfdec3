"""Product with a constant matrix or stack of matrices, on either side."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from bounds.ops.add import align, sum_to
from bounds.ops.base import Affine, Shape


@dataclass(frozen=True, eq=False)
class MatMul(Affine):
    """weight "*stack k n": y = x @ weight, or weight @ x with `left`; x has at least two axes besides the batch
    (one is enough for `x @ weight` with a plain matrix). Leading axes broadcast."""

    weight: Tensor
    left: bool = False
    kind: ClassVar[str] = "MatMul"

    def _apply(self, x: Tensor, weight: Tensor) -> Tensor:
        x = align(x, weight.dim()) if weight.dim() > 2 else x
        return torch.matmul(weight, x) if self.left else torch.matmul(x, weight)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._apply(inputs[0], self.weight)

    def magnitude(self, *radii: Tensor) -> Tensor:
        return self._apply(radii[0], self.weight.abs())

    def absolute(self) -> MatMul:
        return replace(self, weight=self.weight.abs())

    def terms(self, input_shapes: tuple[Shape, ...], output_shape: Shape) -> int:
        # Where one input meets several matrices of a stack, its coefficients add up over them.
        return max(self.weight.shape[-2:]) * max(1, math.prod(self.weight.shape[:-2])) + 1

    def pull_back(self, A: Tensor, input_shapes: tuple[Shape, ...]) -> tuple[Tensor, ...]:
        return (sum_to(self._apply(A, self.weight.transpose(-1, -2)), input_shapes[0]),)
