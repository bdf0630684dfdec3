"""Linear functions over a box cut by a half-space: neurons are bounded again where splits and planes have left less.

For a function a x + c over {low <= x <= high, g x + h <= 0} duality gives, for any t >= 0, the lower bound
`min over the box of (a + t g) x + c + t h`, a concave piecewise linear function of t. One number is searched, every t
is valid, and at the maximum the bound is exact (Clip-and-Verify, arXiv:2512.11087, clips intermediate bounds so).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bounds.graph import Graph
from bounds.interval import Interval
from bounds.ops.base import Affine
from bounds.ops.round_off import MORE, SPARE, gamma
from bounds.rounding import composition_error
from bounds.sets import InputSet
from verifier.branch_and_bound.clip import SLACK, ends_slack, slack_of
from verifier.branch_and_bound.domains import Domains, Layout

STEPS = 5             # intersections of tangents; more than three were seen to change little
MOST_STEPS = 60      # where the maximum itself is wanted
AT_MAXIMUM = 1e-13    # relative to the value
CHUNK_ENTRIES = 1 << 19
MOST_ENTRIES = 1 << 17   # coefficients of all affine neurons; larger networks have better uses for the time


@dataclass(frozen=True, eq=False)
class AffineNeurons:
    """The neurons that are affine in the input: `weight` "m n" x + `bias` "m", off by at most `error` "m" over all
    regions, at flat indices `at` "m" of the layout's neurons."""

    weight: Tensor
    bias: Tensor
    error: Tensor
    at: Tensor
    place: Tensor   # "neurons" -> row of weight, or -1
    exact: bool = False  # search to the maximum, which does not depend on rounding as steps do

    @staticmethod
    def of(graph: Graph, layout: Layout, sets: InputSet) -> AffineNeurons | None:
        """None where there are none, or too many; sets: all that they are going to be asked about."""
        affine = {0}
        for i, node in enumerate(graph.nodes):
            if isinstance(node.op, Affine) and all(j in affine for j in node.inputs):
                affine.add(i)
        nodes = [(i, torch.Size(s).numel(), o - layout.inputs)
                 for i, s, o in zip(layout.nodes, layout.shapes, layout.offsets, strict=True) if i in affine]
        if not nodes or sum(size for _, size, _ in nodes) * layout.inputs > MOST_ENTRIES:
            return None
        # The linear parts by themselves: next to a large bias a difference of two values loses the weight.
        unit = torch.eye(layout.inputs, dtype=graph.dtype, device=graph.device).view(-1, *graph.input_shape)
        linear = {0: unit}
        for i in sorted(affine - {0}):
            op = graph.nodes[i].op
            assert isinstance(op, Affine)
            linear[i] = op.linear(*(linear[j] for j in graph.nodes[i].inputs))
        weight = torch.cat([linear[i].flatten(1) for i, _, _ in nodes], 1).T.contiguous()
        values = graph.values(torch.zeros_like(unit[:1]))
        bias = torch.cat([values[i].flatten() for i, _, _ in nodes])
        at = torch.cat([torch.arange(offset, offset + size, device=weight.device) for _, size, offset in nodes])
        place = torch.full((layout.total - layout.inputs,), -1, dtype=torch.long, device=weight.device)
        place[at] = torch.arange(len(at), device=weight.device)
        hull = Interval(sets.lower.amin(0, keepdim=True), sets.upper.amax(0, keepdim=True))
        errors = [composition_error(graph, i, hull)[1] for i, _, _ in nodes]
        error = torch.cat([(torch.zeros_like(values[i]) if e is None else 2 * e).flatten()
                           for (i, _, _), e in zip(nodes, errors, strict=True)])
        return AffineNeurons(weight, bias, error, at, place)

    @property
    def entries(self) -> int:
        return self.weight.numel()

    def cut(self, domains: Domains, layout: Layout, undecided: Tensor) -> tuple[Tensor, Tensor]:
        """(z_low, z_high) "B neurons", tightened by the half-space of each domain's last split and by its plane.
        undecided: bool "B neurons"."""
        z_low, z_high = domains.z_low.clone(), domains.z_high.clone()
        centre, radius = (domains.low + domains.high) / 2, (domains.high - domains.low) / 2
        choice = domains.choice - layout.inputs
        split = self.place[choice.clamp(min=0)]
        rows = ((choice >= 0) & (split >= 0)).nonzero().squeeze(1)
        # An upper half starts at the point, which lies strictly inside of what was split.
        is_upper = domains.z_low[rows, choice[rows]] >= domains.point[rows]
        side = torch.where(is_upper, 1.0, -1.0).to(centre)
        g = self.weight[split[rows]] * -side.unsqueeze(1)
        h = (domains.point[rows] - self.bias[split[rows]]) * side
        # The half-space is moved out by what the neuron and this difference may be off by.
        eps = SPARE * torch.finfo(h.dtype).eps
        h = h - self.error[split[rows]] - eps * (domains.point[rows].abs() + self.bias[split[rows]].abs())
        self._meet(z_low, z_high, undecided, rows, g, h, centre, radius)
        rows = domains.plane.any(1).nonzero().squeeze(1)
        self._meet(z_low, z_high, undecided, rows, domains.plane[rows, :-1], domains.plane[rows, -1], centre, radius)
        return z_low, z_high

    def narrow(self, low: Tensor, high: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The box "B n" met with what `lower <= weight x + bias <= upper` ("B m") leaves of each input where all others
        are at their best, moved out by `SLACK`. Ends that cross show that nothing is left."""
        size = max(1, CHUNK_ENTRIES // max(1, len(self._entries[0])))
        parts = [self._narrow(*ends) for ends in zip(*(t.split(size) for t in (low, high, lower, upper)), strict=True)]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    def _narrow(self, low: Tensor, high: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        slack = slack_of(low.shape[1], low.dtype)
        least, most, size = self._range(low, high)
        j, row, inverse, positive = self._entries
        # How far the neuron may move up from its least value, and down from its greatest one.
        climb = ((upper - least) + slack * (size + upper.abs()) + self.error)[:, row] * inverse
        fall = ((most - lower) + slack * (size + lower.abs()) + self.error)[:, row] * inverse
        start = torch.full_like(low, torch.inf)
        index = j.expand(len(low), -1)
        up = start.scatter_reduce(1, index, torch.where(positive, climb, fall), "amin")
        down = start.scatter_reduce(1, index, torch.where(positive, fall, climb), "amin")
        out = ends_slack(low, high, slack)
        return torch.maximum(low, high - down - out), torch.minimum(high, low + up + out)

    def tension(self, low: Tensor, high: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        """How much each input has to do with bounds that the box does not imply, "B n": over all neurons the share of
        their range that `lower` and `upper` cut off, times the share of their range that the input makes up."""
        least, most, size = self._range(low, high)
        width = (most - least) + SLACK[low.dtype] * size + torch.finfo(low.dtype).eps
        cut = (most - upper).clamp(min=0) + (lower - least).clamp(min=0)
        return (torch.minimum(cut, width) / width.square()) @ self.weight.abs() * (high - low)

    def _range(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(least, greatest, size of the terms) "B m" of all neurons over boxes "B n"."""
        centre, radius = (low + high) / 2, (high - low) / 2
        absolute = self.weight.abs().T
        middle, reach = centre @ self.weight.T + self.bias, radius @ absolute
        return middle - reach, middle + reach, torch.maximum(low.abs(), high.abs()) @ absolute + self.bias.abs()

    @cached_property
    def _entries(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(input, row, 1 / |weight|, whether it is positive) of all weights that are not zero."""
        row, j = self.weight.nonzero(as_tuple=True)
        value = self.weight[row, j]
        return j, row, 1 / value.abs().clamp(min=torch.finfo(value.dtype).tiny), value > 0

    def _meet(self, z_low: Tensor, z_high: Tensor, undecided: Tensor, rows: Tensor, g: Tensor, h: Tensor,
              centre: Tensor, radius: Tensor) -> None:
        """Cut the neurons of domains `rows` "P" by one half-space g x + h <= 0 each."""
        size = max(1, CHUNK_ENTRIES // self.weight.numel())
        for part in torch.arange(len(rows), device=rows.device).split(size):
            d, m = undecided[rows[part]][:, self.at].nonzero(as_tuple=True)
            owner, at = rows[part[d]], self.at[m]
            for sign, ends in ((1.0, z_low), (-1.0, z_high)):
                new = sign * cut_minimum(self.weight[m] * sign, self.bias[m] * sign, g[part[d]], h[part[d]],
                                         centre[owner], radius[owner], MOST_STEPS if self.exact else STEPS)
                new = new - sign * self.error[m]
                pick = torch.maximum if sign > 0 else torch.minimum
                ends[owner, at] = pick(ends[owner, at], new)


def cut_minimum(a: Tensor, c: Tensor, g: Tensor, h: Tensor, centre: Tensor, radius: Tensor,
                steps: int = STEPS) -> Tensor:
    """Lower bounds "N" of a x + c over boxes centre +- radius, each cut by g x + h <= 0: a, g, centre, radius "N n",
    c, h "N". At t = 0 it is the minimum over the box. Beyond STEPS, `steps` end at the maximum."""
    # Both functions are lowered by what the sums below may be wrong by; t, which is large where the half-space hardly
    # leans, magnifies the rounding of its terms.
    reach = centre.abs() + radius
    share = 4 * MORE * gamma(a.shape[1], a.dtype)
    base = torch.linalg.vecdot(a, centre) + c - share * (torch.linalg.vecdot(a.abs(), reach) + c.abs())
    size = torch.linalg.vecdot(g.abs(), reach) + h.abs()
    along = torch.linalg.vecdot(g, centre) + h - max(SLACK[g.dtype], share) * size
    ar, gr = a * radius, g * radius
    best = base - ar.abs().sum(1)
    # Only where the box's minimiser lies beyond the half-space does cutting help: the slope at t = 0.
    slope = along - torch.linalg.vecdot(torch.sign(ar), gr)
    rows = (slope > 0).nonzero().squeeze(1)
    if not len(rows):
        return best
    base, along, ar, gr, low_slope, low_value = (t[rows] for t in (base, along, ar, gr, slope, best))
    # From some t on, g alone decides every sign; the slope there is negative unless the half-space misses the box.
    ratio = ar.abs() / gr.abs().clamp(min=torch.finfo(ar.dtype).tiny)
    high = torch.where(gr != 0, ratio, torch.zeros_like(ratio)).amax(1) + torch.finfo(ar.dtype).tiny
    low = torch.zeros_like(high)
    mixed = torch.addcmul(ar, high.unsqueeze(1), gr)
    high_value = torch.addcmul(base, high, along) - mixed.abs().sum(1)
    high_slope = along - torch.linalg.vecdot(torch.sign(mixed), gr)
    top = torch.maximum(low_value, high_value)
    answer, still = top, torch.arange(len(top), device=top.device)
    for k in range(steps):
        # The tangents at both ends meet above the maximum, at a point between them.
        t = low + ((high_value - low_value) - high_slope * (high - low)) / (low_slope - high_slope).clamp(
            min=torch.finfo(ar.dtype).tiny)
        t = torch.minimum(torch.maximum(t, low), high)
        if k >= STEPS:
            reach = torch.addcmul(low_value, low_slope, t - low)
            more = (reach - top > AT_MAXIMUM * (1 + top.abs())).nonzero().squeeze(1)
            answer = answer.index_put((still,), top)
            if not len(more):
                break
            still, top, t, base, along, ar, gr, low, low_value, low_slope, high, high_value, high_slope = (
                v[more] for v in (still, top, t, base, along, ar, gr, low, low_value, low_slope, high, high_value,
                                  high_slope))
        mixed = torch.addcmul(ar, t.unsqueeze(1), gr)
        value = torch.addcmul(base, t, along) - mixed.abs().sum(1)
        slope = along - torch.linalg.vecdot(torch.sign(mixed), gr)
        top = torch.maximum(top, value)
        up = slope > 0
        low, low_value, low_slope = (torch.where(up, n, o) for n, o in (
            (t, low), (value, low_value), (slope, low_slope)))
        high, high_value, high_slope = (torch.where(up, o, n) for n, o in (
            (t, high), (value, high_value), (slope, high_slope)))
    answer = answer.index_put((still,), top)
    return best.index_put((rows,), torch.maximum(answer, best[rows]))
