"""Rounding accounted for: bounds against exact rational arithmetic, in float32 and float64, where numbers cancel."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from mpmath import mpf
from torch import Tensor

from bounds import crown, ibp
from bounds.backward import Backward, Block, adaptive, parallel
from bounds.beta_crown import BetaCrown, Groups, Start
from bounds.bounds import LinearRows
from bounds.final import final_bounds
from bounds.graph import Graph, Node
from bounds.intermediate import refine
from bounds.interval import Interval
from bounds.ops.base import Elementwise
from bounds.ops.clip import Clip
from bounds.ops.leaky_relu import LeakyRelu
from bounds.ops.linear import Linear
from bounds.ops.prelu import PRelu
from bounds.ops.relu import Relu
from bounds.ops.round_off import gamma, unit
from bounds.ops.softmax import Softmax
from bounds.proved import rounded_out
from bounds.rounding import Prices, Unpriced, image, is_covered, sum_down
from bounds.rows import Rows
from bounds.sets import InputSet
from bounds.window import Owner
from tests.bounds.networks import GraphBuilder, random_box, random_graph

DTYPES = [torch.float32, torch.float64]


def exact(t: Tensor) -> np.ndarray:
    """The numbers as rationals."""
    flat = [Fraction(v) for v in t.double().flatten().tolist()]
    return np.array(flat, dtype=object).reshape(t.shape)


def chain(seed: int, dtype: torch.dtype, widths: tuple[int, ...] = (5, 7, 6, 3), spread: float = 6.0) -> Graph:
    """Dense layers without anything between them, with weights of very different sizes, so that sums cancel."""
    generator = torch.Generator().manual_seed(seed)
    build = GraphBuilder((widths[0],), dtype)
    for a, b in itertools.pairwise(widths):
        size = torch.rand(b, a, generator=generator) * spread - spread / 2
        weight = torch.randn(b, a, generator=generator) * 10 ** size
        build.add(Linear(weight.to(dtype), (torch.randn(b, generator=generator) * 10 ** size[:, 0]).to(dtype)))
    return build.graph("chain")


def affine_of(graph: Graph) -> tuple[np.ndarray, np.ndarray]:
    """The whole chain as one exact affine map."""
    W: np.ndarray = np.array([[Fraction(int(i == j)) for j in range(graph.input_shape[0])]
                              for i in range(graph.input_shape[0])], dtype=object)
    b: np.ndarray = np.array([Fraction(0)] * len(W), dtype=object)
    for node in graph.nodes[1:]:
        assert isinstance(node.op, Linear) and node.op.bias is not None
        weight = exact(node.op.weight)
        W, b = weight @ W, weight @ b + exact(node.op.bias)
    return W, b


def box(graph: Graph, seed: int, dtype: torch.dtype) -> InputSet:
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(1, *graph.input_shape, generator=generator).to(dtype) * 3
    radius = torch.rand(1, *graph.input_shape, generator=generator).to(dtype)
    return InputSet(centre - radius, centre + radius)


def minima(C: np.ndarray, graph: Graph, sets: InputSet) -> list[Fraction]:
    """The exact minimum of each row over the box."""
    W, b = affine_of(graph)
    low, high = exact(sets.lower[0]), exact(sets.upper[0])
    A = C @ W
    return [sum(min(a * l, a * h) for a, l, h in zip(row, low, high, strict=True)) + c
            for row, c in zip(A, C @ b, strict=True)]


def above(lower: Tensor, least: list[Fraction]) -> int:
    """How many bounds exceed the truth."""
    return sum(Fraction(v) > m for v, m in zip(lower.double().tolist(), least, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_affine_networks_never_exceed_the_exact_minimum(dtype: torch.dtype) -> None:
    """There nothing is relaxed: the bound is the minimum but for rounding, and without prices it is often above."""
    wrong = {True: 0, False: 0}
    loss = 0.0
    for seed in range(30):
        graph, sets = chain(seed, dtype), box(chain(seed, dtype), seed, dtype)
        C = torch.randn(8, 3, generator=torch.Generator().manual_seed(seed)).to(dtype)
        least = minima(exact(C), graph, sets)
        for rounded in (True, False):
            engine = Backward(graph, sets, rounded=rounded)
            refine(engine)
            lower = final_bounds(engine, LinearRows(C), {}).lower
            wrong[rounded] += above(lower, least)
            value = engine.value(Block(graph.output, Rows.full(C, Owner.of(1, None))))
            wrong[rounded] += above(value, least)
            if rounded:
                size = max(abs(float(m)) for m in least)
                loss = max(loss, max(float(m) - v for m, v in zip(least, lower.tolist(), strict=True)) / size)
    assert wrong[True] == 0
    assert wrong[False] > 20
    assert loss < 1e5 * unit(dtype)  # the price is of the size of the terms that cancel


@pytest.mark.parametrize("dtype", DTYPES)
def test_enclosures_hold_the_exact_range(dtype: torch.dtype) -> None:
    missed = 0
    for seed in range(30):
        graph, sets = chain(seed, dtype, (4, 6)), box(chain(seed, dtype, (4, 6)), seed, dtype)
        rows = np.array([[Fraction(int(i == j)) for j in range(6)] for i in range(6)], dtype=object)
        least, most = minima(rows, graph, sets), [-m for m in minima(-rows, graph, sets)]
        x = {0: Interval(sets.lower, sets.upper)}
        for i, interval in ((0, image(graph, 1, x)), (1, Unpriced(graph, dict(x)).image(1))):
            low, high = interval.lower[0].double().tolist(), interval.upper[0].double().tolist()
            outside = sum(Fraction(a) > b for a, b in zip(low, least, strict=True)) \
                + sum(Fraction(a) < b for a, b in zip(high, most, strict=True))
            if i == 0:
                assert outside == 0
            missed += outside
        lower = ibp.bound(graph, sets, LinearRows(torch.eye(6, dtype=dtype))).lower
        assert above(lower, least) == 0
    assert missed > 20


@pytest.mark.parametrize("dtype", DTYPES)
def test_multipliers_that_cancel_prove_nothing(dtype: torch.dtype) -> None:
    """A multiplier on a bound that holds adds nothing to what is true of the row, however large it is."""
    wrong = 0
    for seed in range(20):
        graph, sets = chain(seed, dtype, (4, 5, 3), 1.0), box(chain(seed, dtype, (4, 5, 3), 1.0), seed, dtype)
        build = GraphBuilder((4,), dtype)
        build.add(graph.nodes[1].op)
        build.add(Relu())
        build.add(graph.nodes[2].op)
        bent = build.graph("bent")
        # Far from the kink: the ReLUs do nothing, so the exact minimum is that of the affine network.
        first = graph.nodes[1].op
        assert isinstance(first, Linear) and first.bias is not None
        lifted = dataclasses.replace(first, bias=first.bias + 1000)
        graph = dataclasses.replace(graph, nodes=(graph.nodes[0], dataclasses.replace(graph.nodes[1], op=lifted),
                                                  graph.nodes[2]))
        bent = dataclasses.replace(bent, nodes=(bent.nodes[0], dataclasses.replace(bent.nodes[1], op=lifted),
                                                *bent.nodes[2:]))
        C = torch.randn(1, 1, 3, generator=torch.Generator().manual_seed(seed)).to(dtype)
        engine = Backward(bent, sets, rounded=True)
        refine(engine, row_bound=engine.lower)
        groups = Groups(C, C.new_zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, dtype=torch.long))
        s = {1: torch.randn(1, 5, generator=torch.Generator().manual_seed(seed)).to(dtype) * 1e7}
        found = BetaCrown().evaluate(engine, groups, C.new_full((1,), 1e30), Start({}, s, C.new_ones(1, 1)))
        wrong += above(found.lower, minima(exact(C[0]), graph, sets))
    assert wrong == 0


def absorbing(seed: int, dtype: torch.dtype, rest: float) -> tuple[Graph, InputSet]:
    """Two dense layers over one point, at which the terms of the first layer are large and add up to about `rest`.
    Its neurons come in pairs with nearly equal weights, which the second layer subtracts: rows that arrive at the input
    are small again."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 6, generator=generator).to(dtype)
    pairs = 1e4 * torch.randn(3, 6, generator=generator).repeat(2, 1)
    weight = (pairs + torch.randn(6, 6, generator=generator)).to(dtype)
    half = torch.randn(3, 3, generator=generator).to(dtype)
    build = GraphBuilder((6,), dtype)
    build.add(Linear(weight, rest - weight @ x[0]))
    build.add(Linear(torch.cat([half, -half], 1), torch.zeros(3, dtype=dtype)))
    return build.graph("absorbing"), InputSet(x, x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_an_inner_layer_loses_is_paid_for_by_the_rows_behind_it(dtype: torch.dtype) -> None:
    """Its values are small, its terms are not: the prices of the last layer alone do not show that."""
    wrong = {True: 0, False: 0}
    for seed in range(20):
        graph, sets = absorbing(seed, dtype, 0.5)
        C = torch.randn(8, 3, generator=torch.Generator().manual_seed(seed)).to(dtype)
        for rounded in wrong:
            engine = Backward(graph, sets, rounded=rounded)
            refine(engine)
            value = engine.value(Block(graph.output, Rows.full(C, Owner.of(1, None))))
            wrong[rounded] += above(value, minima(exact(C), graph, sets))
    assert wrong[True] == 0 and wrong[False] > 20


@pytest.mark.parametrize("dtype", DTYPES)
def test_multipliers_on_bounds_that_are_exact_pay_for_their_way_on(dtype: torch.dtype) -> None:
    """The bounds are those of rational arithmetic: that they were moved out for rounding pays for nothing here."""
    wrong = {True: 0, False: 0}
    for seed in range(20):
        graph, sets = absorbing(seed, dtype, 5.0)  # far from the kink, in units of what is left
        build = GraphBuilder((6,), dtype)
        build.add(graph.nodes[1].op)
        build.add(Relu())
        build.add(graph.nodes[2].op)
        bent = build.graph("bent")
        first = dataclasses.replace(graph, nodes=graph.nodes[:2], output=1)
        z = torch.tensor([[float(v) for v in minima(exact(torch.eye(6)), first, sets)]], dtype=torch.float64)
        infinity = torch.full_like(z, torch.inf).to(dtype)
        given = Interval(torch.nextafter(z.to(dtype), -infinity), torch.nextafter(z.to(dtype), infinity))
        C = torch.randn(1, 1, 3, generator=torch.Generator().manual_seed(seed)).to(dtype)
        groups = Groups(C, C.new_zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, dtype=torch.long))
        half = torch.randn(1, 3, generator=torch.Generator().manual_seed(seed)).to(dtype) * 1e4
        s = {1: torch.cat([half, -half], 1)}
        for rounded in wrong:
            engine = Backward(bent, sets, rounded=rounded)
            engine.enclosures[0] = Interval(sets.lower, sets.upper)
            engine.enclose(1, given)
            for i in (2, 3):
                engine.enclosures[i] = engine.prices.image(i)
            if not rounded:
                engine.prices.multiplier = lambda i, z=z: torch.zeros_like(z).to(dtype)  # type: ignore[method-assign]
            found = BetaCrown().evaluate(engine, groups, C.new_full((1,), 1e30), Start({}, s, C.new_ones(1, 1)))
            wrong[rounded] += above(found.lower, minima(exact(C[0]), graph, sets))
    assert wrong[True] == 0 and wrong[False] > 5


