"""One non-affine operator in a linear programme: its variables, its rows, and what their multipliers mean.

A neuron on which the operator is linear keeps its affine form. Any other becomes a variable y between lines, each
`y >= a z + c` or `y <= a z + c`. All lines are those that the backward methods use, so that the multipliers of the
rows are a certificate in their terms (`milp.certificate`): with weights w >= 0 on the lines of a neuron,

- the coefficient of y is `A = (sum of w below) - (sum of w above)`, and a backward pass takes the line below where
  A > 0, the one above where A < 0: the average of the weighted lines, or a line as steep;
- what both sides share, m = min of both sums, is `m (below(z) - above(z)) <= 0` and acts on z alone: a multiplier
  `m (slope above - slope below)` on the proved bounds of z gives at least as much;
- a bound of y itself is the smallest value that a line takes on the interval of z: the line's weight, and that
  weight times its slope as a multiplier on z.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bounds.graph.graph import Node
from bounds.interval import Interval
from bounds.ops.base import Elementwise, Relaxed
from bounds.window import Owner
from milp.columns import Form, RowBlock, RowBlocks

TOUCHING = 1e-12        # relative gap at which two lines count as meeting
SAME_SLOPE = 1e-9       # slopes this close need no search for a steeper parameter
BISECTION_STEPS = 48


@dataclass(frozen=True, eq=False)
class Translation:
    """What the multipliers of a node's rows mean: its parameters "K B *shape" (None: it has none), and
    multipliers on its inputs, one "B *in" each."""

    params: Tensor | None
    multipliers: tuple[Tensor, ...]


class Encoded(Protocol):
    """A node whose rows were added to a programme."""

    form: Form

    def implied(self) -> tuple[Tensor, Tensor] | None:
        """bool "B *in" twice: where the lines alone already imply the lower and the upper bound of the input."""

    def translate(self, duals: list[Tensor], reduced: Tensor) -> Translation:
        """`duals` of all blocks of rows, `reduced` costs "B V" of the variables."""


# ---------------------------------------------------------------------- elementwise


@dataclass(frozen=True, eq=False)
class _Line:
    """A candidate line at n neurons: slope, intercept "n", the parameters that give it "K n" or None, the number
    of its block of rows (None: no rows) and at which neurons it has one, bool "n"."""

    slope: Tensor
    intercept: Tensor
    params: Tensor | None
    wanted: Tensor
    block: int | None = None

    def at(self, z: Tensor) -> Tensor:
        return self.slope * z + self.intercept


@dataclass(frozen=True, eq=False)
class _Variables:
    """The variables at the n undecided neurons of a node: domain, flat index, slot and radius "n"; and which line
    gives the lower and the upper bound "n"."""

    domain: Tensor
    index: Tensor
    slot: Tensor
    radius: Tensor
    lowest: Tensor
    highest: Tensor


class EncodedElementwise:
    """An elementwise operator over B domains."""

    def __init__(self, node: Node, x: Interval, z: Form, rows: RowBlocks, variables: int) -> None:
        assert isinstance(node.op, Elementwise), "elementwise"
        self.op, self.x, self.z = node.op, x, z
        is_linear = self.op.is_linear_on(x)
        own = self.op.relax(x)
        slope = torch.where(is_linear, own.lower_slope, 0)
        constant = z.constant * slope
        if own.lower_intercept is not None:
            constant = constant + torch.where(is_linear, own.lower_intercept, 0)
        self.form = Form(z.columns * slope.unsqueeze(1), constant)
        self.variables: _Variables | None = None
        self.below: list[_Line] = []
        self.above: list[_Line] = []
        self.box = self.op.parameters(x)
        free = ~is_linear.flatten(1)
        if bool(free.any()):
            self._add_variables(free, rows, variables)

    # ------------------------------------------------------------------ encoding

    def _add_variables(self, free: Tensor, rows: RowBlocks, variables: int) -> None:
        domain, index = free.nonzero(as_tuple=True)
        rank = free.cumsum(1)[domain, index] - 1
        low, high = (t.flatten(1)[domain, index] for t in (self.x.lower, self.x.upper))
        self._find_lines(domain, index)
        lower, lowest = torch.stack([torch.minimum(line.at(low), line.at(high)) for line in self.below]).max(0)
        upper, highest = torch.stack([torch.maximum(line.at(low), line.at(high)) for line in self.above]).min(0)
        centre, radius = (lower + upper) / 2, ((upper - lower) / 2).clamp(min=0)
        new = variables - self.form.columns.shape[1] + int(rank.max()) + 1
        columns = self.form.columns.new_zeros(free.shape[0], new, free.shape[1])
        slot = variables + rank
        columns[domain, slot - self.form.columns.shape[1], index] = radius
        constant = self.form.constant.flatten(1).index_put((domain, index), centre)
        self.form = Form(torch.cat([self.form.columns, columns.view(free.shape[0], new, *self.x.lower.shape[1:])], 1),
                         constant.view_as(self.form.constant))
        self.variables = _Variables(domain, index, slot, radius, lowest, highest)
        coefficients = self.z.columns.flatten(2)[domain, :, index]
        shift = self.z.constant.flatten(1)[domain, index]
        self.below = [self._rows(line, True, rows, coefficients, shift, centre) for line in self.below]
        self.above = [self._rows(line, False, rows, coefficients, shift, centre) for line in self.above]

    def _find_lines(self, domain: Tensor, index: Tensor) -> None:
        """The lines at the ends of the parameters' boxes and at the default, each once."""
        corners = (None,) if self.box is None else self.box
        for corner in corners:
            lines = self.op.relax(self.x) if corner is None else self.op.relax_with(self.x, corner)
            params = None if corner is None else corner.flatten(2)[:, domain, index]
            for found, slope, intercept in ((self.below, lines.lower_slope, lines.lower_intercept),
                                            (self.above, lines.upper_slope, lines.upper_intercept)):
                at = slope.expand_as(self.x.lower).flatten(1)[domain, index]
                offset = torch.zeros_like(at) if intercept is None else intercept.flatten(1)[domain, index]
                # A flat line is no row: the bounds of the variable hold it.
                wanted = at != 0
                for other in found:
                    wanted = wanted & ((other.slope != at) | (other.intercept != offset))
                found.append(_Line(at, offset, params, wanted))

    def _rows(self, line: _Line, is_below: bool, rows: RowBlocks, coefficients: Tensor, shift: Tensor,
              centre: Tensor) -> _Line:
        """`centre + radius v >= slope z + intercept` (or <=) as rows."""
        variables = self.variables
        assert variables is not None, "there are neurons"
        where = line.wanted.nonzero().squeeze(1)
        if not where.numel():
            return line
        slope = line.slope[where]
        side = slope * shift[where] + line.intercept[where] - centre[where]
        infinite = torch.full_like(side, torch.inf)
        block = RowBlock(variables.domain[where], -slope.unsqueeze(1) * coefficients[where],
                         side if is_below else -infinite, infinite if is_below else side,
                         variables.slot[where], variables.radius[where])
        return _Line(line.slope, line.intercept, line.params, line.wanted, rows.add(block))

    def implied(self) -> tuple[Tensor, Tensor] | None:
        variables = self.variables
        if variables is None:
            return None
        low, high = (t.flatten(1)[variables.domain, variables.index] for t in (self.x.lower, self.x.upper))
        lower, upper = torch.zeros_like(low, dtype=torch.bool), torch.zeros_like(low, dtype=torch.bool)
        for below in self.below:
            for above in self.above:
                size = TOUCHING * (1 + torch.maximum(low.abs(), high.abs()))
                lower |= (above.at(low) - below.at(low) <= size) & (above.slope > below.slope)
                upper |= (above.at(high) - below.at(high) <= size) & (above.slope < below.slope)
        result = []
        for flags in (lower, upper):
            mask = torch.zeros(self.x.lower.flatten(1).shape, dtype=torch.bool)
            mask[variables.domain, variables.index] = flags
            result.append(mask.view_as(self.x.lower))
        return result[0], result[1]

    # ------------------------------------------------------------------ decoding

    def translate(self, duals: list[Tensor], reduced: Tensor) -> Translation:
        shape = self.x.lower.shape
        default = None if self.box is None else self.box[0]
        variables = self.variables
        if variables is None:
            return Translation(default, (torch.zeros(shape, dtype=torch.float64),))
        below = [self._weights(line, duals, 1) for line in self.below]
        above = [self._weights(line, duals, -1) for line in self.above]
        bound = reduced[variables.domain, variables.slot] / torch.where(variables.radius > 0, variables.radius, 1)
        s = torch.zeros_like(bound)
        for k, line in enumerate(self.below):
            extra = bound.clamp(min=0) * (variables.lowest == k)
            below[k] = below[k] + extra
            s = s + extra * line.slope
        for k, line in enumerate(self.above):
            extra = bound.clamp(max=0) * (variables.highest == k)
            above[k] = above[k] - extra
            s = s + extra * line.slope
        total_below, slope_below = _average(below, [line.slope for line in self.below])
        total_above, slope_above = _average(above, [line.slope for line in self.above])
        s = s + torch.minimum(total_below, total_above) * (slope_above - slope_below)
        multipliers = torch.zeros(shape, dtype=torch.float64).flatten(1)
        multipliers[variables.domain, variables.index] = s
        params = None
        if default is not None:
            params = self._params(default, below, above, total_below >= total_above, slope_below, slope_above)
        return Translation(params, (multipliers.view(shape),))

    @staticmethod
    def _weights(line: _Line, duals: list[Tensor], sign: int) -> Tensor:
        weights = torch.zeros_like(line.slope)
        if line.block is not None:
            weights[line.wanted] = (sign * duals[line.block]).clamp(min=0)
        return weights

    def _params(self, default: Tensor, below: list[Tensor], above: list[Tensor], take_below: Tensor,
                slope_below: Tensor, slope_above: Tensor) -> Tensor:
        """Parameters "K B *shape" of the line that stands for the weighted ones."""
        variables = self.variables
        assert variables is not None and self.box is not None, "there are neurons and parameters"
        weights = [torch.where(take_below, w, v) for w, v in zip(below, above, strict=True)]
        total = torch.stack(weights).sum(0)
        corners = [line.params for line in self.below]
        mean = sum(w * p for w, p in zip(weights, corners, strict=True) if p is not None)
        assert isinstance(mean, Tensor), "every corner has parameters"
        flat = default.flatten(2)
        at = flat[:, variables.domain, variables.index]
        chosen = torch.where(total > 0, mean / torch.where(total > 0, total, 1), at)
        result = flat.clone()
        result[:, variables.domain, variables.index] = chosen
        result = torch.minimum(torch.maximum(result.view_as(default), self.box[1]), self.box[2])
        if self.op.reuses_lines:
            return result  # the slope itself is the parameter: the mean is exact
        return self._as_steep(result, torch.where(take_below, slope_below, slope_above), take_below & (total > 0),
                              ~take_below & (total > 0))

    def _as_steep(self, params: Tensor, slope: Tensor, is_below: Tensor, is_above: Tensor) -> Tensor:
        """Where the lines at `params` are not as steep as `slope`, bisect between the ends of the parameters' box."""
        assert self.box is not None and self.variables is not None, "there are parameters"
        domain, index = self.variables.domain, self.variables.index
        _, low, high = self.box
        chosen, counts = torch.zeros_like(self.x.lower).flatten(1), torch.zeros_like(self.x.lower).flatten(1)
        chosen[domain, index], counts[domain, index] = slope, (is_below | is_above).to(slope.dtype)
        below = torch.zeros_like(counts)
        below[domain, index] = is_below.to(slope.dtype)
        target, matters, take_below = (t.view_as(self.x.lower) for t in (chosen, counts > 0, below > 0))

        def slope_at(p: Tensor) -> Tensor:
            lines = self.op.relax_with(self.x, p)
            return torch.where(take_below, lines.lower_slope, lines.upper_slope)

        off = matters & ((slope_at(params) - target).abs() > SAME_SLOPE)
        if not bool(off.any()):
            return params
        rises = slope_at(high) > slope_at(low)
        share_low, share_high = torch.zeros_like(target), torch.ones_like(target)
        for _ in range(BISECTION_STEPS):
            middle = (share_low + share_high) / 2
            up = (slope_at(torch.lerp(low, high, middle.expand_as(low))) < target) == rises
            share_low, share_high = torch.where(up, middle, share_low), torch.where(up, share_high, middle)
        return torch.where(off, torch.lerp(low, high, share_low.expand_as(low)), params)


