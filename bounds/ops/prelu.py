"""PReLU: max(z, 0) + slope * min(z, 0), a learned slope a channel or a neuron."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from bounds.ops.base import Shape
from bounds.ops.one_kink import OneKink


@dataclass(frozen=True, eq=False)
class PRelu(OneKink):
    """y = z where z >= 0, else slope * z; slope broadcasts against "*shape" (no batch axis)."""

    slope: Tensor
    kind: ClassVar[str] = "PRelu"

    def left_slope(self, x: Tensor) -> Tensor:
        return self.slope

    def select(self, read: Callable[[Tensor], Tensor], shape: Shape) -> PRelu:
        return replace(self, slope=read(self.slope.expand(shape)))

    def convex(self) -> Tensor:
        return self.slope <= 1