@pytest.mark.parametrize("dtype", DTYPES)
def test_minima_over_boxes_pay_for_their_rounding(dtype: torch.dtype) -> None:
    """Rows over the input itself, which pass no operator that pays."""
    generator = torch.Generator().manual_seed(0)
    build = GraphBuilder((9,), dtype)
    build.add(Linear(torch.zeros(1, 9, dtype=dtype)))
    graph, wrong = build.graph("nothing"), {True: 0, False: 0}
    for _ in range(20):
        centre = (torch.randn(1, 9, generator=generator) * 10 ** (6 * torch.rand(1, 9, generator=generator))).to(dtype)
        reach = torch.rand(1, 9, generator=generator).to(dtype)
        sets = InputSet(centre - reach, centre + reach)
        D = torch.randn(8, 9, generator=generator).to(dtype)
        ends = [exact(sets.lower[0]), exact(sets.upper[0])]
        least = [sum(min(d * e[k] for e in ends) for k, d in enumerate(row)) for row in exact(D)]
        for rounded in wrong:
            engine = Backward(graph, sets, rounded=rounded)
            wrong[rounded] += above(engine.minimise(D, Owner.of(1, None)), least)
    assert wrong[True] == 0 and wrong[False] > 20


def test_intervals_in_a_narrower_dtype_lose_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(4000, generator=generator, dtype=torch.float64)
    wide = Interval(low, low + 1e-9)
    narrow = rounded_out(wide, torch.float32)
    assert narrow.lower.dtype == torch.float32
    assert bool((narrow.lower.double() <= wide.lower).all() and (narrow.upper.double() >= wide.upper).all())
    same = rounded_out(narrow.map(Tensor.double), torch.float32)
    assert torch.equal(same.lower, narrow.lower) and torch.equal(same.upper, narrow.upper)


