"""Where rows live: their domain (`Owner`), and for rows over a map their windows (`Positions`, `Extent`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Owner:
    """Which of the B domains each of N rows belongs to: `index` "N", or `only` where all rows have one."""

    batch: int
    index: Tensor | None = None
    only: int | None = None

    def __post_init__(self) -> None:
        if (self.index is None) == (self.only is None):
            raise ValueError("rows have either one domain or an index of domains")

    @staticmethod
    def of(batch: int, index: Tensor | None) -> Owner:
        """Owner of rows; with a single domain the index is not needed."""
        return Owner(batch, None, 0) if batch == 1 or index is None else Owner(batch, index)

    def rows(self, t: Tensor) -> Tensor:
        """ "B ..." -> "N ...", or "1 ..." (broadcastable) when all rows have one domain."""
        if self.index is None:
            assert self.only is not None
            return t if t.shape[0] == 1 else t[self.only:self.only + 1]
        return t.index_select(0, self.index)

    def domains(self, count: int, like: Tensor) -> Tensor:
        """The index, spelled out: "N"."""
        if self.index is not None:
            return self.index
        return torch.full((count,), self.only or 0, dtype=torch.long, device=like.device)

    def take(self, chosen: Tensor | slice) -> Owner:
        return self if self.index is None else Owner(self.batch, self.index[chosen])


@dataclass(frozen=True, eq=False)
class Positions:
    """Start positions on a map of `height x width`: runs of equal (domain, y, x) and, for each row, which
    of them it has (never decreasing). Rows that start at one position in several channels share all gathers."""

    height: int
    width: int
    owner: Tensor
    y: Tensor
    x: Tensor
    of_row: Tensor

    @staticmethod
    def of(owner: Owner, flat: Tensor, height: int, width: int) -> Positions:
        """flat "N": y * width + x of each row's start. Rows that are sorted by domain and position share most."""
        domain = owner.domains(flat.shape[0], flat)
        key, of_row = torch.unique_consecutive(domain * (height * width) + flat, return_inverse=True)
        domain = key // (height * width)
        flat = key % (height * width)
        return Positions(height, width, domain, flat // width, flat % width, of_row)


@dataclass(frozen=True)
class Extent:
    """Where windows lie on the map, along both axes: top = stride * y + offset, `size` tall."""

    stride: tuple[int, int]
    offset: tuple[int, int]
    size: tuple[int, int]

    def pulled(self, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int],
               dilation: tuple[int, int]) -> Extent:
        """The extent on the input map of a convolution."""
        return Extent(
            (self.stride[0] * stride[0], self.stride[1] * stride[1]),
            (self.offset[0] * stride[0] - padding[0], self.offset[1] * stride[1] - padding[1]),
            ((self.size[0] - 1) * stride[0] + dilation[0] * (kernel[0] - 1) + 1,
             (self.size[1] - 1) * stride[1] + dilation[1] * (kernel[1] - 1) + 1))

    def union(self, other: Extent) -> Extent:
        assert self.stride == other.stride, "windows on one map move with one stride"
        offset = tuple(min(a, b) for a, b in zip(self.offset, other.offset, strict=True))
        end = tuple(max(a + s, b + t) for a, s, b, t in
                    zip(self.offset, self.size, other.offset, other.size, strict=True))
        return Extent(self.stride, offset, tuple(e - o for e, o in zip(end, offset, strict=True)))  # type: ignore[arg-type]

    def margins(self, starts: tuple[int, int], shape: tuple[int, int]) -> tuple[int, int, int, int]:
        """(top, bottom, left, right): how far windows reach out of a map of this shape."""
        out = []
        for axis in (0, 1):
            last = (starts[axis] - 1) * self.stride[axis] + self.offset[axis] + self.size[axis]
            out += [max(0, -self.offset[axis]), max(0, last - shape[axis])]
        return out[0], out[1], out[2], out[3]
