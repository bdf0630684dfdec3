"""Logistic sigmoid 1 / (1 + exp(-x)); its lines are those of `bounds.ops.s_shape`."""

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
class Sigmoid(SShape):
    """y = 1 / (1 + exp(-x)) = 1/2 + tanh(x / 2) / 2."""

    kind: ClassVar[str] = "Sigmoid"
    offset: ClassVar[float] = 0.5
    height: ClassVar[float] = 0.5
    stretch: ClassVar[float] = 0.5

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.sigmoid(inputs[0])

    def interval(self, *inputs: Interval) -> Interval:
        (x,) = inputs
        return widen(torch.sigmoid(x.lower), torch.sigmoid(x.upper))

    def enclosed(self, x: Interval) -> Interval:
        return Interval(enclose.sigmoid(x.lower).lower, enclose.sigmoid(x.upper).upper)
