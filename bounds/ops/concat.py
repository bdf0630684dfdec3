"""Concatenation of tensors along one axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bounds.ops.base import Affine, Shape


@dataclass(frozen=True, eq=False)
class Concat(Affine):
    """The inputs side by side along `axis` (counted without the batch axis)."""

    axis: int
    kind: ClassVar[str] = "Concat"
    moves_only: ClassVar[bool] = True

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, self.axis + 1)

    def terms(self, input_shapes: tuple[Shape, ...], output_shape: Shape) -> int:
        return 0

    def pull_back(self, A: Tensor, input_shapes: tuple[Shape, ...]) -> tuple[Tensor, ...]:
        return A.split([shape[self.axis] for shape in input_shapes], self.axis + 1)
