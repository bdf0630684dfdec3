"""Repetition of size-one axes (ONNX Expand, and every broadcast made explicit)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bounds.ops.add import align, sum_to
from bounds.ops.base import Affine, Shape


@dataclass(frozen=True, eq=False)
class Expand(Affine):
    """x "B *in", broadcast to "B *shape"."""

    shape: Shape
    kind: ClassVar[str] = "Expand"
    moves_only: ClassVar[bool] = True

    def forward(self, *inputs: Tensor) -> Tensor:
        return align(inputs[0], len(self.shape)).expand(inputs[0].shape[0], *self.shape)

    def terms(self, input_shapes: tuple[Shape, ...], output_shape: Shape) -> int:
        return math.prod(self.shape) // max(1, math.prod(input_shapes[0]))

    def pull_back(self, A: Tensor, input_shapes: tuple[Shape, ...]) -> tuple[Tensor, ...]:
        return (sum_to(A, input_shapes[0]),)
