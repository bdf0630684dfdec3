"""Batch normalisation with its training statistics (arXiv:1502.03167)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bounds.ops.base import Affine, Shape
from bounds.window import Extent

FACTOR_ROUNDINGS = 8  # of the sum, the root, its inverse and the product, the root within two units of the last place


@dataclass(frozen=True, eq=False)
class BatchNorm(Affine):
    """`y = (x - mean) / sqrt(variance + eps) * weight + bias` for each channel (the first axis after the batch).

    `mean` and `variance` "C" are the running statistics, shared with the module. In `training` mode `forward` uses
    the statistics of its own batch, where the operator is not affine: bounds then need `with_batch_statistics`.
    """

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor
    variance: Tensor
    eps: float = 1e-5
    training: bool = False
    kind: ClassVar[str] = "BatchNorm"

    def with_batch_statistics(self, x: Tensor) -> BatchNorm:
        """The affine operator whose statistics are those of the batch x "B C *map" (differentiable in x)."""
        axes = (0, *range(2, x.dim()))
        return dataclasses.replace(self, mean=x.mean(axes), variance=x.var(axes, unbiased=False), training=False)

    def _channels(self, v: Tensor, x: Tensor) -> Tensor:
        return v.reshape(-1, *(1,) * (x.dim() - 2))

    def _factor(self) -> Tensor:
        if self.training:
            raise ValueError("batch normalisation in training mode has no bounds: fix its statistics with "
                             "with_batch_statistics(x) first")
        scale = torch.rsqrt(self.variance + self.eps)
        return scale if self.weight is None else self.weight * scale

    def forward(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        if self.training:
            return self.with_batch_statistics(x).forward(x)
        y = (x - self._channels(self.mean, x)) * self._channels(self._factor(), x)
        return y if self.bias is None else y + self._channels(self.bias, x)

    def linear(self, *inputs: Tensor) -> Tensor:
        return inputs[0] * self._channels(self._factor(), inputs[0])

    def magnitude(self, *radii: Tensor) -> Tensor:
        return radii[0] * self._channels(self._factor().abs(), radii[0])

    def absolute(self) -> BatchNorm:
        return dataclasses.replace(self, weight=None if self.weight is None else self.weight.abs(), bias=None)

    def terms(self, input_shapes: tuple[Shape, ...], output_shape: Shape) -> int:
        return FACTOR_ROUNDINGS + 2

    def offset_size(self, input_shapes: tuple[Shape, ...]) -> Tensor | None:
        size = (self.mean * self._factor()).abs()
        size = size if self.bias is None else size + self.bias.abs()
        return size.view(1, -1, *(1,) * (len(input_shapes[0]) - 1))

    def pull_back(self, A: Tensor, input_shapes: tuple[Shape, ...]) -> tuple[Tensor, ...]:
        return (A * self._channels(self._factor(), A),)

    def window(self, extent: Extent, input_shape: Shape) -> Extent | None:
        return extent

    def pull_back_window(self, A: Tensor) -> Tensor:
        return A * self._channels(self._factor(), A)

    def constant(self, A: Tensor) -> Tensor | None:
        shift = -self.mean * self._factor()
        if self.bias is not None:
            shift = shift + self.bias
        return (A.flatten(2).sum(2) if A.dim() > 2 else A) @ shift
