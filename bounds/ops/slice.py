"""Every `step`-th entry of a range along one axis (ONNX Slice and Split, torch indexing)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bounds.ops.base import Affine, Shape


@dataclass(frozen=True, eq=False)
class Slice(Affine):
    """`x[start:stop:step]` along `axis` (counted without the batch axis); 0 <= start < stop, step >= 1."""

    axis: int
    start: int
    stop: int
    step: int = 1
    kind: ClassVar[str] = "Slice"
    moves_only: ClassVar[bool] = True

    def _window(self, x: Tensor) -> Tensor:
        return x[(slice(None),) * (self.axis + 1) + (slice(self.start, self.stop, self.step),)]

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._window(inputs[0])

    def terms(self, input_shapes: tuple[Shape, ...], output_shape: Shape) -> int:
        return 0

    def pull_back(self, A: Tensor, input_shapes: tuple[Shape, ...]) -> tuple[Tensor, ...]:
        result = A.new_zeros(A.shape[0], *input_shapes[0])
        self._window(result).copy_(A)
        return (result,)