@pytest.mark.parametrize("activation", ["Relu", "PRelu", "Clip", "Elu", "Softplus", "Sigmoid", "Tanh"])
def test_what_a_library_computes_is_not_covered(activation: str) -> None:
    """Enclosures of our own are; a softmax is a library's."""
    graph = random_graph(0, "dense", activation)
    assert is_covered(graph)
    softmax = Node("p", Softmax(), (graph.output,), graph.output_shape)
    assert not is_covered(dataclasses.replace(graph, nodes=(*graph.nodes, softmax), output=len(graph.nodes)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", [Relu(), LeakyRelu(0.1), LeakyRelu(-0.3), LeakyRelu(1.7), Clip(-0.75, 1.25)])
def test_lines_hold_exactly_as_stored(op: Relu | LeakyRelu | Clip, dtype: torch.dtype) -> None:
    """Slopes and intercepts are rounded; at the ends of the interval and at the kinks, in rationals, the lines still
    lie on their side."""
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(1, 4000, generator=generator, dtype=torch.float64) * 10 ** (
        torch.rand(1, 4000, generator=generator, dtype=torch.float64) * 8 - 4)
    high = low + torch.rand(1, 4000, generator=generator, dtype=torch.float64) * low.abs() * 3
    x = Interval(low.to(dtype), torch.maximum(low.to(dtype), high.to(dtype)))
    kinks = [0.0] if not isinstance(op, Clip) else [op.low, op.high]

    def f(z: Fraction) -> Fraction:
        if isinstance(op, Clip):
            return min(max(z, Fraction(op.low)), Fraction(op.high))
        left = Fraction(op.left_slope(low.to(dtype)).flatten()[0].item()) if isinstance(op, LeakyRelu) else Fraction(0)
        return z if z >= 0 else left * z
    for lines in (op.relax(x), op.relax_parallel(x)):
        slopes = [exact(lines.lower_slope.expand_as(low))[0], exact(lines.upper_slope.expand_as(low))[0]]
        shifts = [exact(torch.zeros_like(x.lower) if t is None else t.expand_as(low))[0]
                  for t in (lines.lower_intercept, lines.upper_intercept)]
        for k, (l, h) in enumerate(zip(exact(x.lower)[0], exact(x.upper)[0], strict=True)):
            for z in {l, h, *(Fraction(c) for c in kinks if l <= Fraction(c) <= h)}:
                assert slopes[0][k] * z + shifts[0][k] <= f(z) <= slopes[1][k] * z + shifts[1][k], (k, l, h, z)


def test_slopes_that_differ_between_neurons_hold_as_well() -> None:
    op = PRelu(torch.linspace(-0.5, 1.9, 300, dtype=torch.float32))
    generator = torch.Generator().manual_seed(1)
    x = Interval(-torch.rand(1, 300, generator=generator), torch.rand(1, 300, generator=generator))
    lines = op.relax(x)
    a = exact(op.left_slope(x.lower).expand_as(x.lower))[0]
    assert lines.lower_intercept is not None and lines.upper_intercept is not None
    low, up = exact(lines.lower_intercept.expand_as(x.lower))[0], exact(lines.upper_intercept.expand_as(x.lower))[0]
    s, t = exact(lines.lower_slope.expand_as(x.lower))[0], exact(lines.upper_slope.expand_as(x.lower))[0]
    for k, (l, h) in enumerate(zip(exact(x.lower)[0], exact(x.upper)[0], strict=True)):
        for z, y in ((l, a[k] * l), (Fraction(0), Fraction(0)), (h, h)):
            assert s[k] * z + low[k] <= y <= t[k] * z + up[k]


@pytest.mark.parametrize("kind", ["dense", "conv", "residual"])
def test_single_precision_with_its_prices_stays_below_double_precision(kind: str) -> None:
    """The same lines over the same intervals: what float32 proves, rounding paid, holds in float64."""
    higher = 0
    for seed in range(8):
        graph = random_graph(seed, kind, "Relu").to(dtype=torch.float32)
        sets = random_box(graph.to(dtype=torch.float64), seed, 3).to(dtype=torch.float32)
        C = torch.randn(6, graph.output_shape[0], generator=torch.Generator().manual_seed(seed))
        owner = torch.arange(6) % 3
        single = Backward(graph, sets, rounded=True)
        refine(single, row_bound=single.lower)
        given = {i: single.intervals[i].map(lambda t: t.double()) for i in graph.relaxed_inputs}
        lower = final_bounds(single, LinearRows(C, owner), {}).lower.double()
        plain = Backward(graph, sets, rounded=False)
        refine(plain, given={i: single.intervals[i] for i in graph.relaxed_inputs})
        double = Backward(graph.to(dtype=torch.float64), sets.to(dtype=torch.float64), rounded=False)
        refine(double, given=given)
        truth = final_bounds(double, LinearRows(C.double(), owner), {}).lower
        assert bool((lower <= truth + 1e-12 * (1 + truth.abs())).all())
        higher += int((final_bounds(plain, LinearRows(C, owner), {}).lower.double() > truth).sum())
    assert higher > 10


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_minima_over_balls_pay_for_their_rounding(p: float) -> None:
    wrong = 0
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        centre = torch.randn(1, 9, generator=generator) * 1000
        sets = InputSet(centre - 0.5, centre + 0.5, centre, torch.tensor([0.8]), p)
        A = torch.randn(16, 9, generator=generator) * 10
        wide = sets.to(dtype=torch.float64)
        truth = wide.minimise(A.double())
        truth = torch.maximum(truth, wide.minimise_down(A.double()))
        assert bool((sets.minimise_down(A).double() <= truth + 1e-9 * truth.abs().clamp(min=1e-3)).all())
        wrong += int((sets.minimise(A).double() > truth + 1e-9 * truth.abs()).sum())
    assert wrong > 20


def test_folded_parameters_pay_for_what_the_fold_lost() -> None:
    """A normalisation that is folded in float32 is off by a share that no sum of the folded network shows."""
    build = GraphBuilder((3,), torch.float32)
    generator = torch.Generator().manual_seed(0)
    build.add(Linear(torch.randn(4, 3, generator=generator), torch.randn(4, generator=generator)))
    build.add(Linear(torch.randn(2, 4, generator=generator), torch.randn(2, generator=generator)))
    graph = build.graph("fold")
    folded = graph.simplify()
    assert len(folded.nodes) == 2 and folded.fold_errors
    sets = box(graph, 0, torch.float32)
    C = torch.eye(2)
    least = minima(exact(C), graph, sets)
    wide = folded.to(dtype=torch.float64)  # the sums are nearly exact here: only the fold is left
    engine = Backward(wide, sets.to(dtype=torch.float64))
    refine(engine)
    assert above(final_bounds(engine, LinearRows(C.double()), {}).lower, least) == 0
    bare = dataclasses.replace(wide, fold_errors={})
    engine = Backward(bare, sets.to(dtype=torch.float64))
    refine(engine)
    assert above(final_bounds(engine, LinearRows(C.double()), {}).lower, least) > 0


def test_sums_are_lowered_by_their_own_error() -> None:
    generator = torch.Generator().manual_seed(0)
    terms = [torch.randn(2000, generator=generator) * 10 ** (torch.rand(2000, generator=generator) * 6)
             for _ in range(5)]
    exactly = sum(exact(t) for t in terms)
    assert all(Fraction(v) <= e for v, e in zip(sum_down(*terms).double().tolist(), exactly, strict=True))
    assert sum(Fraction(v) > e for v, e in zip(sum(terms).double().tolist(), exactly, strict=True)) > 500


def test_sums_too_long_for_their_dtype_prove_nothing() -> None:
    assert gamma(1 << 20, torch.float32) == float("inf")
    assert gamma(1 << 20, torch.float64) < 1e-9
    assert 10 * unit(torch.float32) < gamma(10, torch.float32) < 20 * unit(torch.float32)


def test_numbers_that_vanish_are_paid_for() -> None:
    """Products below the smallest normal number: nothing is left of them, but of what they bound."""
    tiny = torch.finfo(torch.float32).tiny
    build = GraphBuilder((2,), torch.float32)
    build.add(Linear(torch.full((2, 2), 1e-26), torch.zeros(2)))
    build.add(Linear(torch.full((1, 2), 1e-26), torch.zeros(1)))
    graph = build.graph("small")
    sets = InputSet(torch.tensor([[-1e12, -1e12]]), torch.tensor([[-1e11, -1e11]]))
    least = minima(exact(torch.ones(1, 1)), graph, sets)
    engine = Backward(graph, sets, rounded=True)
    refine(engine)
    assert above(final_bounds(engine, LinearRows(torch.ones(1, 1)), {}).lower, least) == 0
    assert above(torch.zeros(1), least) == 1 and abs(float(least[0])) < tiny


def test_the_default_is_to_account_for_rounding_in_double_precision_only() -> None:
    graph = chain(0, torch.float64)
    assert isinstance(Backward(graph, box(graph, 0, torch.float64)).prices, Prices)
    assert not isinstance(Backward(chain(0, torch.float32), box(graph, 0, torch.float32)).prices, Prices)


def test_prices_of_alpha_lines_cover_every_slope() -> None:
    """Parameters take the place of lower slopes after the lines were moved out for rounding."""
    graph = random_graph(3, "dense", "Relu").to(dtype=torch.float32)
    sets = random_box(graph.to(dtype=torch.float64), 3).to(dtype=torch.float32)
    engine = Backward(graph, sets, rounded=True)
    refine(engine, row_bound=engine.lower)
    for i, node in enumerate(graph.nodes):
        if isinstance(node.op, Relu):
            lines, x = engine.lines(i), engine.intervals[node.inputs[0]]
            open_ = (x.lower < 0) & (x.upper > 0)
            assert lines.paid is not None
            low = lines.relaxation.lower_intercept
            assert low is not None and bool((low[open_] < 0).all())
            assert bool((low[open_] <= -unit(torch.float32) * torch.maximum(x.lower.abs(), x.upper.abs())[open_]).all())


def test_crown_in_double_precision_loses_next_to_nothing() -> None:
    graph = random_graph(5, "dense", "Relu")
    sets = random_box(graph, 5)
    C = torch.eye(graph.output_shape[0], dtype=torch.float64)
    paid = crown.bound(graph, sets, LinearRows(C)).lower
    plain = Backward(graph, sets, rounded=False)
    refine(plain, row_bound=plain.lower)
    assert torch.allclose(paid, final_bounds(plain, LinearRows(C), {}).lower, rtol=1e-11, atol=1e-11)


SMOOTH: dict[str, Callable[[mpf], mpf]] = {
    "Tanh": mpmath.tanh,
    "Sigmoid": lambda z: 1 / (1 + mpmath.exp(-z)),
    "Elu": lambda z: z if z > 0 else mpmath.expm1(z),
    "Softplus": lambda z: mpmath.log1p(mpmath.exp(2 * z)) / 2 if 2 * z <= 20 else z,
}


def outputs(graph: Graph, f: Callable[[mpf], mpf], x: Tensor) -> list[mpf]:
    """What a dense network with the activation f makes of one point, in 200 bits."""
    values = [mpf(v) for v in x.double().tolist()]
    for node in graph.nodes[1:]:
        if isinstance(node.op, Linear):
            assert node.op.bias is not None
            weight, bias = node.op.weight.double().tolist(), node.op.bias.double().tolist()
            values = [mpmath.fdot(zip(row, values, strict=True)) + b for row, b in zip(weight, bias, strict=True)]
        else:
            values = [f(v) for v in values]
    return values


def smooth_bounds(graph: Graph, sets: InputSet, rounded: bool) -> list[Tensor]:
    """Lower bounds of the outputs by CROWN's lines, by parallel ones, by parameters, and from enclosures alone."""
    rows = LinearRows(torch.eye(graph.output_shape[0], dtype=sets.dtype))
    found = []
    for lines in (adaptive, parallel):
        engine = Backward(graph, sets, lines, rounded=rounded)
        refine(engine, row_bound=engine.lower)
        found.append(final_bounds(engine, rows, {}).lower)
    block = Block(graph.output, Rows.full(rows.C, Owner.of(1, None)))
    params = {}
    for i, node in enumerate(graph.nodes):
        if isinstance(node.op, Elementwise):
            box = node.op.parameters(engine.intervals[node.inputs[0]])
            assert box is not None
            params[i] = torch.lerp(box[1], box[2], 0.3).expand(-1, len(rows.C), *box[1].shape[2:])
    found.append(engine.value(block, params))
    if rounded:
        found.append(ibp.bound(graph, sets, rows).lower)
    return found


def violations(activation: str, dtype: torch.dtype, rounded: bool) -> int:
    """How many bounds exceed what the network makes of points of the set, on sets of no or next to no width, where
    nothing but rounding keeps them apart."""
    wrong = 0
    for seed in range(12):
        graph = random_graph(seed, "dense", activation, dtype)
        generator = torch.Generator().manual_seed(seed)
        centre = torch.randn(1, *graph.input_shape, generator=generator).to(dtype)
        for width in (0.0, 4 * torch.finfo(dtype).eps):
            sets = InputSet(centre - width, centre + width)
            with mpmath.workprec(200):
                points = (sets.lower[0], centre[0], sets.upper[0])
                least = [min(column) for column in zip(*(outputs(graph, SMOOTH[activation], x) for x in points),
                                                       strict=True)]
                for lower in smooth_bounds(graph, sets, rounded):
                    wrong += sum(mpf(v) > m for v, m in zip(lower.double().tolist(), least, strict=True))
    return wrong


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", SMOOTH)
def test_bounds_of_smooth_networks_never_exceed_the_truth(activation: str, dtype: torch.dtype) -> None:
    assert violations(activation, dtype, rounded=True) == 0


@pytest.mark.parametrize("activation", SMOOTH)
def test_bounds_of_smooth_networks_hold_though_the_library_is_wrong(activation: str, monkeypatch: pytest.MonkeyPatch
                                                                    ) -> None:
    """Functions of the library that are off by a part in a thousand million: bounds that trust them are wrong."""
    for name in ("tanh", "cosh", "log", "log1p", "exp", "expm1", "sigmoid", "logit", "sqrt"):
        for place in (torch, Tensor):
            if hasattr(place, name):
                function = getattr(place, name)
                monkeypatch.setattr(place, name, lambda *args, f=function, **kw: f(*args, **kw) * (1 + 1e-9))
    for name in ("elu", "softplus"):
        function = getattr(torch.nn.functional, name)
        monkeypatch.setattr(torch.nn.functional, name, lambda *args, f=function: f(*args) * (1 + 1e-9))
    assert violations(activation, torch.float64, rounded=True) == 0
    assert violations(activation, torch.float64, rounded=False) > 5


def test_smooth_networks_are_covered() -> None:
    for activation in SMOOTH:
        assert is_covered(random_graph(0, "dense", activation))
