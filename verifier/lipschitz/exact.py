"""The exact l_p constant of a small ReLU network on a box, by branch and bound over activation patterns.

On a box the constant of c f is the supremum of the dual norm of its gradient (Jordan and Dimakis, arXiv:2003.01219,
who solve it by mixed-integer programming); where signs of neurons are fixed and others are not, an interval Jacobian
bounds it from above (Bhowmick, D'Souza and Raghavan, arXiv:2105.05495). Each step splits the undecided neuron that may
contribute most in the part with the largest bound. Parts without points go: a neuron is an affine function of the
input up to what the undecided ones below it may add (the two parallel lines of Fast-Lin, Weng et al.,
arXiv:1804.09699), and a linear programme asks for the point that satisfies all signs with most room; that there is
none, its multipliers prove (`milp.safe_bound`), not the solver's status. Gradients at points that were met bound the
constant from below. Both ends are valid whenever the search stops, all rounding accounted for.

Signs that hold only on a set without interior count for the upper end, unless they can be refuted. There the upper end
is the largest element of a generalised gradient and may exceed the constant: a network whose neurons' kinks coincide
(relu(x) - relu(-x) is linear, but signs that contradict each other meet at 0) may keep a gap.

Features whose ends are equal do not move and take no part. Activations with one kink at zero only.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bounds.compute import compute_bounds
from bounds.graph import Graph, UnsupportedOperator
from bounds.jacobian.enclosure import dual
from bounds.ops.one_kink import OneKink
from bounds.ops.relu import Relu
from bounds.rounding import is_covered, is_priced
from bounds.sets import InputSet
from milp.problem import Floats, LinearPrograms
from milp.safe_bound import UNIT, gamma, safe_bounds
from milp.solvers.highs import Highs
from verifier.deadline import Deadline
from verifier.lipschitz.constant import Bracket
from verifier.lipschitz.layers import Layers, read_layers
from verifier.verdict import Evidence

Signs = tuple[NDArray[np.int8], ...]
NORMS = (1.0, 2.0, math.inf)
CLOSED = 1e-9      # relative: ends this near are one number but for rounding
TINY = float(np.finfo(np.float64).tiny)
LEAST = 1e-290     # constants below it are zero but for underflow


def exact_local(graph: Graph, box: InputSet, row: Tensor, *, norm: float = math.inf, deadline: Deadline | None = None
                ) -> Bracket:
    """`lower <= sup |c f(x) - c f(y)| / |x - y|_norm <= upper` over x, y in the box, for c = `row` "m".

    Raises UnsupportedOperator by name for networks that are not sequential or not of ReLU's kind.
    """
    if norm not in NORMS:
        raise ValueError(f"norm must be 1, 2 or inf, got {norm}")
    if box.batch != 1 or not box.is_box or box.shape != graph.input_shape:
        raise ValueError(f"expected one box of shape {graph.input_shape}, got {box.batch} of shape {box.shape}"
                         f"{'' if box.is_box else ' with a ball'}")
    if row.dim() != 1:
        raise ValueError(f"expected one row, got shape {tuple(row.shape)}")
    network = _Network.read(graph, box.to(dtype=torch.float64, device="cpu"), row, norm)
    return _Search(network, deadline or Deadline.starting_now()).run()


@dataclass(frozen=True, eq=False)
class _Layer:
    """One affine map and the slopes left of zero of what it feeds (None: the output). radius, bias_radius: see
    `AffineMap`; lower, upper: proved bounds of z = weight x + bias."""

    weight: Floats
    radius: Floats
    bias: Floats
    bias_radius: Floats
    left: Floats | None = None
    lower: Floats = field(default_factory=lambda: np.zeros(0))
    upper: Floats = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True, eq=False)
class _Affine:
    """Values within A v + b +- (wrong + loose) at the inputs centre + reach v, v in [-1, 1]^n; `wrong` is rounding,
    `loose` what undecided neurons may add; A v + b is evaluated from terms of `size`."""

    A: Floats
    b: Floats
    wrong: Floats
    loose: Floats
    size: Floats

    def ends(self) -> tuple[Floats, Floats]:
        spread = np.abs(self.A).sum(1)
        off = (self.wrong + self.loose + float(gamma(self.A.shape[1] + 8)) * (spread + np.abs(self.b))) * (1 + 8 * UNIT)
        return self.b - spread - off, self.b + spread + off


@dataclass(frozen=True, eq=False)
class _Network:
    """The network along one row, over one box of the features that move: their ends `low`, `high`."""

    layers: tuple[_Layer, ...]
    inputs: _Affine
    low: Floats
    high: Floats
    dual: float
    evidence: Evidence

    @staticmethod
    def read(graph: Graph, box: InputSet, row: Tensor, norm: float) -> _Network:
        read = read_layers(graph, row)
        lefts = [_left(graph, read, k) for k in range(len(read.activations))]
        exact = graph.to(dtype=torch.float64, device="cpu")
        known = compute_bounds(exact, box, method="crown").intervals if lefts else {}
        lower, upper = (t.flatten().numpy() for t in (box.lower, box.upper))
        free = lower < upper
        layers = []
        for k, m in enumerate(read.maps):
            layer = _Layer(*m.dense(), m.constant, m.constant_radius)
            if k < len(lefts):
                x = known[read.nodes[k]]
                layer = replace(layer, left=lefts[k], lower=x.lower.flatten().numpy(), upper=x.upper.flatten().numpy())
            layers.append(_without(layer, free, lower) if k == 0 else layer)
        low, high = lower[free], upper[free]
        centre = low / 2 + high / 2
        reach = np.nextafter(np.maximum(high - centre, centre - low), np.inf)
        none = np.zeros(len(centre))
        inputs = _Affine(np.diag(reach), centre, none, none, np.abs(centre) + reach)
        covered = is_covered(exact) and is_priced(torch.float64)
        return _Network(tuple(layers), inputs, low, high, dual(norm), Evidence.ROUNDED if covered else Evidence.FLOAT)

    # ------------------------------------------------------------------ forwards

    def next(self, below: _Affine, k: int) -> _Affine:
        """What layer k (from 0) reads, of its inputs."""
        layer = self.layers[k]
        weight = np.abs(layer.weight)
        share = float(gamma(weight.shape[1] + 8))
        size = (weight @ below.size + np.abs(layer.bias)) * (1 + share)
        reach = below.size + below.loose
        wrong = ((weight + layer.radius) @ below.wrong + layer.radius @ reach + layer.bias_radius
                 + share * (size + weight @ below.loose)) * (1 + 2 * share) + weight.shape[1] * TINY
        return _Affine(layer.weight @ below.A, layer.weight @ below.b + layer.bias, wrong, weight @ below.loose, size)

    def passed(self, z: _Affine, k: int, sign: NDArray[np.int8], low: Floats, high: Floats) -> _Affine:
        """Activation k of z, which lies between its proved ends: between two parallel lines where it is not decided,
        a z + (1 - a) (s z + [0, most]) with the chord's slope s."""
        left = self.layers[k].left
        assert left is not None
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        width = high - low
        chord = high / np.where(width > 0, width, 1.0)
        most = np.maximum(-chord * low, high * (1 - chord)) * (1 + 8 * UNIT)
        slope = np.where(sign > 0, 1.0, np.where(sign < 0, left, left + (1 - left) * chord))
        half = np.where(sign == 0, np.abs(1 - left) * most / 2, 0.0)
        shift = np.where(sign == 0, (1 - left) * most / 2, 0.0)
        steep = np.abs(slope)
        off = 8 * UNIT * ((np.abs(left) + 2) * np.maximum(-low, high) + half)
        size = (steep * z.size + np.abs(shift)) * (1 + 8 * UNIT)
        wrong = (steep * z.wrong + np.where(sign == 0, off, 0.0) + 4 * UNIT * (size + half + steep * z.loose)) * (
            1 + 8 * UNIT)
        return _Affine(z.A * slope[:, None], z.b * slope + shift, wrong, steep * z.loose + half, size)

    def slopes(self, k: int, sign: NDArray[np.int8]) -> tuple[Floats, Floats]:
        """The range of slopes of activation k."""
        left = self.layers[k].left
        assert left is not None
        low, high = np.minimum(left, 1.0), np.maximum(left, 1.0)
        return (np.where(sign > 0, 1.0, np.where(sign < 0, left, low)),
                np.where(sign > 0, 1.0, np.where(sign < 0, left, high)))

    def image(self, k: int, low: Floats, high: Floats) -> tuple[Floats, Floats]:
        """An enclosure of activation k over ends of what it reads."""
        left = self.layers[k].left
        assert left is not None
        ends = [np.where(z >= 0, z, left * z) for z in (low, high)]
        zero = np.where((low < 0) & (high > 0), 0.0, ends[0])
        out = 2 * UNIT * np.maximum(np.abs(ends[0]), np.abs(ends[1]))
        return (np.minimum(np.minimum(*ends), zero) - out, np.maximum(np.maximum(*ends), zero) + out)

    def step(self, k: int, low: Floats, high: Floats) -> tuple[Floats, Floats]:
        """An enclosure of what layer k reads over ends of its inputs."""
        layer = self.layers[k]
        weight, share = np.abs(layer.weight), float(gamma(layer.weight.shape[1] + 8))
        centre, reach = low / 2 + high / 2, np.maximum(np.abs(low), np.abs(high))
        radius = np.maximum(high - centre, centre - low) * (1 + 4 * UNIT)
        off = (weight @ radius + layer.radius @ reach + layer.bias_radius + 2 * share * (weight @ reach + np.abs(
            layer.bias))) * (1 + 2 * share) + weight.shape[1] * TINY
        middle = layer.weight @ centre + layer.bias
        return middle - off, middle + off

    # ------------------------------------------------------------------ backwards

    def gradient(self, signs: Signs) -> tuple[Floats, Floats, list[Floats]]:
        """(centre, radius) of the gradient over all slopes that signs allow, and the sizes of the coefficients that
        stand at the activations."""
        last = self.layers[-1]
        c, r = last.weight[0], last.radius[0]
        sizes: list[Floats] = []
        for k in range(len(signs) - 1, -1, -1):
            sizes.insert(0, np.abs(c) + r)
            low, high = self.slopes(k, signs[k])
            ends = [end * slope for end in (c - r, c + r) for slope in (low, high)]
            bottom, top = np.minimum.reduce(ends), np.maximum.reduce(ends)
            c = bottom / 2 + top / 2
            r = (np.maximum(top - c, c - bottom) + 4 * UNIT * np.maximum(np.abs(bottom), np.abs(top))) * (1 + 4 * UNIT)
            layer = self.layers[k]
            weight, share = np.abs(layer.weight), float(gamma(len(c) + 8))
            c, r = c @ layer.weight, ((r @ (weight + layer.radius) + np.abs(c) @ layer.radius + share * (
                np.abs(c) @ weight)) * (1 + 2 * share) + len(c) * TINY)
        return c, r, sizes

    def length(self, c: Floats, r: Floats) -> tuple[float, float]:
        """The least and the largest dual norm of vectors within r of c."""
        share = 2 * float(gamma(len(c) + 8))
        near, far = np.maximum(np.abs(c) - r * (1 + 4 * UNIT), 0), np.abs(c) + r
        if not len(c):
            return 0.0, 0.0
        least, most = (float(np.linalg.norm(v, self.dual)) for v in (near, far))
        return least * (1 - share), most * (1 + share)

    def influence(self, signs: Signs) -> list[Floats]:
        """Of every neuron a bound of the dual norm of its own gradient, whatever the slopes: for scores only."""
        size = np.abs(self.layers[0].weight)
        found = []
        for k, sign in enumerate(signs):
            found.append(np.linalg.norm(size, self.dual, axis=1))
            low, high = self.slopes(k, sign)
            size = np.abs(self.layers[k + 1].weight) @ (np.maximum(np.abs(low), np.abs(high))[:, None] * size)
        return found


