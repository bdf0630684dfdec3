"""Max pooling over any number of spatial axes, with stride, dilation, implicit padding and ceil mode.

Linear bounds of one window with inputs x_1 .. x_k (padding takes no part):

- below: y >= x_i for any i; taken where l_i + u_i is largest;
- above: with i the input of the largest upper bound and m = max_{j != i} u_j, y <= max(x_i, m), which is
  convex in x_i, so its chord on [l_i, u_i] holds:  y <= s x_i + c,  s = (u_i - max(m, l_i)) / (u_i - l_i),
  c = max(m, l_i) - s l_i.  If m <= l_i the window is decided and y = x_i exactly. The constant max u of
  DeepPoly (Singh et al. POPL 2019) is never below this line on [l_i, u_i].

For zonotopes the same chord is paired with a parallel line below: y >= max(x_i, m'), m' = max_{j != i} l_j, and
max(x_i, m') - s x_i is smallest at x_i = max(m', l_i), so  y >= s x_i + (1 - s) max(m', l_i).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bounds.interval import Interval
from bounds.ops.base import Relaxed, Shape
from bounds.ops.round_off import MORE, gamma, underflow
from bounds.window import Owner

_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


@lru_cache(maxsize=64)
def _windows(sizes: Shape, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape, out: Shape) -> Tensor:
    """The flat positions in a map of `sizes` that each window reads, "P W" (long, CPU); -1 is padding."""
    flat = torch.zeros((1,) * (2 * len(sizes)), dtype=torch.long)
    inside = torch.ones_like(flat, dtype=torch.bool)
    for axis, size in enumerate(sizes):
        start = torch.arange(out[axis]) * stride[axis] - padding[axis]
        position = start[:, None] + torch.arange(kernel[axis]) * dilation[axis]
        shape = [1] * (2 * len(sizes))
        shape[axis], shape[len(sizes) + axis] = position.shape
        position = position.view(shape)
        flat = flat * size + position
        inside = inside & (position >= 0) & (position < size)
    flat = torch.where(inside, flat, -1)
    return flat.flatten(len(sizes)).flatten(0, -2)


@dataclass(frozen=True, eq=False)
class WindowLines:
    """For every output: `y >= x[below]` and `slope * x[above] + low <= y <= slope * x[above] + high`.

    Indices "B C P" are flat positions of the input map of the same channel; slope, low, high likewise.
    """

    below: Tensor
    above: Tensor
    slope: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True, eq=False)
class MaxPool(Relaxed):
    """x "B C *map" -> "B C *map'"; padding is symmetric and takes no part in the maximum."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    ceil: bool = False
    kind: ClassVar[str] = "MaxPool"
    rounding_known: ClassVar[bool] = True

    def forward(self, *inputs: Tensor) -> Tensor:
        pool = _POOL[len(self.kernel)]
        return pool(inputs[0], self.kernel, self.stride, self.padding, self.dilation, self.ceil)

    def interval(self, *inputs: Interval) -> Interval:
        return inputs[0].map(self.forward)

    def windows(self, x: Tensor) -> Tensor:
        """The flat positions that each window reads, "P W" (-1: padding), for inputs "B C *map"."""
        sizes = tuple(x.shape[2:])
        out = tuple(self.forward(torch.empty(1, 1, *sizes, device="meta")).shape[2:])
        return _windows(sizes, self.kernel, self.stride, self.padding, self.dilation, out).to(x.device)

    def _read(self, t: Tensor, windows: Tensor) -> Tensor:
        """The inputs of every window, "B C P W"; -inf stands for padding."""
        values = t.flatten(2)[:, :, windows.clamp(min=0)]
        return values.masked_fill(windows < 0, -torch.inf) if bool((windows < 0).any()) else values

    def contenders(self, x: Interval) -> Tensor:
        """bool "B C P W": which inputs of each window can be its maximum."""
        windows = self.windows(x.lower)
        lower, upper = self._read(x.lower, windows), self._read(x.upper, windows)
        return (upper >= lower.amax(-1, keepdim=True)) & (windows >= 0)

    def read(self, t: Tensor) -> Tensor:
        """The inputs "N C *map" of every window, "N C P W" (anything where a window reads padding)."""
        return t.flatten(2)[:, :, self.windows(t).clamp(min=0)]

    def spread(self, shares: Tensor, shape: Shape) -> Tensor:
        """The transpose of `read`: "N C P W" -> `shape` "N C *map"; shares of padding have to be zero."""
        out = shares.new_zeros(shape)
        where = self.windows(out).clamp(min=0).flatten().expand(*shape[:2], -1)
        return out.flatten(2).scatter_add(2, where, shares.flatten(2)).view(shape)

    def lines(self, x: Interval) -> WindowLines:
        """Linear bounds of every output."""
        windows = self.windows(x.lower)
        lower, upper = self._read(x.lower, windows), self._read(x.upper, windows)
        below = (lower + upper).argmax(-1, keepdim=True)
        above = upper.argmax(-1, keepdim=True)
        own_lower, own_upper = lower.gather(-1, above), upper.gather(-1, above)
        # max(x_i, the others) with the others in [least, most], clipped to where they can matter.
        most = torch.maximum(upper.scatter(-1, above, -torch.inf).amax(-1, keepdim=True), own_lower)
        least = torch.maximum(lower.scatter(-1, above, -torch.inf).amax(-1, keepdim=True), own_lower)
        width = own_upper - own_lower
        slope = (own_upper - most) / torch.where(width > 0, width, torch.ones_like(width))
        decided = most <= own_lower
        slope = torch.where(decided, torch.ones_like(slope), slope)
        # The larger of the chord's two ends, since the slope is rounded.
        high = torch.maximum(most - slope * own_lower, own_upper - slope * own_upper)
        high = torch.where(decided, torch.zeros_like(high), high)
        low = torch.where(decided, torch.zeros_like(high), torch.minimum((1 - slope) * least, high))
        flat = windows.expand(*lower.shape)
        return WindowLines(*(t.squeeze(-1) for t in (flat.gather(-1, below), flat.gather(-1, above), slope, low, high)))

    def pull_back_relaxed(self, A: Tensor, owner: Owner, inputs: tuple[Interval, ...]
                          ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Positive coefficients take the line below, negative ones the line above; windows that overlap add up."""
        (x,) = inputs
        if owner.index is None:
            x = x.map(owner.rows)  # all rows have one domain
        lines = self.lines(x)
        shape = (A.shape[0], *x.lower.shape[1:])
        A = A.flatten(2)
        positive, negative = A.clamp(min=0), A.clamp(max=0)
        out = A.new_zeros(shape).flatten(2)
        out = out.scatter_add(2, owner.rows(lines.below).expand_as(A), positive)
        out = out.scatter_add(2, owner.rows(lines.above).expand_as(A), negative * owner.rows(lines.slope))
        constant = (negative * owner.rows(lines.high)).flatten(1).sum(1)
        return (out.view(shape),), constant

    def rounding(self, inputs: tuple[Interval, ...], prices: tuple[Tensor | None, ...]) -> Tensor:
        """No coefficient, slope or intercept of a window exceeds that of its output times the largest input; rows sum
        over all outputs, and an input over all windows that hold it."""
        (x,), (price,) = inputs, prices
        largest = self.forward(torch.maximum(x.lower.abs(), x.upper.abs()))
        share = gamma(largest[0].numel(), largest.dtype)
        own = largest * (4 * MORE * share) + underflow(largest[0].numel(), largest.dtype)
        return own if price is None else own + MORE * self.forward(price)

    def parallel_bounds(self, x: Interval) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor]:
        lines = self.lines(x)
        out = tuple(self.forward(torch.empty(1, *x.lower.shape[1:], device="meta")).shape[1:])
        index, slope = lines.above.unsqueeze(1), lines.slope.unsqueeze(1)

        def linear(values: Tensor) -> Tensor:
            read = values.flatten(3).gather(3, index.expand(-1, values.shape[1], -1, -1))
            return (slope * read).view(*values.shape[:2], *out)

        return linear, lines.low.view(-1, *out), lines.high.view(-1, *out)

    def is_linear_on(self, *inputs: Interval) -> Tensor:
        """False for inputs of an undecided window that can be its maximum."""
        (x,) = inputs
        windows = self.windows(x.lower)
        lower, upper = self._read(x.lower, windows), self._read(x.upper, windows)
        winner = lower.argmax(-1, keepdim=True)
        best = lower.gather(-1, winner)
        rival = upper.scatter(-1, winner, -torch.inf).amax(-1, keepdim=True) > best
        matters = (rival & (upper > best)).flatten(2)
        where = windows.clamp(min=0).flatten().expand_as(matters)
        counted = torch.zeros_like(x.lower).flatten(2).scatter_add(2, where, matters.to(x.lower.dtype))
        return (counted == 0).view_as(x.lower)
