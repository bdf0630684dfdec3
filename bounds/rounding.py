"""What rounding may do to bounds, accounted for in whatever dtype they are computed in.

Sums in IEEE arithmetic have the error bound of `bounds.ops.round_off`. Three places pay for it:

- An enclosure of `y = W x + b` is moved out by `gamma (|W| |x| + |b|)` (`image`).
- A row A over y, pulled back to A' = fl(A W), is off by at most `gamma |A| |W| |x|` over all x in their intervals: the
  error is paid where it arises, and A' is taken as exact from there on. The price of a coefficient at y is `v = gamma
  (|W| |x| + |b|)`, the same number, once for each domain, and that of what follows down to the next relaxed operator
  adds to it (`Prices.chain`). Where rows pass through an elementwise operator with slopes s, a coefficient at its
  output costs `s v` and its own rounding: so the operator's lines are moved out by that much (`Prices.lines`), and
  the search pays without another pass over its rows. Lines of smooth operators are proved first (`Prices.proved`).
- Sums of a few numbers a row are lowered by their own error (`sum_down`).

Everything is computed in the same arithmetic; what that may lose itself is covered by `MORE`. docs/rounding.md has the
derivation. On CUDA convolutions may run as Winograd or Fourier transforms, which have no such error bound.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from bounds.graph.graph import Graph, Node
from bounds.interval import Interval
from bounds.ops.base import Affine, Elementwise, Relaxed
from bounds.ops.round_off import MORE, SPARE, gamma, underflow, unit
from bounds.relaxation import Relaxation

MULTIPLIER_ULPS = 8
OVERFLOW = 0.9  # sums of terms of so large a share of the largest number may overflow on the way
FUSED = 16  # roundings besides those of a node: of parameters that a runtime folds, of a normalisation into its layer
Keep = Callable[[int, str, Callable[[], Any]], Any]


_PRICED: ContextVar[bool] = ContextVar("priced", default=True)


def is_priced(dtype: torch.dtype) -> bool:
    """Whether bounds in this dtype account for their rounding where nobody says otherwise: in float64."""
    return dtype == torch.float64 and _PRICED.get()


@contextmanager
def priced(on: bool) -> Iterator[None]:
    """Inside the block bounds in float64 account for their rounding, or (off) they do not."""
    token = _PRICED.set(on)
    try:
        yield
    finally:
        _PRICED.reset(token)


def magnitude(x: Interval) -> Tensor:
    """The largest absolute value in each interval."""
    return torch.maximum(x.lower.abs(), x.upper.abs())


def composition_error(graph: Graph, i: int, sets: Interval) -> tuple[Tensor, Tensor | None]:
    """(sizes of the terms, how far off) "B *shape": the affine operators up to node i multiplied out, as a function of
    inputs in `sets`. Between them nothing is known but sizes: |W| |x| + |b|, layer by layer."""
    node = graph.nodes[i]
    if i == 0:
        return magnitude(sets), None
    return affine_step(graph, i, [composition_error(graph, j, sets) for j in node.inputs])


def affine_step(graph: Graph, i: int, below: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    """(sizes of the terms, how far off) "B *shape" of affine node i over those of its inputs; None: exact."""
    op = graph.nodes[i].op
    assert isinstance(op, Affine)
    sizes = [size for size, _ in below]
    size = _affine_size(graph, i, sizes)
    error = _affine_error(graph, i, size, sizes)
    if any(e is not None for _, e in below):
        error = _plus(error, MORE * op.magnitude(*(torch.zeros_like(s) if e is None else e for s, e in below)))
    return size, error


def sum_down(*terms: Tensor) -> Tensor:
    """A lower bound of the sum of a few tensors, rounding included."""
    total = _sum(terms)
    with torch.no_grad():
        slack = _sum([term.abs() for term in terms]) * (MORE * len(terms) * torch.finfo(total.dtype).eps)
    return total - slack


def _sum(terms: Sequence[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def is_covered(graph: Graph) -> bool:
    """Whether the rounding of every operator is accounted for."""
    return uncovered(graph) is None


def uncovered(graph: Graph) -> Node | None:
    """The first node whose rounding is not accounted for."""
    winograd = graph.device.type == "cuda"
    for node in graph.nodes[1:graph.output + 1]:
        known = isinstance(node.op, Affine) or (isinstance(node.op, Elementwise | Relaxed) and node.op.rounding_known)
        if not known or (winograd and "Conv" in node.op.kind):
            return node
    return None


def _affine_size(graph: Graph, i: int, inputs: Sequence[Tensor]) -> Tensor:
    """|W| |x| + |b| "B *shape" of affine node i, whose inputs are at most `inputs` ("B *in") in size."""
    node = graph.nodes[i]
    assert isinstance(node.op, Affine)
    size = node.op.magnitude(*inputs)
    offset = node.op.offset_size(tuple(graph.nodes[j].shape for j in node.inputs))
    return size if offset is None else size + offset


def _affine_error(graph: Graph, i: int, size: Tensor, inputs: Sequence[Tensor]) -> Tensor | None:
    """"B *shape": how far affine node i may be off by rounding and by folded parameters, and what pulling a coefficient
    at it back to its inputs may be off by; size: see `_affine_size`. None: exact."""
    node = graph.nodes[i]
    op = node.op
    assert isinstance(op, Affine)
    shapes = tuple(graph.nodes[j].shape for j in node.inputs)
    terms = op.terms(shapes, node.shape)
    error = None
    if terms:
        error = size * (MORE * gamma(terms, size.dtype)) + underflow(terms, size.dtype)
        offset = op.offset_size(shapes)
        if offset is not None:  # the constant of a row is a sum over the whole node
            error = error + offset * (MORE * gamma(max(terms, math.prod(node.shape)), size.dtype))
    fold = graph.fold_errors.get(i)
    if fold is not None:
        error = _plus(error, MORE * fold.operator(op).forward(*inputs))
    if terms and graph.arithmetic is not None:
        error = _plus(error, _noise(terms + FUSED, size, graph.arithmetic))
        overflows = _overflows_on_the_way(op, terms, inputs, graph.arithmetic)
        error = error.masked_fill(overflows.view(-1, *(1,) * (error.dim() - 1)), torch.inf)
    return error


def _noise(terms: int, size: Tensor, dtype: torch.dtype) -> Tensor:
    """What an evaluation in `dtype` of sums of so many products may be off by, their terms of `size` in all; infinite
    where it may overflow."""
    noise = size * (MORE * gamma(terms, dtype)) + underflow(terms, dtype)
    return torch.where(size < OVERFLOW * torch.finfo(dtype).max, noise, torch.full_like(noise, torch.inf))


def _overflows_on_the_way(op: Affine, terms: int, inputs: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """bool "B": where an operator may overflow before it divides or scales down: the sum of a mean, an input less
    the mean of a normalisation. Told by far too large a bound, which networks in use stay below all the same."""
    values = [getattr(op, f.name) for f in dataclasses.fields(op)]
    parameters = [float(v.abs().max()) for v in values if isinstance(v, Tensor) and v.is_floating_point()]
    largest = torch.stack([x.flatten(1).amax(1) for x in inputs]).amax(0) + max(parameters, default=0.0)
    return ~(largest * terms < OVERFLOW * torch.finfo(dtype).max)


def value_noise(graph: Graph, i: int, x: Interval) -> Tensor | None:
    """"B *shape": what the value of elementwise node i, of which `x` is an enclosure, may be off by in the graph's
    arithmetic; None: nothing."""
    op = graph.nodes[i].op
    if graph.arithmetic is None or not isinstance(op, Elementwise) or not op.ulps:
        return None
    size = magnitude(x)
    noise = size.clamp(min=1) * (MORE * op.ulps * 2 * unit(graph.arithmetic))
    return noise.masked_fill(~(size < OVERFLOW * torch.finfo(graph.arithmetic).max), torch.inf)


def image(graph: Graph, i: int, intervals: Mapping[int, Interval]) -> Interval:
    """An enclosure of node i over enclosures of its inputs, rounding included."""
    return Prices(graph, dict(intervals)).image(i)


class Unpriced:
    """Bounds in ordinary floating point: the same questions as `Prices` answers, without what rounding costs."""

    def __init__(self, graph: Graph, enclosures: dict[int, Interval]) -> None:
        self.graph = graph
        self.enclosures = enclosures
        self._sizes: dict[int, Tensor] = {}

    def clear(self) -> None:
        """New enclosures are going to be computed."""
        self._sizes.clear()

    def at(self, i: int) -> Interval:
        """The enclosure of node i, computed where it is not known yet."""
        if i not in self.enclosures:
            self.enclosures[i] = self.image(i)
        return self.enclosures[i]

    def sum(self, *terms: Tensor) -> Tensor:
        """The sum of a few tensors "N"."""
        return _sum(terms)

    def ball(self, x: Interval) -> tuple[Tensor, Tensor]:
        """(centre, radius) with which rows are minimised; centre +- radius holds both ends."""
        centre = x.centre
        return centre, torch.maximum(x.upper - centre, centre - x.lower)

    def image(self, i: int) -> Interval:
        """An enclosure of node i from the enclosures of its inputs."""
        node = self.graph.nodes[i]
        return node.op.interval(*(self.at(j) for j in node.inputs))

    def size(self, i: int) -> Tensor:
        """"B *shape": the sizes of the terms that make up node i; of an affine one |W| |x| + |b|."""
        if i not in self._sizes:
            node = self.graph.nodes[i]
            if isinstance(node.op, Affine):
                self._sizes[i] = _affine_size(self.graph, i, [magnitude(self.at(j)) for j in node.inputs])
            else:
                self._sizes[i] = magnitude(self.at(i))
        return self._sizes[i]

    def start(self, i: int) -> tuple[Tensor | None, Tensor | None]:
        """(what a coefficient of a row costs that starts at node i, "B *shape"; what every such row costs, one number);
        None: nothing."""
        return None, None

    def multiplier(self, i: int) -> Tensor:
        """"B *shape": what a unit of a multiplier on node i costs. Large multipliers cancel: what their terms amount to
        by rounding, or about so much, is charged in any case."""
        return self.size(i) * (MULTIPLIER_ULPS * 2 * unit(self.size(i).dtype))

    def proved(self, i: int, chosen: Relaxation, x: Interval) -> Relaxation:
        """The lines of elementwise node i over intervals x of its input, so that they hold whatever the library that
        computed them."""
        return chosen

    def relax_with(self, i: int, op: Elementwise, x: Interval, params: Tensor, keep: Keep) -> Relaxation:
        """The lines of `op`, which stands at node i, for parameters: as `proved`."""
        return op.relax_with(x, params)

    def lines(self, i: int, chosen: Relaxation) -> tuple[Relaxation, Tensor | None]:
        """(the lines of elementwise node i, moved out by what rows that take them cost; by how much, "B *shape")."""
        return chosen, None

    def steeper(self, i: int, chosen: Relaxation, gather: Callable[[Tensor], Tensor], keep: Keep) -> Relaxation:
        """As `lines` for other lines of node i, in another layout: `gather` brings tensors of the node there, and
        `keep` stores what was gathered."""
        return chosen


class Prices(Unpriced):
    """What a coefficient costs at each node of a graph, over a batch of domains whose enclosures become known node by
    node (`enclosures`, shared with whoever computes them)."""

    def __init__(self, graph: Graph, enclosures: dict[int, Interval]) -> None:
        super().__init__(graph, enclosures)
        self._errors: dict[int, Tensor | None] = {}
        self._chains: dict[int, Tensor | None] = {}

    def clear(self) -> None:
        super().clear()
        self._errors.clear()
        self._chains.clear()

    def sum(self, *terms: Tensor) -> Tensor:
        return sum_down(*terms)

    def ball(self, x: Interval) -> tuple[Tensor, Tensor]:
        """For rows A the computed `<A, centre> - <|A|, radius>` is at most the minimum of <A, x>."""
        centre, radius = x.centre, x.radius
        share = MORE * gamma(x.lower[0].numel(), x.lower.dtype)
        return centre, radius + share * (centre.abs() + radius)

    def image(self, i: int) -> Interval:
        node = self.graph.nodes[i]
        if isinstance(node.op, Elementwise):
            x = node.op.enclosed_with_gradient(self.at(node.inputs[0]))
            noise = value_noise(self.graph, i, x)
            return x if noise is None else Interval(x.lower - noise, x.upper + noise)
        with torch.no_grad():
            error = self.error(i)
        x = super().image(i)
        return x if error is None else Interval(x.lower - error, x.upper + error)

    @torch.no_grad()
    def start(self, i: int) -> tuple[Tensor | None, Tensor | None]:
        return self.chain(i), self._lost(i)

    @torch.no_grad()
    def multiplier(self, i: int) -> Tensor:
        x = self.at(i)
        own = magnitude(x) * (2 * gamma(x.lower[0].numel(), x.lower.dtype))
        chain = self.chain(i)
        return own if chain is None else own + chain

    def proved(self, i: int, chosen: Relaxation, x: Interval) -> Relaxation:
        op = self.graph.nodes[i].op
        assert isinstance(op, Elementwise)
        return op.proved(chosen, x, op.known(x)) if op.needs_proof else chosen

    def relax_with(self, i: int, op: Elementwise, x: Interval, params: Tensor, keep: Keep) -> Relaxation:
        if not op.needs_proof:
            return op.relax_with(x, params)
        return op.relax_proved(x, params, keep(i, "known", lambda: op.known(x)))

    def lines(self, i: int, chosen: Relaxation) -> tuple[Relaxation, Tensor | None]:
        node = self.graph.nodes[i]
        with torch.no_grad():
            base = self.base(i)
            # Where parameters take the place of lower slopes, these are at most 1.
            steepest = (chosen.upper_slope != 0).to(base) \
                if isinstance(node.op, Elementwise) and node.op.reuses_lines else None
            noise = self._noise(i)
        return _widened(chosen, base, math.prod(node.shape), steepest=steepest, noise=noise)

    def steeper(self, i: int, chosen: Relaxation, gather: Callable[[Tensor], Tensor], keep: Keep) -> Relaxation:
        base = keep(i, "base", lambda: gather(self.base(i)))
        own = self._noise(i)
        noise = None if own is None else keep(i, "noise", lambda: gather(own))
        return _widened(chosen, base, math.prod(self.graph.nodes[i].shape), noise=noise)[0]

    @torch.no_grad()
    def _noise(self, i: int) -> Tensor | None:
        return value_noise(self.graph, i, self.at(i))

    def error(self, i: int) -> Tensor | None:
        """`affine_error` of node i (None at other operators)."""
        if i not in self._errors:
            self._errors[i] = _affine_error(self.graph, i, self.size(i), [
                magnitude(self.at(j)) for j in self.graph.nodes[i].inputs]) \
                if isinstance(self.graph.nodes[i].op, Affine) else None
        return self._errors[i]

    def chain(self, i: int) -> Tensor | None:
        """"B *shape": the price of a coefficient at node i, down to the next operators that are not affine."""
        if i not in self._chains:
            self._chains[i] = self._chain(i)
        return self._chains[i]

    def _chain(self, i: int) -> Tensor | None:
        node = self.graph.nodes[i]
        price = self.error(i)
        op = node.op
        if isinstance(op, Affine):
            if node.inputs == (0,):  # where a row may stop, for its value at the centre (`Backward.first`)
                price = _plus(price, magnitude(self.at(i)) * (MORE * gamma(math.prod(node.shape), self._dtype)))
            below = [self.chain(j) for j in node.inputs]
            if any(p is not None for p in below):
                zeros = [self.at(j).lower[:1] * 0 for j in node.inputs]
                passed = op.magnitude(*(z if p is None else p for p, z in zip(below, zeros, strict=True)))
                price = _plus(price, MORE * passed)
        elif isinstance(op, Relaxed):
            price = op.rounding(tuple(self.at(j) for j in node.inputs),
                                tuple(self.chain(j) for j in node.inputs))
        meets = len(self.graph.consumers[i]) - 1
        if meets > 0:  # rows of several readers are added up
            price = _plus(price, magnitude(self.at(i)) * (MORE * meets * unit(self._dtype)))
        return price

    @property
    def _dtype(self) -> torch.dtype:
        return self.at(0).lower.dtype

    def base(self, i: int) -> Tensor:
        """"B *shape": what a unit of slope of elementwise node i costs at its input: the way on from there, the
        product with the slope, and a multiplier's difference."""
        (source,) = self.graph.nodes[i].inputs
        return _plus(self.chain(source), magnitude(self.at(source)) * (SPARE * unit(self._dtype)))

    def _lost(self, i: int) -> Tensor:
        """One number: what a row at node i may lose to underflow on its way to the input, whatever it passes."""
        reach = self.at(0).lower.new_zeros(())
        for j in range(i + 1):
            reach = reach + magnitude(self.at(j)).flatten(1).sum(1).amax()
        widest = max(math.prod(node.shape) for node in self.graph.nodes[:i + 1])
        return (reach + i + 1) * underflow(widest, reach.dtype)


def _plus(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a + b


def _widened(lines: Relaxation, base: Tensor, entries: int, *, steepest: Tensor | None = None,
             noise: Tensor | None = None) -> tuple[Relaxation, Tensor]:
    """(the lines moved out by what rows that take them cost, by how much at most).

    base: what a unit of slope costs, aligned with the lines; entries: how many coefficients a row has at most;
    steepest: sizes of slopes that may take the place of these; noise: what the values themselves may be off by.
    """
    share = gamma(entries, base.dtype)
    with torch.no_grad():
        if steepest is None:
            steepest = torch.maximum(lines.lower_slope.abs(), lines.upper_slope.abs())
        price = torch.where(steepest > 0, steepest * base, torch.zeros_like(base)) * MORE
        if noise is not None:
            price = price + noise

    def moved(intercept: Tensor | None, sign: int) -> tuple[Tensor, Tensor]:
        if intercept is None:
            return price * sign, price
        paid = price + (MORE * share) * intercept.detach().abs()
        return intercept + sign * paid, paid
    low, below = moved(lines.lower_intercept, -1)
    high, above = moved(lines.upper_intercept, 1)
    return Relaxation(lines.lower_slope, low, lines.upper_slope, high), torch.maximum(below, above)
