"""An exact oracle for tiny ReLU networks, and `verify` and every bound method held against it.

At most two inputs move, so an input box is a point, a segment or a rectangle. It is cut, in rationals, into the
convex pieces on which the network is affine: a ReLU cuts where its input changes sign, a max-pool where two inputs of
a window change order. A piece is kept by its corners with the value of every node there; a cut interpolates them.
Weights are multiples of 1/4, hence exact in every dtype. No code of the bound methods is used: an affine operator
enters by its values at unit vectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations, pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bounds.bounds import LinearRows
from bounds.compute import METHODS, compute_bounds
from bounds.graph import Graph
from bounds.ops.add import Add
from bounds.ops.avg_pool import AvgPool
from bounds.ops.base import Affine, Operator, Shape
from bounds.ops.conv import conv_of
from bounds.ops.linear import Linear
from bounds.ops.max_pool import MaxPool
from bounds.ops.relu import Relu
from bounds.ops.reshape import Reshape
from bounds.ops.scale import Scale
from tests.bounds.networks import GraphBuilder
from verifier import verify
from verifier.property import Branch, Property, Region, Row
from verifier.strategy import Result
from verifier.verdict import Falsified

Corner = list[Fraction]  # the values of all nodes so far, one after the other
Piece = list[Corner]     # corners in order around the piece: one, two or more

TOLERANCE = 1e-6
ONE = Fraction(1)


# ---------------------------------------------------------------------- the oracle


def cut(piece: Piece, score: list[Fraction]) -> list[Piece]:
    """The parts of a piece where an affine function, given at the corners, is >= 0 and <= 0; parts of no size go."""
    if min(score) >= 0 or max(score) <= 0:
        return [piece]
    halves = []
    for sign in (1, -1):
        half: Piece = []
        around = [*range(len(piece)), 0] if len(piece) > 2 else [*range(len(piece))]
        for i, j in pairwise(around):
            if sign * score[i] >= 0:
                half.append(piece[i])
            if score[i] * score[j] < 0:
                t = score[i] / (score[i] - score[j])
                half.append([a + t * (b - a) for a, b in zip(piece[i], piece[j], strict=True)])
        if len(piece) == 2 and sign * score[1] >= 0:
            half.append(piece[1])
        halves.append(half)
    return halves


def cut_all(pieces: list[Piece], place: tuple[int, ...], sign: tuple[int, ...]) -> list[Piece]:
    """Cut every piece where `sum sign * value[place]` is zero."""
    return [part for piece in pieces
            for part in cut(piece, [sum((s * c[i] for i, s in zip(place, sign, strict=True)), Fraction(0))
                                    for c in piece])]


def affine_values(op: Operator, inputs: tuple[Shape, ...]) -> tuple[list[list[float]], list[float]]:
    """(matrix, constant) of an affine operator, from its values at zero and at unit vectors."""
    constant = op.forward(*(torch.zeros(1, *shape, dtype=torch.float64) for shape in inputs)).flatten()
    columns: list[list[float]] = []
    for k, shape in enumerate(inputs):
        size = torch.Size(shape).numel()
        units = [torch.zeros(size, *other, dtype=torch.float64) for other in inputs]
        units[k] = torch.eye(size, dtype=torch.float64).view(size, *shape)
        columns += (op.forward(*units).flatten(1) - constant).tolist()
    return [list(row) for row in zip(*columns, strict=True)], constant.tolist()


def pieces_of(graph: Graph, region: Region) -> tuple[list[Piece], list[int]]:
    """The affine pieces over a region, and where each node's values start in their corners."""
    ends = [sorted({Fraction(a), Fraction(b)}) for a, b in zip(region.exact_lower, region.exact_upper, strict=True)]
    corners = [list(c) for c in product(*ends)]
    if len(corners) == 4:
        corners[2], corners[3] = corners[3], corners[2]
    assert len(corners) in (1, 2, 4), "the oracle moves at most two inputs"
    pieces, start = [corners], [0]
    for i, node in enumerate(graph.nodes[1:], 1):
        start.append(start[-1] + torch.Size(graph.nodes[i - 1].shape).numel())
        shapes = tuple(graph.nodes[j].shape for j in node.inputs)
        sizes = [torch.Size(shape).numel() for shape in shapes]
        first = start[node.inputs[0]]
        if isinstance(node.op, Affine):
            places = [start[j] + k for j, n in zip(node.inputs, sizes, strict=True) for k in range(n)]
            matrix, constant = affine_values(node.op, shapes)
            sums = [([(places[k], Fraction(w)) for k, w in enumerate(row) if w], Fraction(c))
                    for row, c in zip(matrix, constant, strict=True)]
            for corner in distinct(pieces):
                corner += [sum((w * corner[k] for k, w in terms), c) for terms, c in sums]
        elif isinstance(node.op, Relu):
            for k in range(sizes[0]):
                pieces = cut_all(pieces, (first + k,), (1,))
            for corner in distinct(pieces):
                corner += [max(v, Fraction(0)) for v in corner[first:first + sizes[0]]]
        else:
            assert isinstance(node.op, MaxPool)
            windows = windows_of(node.op, shapes[0])
            for window in windows:
                for a, b in combinations(window, 2):
                    pieces = cut_all(pieces, (first + a, first + b), (1, -1))
            for corner in distinct(pieces):
                corner += [max(corner[first + a] for a in window) for window in windows]
    return pieces, start


