"""Average pooling over one, two or three spatial axes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bounds.ops.base import Affine, Shape
from bounds.window import Extent

_AVG_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def pooled_size(size: int, kernel: int, stride: int, before: int, after: int, ceil: bool) -> int:
    """How many windows fit. With `ceil` a last partial one counts, unless it starts in the padding behind."""
    room = size + before + after - kernel
    windows = (-(-room // stride) if ceil else room // stride) + 1
    return windows - 1 if ceil and (windows - 1) * stride >= size + before else windows


@dataclass(frozen=True, eq=False)
class AvgPool(Affine):
    """x "B C *map" -> "B C *map'"; zero padding `before` and `after` each axis. A window is divided by the number
    of cells it covers: those of the map, and with `count_padding` those of the padding too (never those that
    only `ceil` reaches)."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    ceil: bool = False
    count_padding: bool = False
    kind: ClassVar[str] = "AvgPool"

    def _axes(self, map_shape: Shape) -> list[tuple[int, int, list[int]]]:
        """For each axis: cells to add in front and behind, and how many cells each window counts."""
        result = []
        for size, k, s, before, after in zip(map_shape, self.kernel, self.stride, self.before, self.after,
                                             strict=True):
            windows = pooled_size(size, k, s, before, after, self.ceil)
            low, high = (-before, size + after) if self.count_padding else (0, size)
            starts = [i * s - before for i in range(windows)]
            counts = [max(min(start + k, high) - max(start, low), 1) for start in starts]
            result.append((before, (windows - 1) * s + k - size - before, counts))
        return result

    def _weights(self, map_shape: Shape, like: Tensor) -> Tensor | None:
        """(cells of a full window) / (cells counted) for each window; None where all windows are full."""
        axes = self._axes(map_shape)
        if all(n == k for (_, _, counts), k in zip(axes, self.kernel, strict=True) for n in counts):
            return None
        total = torch.ones((), dtype=like.dtype, device=like.device)
        for _, _, counts in axes:
            total = total.unsqueeze(-1) * torch.tensor(counts, dtype=like.dtype, device=like.device)
        return math.prod(self.kernel) / total

    def forward(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        pads = [n for before, after, _ in reversed(self._axes(x.shape[2:])) for n in (before, after)]
        y = _AVG_POOL[len(self.kernel)](F.pad(x, pads) if any(pads) else x, self.kernel, self.stride)
        weights = self._weights(x.shape[2:], x)
        return y if weights is None else y * weights

    def terms(self, input_shapes: tuple[Shape, ...], output_shape: Shape) -> int:
        return math.prod(self.kernel) + 3  # the sum, and up to three quotients and products

    def pull_back(self, A: Tensor, input_shapes: tuple[Shape, ...]) -> tuple[Tensor, ...]:
        map_shape = input_shapes[0][1:]
        weights = self._weights(map_shape, A)
        A = A / math.prod(self.kernel) if weights is None else A * (weights / math.prod(self.kernel))
        crop = [-n for before, after, _ in reversed(self._axes(map_shape)) for n in (before, after)]
        return (F.pad(self._spread(A), crop),)

    def _spread(self, A: Tensor) -> Tensor:
        """Every coefficient on all cells of its window: "N C *map'" -> "N C *covered"."""
        if self.kernel == self.stride:
            return F.interpolate(A, scale_factor=tuple(float(k) for k in self.kernel), mode="nearest-exact")
        ones = A.new_ones(1, 1, *self.kernel)
        spread = _CONV_TRANSPOSE[len(self.kernel)](A.reshape(-1, 1, *A.shape[2:]), ones, None, self.stride)
        return spread.reshape(A.shape[0], A.shape[1], *spread.shape[2:])

    def window(self, extent: Extent, input_shape: Shape) -> Extent | None:
        if len(self.kernel) != 2 or any(set(counts) != {k} for (_, _, counts), k in
                                        zip(self._axes(input_shape[1:]), self.kernel, strict=True)):
            return None  # windows at the edge are divided by another number
        return extent.pulled((self.kernel[0], self.kernel[1]), (self.stride[0], self.stride[1]),
                             (self.before[0], self.before[1]), (1, 1))

    def pull_back_window(self, A: Tensor) -> Tensor:
        return self._spread(A / math.prod(self.kernel))
