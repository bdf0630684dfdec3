"""Rows: linear functions of one node's value, kept in the smallest layout that holds them.

A row is `<A, z>` for the value z of a node. Pulling it back towards the input is the inner loop of
every backward method, so its layout decides the speed:

- unit: `sign * z[index]`, one neuron a row; where intermediate bounds start. Nothing is stored.
- columns: dense, but only over the flat positions that can matter (neurons that are not dead).
- window: on a convolutional map, dense over a rectangle around the start position; everything
  outside is zero. Windows that start at one map keep one size and move with the start position.
- full: dense over the whole node.

Rows over maps are kept in channels-last memory order, in which convolutions run fastest.

Every row knows its domain through `Owner`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from bounds.window import Extent, Owner, Positions

Shape = tuple[int, ...]


# A window that covers this share of its map becomes a full map; on small maps earlier, since the next
# convolution would cover it anyway and copying it then costs more.
DENSE_SHARE = 0.8
SMALL_DENSE_SHARE = 0.5
SMALL_MAP = 100
# From so many rows a start position on, windows are copied into full maps run by run.
ROWS_A_RUN = 4


def covers(extent: Extent, shape: Shape) -> bool:
    """Whether windows of this extent are better kept as full maps of `shape` "C H W"."""
    cells = shape[1] * shape[2]
    share = SMALL_DENSE_SHARE if cells <= SMALL_MAP else DENSE_SHARE
    return extent.size[0] * extent.size[1] >= share * cells


@dataclass(frozen=True, eq=False)
class Rows:
    """N rows over one node. Exactly one layout: see the module. `clean`: a window is zero outside the map;
    `fresh`: nobody else holds A, so it may be overwritten."""

    owner: Owner
    count: int
    A: Tensor | None = None
    index: Tensor | None = None
    sign: Tensor | None = None
    columns: Tensor | None = None
    positions: Positions | None = None
    extent: Extent | None = None
    clean: bool = True
    fresh: bool = False

    # ------------------------------------------------------------------ making rows

    @staticmethod
    def full(A: Tensor, owner: Owner) -> Rows:
        if A.dim() == 4:
            A = A.contiguous(memory_format=torch.channels_last)
        return Rows(owner, A.shape[0], A=A)

    @staticmethod
    def unit(index: Tensor, sign: Tensor, owner: Owner) -> Rows:
        """`sign * z[index]`: index "N" into the flat node, sign "N" of +-1 (its dtype is the rows')."""
        return Rows(owner, index.shape[0], index=index, sign=sign)

    def with_values(self, A: Tensor, *, clean: bool | None = None) -> Rows:
        return replace(self, A=A, clean=self.clean if clean is None else clean)

    def negated(self) -> Rows:
        """The rows `-A`."""
        return replace(self, A=None if self.A is None else -self.A, sign=None if self.sign is None else -self.sign)

    def take(self, chosen: slice | Tensor) -> Rows:
        """Some of the rows."""
        def part(t: Tensor | None) -> Tensor | None:
            return None if t is None else t[chosen]
        if isinstance(chosen, slice):
            count = len(range(*chosen.indices(self.count)))
        else:
            count = int(chosen.sum()) if chosen.dtype == torch.bool else chosen.shape[0]
        positions = self.positions
        if positions is not None:
            positions = replace(positions, of_row=positions.of_row[chosen])
        return replace(self, owner=self.owner.take(chosen), count=count, A=part(self.A), index=part(self.index),
                       sign=part(self.sign), positions=positions)

    # ------------------------------------------------------------------ changing layout

    def as_window_or_full(self, shape: Shape) -> Rows:
        """Units become 1x1 windows on a map (3-d shapes), else one-hot rows; columns become full."""
        if self.index is None:
            return self.as_full(shape) if self.columns is not None else self
        assert self.sign is not None
        if len(shape) != 3:
            return self.as_full(shape)
        channels, height, width = shape
        A = self.sign.new_zeros(self.count, 1, 1, channels).permute(0, 3, 1, 2)
        A[torch.arange(self.count, device=A.device), self.index // (height * width), 0, 0] = self.sign
        return replace(self.cells(shape), A=A)

    def cells(self, shape: Shape) -> Rows:
        """The layout (without values) of units on a map: windows of one cell."""
        assert self.index is not None
        _, height, width = shape
        positions = Positions.of(self.owner, self.index % (height * width), height, width)
        return Rows(self.owner, self.count, positions=positions, extent=Extent((1, 1), (0, 0), (1, 1)))

    def as_whole_window(self, shape: Shape) -> Rows:
        """Dense rows over a map as windows that cover it."""
        rows = self.as_full(shape)
        assert rows.A is not None
        zeros = torch.zeros(rows.count, dtype=torch.long, device=rows.A.device)
        positions = Positions.of(rows.owner, zeros, 1, 1)
        return replace(rows, positions=positions, extent=Extent((1, 1), (0, 0), (shape[1], shape[2])))

    def as_full(self, shape: Shape) -> Rows:
        """Dense over the whole node: A "N *shape"."""
        if self.index is not None:
            assert self.sign is not None
            A = self.sign.new_zeros(self.count, *shape)
            A.view(self.count, -1)[torch.arange(self.count, device=A.device), self.index] = self.sign
            return Rows.full(A, self.owner)
        assert self.A is not None
        if self.columns is not None:
            size = 1
            for n in shape:
                size *= n
            A = self.A.new_zeros(self.count, size).index_copy(1, self.columns, self.A)
            return Rows.full(A.view(self.count, *shape), self.owner)
        if self.extent is not None and self.positions is not None:
            return Rows.full(self._scatter(shape), self.owner)
        return self

    def _scatter(self, shape: Shape) -> Tensor:
        assert self.A is not None and self.extent is not None and self.positions is not None
        channels, height, width = shape
        p, e = self.positions, self.extent
        runs = p.y.shape[0]
        if self.count >= ROWS_A_RUN * runs and not self.A.requires_grad:
            return self._place(shape)
        top, bottom, left, right = e.margins((p.height, p.width), (height, width))
        wide = width + left + right
        tall = height + top + bottom
        y = (p.y * e.stride[0] + e.offset[0] + top).index_select(0, p.of_row)
        x = (p.x * e.stride[1] + e.offset[1] + left).index_select(0, p.of_row)
        rows = torch.arange(e.size[0], device=y.device)
        cols = torch.arange(e.size[1], device=y.device)
        where = (((y[:, None] + rows)[:, :, None] * wide) + (x[:, None] + cols)[:, None, :]).view(self.count, -1, 1)
        A = self.A.new_zeros(self.count, tall * wide, channels)
        A = A.scatter(1, where.expand(-1, -1, channels), self.A.permute(0, 2, 3, 1).flatten(1, 2))
        A = A.view(self.count, tall, wide, channels)
        if tall != height or wide != width:
            A = A[:, top:top + height, left:left + width].contiguous()
        return A.permute(0, 3, 1, 2)

    def _place(self, shape: Shape) -> Tensor:
        """As `_scatter`, one copy a run of rows with equal position."""
        assert self.A is not None and self.extent is not None and self.positions is not None
        channels, height, width = shape
        p, e = self.positions, self.extent
        A = self.A.new_zeros(self.count, height, width, channels)
        windows = self.A.permute(0, 2, 3, 1)
        numbers, counts = torch.unique_consecutive(p.of_row, return_counts=True)
        tops = (p.y[numbers] * e.stride[0] + e.offset[0]).tolist()
        lefts = (p.x[numbers] * e.stride[1] + e.offset[1]).tolist()
        first = 0
        for top, left, count in zip(tops, lefts, counts.tolist(), strict=True):
            y, x = max(0, -top), max(0, -left)
            tall, wide = min(e.size[0], height - top) - y, min(e.size[1], width - left) - x
            if tall > 0 and wide > 0:
                A[first:first + count, top + y:top + y + tall, left + x:left + x + wide] = \
                    windows[first:first + count, y:y + tall, x:x + wide]
            first += count
        return A.permute(0, 3, 1, 2)

    def covers(self, shape: Shape) -> bool:
        """Whether a window has grown so large that the full map is no more work."""
        return self.extent is not None and covers(self.extent, shape)

    # ------------------------------------------------------------------ reading node values in this layout

    def gather(self, t: Tensor, phases: int = 1) -> Tensor:
        """Values "B *shape" of a node, aligned with A: broadcastable against it. Outside the map: 0. With
        phases s, windows "C s*h s*w" are rearranged as `Affine.pull_back_phases` orders its result."""
        if self.extent is not None and self.positions is not None:
            windows = self.windows(t)
            if phases > 1:
                windows = F.pixel_unshuffle(windows.permute(0, 3, 1, 2), phases).permute(0, 2, 3, 1).contiguous()
            if self.positions.y.shape[0] > 1:
                windows = windows.index_select(0, self.positions.of_row)
            return windows.permute(0, 3, 1, 2)
        if self.columns is not None:
            return self.owner.rows(t.flatten(1).index_select(1, self.columns))
        if t.dim() != 4:
            return self.owner.rows(t)
        if self.owner.index is None:
            t = self.owner.rows(t)  # one domain: do not rearrange the others
        t = t.permute(0, 2, 3, 1).contiguous()
        return (t if self.owner.index is None else self.owner.rows(t)).permute(0, 3, 1, 2)

    def windows(self, t: Tensor) -> Tensor:
        """Values "B C H W" of a map at each distinct position: "P h w C", 0 outside the map."""
        assert self.extent is not None and self.positions is not None
        p, e = self.positions, self.extent
        domain = p.owner
        if self.owner.index is None:
            t, domain = self.owner.rows(t), torch.zeros_like(domain)
        top, bottom, left, right = e.margins((p.height, p.width), (t.shape[2], t.shape[3]))
        padded = F.pad(t, (left, right, top, bottom)).permute(0, 2, 3, 1)
        # The first window starts at offset + top in the padded map.
        padded = padded[:, e.offset[0] + top:, e.offset[1] + left:]
        view = padded.unfold(1, e.size[0], e.stride[0]).unfold(2, e.size[1], e.stride[1])  # "B Y X C h w"
        # Indexing keeps the order of the source's memory; rows are to lie channels-last.
        return view.permute(0, 1, 2, 4, 5, 3)[domain, p.y, p.x].contiguous()

    def masked(self, shape: Shape, keep: Callable[[Callable[[], Tensor | None]], Tensor | None] | None = None) -> Rows:
        """Set what lies outside the map to zero. `keep` may store the mask between calls."""
        if self.clean or self.extent is None:
            return self
        inside = self._inside(shape) if keep is None else keep(lambda: self._inside(shape))
        assert self.A is not None
        return replace(self, clean=True) if inside is None else self.with_values(self.A * inside, clean=True)

    def _inside(self, shape: Shape) -> Tensor | None:
        """ "N 1 h w": one inside the map, zero outside; None where no window reaches out."""
        assert self.extent is not None and self.positions is not None and self.A is not None
        p = self.positions
        if not any(self.extent.margins((p.height, p.width), (shape[1], shape[2]))):
            return None
        ones = self.A.new_ones(1, 1, shape[1], shape[2])
        at_first = replace(self, positions=replace(p, owner=torch.zeros_like(p.owner)))
        return at_first.windows(ones).index_select(0, p.of_row).permute(0, 3, 1, 2)

    # ------------------------------------------------------------------ arithmetic

    def plus(self, other: Rows, shape: Shape) -> Rows:
        """The sum of two sets of rows over the same node and the same owners."""
        if self.moves_with(other):
            assert self.extent is not None and other.extent is not None
            extent = self.extent.union(other.extent)
            clean = self.clean and other.clean
            for large, small in ((self, other), (other, self)):
                if large.fresh and large.extent == extent:
                    return large._add_inside(small, clean)
            return replace(self, A=self._grown(extent) + other._grown(extent), extent=extent, clean=clean, fresh=True)
        if self.index is None and other.index is None and self.columns is not None \
                and self.columns is other.columns:
            assert self.A is not None and other.A is not None
            return self.with_values(self.A + other.A)
        first = self.as_window_or_full(shape) if other.extent is not None else self
        second = other.as_window_or_full(shape) if self.extent is not None else other
        if first.moves_with(second) and (first is not self or second is not other):
            return first.plus(second, shape)
        first, second = self.as_full(shape), other.as_full(shape)
        assert first.A is not None and second.A is not None
        if first.fresh or first is not self:
            return first.with_values(first.A.add_(second.A))
        if second.fresh or second is not other:
            return second.with_values(second.A.add_(first.A))
        return first.with_values(first.A + second.A)

    def moves_with(self, other: Rows) -> bool:
        """Whether both are windows whose places differ by one shift for all rows. A reshape between the starts gives
        one neuron different places on the two maps; then the windows have nothing in common."""
        if self.extent is None or other.extent is None or self.positions is None or other.positions is None:
            return False
        p, q = self.positions, other.positions
        return self.extent.stride == other.extent.stride and (p.height, p.width) == (q.height, q.width)

    def _add_inside(self, other: Rows, clean: bool) -> Rows:
        """Add windows that lie inside these, in place."""
        assert self.A is not None and self.extent is not None
        assert other.A is not None and other.extent is not None
        y, x = (o - s for o, s in zip(other.extent.offset, self.extent.offset, strict=True))
        self.A[:, :, y:y + other.extent.size[0], x:x + other.extent.size[1]] += other.A
        return replace(self, clean=clean)

    def _grown(self, extent: Extent) -> Tensor:
        assert self.A is not None and self.extent is not None
        pads = []
        for axis in (1, 0):
            before = self.extent.offset[axis] - extent.offset[axis]
            pads += [before, extent.size[axis] - self.extent.size[axis] - before]
        return F.pad(self.A, pads) if any(pads) else self.A

    @cached_property
    def elements(self) -> int:
        """Stored coefficients a row."""
        return 1 if self.A is None else self.A[0].numel() if self.count else 0
