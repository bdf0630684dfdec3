"""Sum or mean over axes (ONNX ReduceSum, ReduceMean, GlobalAveragePool)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bounds.ops.base import Affine, Shape


@dataclass(frozen=True, eq=False)
class Reduce(Affine):
    """Sum (or mean) of x over `axes` (ascending, counted without the batch axis), which go or stay with size one."""

    axes: tuple[int, ...]
    keep: bool = False
    mean: bool = False
    kind: ClassVar[str] = "Reduce"

    def forward(self, *inputs: Tensor) -> Tensor:
        dims = tuple(a + 1 for a in self.axes)
        return inputs[0].mean(dims, self.keep) if self.mean else inputs[0].sum(dims, self.keep)

    def terms(self, input_shapes: tuple[Shape, ...], output_shape: Shape) -> int:
        return math.prod(input_shapes[0][i] for i in self.axes) + 1

    def pull_back(self, A: Tensor, input_shapes: tuple[Shape, ...]) -> tuple[Tensor, ...]:
        (shape,) = input_shapes
        A = A.reshape(A.shape[0], *(1 if i in self.axes else n for i, n in enumerate(shape)))
        if self.mean:
            A = A / math.prod(shape[i] for i in self.axes)
        return (A.expand(A.shape[0], *shape),)
