"""Transposed convolution over one, two or three spatial axes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from bounds.ops.base import Affine, Shape

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@dataclass(frozen=True, eq=False)
class ConvTranspose(Affine):
    """weight "Cin Cout/groups *k", bias "Cout" or None; x "B Cin *map" -> "B Cout *map'".

    `padding` is symmetric, one number an axis (an asymmetric one is a crop after it); `output_padding`
    adds rows at the far end.
    """

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    output_padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    kind: ClassVar[str] = "ConvTranspose"

    def _apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _CONV_TRANSPOSE[weight.dim() - 2](
            x, weight, bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._apply(inputs[0], self.weight, self.bias)

    def linear(self, *inputs: Tensor) -> Tensor:
        return self._apply(inputs[0], self.weight, None)

    def magnitude(self, *radii: Tensor) -> Tensor:
        return self._apply(radii[0], self.weight.abs(), None)

    def absolute(self) -> ConvTranspose:
        return replace(self, weight=self.weight.abs(), bias=None)

    def terms(self, input_shapes: tuple[Shape, ...], output_shape: Shape) -> int:
        inputs, outputs = self.weight.shape[0] // self.groups, self.weight.shape[1]
        return max(inputs, outputs) * math.prod(self.weight.shape[2:]) + 1

    def offset_size(self, input_shapes: tuple[Shape, ...]) -> Tensor | None:
        return None if self.bias is None else self.bias.abs().view(1, -1, *(1,) * (self.weight.dim() - 2))

    def pull_back(self, A: Tensor, input_shapes: tuple[Shape, ...]) -> tuple[Tensor, ...]:
        out = _CONV[self.weight.dim() - 2](
            A, self.weight, None, self.stride, self.padding, self.dilation, self.groups)
        # An output padding of at least one stride makes room for windows that no input cell owns.
        return (out[(slice(None), slice(None), *(slice(n) for n in input_shapes[0][1:]))],)

    def constant(self, A: Tensor) -> Tensor | None:
        return None if self.bias is None else A.flatten(2).sum(2) @ self.bias
