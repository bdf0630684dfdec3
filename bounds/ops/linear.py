"""Dense layer on the last axis: `y = x W^T + b` (ONNX Gemm, MatMul with a constant)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from bounds.ops.base import Affine, Shape


@dataclass(frozen=True, eq=False)
class Linear(Affine):
    """weight "out in", bias "out" or None; x "B ... in" -> "B ... out"."""

    weight: Tensor
    bias: Tensor | None = None
    kind: ClassVar[str] = "Linear"

    def forward(self, *inputs: Tensor) -> Tensor:
        return F.linear(inputs[0], self.weight, self.bias)

    def linear(self, *inputs: Tensor) -> Tensor:
        return F.linear(inputs[0], self.weight)

    def magnitude(self, *radii: Tensor) -> Tensor:
        return F.linear(radii[0], self.weight.abs())

    def absolute(self) -> Linear:
        return replace(self, weight=self.weight.abs(), bias=None)

    def terms(self, input_shapes: tuple[Shape, ...], output_shape: Shape) -> int:
        return max(self.weight.shape) + 1

    def offset_size(self, input_shapes: tuple[Shape, ...]) -> Tensor | None:
        return None if self.bias is None else self.bias.abs().unsqueeze(0)

    def pull_back(self, A: Tensor, input_shapes: tuple[Shape, ...]) -> tuple[Tensor, ...]:
        return (A @ self.weight,)

    def constant(self, A: Tensor) -> Tensor | None:
        if self.bias is None:
            return None
        return (A @ self.bias).flatten(1).sum(1) if A.dim() > 2 else A @ self.bias