def distinct(pieces: list[Piece]) -> list[Corner]:
    """Each corner once (pieces may share the object)."""
    return list({id(c): c for piece in pieces for c in piece}.values())


def windows_of(pool: MaxPool, shape: Shape) -> list[list[int]]:
    """The flat inputs of every window: those that change the output when they alone are one."""
    size = torch.Size(shape).numel()
    base = torch.full((1, *shape), -1.0, dtype=torch.float64)
    outputs = []
    for i in range(size):
        x = base.clone()
        x.view(-1)[i] = 1
        outputs.append(pool.forward(x).flatten() == 1)
    return [[i for i in range(size) if bool(outputs[i][k])] for k in range(outputs[0].numel())]


@dataclass(frozen=True)
class Truth:
    """Exact values of one region: corners as (x, y) of every piece."""

    pieces: list[list[tuple[Corner, Corner]]]

    @classmethod
    def of(cls, graph: Graph, region: Region) -> Truth:
        pieces, start = pieces_of(graph, region)
        inputs = len(region.exact_lower)
        return cls([[(c[:inputs], c[start[graph.output]:]) for c in piece] for piece in pieces])

    def minimum(self, row: Row) -> Fraction:
        return min(violation(row, *corner) for piece in self.pieces for corner in piece)

    def margin(self, rows: tuple[Row, ...]) -> Fraction:
        """The minimum over the region of the largest violation of the rows."""
        best = None
        for piece in self.pieces:
            parts: list[Piece] = [[[violation(row, *corner) for row in rows] for corner in piece]]
            for a, b in combinations(range(len(rows)), 2):
                parts = cut_all(parts, (a, b), (1, -1))
            least = min(max(corner) for part in parts for corner in part)
            best = least if best is None else min(best, least)
        assert best is not None
        return best

    def distance(self, rows: tuple[Row, ...], centre: list[Fraction], norm: str) -> float:
        """The distance from a centre to the nearest point of the region at which no row is violated (> 0); inf where
        there is none. Norm "inf", "1" or "2"."""
        best = math.inf
        n, k = len(centre), len(rows)
        bends = [(i,) for i in range(n)] if norm != "2" else []
        if norm == "inf":
            bends += [*combinations(range(n), 2)]
        for piece in self.pieces:
            parts: list[Piece] = [[[*(a - b for a, b in zip(x, centre, strict=True)),
                                    *(violation(row, x, y) for row in rows)] for x, y in piece]]
            for place in [(n + r,) for r in range(k)] + bends:
                for sign in ((1, -1), (1, 1))[:len(place)]:
                    parts = cut_all(parts, place, sign[:len(place)])
            for part in parts:  # each row has one sign there: what meets it is a face
                face = [corner[:n] for corner in part if max(corner[n:]) <= 0]
                if face:
                    best = min(best, _euclidean(face) if norm == "2" else float(min(
                        max(map(abs, d)) if norm == "inf" else sum(map(abs, d)) for d in face)))
        return best


