"""ReLU: max(x, 0). Upper line: the chord; lower line: any slope in [0, 1] (CROWN, arXiv:1811.00866)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bounds.interval import Interval
from bounds.ops.base import Elementwise
from bounds.ops.near_kink import near_kink
from bounds.relaxation import Relaxation


@dataclass(frozen=True, eq=False)
class Relu(Elementwise):
    """y = max(x, 0)."""

    kind: ClassVar[str] = "Relu"
    rounding_known: ClassVar[bool] = True
    ulps: ClassVar[int] = 0
    exact_ends: ClassVar[bool] = True
    reuses_lines: ClassVar[bool] = True
    only_kink: ClassVar[float | None] = 0.0

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.relu(inputs[0])  # whose backward pass is one kernel, that of `clamp` two

    def is_linear_on(self, x: Interval) -> Tensor:
        return (x.lower >= 0) | (x.upper <= 0)

    def derivative(self, x: Interval) -> Interval:
        return Interval((x.lower > 0).to(x.lower.dtype), (x.upper >= 0).to(x.lower.dtype))

    def _chord(self, x: Interval) -> tuple[Tensor, Tensor]:
        low = x.lower.clamp(max=0)
        high = x.upper.clamp(min=0)
        width = high - low
        slope = high / torch.where(width > 0, width, torch.ones_like(width))
        # A stable active neuron has low = 0, hence slope 1 and intercept 0; an inactive one slope 0. The slope is
        # rounded: of the intercepts that reach the two ends the larger one, moved out by its own rounding.
        return slope, torch.maximum(-slope * low, high * (1 - slope)) * (1 + 2 * torch.finfo(low.dtype).eps)

    def relax(self, x: Interval) -> Relaxation:
        slope, intercept = self._chord(x)
        adaptive = (x.upper + x.lower > 0).to(slope.dtype)
        return Relaxation(adaptive, None, slope, intercept)

    def relax_parallel(self, x: Interval) -> Relaxation:
        slope, intercept = self._chord(x)
        return Relaxation(slope, None, slope, intercept)

    def near(self, x: Interval, slope: Tensor, intercept: Tensor | None, room: Tensor) -> Interval:
        return near_kink(x, torch.zeros_like(slope), slope, intercept, room)

    def parameters(self, x: Interval) -> tuple[Tensor, Tensor, Tensor] | None:
        initial = self.relax(x).lower_slope.unsqueeze(0)
        # Stable neurons have one line only: slope 1 where active, 0 where dead (both hold at l = u = 0).
        low = ((x.lower >= 0) & (x.upper > 0)).to(initial.dtype).unsqueeze(0)
        high = (x.upper > 0).to(initial.dtype).unsqueeze(0)
        return initial, low, high

    def relax_with(self, x: Interval, params: Tensor) -> Relaxation:
        slope, intercept = self._chord(x)
        return Relaxation(params[0], None, slope, intercept)
