"""Hyperbolic tangent; its lines are those of `bounds.ops.s_shape`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bounds.interval import Interval
from bounds.ops import enclose
from bounds.ops.s_shape import SShape
from bounds.ops.slack import widen


@dataclass(frozen=True, eq=False)
class Tanh(SShape):
    """y = tanh(x)."""

    kind: ClassVar[str] = "Tanh"
    offset: ClassVar[float] = 0.0
    height: ClassVar[float] = 1.0
    stretch: ClassVar[float] = 1.0

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.tanh(inputs[0])

    def interval(self, *inputs: Interval) -> Interval:
        (x,) = inputs
        return widen(torch.tanh(x.lower), torch.tanh(x.upper))

    def enclosed(self, x: Interval) -> Interval:
        return Interval(enclose.tanh(x.lower).lower, enclose.tanh(x.upper).upper)