def _left(graph: Graph, layers: Layers, k: int) -> Floats:
    """The slopes below zero of activation k, "n"."""
    op, shape = layers.activations[k], graph.nodes[layers.nodes[k]].shape
    if isinstance(op, Relu):
        return np.zeros(math.prod(shape))
    if isinstance(op, OneKink):
        slope = op.left_slope(torch.zeros((), dtype=torch.float64)).detach().double().cpu()
        return slope.expand(shape).reshape(-1).numpy().copy()
    raise UnsupportedOperator(f"{graph.source}: {op.kind} (behind {graph.nodes[layers.nodes[k]].name}) has no single "
                              "kink at zero, as the exact constant needs")


def _without(layer: _Layer, free: NDArray[np.bool_], x: Floats) -> _Layer:
    """A first layer with the features that do not move at x in its bias."""
    fixed = ~free
    share = float(gamma(len(x) + 8))
    size = np.abs(x[fixed])
    wrong = layer.radius[:, fixed] @ size + share * (np.abs(layer.weight[:, fixed]) @ size + np.abs(layer.bias))
    return replace(layer, weight=layer.weight[:, free], radius=layer.radius[:, free],
                   bias=layer.bias + layer.weight[:, fixed] @ x[fixed],
                   bias_radius=(layer.bias_radius + wrong) * (1 + 2 * share) + len(x) * TINY)


