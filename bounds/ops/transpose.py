"""Permutation of axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bounds.ops.base import Affine, Shape


@dataclass(frozen=True, eq=False)
class Transpose(Affine):
    """Axis i of the result is axis `perm[i]` of x (axes counted without the batch axis)."""

    perm: tuple[int, ...]
    kind: ClassVar[str] = "Transpose"
    moves_only: ClassVar[bool] = True

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0].permute(0, *(p + 1 for p in self.perm))

    def terms(self, input_shapes: tuple[Shape, ...], output_shape: Shape) -> int:
        return 0

    def pull_back(self, A: Tensor, input_shapes: tuple[Shape, ...]) -> tuple[Tensor, ...]:
        inverse = sorted(range(len(self.perm)), key=self.perm.__getitem__)
        return (A.permute(0, *(p + 1 for p in inverse)),)
