"""Changes of shape that keep the row-major order: Reshape, Flatten, Squeeze, Unsqueeze."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bounds.ops.base import Affine, Shape


@dataclass(frozen=True, eq=False)
class Reshape(Affine):
    """x "B *in" -> "B *shape"."""

    shape: Shape
    kind: ClassVar[str] = "Reshape"
    moves_only: ClassVar[bool] = True

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0].reshape(inputs[0].shape[0], *self.shape)

    def terms(self, input_shapes: tuple[Shape, ...], output_shape: Shape) -> int:
        return 0

    def pull_back(self, A: Tensor, input_shapes: tuple[Shape, ...]) -> tuple[Tensor, ...]:
        return (A.reshape(A.shape[0], *input_shapes[0]),)

    def passes_rows(self, input_shapes: tuple[Shape, ...], output_shape: Shape) -> tuple[int, ...] | None:
        return (1,)