@dataclass(order=True)
class _Part:
    """A part of the box: signs of neurons (0: not decided), which of them it was split by, a bound of the gradient on
    it, and a point. Ordered by the bound, largest first."""

    key: float
    number: int
    signs: Signs = field(compare=False)
    split: Signs = field(compare=False)
    sizes: Sequence[Floats] = field(compare=False)
    point: Floats = field(compare=False)

    @property
    def upper(self) -> float:
        return -self.key


@dataclass(frozen=True, eq=False)
class _Rows:
    """A v + b + loose >= 0 for each row, but for `wrong`."""

    A: Floats
    b: Floats
    loose: Floats
    wrong: Floats

    def hold_at(self, v: Floats) -> bool:
        """Strictly, rounding included."""
        off = self.wrong + float(gamma(len(v) + 8)) * (np.abs(self.A) @ np.abs(v) + np.abs(self.b) + self.loose)
        return bool((self.A @ v + self.b + self.loose > 2 * off).all())


class _Search:
    def __init__(self, network: _Network, deadline: Deadline) -> None:
        self.network, self.deadline = network, deadline
        self.lower, self.settled = 0.0, 0.0
        self.count = itertools.count()
        self.solver = Highs()
        self.heap: list[_Part] = []
        hidden = network.layers[:-1]
        undecided = tuple(np.zeros(len(layer.bias), dtype=np.int8) for layer in hidden)
        self.influence = network.influence(undecided)
        centre = np.zeros(network.inputs.A.shape[0])
        self._meet(centre)
        self._add(undecided, undecided, centre)

    def run(self) -> Bracket:
        nodes, complete = 1, True
        while self.heap and self.heap[0].upper > self.lower * (1 + CLOSED) + LEAST:
            if self.deadline.passed():
                complete = False
                break
            part = heapq.heappop(self.heap)
            chosen = self._choose(part)
            if chosen is None:
                self.settled = max(self.settled, part.upper)
                continue
            for sign in (1, -1):
                nodes += 1
                self._split(part, chosen, sign)
        upper = max(self.settled, self.lower, self.heap[0].upper if self.heap else 0.0)
        note = "generalised gradients at kinks that meet may be larger than any gradient" \
            if complete and upper > self.lower * (1 + 2 * CLOSED) + LEAST else ""
        return Bracket(min(self.lower, upper), upper, self.network.evidence, complete, nodes, note)

    def _choose(self, part: _Part) -> tuple[int, int] | None:
        """(layer, neuron) that may contribute most; None where all are decided."""
        best, chosen = -1.0, None
        for k, (sign, size, reach) in enumerate(zip(part.signs, part.sizes, self.influence, strict=True)):
            left = self.network.layers[k].left
            assert left is not None
            score = np.where(sign == 0, size * reach * np.abs(1 - left), -1.0)
            if len(score) and score.max() > best:
                best, chosen = float(score.max()), (k, int(score.argmax()))
        return chosen

    def _split(self, part: _Part, chosen: tuple[int, int], sign: int) -> None:
        k, j = chosen
        signs, split = list(part.signs), list(part.split)
        signs[k], split[k] = signs[k].copy(), split[k].copy()
        signs[k][j] = split[k][j] = sign
        self._add(tuple(signs), tuple(split), part.point)

    def _add(self, signs: Signs, split: Signs, point: Floats) -> None:
        """Take up a part, unless it has no points or no larger gradients than are known."""
        found = self._propagated(signs, split)
        if found is None:
            return
        signs, rows = found
        c, r, sizes = self.network.gradient(signs)
        upper = self.network.length(c, r)[1]
        if upper <= self.lower:
            return
        if not rows.hold_at(point):
            found_point = self._point(rows)
            if found_point is None:
                return
            point = found_point
            self._meet(point)
        heapq.heappush(self.heap, _Part(-upper, next(self.count), signs, split, sizes, point))

    def _propagated(self, signs: Signs, split: Signs) -> tuple[Signs, _Rows] | None:
        """(signs with those that follow, the constraints as rows); None where there is no point."""
        network = self.network
        affine = network.inputs
        low, high = affine.ends()
        known: list[NDArray[np.int8]] = []
        rows: list[tuple[Floats, ...]] = []
        for k, (sign, forced) in enumerate(zip(signs, split, strict=True)):
            layer = network.layers[k]
            affine = network.next(affine, k)
            at = forced != 0
            rows.append((forced[at, None] * affine.A[at], forced[at] * affine.b[at], affine.loose[at],
                         affine.wrong[at]))
            ends = [affine.ends(), network.step(k, low, high), (layer.lower, layer.upper)]
            low, high = np.maximum.reduce([e[0] for e in ends]), np.minimum.reduce([e[1] for e in ends])
            low = np.maximum(low, np.where(sign > 0, 0.0, -np.inf))
            high = np.minimum(high, np.where(sign < 0, 0.0, np.inf))
            if bool((low > high).any()):
                return None
            known.append(np.where(sign != 0, sign, np.where(low >= 0, 1, np.where(high <= 0, -1, 0))).astype(np.int8))
            affine = network.passed(affine, k, known[-1], low, high)
            low, high = network.image(k, low, high)
        if not rows:
            return (), _Rows(np.zeros((0, len(network.inputs.b))), *(np.zeros(0),) * 3)
        return tuple(known), _Rows(*(np.concatenate(parts) for parts in zip(*rows, strict=True)))

    def _point(self, rows: _Rows) -> Floats | None:
        """The point with most room in all rows, or about so; None where it is proved that there is none.

        max t over v in [-1, 1]^n and t in [-1, 1] with row v >= t, rows scaled so that t = -1 is feasible."""
        count, n = rows.A.shape
        scale = np.abs(rows.A).sum(1) + np.abs(rows.b) + rows.loose + rows.wrong
        scale = np.where(scale > 0, scale, 1.0)
        value = np.concatenate([rows.A / scale[:, None], -np.ones((count, 1))], 1)
        least = -rows.b / scale - (rows.loose + rows.wrong) / scale - 8 * UNIT * (n + 2)
        cost = np.zeros((1, n + 1))
        cost[0, n] = -1.0
        problem = LinearPrograms(
            cost, least, np.full(count, np.inf), np.array([0, count], dtype=np.int32),
            np.arange(0, count * (n + 1) + 1, n + 1, dtype=np.int32),
            np.tile(np.arange(n + 1, dtype=np.int32), count), value.ravel())
        answer = self.solver.solve(problem, time_limit_s=self.deadline.left())
        if safe_bounds(problem, answer.dual)[0] > 0:
            return None
        return np.clip(answer.point[0, :n], -1.0, 1.0)

    def _meet(self, v: Floats) -> None:
        """Raise the lower end by the gradient at a point of the box, or next to it where it is a kink."""
        network = self.network
        x = np.clip(network.inputs.b + network.inputs.A @ v, network.low, network.high)
        low, high = x, x
        signs = []
        for k in range(len(network.layers) - 1):
            low, high = network.step(k, low, high)
            sign = np.where(low > 0, 1, np.where(high < 0, -1, 0)).astype(np.int8)
            signs.append(sign)
            low, high = network.image(k, low, high)
        c, r, _ = network.gradient(tuple(signs))
        self.lower = max(self.lower, network.length(c, r)[0])