def _average(weights: list[Tensor], values: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(sum of the weights, weighted mean of the values; the first value where all weights are zero)."""
    total = torch.stack(weights).sum(0)
    mean = torch.stack([w * v for w, v in zip(weights, values, strict=True)]).sum(0)
    return total, torch.where(total > 0, mean / torch.where(total > 0, total, 1), values[0])


# ---------------------------------------------------------------------- operators of several inputs


class EncodedRelaxed:
    """Max-pool, products and the like: one linear bound below and one above each output, from
    `pull_back_relaxed` of unit rows. An output whose two bounds are one is its affine form."""

    def __init__(self, node: Node, inputs: tuple[Interval, ...], forms: tuple[Form, ...], rows: RowBlocks,
                 variables: int) -> None:
        assert isinstance(node.op, Relaxed), "relaxed"
        batch, outputs = inputs[0].lower.shape[0], int(torch.Size(node.shape).numel())
        unit = torch.eye(outputs, dtype=torch.float64)
        unit = torch.cat([unit, -unit]).repeat(batch, 1).reshape(-1, *node.shape)
        owner = Owner(batch, torch.arange(batch).repeat_interleave(2 * outputs))
        pulled, offset = node.op.pull_back_relaxed(unit, owner, inputs)
        self.inputs = inputs
        offset = offset.view(batch, 2, outputs)
        parts = [p.reshape(batch, 2, outputs, -1) for p in pulled]
        self.below, self.above = [p[:, 0] for p in parts], [-p[:, 1] for p in parts]   # one "B out in" an input
        below_offset, above_offset = offset[:, 0], -offset[:, 1]
        gap = torch.stack([(a - b).abs().sum(2) for a, b in zip(self.above, self.below, strict=True)]).sum(0)
        self.free = (gap > 0) | (above_offset > below_offset)
        wide = [form.widened(variables).flatten(2) for form in forms]
        below_form = self._combined(self.below, wide, forms, below_offset)
        above_form = self._combined(self.above, wide, forms, above_offset)
        lower = below_offset + sum(self._least(a, x) for a, x in zip(self.below, inputs, strict=True))
        upper = above_offset - sum(self._least(-a, x) for a, x in zip(self.above, inputs, strict=True))
        self.domain, index = self.free.nonzero(as_tuple=True)
        new = int(self.free.sum(1).max())
        self.slot = variables + self.free.cumsum(1)[self.domain, index] - 1
        centre = ((lower + upper) / 2)[self.domain, index]
        self.radius = ((upper - lower) / 2).clamp(min=0)[self.domain, index]
        columns = torch.cat([below_form.columns * ~self.free.unsqueeze(1),
                             unit.new_zeros(batch, new, outputs)], 1)
        columns[self.domain, self.slot, index] = self.radius
        constant = below_form.constant.index_put((self.domain, index), centre)
        self.form = Form(columns.view(batch, -1, *node.shape), constant.view(batch, *node.shape))
        self.index = index
        infinite = torch.full_like(centre, torch.inf)
        self.blocks = []
        for form, is_below in ((below_form, True), (above_form, False)):
            side = form.constant[self.domain, index] - centre
            self.blocks.append(rows.add(RowBlock(
                self.domain, -form.columns[self.domain, :, index], side if is_below else -infinite,
                infinite if is_below else side, self.slot, self.radius)))

    @staticmethod
    def _combined(parts: list[Tensor], wide: list[Tensor], forms: tuple[Form, ...], offset: Tensor) -> Form:
        columns = sum(torch.einsum("boi,bvi->bvo", a, w) for a, w in zip(parts, wide, strict=True))
        constant = offset + sum(torch.einsum("boi,bi->bo", a, form.constant.flatten(1))
                                for a, form in zip(parts, forms, strict=True))
        assert isinstance(columns, Tensor), "there is an input"
        return Form(columns, constant)

    @staticmethod
    def _least(A: Tensor, x: Interval) -> Tensor:
        """min of A z over the interval: "B out in" -> "B out"."""
        return (A.clamp(min=0) @ x.lower.flatten(1).unsqueeze(2)
                + A.clamp(max=0) @ x.upper.flatten(1).unsqueeze(2)).squeeze(2)

    def implied(self) -> tuple[Tensor, Tensor] | None:
        return None

    def translate(self, duals: list[Tensor], reduced: Tensor) -> Translation:
        below, above = duals[self.blocks[0]].clamp(min=0), (-duals[self.blocks[1]]).clamp(min=0)
        bound = reduced[self.domain, self.slot] / torch.where(self.radius > 0, self.radius, 1)
        shared = torch.minimum(below + bound.clamp(min=0), above - bound.clamp(max=0))
        results = []
        for x, low, high in zip(self.inputs, self.below, self.above, strict=True):
            low, high = low[self.domain, self.index], high[self.domain, self.index]
            s = (bound.clamp(min=0) - shared).unsqueeze(1) * low + (bound.clamp(max=0) + shared).unsqueeze(1) * high
            total = torch.zeros(x.lower.shape, dtype=torch.float64).flatten(1)
            results.append(total.index_add(0, self.domain, s).view_as(x.lower))
        return Translation(None, tuple(results))
