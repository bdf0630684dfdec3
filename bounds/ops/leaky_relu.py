"""LeakyReLU: max(z, 0) + slope * min(z, 0), one slope for all neurons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bounds.ops.one_kink import OneKink


@dataclass(frozen=True, eq=False)
class LeakyRelu(OneKink):
    """y = z where z >= 0, else slope * z; any finite slope."""

    slope: float = 0.01
    kind: ClassVar[str] = "LeakyRelu"

    def left_slope(self, x: Tensor) -> Tensor:
        return torch.full((), self.slope, dtype=x.dtype, device=x.device)

    def convex(self) -> bool:
        return self.slope <= 1
