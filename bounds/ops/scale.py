"""Multiplication and addition of constants: `y = factor * x + shift` (Mul, Div, Add, Sub, Neg with constants)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bounds.ops.base import Affine, Shape
from bounds.window import Extent


@dataclass(frozen=True, eq=False)
class Scale(Affine):
    """factor and shift broadcast against "*shape" (no batch axis) and never enlarge it; None means 1 and 0."""

    factor: Tensor | None = None
    shift: Tensor | None = None
    kind: ClassVar[str] = "Scale"

    def forward(self, *inputs: Tensor) -> Tensor:
        x = self.linear(*inputs)
        return x if self.shift is None else x + self.shift

    def linear(self, *inputs: Tensor) -> Tensor:
        return inputs[0] if self.factor is None else inputs[0] * self.factor

    def magnitude(self, *radii: Tensor) -> Tensor:
        return radii[0] if self.factor is None else radii[0] * self.factor.abs()

    def absolute(self) -> Scale:
        return Scale(None if self.factor is None else self.factor.abs())

    def terms(self, input_shapes: tuple[Shape, ...], output_shape: Shape) -> int:
        return 2

    def offset_size(self, input_shapes: tuple[Shape, ...]) -> Tensor | None:
        return None if self.shift is None else self.shift.abs().unsqueeze(0)

    def pull_back(self, A: Tensor, input_shapes: tuple[Shape, ...]) -> tuple[Tensor, ...]:
        return (A if self.factor is None else A * self.factor,)

    def window(self, extent: Extent, input_shape: Shape) -> Extent | None:
        constants = [t for t in (self.factor, self.shift) if t is not None]
        # Over windows the constants may differ between channels, not between positions.
        same = all(set(t.shape[-2:]) <= {1} for t in constants)
        return extent if same else None

    def pull_back_window(self, A: Tensor) -> Tensor:
        return A if self.factor is None else A * self.factor

    def constant(self, A: Tensor) -> Tensor | None:
        if self.shift is None:
            return None
        return A.flatten(1) @ self.shift.expand(A.shape[1:]).reshape(-1)
