"""Selection of entries along one axis by constant indices (ONNX Gather; also flips and reflecting pads)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bounds.ops.base import Affine, Shape


@dataclass(frozen=True, eq=False)
class Gather(Affine):
    """Entries `index` (LongTensor, one axis, each >= 0, repeats allowed) of x along `axis` (without the batch axis).

    The index is made where the graph is read, which need not be the device of a module's parameters."""

    axis: int
    index: Tensor
    kind: ClassVar[str] = "Gather"
    moves_only: ClassVar[bool] = True

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0].index_select(self.axis + 1, self.index.to(inputs[0].device))

    def terms(self, input_shapes: tuple[Shape, ...], output_shape: Shape) -> int:
        return 0 if len(self.index.unique()) == len(self.index) else len(self.index)

    def pull_back(self, A: Tensor, input_shapes: tuple[Shape, ...]) -> tuple[Tensor, ...]:
        return (A.new_zeros(A.shape[0], *input_shapes[0]).index_add(self.axis + 1, self.index.to(A.device), A),)
