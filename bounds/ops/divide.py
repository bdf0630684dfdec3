"""Division by a constant: kept apart from `Scale`, because 1/c is rarely a floating-point number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bounds.ops.base import Affine, Shape


@dataclass(frozen=True, eq=False)
class Divide(Affine):
    """y = x / divisor; the divisor (no zeros) broadcasts against "*shape" (no batch axis) and never enlarges it."""

    divisor: Tensor
    kind: ClassVar[str] = "Divide"

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0] / self.divisor

    def magnitude(self, *radii: Tensor) -> Tensor:
        return radii[0] / self.divisor.abs()

    def absolute(self) -> Divide:
        return Divide(self.divisor.abs())

    def terms(self, input_shapes: tuple[Shape, ...], output_shape: Shape) -> int:
        return 1

    def pull_back(self, A: Tensor, input_shapes: tuple[Shape, ...]) -> tuple[Tensor, ...]:
        return (A / self.divisor,)