def _euclidean(face: list[Corner]) -> float:
    """From the origin to a point, a segment or a polygon of at most two dimensions."""
    least = min(sum((v * v for v in d), Fraction(0)) for d in face)
    edges = list(pairwise([*face, face[0]] if len(face) > 2 else face))
    for a, b in edges:
        step = [q - p for p, q in zip(a, b, strict=True)]
        length = sum((v * v for v in step), Fraction(0))
        t = -sum((p * v for p, v in zip(a, step, strict=True)), Fraction(0)) / length if length else Fraction(0)
        if 0 < t < 1:
            least = min(least, sum(((p + t * v) ** 2 for p, v in zip(a, step, strict=True)), Fraction(0)))
    i, j = ([k for k in range(len(face[0])) if len({d[k] for d in face}) > 1] + [0, 0])[:2]
    turns = [a[i] * b[j] - a[j] * b[i] for a, b in edges]
    # Where the polygon lies above or below the origin only the inputs that do not move count.
    if len(face) > 2 and any(turns) and (min(turns) >= 0 or max(turns) <= 0):
        least = min(least, sum((v * v for k, v in enumerate(face[0]) if k not in (i, j)), Fraction(0)))
    return math.sqrt(least)


def violation(row: Row, x: Corner, y: Corner) -> Fraction:
    return sum((c * y[i] for i, c in row.y), -row.bound) + sum((c * x[j] for j, c in row.x), Fraction(0))


# ---------------------------------------------------------------------- networks and properties


def _dense(random: np.random.Generator, build: GraphBuilder) -> None:
    for width in ((4, 4), (3, 3, 3), (8,))[random.integers(3)]:
        build.add(Linear(quarters(random, width, build.shape[0]), quarters(random, width)))
        build.add(Relu())


def _residual(random: np.random.Generator, build: GraphBuilder) -> None:
    build.add(Linear(quarters(random, 3, build.shape[0]), quarters(random, 3)))
    skip = build.add(Relu())
    build.add(Linear(quarters(random, 3, 3), quarters(random, 3)))
    build.add(Relu())
    block = build.add(Linear(quarters(random, 3, 3)))
    scaled = build.add(Scale(quarters(random, 3), quarters(random, 3)), skip)
    build.add(Add((1, -1)[random.integers(2)]), block, scaled)
    build.add(Relu())


def _conv(random: np.random.Generator, build: GraphBuilder) -> None:
    settings_ = ({}, {"stride": (2, 2), "padding": (1, 1)}, {"dilation": (2, 2), "padding": (1, 1)})[random.integers(3)]
    build.add(conv_of(quarters(random, 2, 1, 2, 2), quarters(random, 2), **settings_))
    skip = build.add(Relu())
    kernel = build.add(conv_of(quarters(random, 2, 2, 1, 1), None), skip)
    build.add(Add(1), kernel, skip)
    if random.integers(2):
        build.add(AvgPool((2, 1), (1, 1), (0, 0), (0, 0)))


def _pooling(random: np.random.Generator, build: GraphBuilder) -> None:
    build.add(conv_of(quarters(random, 2, 1, 2, 2), quarters(random, 2), padding=(1, 0)))
    build.add(MaxPool((2, 2), ((1, 1), (2, 1))[random.integers(2)], (0, int(random.integers(2))), (1, 1)))
    if random.integers(2):
        build.add(Relu())


KINDS = {"dense": (None, _dense), "residual": (None, _residual), "conv": ((1, 3, 3), _conv),
         "pooling": ((1, 3, 3), _pooling)}


