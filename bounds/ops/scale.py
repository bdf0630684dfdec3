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

    def pull_back(self, A: Tensor, input_shapes: tuple[Shape, ...]) -> tuple[Tensor, ...]:
        return (A if self.factor is None else A * self.factor,)

    def pull_back_window(self, A: Tensor, extent: Extent) -> tuple[Tensor, Extent] | None:
        for t in (self.factor, self.shift):
            if (t is not None and t.dim() >= 2 and tuple(t.shape[-2:]) != (1, 1)) or (t is not None and t.dim() == 1 \
                    and t.shape[0] != 1):
                return None  # it differs between positions of the map
        return self.pull_back(A, ())[0], extent

    def constant(self, A: Tensor) -> Tensor | None:
        if self.shift is None:
            return None
        return A.flatten(1) @ self.shift.expand(A.shape[1:]).reshape(-1)
