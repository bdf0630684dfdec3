"""Upper bounds of linear functions of gradients, through linear bounds of every product with a derivative.

The computation of a gradient g from the outputs back to the inputs is itself a network: pull-backs, which are linear,
and products s g of an uncertain derivative s with an uncertain g. A function <L, g> of the gradient with respect to
some node is bounded by going the other way, from that node towards the outputs: through an affine operator L becomes
`linear(L)`, since <L, W^T g> = <W L, g>; at a product s g the upper or lower line of `s g` in g takes its place,
by the sign of L. At the output the gradient is the row itself, a number.

(CROWN, arXiv:1811.00866, on the network of gradients: Shi et al., arXiv:2210.07394, section 4. With lines that are
straight only where the sign of g is known it is the recursion of RecurJac, arXiv:1810.11783.)

Rounding, in float64: a coefficient of L that a step gets wrong is paid where it arises, `|error| <= gamma |W| |L|`,
times the largest gradient there; see docs/rounding.md for the same argument on bounds of values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property

import torch
from torch import Tensor

from bounds.interval import Interval
from bounds.jacobian.question import Question
from bounds.ops.base import Affine
from bounds.ops.max_pool import MaxPool
from bounds.ops.round_off import MORE, gamma, underflow
from bounds.relaxation import Relaxation
from bounds.rounding import magnitude

UpperLine = Callable[[Interval, Interval], tuple[Tensor, Tensor]]
"""(s, g) -> (slope, intercept): `s g <= slope g + intercept` for all s and g in their intervals, over the reals up to
`LINE_ULPS` units in the last place of the intercept."""
LINE_ULPS = 8
BLOCK_COEFFICIENTS = 1 << 21  # of the widest node that a block of functions passes


def steepest(s: Interval, g: Interval) -> tuple[Tensor, Tensor]:
    """Slope of max over s of s g where the sign of g is known or s is one number; the rest is for the caller."""
    return torch.where(g.lower >= 0, s.upper, s.lower), (g.lower >= 0) | (g.upper <= 0) | (s.lower == s.upper)


class Functionals:
    """Functions of gradients whose enclosures `found` become known node by node, from the output on."""

    def __init__(self, question: Question, upper_line: UpperLine) -> None:
        self.question = question
        self.upper_line = upper_line
        self._lines: dict[int, Relaxation] = {}
        self._prices: dict[int, tuple[Tensor, ...]] = {}

    def upper(self, found: Mapping[int, Interval], start: int, L: Tensor, row: Tensor) -> Tensor:
        """"M": at least <L_m, g> for all gradients g of row `row[m]` with respect to node `start`; L "M *shape"."""
        graph = self.question.graph
        coefficients = {start: L}
        total, sizes = L.new_zeros(L.shape[0]), L.new_zeros(L.shape[0])
        for i in self._path[self._path.index(start) + 1:]:
            sources = graph.nodes[i].inputs
            if not any(j in coefficients for j in sources):
                continue
            given = [coefficients.get(j) for j in sources]
            coefficients[i], extra = self._step(found, i, given, row)
            total, sizes = total + extra, sizes + extra.abs()
        at_output = coefficients.get(graph.output)
        if at_output is not None:
            C = self.question.C[row]
            terms = _dot(at_output, C)
            total = total + terms
            if self.question.rounded:
                sizes = sizes + terms.abs()
                total = total + _dot(at_output.abs(), C.abs()) * (MORE * gamma(C[0].numel(), C.dtype))
        if self.question.rounded:
            eps = torch.finfo(L.dtype).eps
            total = total + sizes * (len(graph.nodes) * MORE * eps) + self._lost(found, start)[row]
        return total.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)

    def both_sides(self, found: Mapping[int, Interval], start: int, L: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        """(upper bounds of <L_m, g>, of <-L_m, g>), as `upper`: one pass through the affine operators that follow."""
        paid = self._lost(found, start)[row] if self.question.rounded else L.new_zeros(L.shape[0])
        while (reader := self._only_reader(start)) is not None:
            op = self.question.graph.nodes[reader].op
            assert isinstance(op, Affine)
            L, extra = self._through_affine(found, reader, op, [L], row)
            start, paid = reader, paid + extra
        value = self.upper(found, start, torch.cat([L, -L]), row.repeat(2)) + paid.repeat(2)
        if self.question.rounded:
            value = value + (value.abs() + paid.repeat(2)) * (len(self._path) * torch.finfo(L.dtype).eps)
        # The prices of unbounded gradients are infinite, and no number where no coefficient meets them.
        first, second = value.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf).chunk(2)
        return first, second

    def _only_reader(self, i: int) -> int | None:
        """The affine operator that alone reads node i, and nothing else."""
        graph = self.question.graph
        readers = [j for j in graph.consumers[i] if j in graph.ancestors]
        if i == graph.output or len(readers) != 1:
            return None
        node = graph.nodes[readers[0]]
        return readers[0] if isinstance(node.op, Affine) and node.inputs == (i,) else None

    @cached_property
    def _path(self) -> list[int]:
        return sorted(self.question.graph.ancestors | {0})

    def _step(self, found: Mapping[int, Interval], i: int, given: list[Tensor | None], row: Tensor
              ) -> tuple[Tensor, Tensor]:
        """(coefficients at the output of node i, what is added "M") for those at its inputs."""
        op = self.question.graph.nodes[i].op
        if isinstance(op, Affine):
            return self._through_affine(found, i, op, given, row)
        (L,) = given
        assert L is not None
        if isinstance(op, MaxPool):
            return self._through_max(found, i, op, L, row)
        lines = self.lines(found, i)
        above = L > 0
        slope = torch.where(above, lines.upper_slope[row], lines.lower_slope[row])
        assert lines.upper_intercept is not None
        assert lines.lower_intercept is not None
        intercept = torch.where(above, lines.upper_intercept[row], lines.lower_intercept[row])
        extra = _dot(L, intercept)
        if self.question.rounded:
            extra = extra + _dot(L.abs(), intercept.abs()) * (MORE * gamma(L[0].numel(), L.dtype))
        return L * slope, extra

    def _through_affine(self, found: Mapping[int, Interval], i: int, op: Affine, given: list[Tensor | None],
                        row: Tensor) -> tuple[Tensor, Tensor]:
        graph = self.question.graph
        count = next(len(L) for L in given if L is not None)
        extra = row.new_zeros(count, dtype=self.question.C.dtype)
        if self.question.rounded:
            for L, price in zip(given, self._price(found, i), strict=True):
                if L is not None:
                    extra = extra + _dot(L.abs(), price[row])
        zeros = (self.question.C.new_zeros(count, *graph.nodes[j].shape) for j in graph.nodes[i].inputs)
        return op.linear(*(zero if L is None else L for L, zero in zip(given, zeros, strict=True))), extra

    def _through_max(self, found: Mapping[int, Interval], i: int, op: MaxPool, L: Tensor, row: Tensor
                     ) -> tuple[Tensor, Tensor]:
        """A window's gradient goes to its inputs in unknown shares that sum to 1: together s g, where s lies between
        the least and the largest coefficient of an input that can be the maximum."""
        contenders = self.question.owner.rows(self.question.contenders[i])
        contenders = contenders[row] if contenders.shape[0] > 1 else contenders
        shape = (L.shape[0], *self.question.graph.nodes[i].shape)
        read = op.read(L)
        low = read.masked_fill(~contenders, torch.inf).amin(-1).view(shape)
        high = read.masked_fill(~contenders, -torch.inf).amax(-1).view(shape)
        g = found[i].map(lambda t: t[row])
        slope, intercept = self.upper_line(Interval(low, high), g)
        if self.question.rounded:
            intercept = self._moved_out(intercept, slope, g)
            intercept = intercept + intercept.abs() * (MORE * gamma(slope[0].numel(), slope.dtype))
        return slope, intercept.flatten(1).sum(1)

    def lines(self, found: Mapping[int, Interval], i: int) -> Relaxation:
        """Lines "N *shape" around s g of elementwise node i, moved out by what their own rounding and that of a product
        with their slopes costs."""
        if i not in self._lines:
            s, g = self.question.derivative(i), found[i]
            s = s.map(lambda t: t.expand_as(g.lower))
            above, high = self.upper_line(s, g)
            mirrored, low = self.upper_line(Interval(-s.upper, -s.lower), g)
            if self.question.rounded:
                high, low = (self._moved_out(c, slope, g) for slope, c in ((above, high), (mirrored, low)))
            self._lines[i] = Relaxation(-mirrored, -low, above, high)
        return self._lines[i]

    @staticmethod
    def _moved_out(intercept: Tensor, slope: Tensor, g: Interval) -> Tensor:
        info = torch.finfo(intercept.dtype)
        lost = info.tiny * (slope != 0).to(slope.dtype)
        return intercept + (intercept.abs() + slope.abs() * magnitude(g)) * (LINE_ULPS * info.eps) + lost

    def _price(self, found: Mapping[int, Interval], i: int) -> tuple[Tensor, ...]:
        """"N *in" for every input: what a coefficient costs that passes affine node i, by rounding and by folded
        parameters."""
        if i not in self._prices:
            graph = self.question.graph
            node = graph.nodes[i]
            op = node.op
            assert isinstance(op, Affine)
            shapes = tuple(graph.nodes[j].shape for j in node.inputs)
            size = magnitude(found[i])
            share = MORE * MORE * gamma(op.terms(shapes, node.shape), size.dtype)
            prices = op.absolute().pull_back(size * share, shapes)
            fold = graph.fold_errors.get(i)
            if fold is not None:
                prices = tuple(a + b for a, b in zip(prices, fold.operator(op).pull_back(size * MORE, shapes),
                                                     strict=True))
            # The dot product with a price is itself a sum of that many terms.
            self._prices[i] = tuple(p * (1 + gamma(p[0].numel(), p.dtype)) for p in prices)
        return self._prices[i]

    def _lost(self, found: Mapping[int, Interval], start: int) -> Tensor:
        """"N": what functions may lose to underflow between a node and the output."""
        graph = self.question.graph
        lost = self.question.C.new_zeros(self.question.C.shape[0])
        for i in self._path[self._path.index(start):]:
            node = graph.nodes[i]
            shapes = tuple(graph.nodes[j].shape for j in node.inputs)
            terms = max([node.op.terms(shapes, node.shape) if isinstance(node.op, Affine) else 1,
                         *(torch.Size(s).numel() for s in (node.shape, *shapes))])
            lost = lost + (1 + magnitude(found[i]).flatten(1).sum(1)) * (2 * underflow(terms, lost.dtype))
        return lost


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vecdot(a.flatten(1), b.flatten(1))