def quarters(random: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(random.integers(-6, 7, shape) / 4.0)


def draw_graph(random: np.random.Generator, kind: str) -> Graph:
    shape, make = KINDS[kind]
    build = GraphBuilder(shape or (int(random.integers(1, 4)),), torch.float64)
    make(random, build)
    if len(build.shape) > 1:
        build.add(Reshape((torch.Size(build.shape).numel(),)))
    build.add(Linear(quarters(random, 2, build.shape[0]), quarters(random, 2)))
    return build.graph(f"{kind}")


def draw_region(random: np.random.Generator, inputs: int) -> Region:
    """At most two inputs move, by eighths; the others are fixed."""
    lower = [Fraction(int(k), 8) for k in random.integers(-8, 8, inputs)]
    moves = random.permutation(inputs)[:2]
    upper = [v + (Fraction(int(random.integers(1, 21)), 8) if i in moves else 0) for i, v in enumerate(lower)]
    return Region(tuple(lower), tuple(upper))


def draw_property(random: np.random.Generator, graph: Graph) -> tuple[Property, dict[Region, Truth]]:
    """One to three branches over one or two regions; thresholds at, just above or just below what is reachable."""
    inputs = torch.Size(graph.input_shape).numel()
    regions = [draw_region(random, inputs) for _ in range(random.integers(1, 3))]
    truths = {region: Truth.of(graph, region) for region in regions}
    branches = []
    for _ in range(random.integers(1, 4)):
        region = regions[random.integers(len(regions))]
        rows = []
        for _ in range(random.integers(1, 4)):
            y = tuple((i, Fraction(int(c))) for i, c in enumerate(random.integers(-2, 3, 2)) if c)
            x = ((int(random.integers(inputs)), Fraction(int(random.integers(1, 3)))),)[:int(random.integers(3) == 0)]
            free = Row(y, x, Fraction(0))
            margin = (Fraction(-1), Fraction(-1, 16), Fraction(0), Fraction(1, 16), ONE, 4 * ONE)[random.integers(6)]
            if y or x:
                rows.append(Row(y, x, truths[region].minimum(free) - margin, bool(random.integers(2))))
        branches.append(Branch(region, tuple(rows) or (Row(((0, ONE),), (), Fraction(0)),)))
    return Property(tuple(branches), inputs, 2, "drawn"), truths


class GraphReplayer:
    """The stored graph in float32, point by point."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph.to(dtype=torch.float32)

    def run(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.graph(torch.from_numpy(np.ascontiguousarray(x))).flatten(1).numpy()


def assert_agrees(result: Result, prop: Property, margins: list[Fraction], graph: Graph) -> None:
    """`margins`: the exact margin of each branch."""
    if result.name == "verified":
        for margin, branch in zip(margins, prop.branches, strict=True):
            open_ = any(row.strict for row in branch.rows)
            assert margin > 0 or (margin == 0 and open_), f"verified, but a branch has the margin {float(margin)}"
        assert result.lower <= float(min(margins)) + TOLERANCE
    elif isinstance(result.verdict, Falsified):
        witness = result.verdict.witness
        y = GraphReplayer(graph).run(witness.x[None])[0]
        branch = prop.branches[witness.branch]
        assert branch.region.contains(witness.x.reshape(-1))
        assert all(row.holds(witness.x.reshape(-1), y) for row in branch.rows)
        assert float(margins[witness.branch]) <= TOLERANCE, f"falsified, but the margin is {margins[witness.branch]}"
    else:
        assert result.lower <= float(min(margins)) + TOLERANCE


# ---------------------------------------------------------------------- tests


def test_the_oracle_itself() -> None:
    """|x| - |x - 1| on [-1, 2], and a maximum of two inputs, by hand."""
    build = GraphBuilder((1,), torch.float64)
    one = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=torch.float64)
    build.add(Linear(one, torch.tensor([0.0, 0.0, -1.0, 1.0], dtype=torch.float64)))
    build.add(Relu())
    build.add(Linear(torch.tensor([[1.0, 1.0, -1.0, -1.0]], dtype=torch.float64)))
    truth = Truth.of(build.graph(), Region((-ONE,), (2 * ONE,)))
    assert len(truth.pieces) == 3
    assert truth.minimum(Row(((0, ONE),), (), Fraction(0))) == -1
    assert truth.minimum(Row(((0, -ONE),), (), Fraction(0))) == -1
    assert truth.minimum(Row(((0, ONE),), ((0, -ONE),), Fraction(0))) == -1  # 2x - 1 - x on [0, 1], 1 - x beyond
    # max(y, -y) = |y| is smallest at x = 1/2, inside a piece.
    assert truth.margin((Row(((0, ONE),), (), Fraction(0)), Row(((0, -ONE),), (), Fraction(0)))) == 0
    pool = GraphBuilder((1, 1, 2), torch.float64)
    pool.add(MaxPool((1, 2), (1, 1), (0, 0), (1, 1)))
    truth = Truth.of(pool.graph(), Region((-ONE, -ONE), (ONE, ONE)))
    assert truth.minimum(Row(((0, 2 * ONE),), ((0, -ONE), (1, -ONE)), Fraction(0))) == 0  # |x0 - x1|


def test_distances_by_hand() -> None:
    """To the half-plane x0 + x1 >= 1 in a square."""
    build = GraphBuilder((2,), torch.float64)
    build.add(Linear(torch.tensor([[-1.0, -1.0]], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)))
    build.add(Relu())
    build.add(Linear(torch.ones(1, 1, dtype=torch.float64)))
    graph, unsafe = build.graph(), (Row(((0, ONE),), (), Fraction(0)),)
    square = Truth.of(graph, Region((-ONE, -ONE), (ONE, ONE)))
    half = math.sqrt(0.5)
    for centre, wanted in (([0, 0], (0.5, 1.0, half)), ([1, 1], (0.0, 0.0, 0.0)), ([2, 2], (1.0, 2.0, 2 * half)),
                           ([-1, 1], (1.0, 1.0, 1.0)), ([3, 0], (2.0, 2.0, 2.0))):
        for norm, far in zip(("inf", "1", "2"), wanted, strict=True):
            assert square.distance(unsafe, [Fraction(v) for v in centre], norm) == pytest.approx(far)
    small = Truth.of(graph, Region((-ONE, -ONE), (ONE / 2, ONE / 2)))
    assert small.distance(unsafe, [Fraction(0)] * 2, "2") == pytest.approx(half)  # a corner alone
    smaller = Truth.of(graph, Region((-ONE, -ONE), (ONE / 4, ONE / 2)))
    assert smaller.distance(unsafe, [Fraction(0)] * 2, "1") == math.inf


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32 - 1))
def test_no_verdict_and_no_bound_contradicts_the_oracle(kind: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    graph = draw_graph(random, kind)
    prop, truths = draw_property(random, graph)
    margins = [truths[b.region].margin(b.rows) for b in prop.branches]
    for dtype in (torch.float64, torch.float32):
        tensors = prop.tensors(graph.input_shape, dtype=dtype)
        rows = LinearRows(tensors.C, tensors.region, tensors.D, -tensors.bound)
        least = [float(truths[b.region].minimum(row)) for b in prop.branches for row in b.rows]
        for method in METHODS if dtype is torch.float64 else ("crown", "alpha-crown"):
            settings_ = {"iterations": 4} if method == "alpha-crown" else {}
            lower = compute_bounds(graph.to(dtype=dtype), tensors.sets, rows, method, **settings_).lower.tolist()
            slack = TOLERANCE if dtype is torch.float64 else 1e-4
            assert all(low <= true + slack for low, true in zip(lower, least, strict=True)), (method, lower, least)
    for method in ("crown", "zonotope"):
        result = verify(graph, prop, replayer=GraphReplayer(graph), method=method)
        assert_agrees(result, prop, margins, graph)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32 - 1))
def test_the_whole_strategy_never_contradicts_the_oracle(kind: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    graph = draw_graph(random, kind)
    prop, truths = draw_property(random, graph)
    margins = [truths[b.region].margin(b.rows) for b in prop.branches]
    result = verify(graph, prop, replayer=GraphReplayer(graph), time_limit_s=0.5)
    assert_agrees(result, prop, margins, graph)
