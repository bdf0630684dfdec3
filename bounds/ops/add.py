"""Sum of two tensors, with broadcasting: the join of a residual block."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bounds.ops.base import Affine, Shape


def sum_to(A: Tensor, shape: Shape) -> Tensor:
    """Undo broadcasting: sum "N *out" over the axes along which "*shape" was repeated."""
    extra = A.dim() - 1 - len(shape)
    if extra:
        A = A.flatten(1, extra).sum(1) if extra > 1 else A.sum(1)
    axes = [i + 1 for i, n in enumerate(shape) if n == 1 and A.shape[i + 1] != 1]
    return A.sum(axes, keepdim=True) if axes else A


def align(x: Tensor, axes: int) -> Tensor:
    """Insert size-one axes after the batch axis until x has `axes` axes besides the batch."""
    return x.reshape(x.shape[0], *(1,) * (axes - x.dim() + 1), *x.shape[1:]) if x.dim() - 1 < axes else x


@dataclass(frozen=True, eq=False)
class Add(Affine):
    """y = x1 + sign * x2; `sign` is 1 (Add) or -1 (Sub)."""

    sign: int = 1
    kind: ClassVar[str] = "Add"

    def forward(self, *inputs: Tensor) -> Tensor:
        axes = max(x.dim() for x in inputs) - 1
        first, second = (align(x, axes) for x in inputs)
        return first + second if self.sign > 0 else first - second

    def magnitude(self, *radii: Tensor) -> Tensor:
        return Add(1).forward(*radii)

    def absolute(self) -> Add:
        return Add(1)

    def terms(self, input_shapes: tuple[Shape, ...], output_shape: Shape) -> int:
        # Rows of an input that was repeated add up.
        return max(math.prod(output_shape) // max(1, math.prod(s)) for s in input_shapes) + 1

    def pull_back(self, A: Tensor, input_shapes: tuple[Shape, ...]) -> tuple[Tensor, ...]:
        return sum_to(A, input_shapes[0]), sum_to(A if self.sign > 0 else -A, input_shapes[1])

    def passes_rows(self, input_shapes: tuple[Shape, ...], output_shape: Shape) -> tuple[int, ...] | None:
        return (1, self.sign) if input_shapes[0] == input_shapes[1] == output_shape else None
