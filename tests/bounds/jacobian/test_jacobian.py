"""Enclosures of gradients against autograd at points, enumeration of linear pieces, and exact rationals."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bounds.bounds import LinearRows
from bounds.graph import FoldError, Graph, UnsupportedOperator
from bounds.interval import Interval
from bounds.jacobian import linear, recurjac
from bounds.jacobian.compute import METHODS, jacobian_bounds
from bounds.jacobian.enclosure import sup_norm
from bounds.jacobian.functionals import UpperLine
from bounds.ops.avg_pool import AvgPool
from bounds.ops.batch_norm import BatchNorm
from bounds.ops.concat import Concat
from bounds.ops.conv import conv_of
from bounds.ops.linear import Linear
from bounds.ops.relu import Relu
from bounds.ops.reshape import Reshape
from bounds.ops.sign import Sign
from bounds.ops.slice import Slice
from bounds.ops.softmax import Softmax
from bounds.ops.softplus import Softplus
from bounds.rounding import priced
from bounds.sets import InputSet
from tests.bounds.jacobian.oracle import gradients_at, pieces, rows_of
from tests.bounds.networks import GraphBuilder, graphs_with_boxes, random_box, random_graph, samples
from tests.bounds.rational import exact

every_method = pytest.mark.parametrize("method", METHODS)
LINES = {"recurjac": recurjac.upper_line, "jacobian": linear.upper_line}


def assert_inside(graph: Graph, sets: InputSet, method: str, *, slack: float = 0.0, points: int = 40) -> None:
    rows = rows_of(graph, sets.batch)
    found = jacobian_bounds(graph, sets, rows, method)
    there = gradients_at(graph, rows, samples(sets, points))
    assert bool((there >= found.lower.unsqueeze(1) - slack).all())
    assert bool((there <= found.upper.unsqueeze(1) + slack).all())


def many_layers() -> Graph:
    """Convolution, batch normalisation, average pool, slices and a concatenation."""
    generator = torch.Generator().manual_seed(5)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)
    build = GraphBuilder((2, 4, 4), torch.float64)
    build.add(conv_of(random(4, 2, 3, 3) / 3, random(4), padding=(1, 1)))
    build.add(BatchNorm(random(4), random(4), random(4), random(4).abs() + 0.5))
    active = build.add(Relu())
    first = build.add(Slice(0, 0, 2), active)
    second = build.add(Slice(0, 1, 4, 2), active)
    build.add(Concat(0), second, first)
    build.add(AvgPool((2, 2), (2, 2), (0, 0), (0, 0)))
    build.add(Reshape((16,)))
    build.add(Linear(random(5, 16) / 4, random(5)))
    build.add(Softplus())
    build.add(Linear(random(2, 5), random(2)))
    return build.graph()


def as_dense(graph: Graph) -> Graph:
    """The same network with every affine operator of one input as a matrix."""
    build = GraphBuilder((torch.Size(graph.input_shape).numel(),), torch.float64)
    for node in graph.nodes[1:]:
        shape = graph.nodes[node.inputs[0]].shape
        if isinstance(node.op, Relu | Softplus):
            build.add(node.op)
        else:
            n = torch.Size(shape).numel()
            offset = node.op.forward(torch.zeros(1, *shape, dtype=torch.float64))
            weight = node.op.forward(torch.eye(n, dtype=torch.float64).view(n, *shape)) - offset
            build.add(Linear(weight.flatten(1).T.contiguous(), offset.flatten()))
    return build.graph()


@every_method
@settings(max_examples=12, deadline=None)
@given(drawn=graphs_with_boxes())
def test_gradients_at_points_lie_inside(method: str, drawn: tuple[Graph, InputSet]) -> None:
    assert_inside(*drawn, method, slack=1e-14)


@every_method
@settings(max_examples=12, deadline=None)
@given(drawn=graphs_with_boxes(dtype=torch.float32))
def test_gradients_at_points_lie_inside_in_float32(method: str, drawn: tuple[Graph, InputSet]) -> None:
    assert_inside(*drawn, method, slack=1e-4, points=20)


@every_method
def test_convolutions_normalisation_pools_and_slices(method: str) -> None:
    graph = many_layers()
    for radius in (0.02, 0.5):
        sets = random_box(graph, 3, batch=2, radius=radius)
        assert_inside(graph, sets, method)
        assert_inside(graph.simplify(), sets, method, slack=1e-13)


@every_method
@pytest.mark.parametrize("seed", range(4))
def test_every_linear_piece_is_enclosed(method: str, seed: int) -> None:
    graph, sets = relu_net(seed)
    rows = LinearRows(torch.tensor([[1.0, -1.0]], dtype=torch.float64))
    found = jacobian_bounds(graph, sets, rows, method)
    true = torch.stack(pieces(graph, sets, rows.C[0]))
    assert len(true) > 1
    assert bool((found.lower <= true).all()) and bool((true <= found.upper).all())
    for q in (1, 2, torch.inf):
        sup = torch.linalg.vector_norm(true, ord=q, dim=1).max()
        assert float(sup_norm(found, q)) >= float(sup)
        if q != torch.inf:
            assert float(linear.bound_with_norm(graph, sets, rows, q)[1]) >= float(sup)


def relu_net(seed: int, widths: tuple[int, ...] = (3, 3)) -> tuple[Graph, InputSet]:
    generator = torch.Generator().manual_seed(seed)
    build = GraphBuilder((2,), torch.float64)
    before = 2
    for width in widths:
        build.add(Linear(torch.randn(width, before, generator=generator, dtype=torch.float64),
                         torch.randn(width, generator=generator, dtype=torch.float64) * 0.3))
        build.add(Relu())
        before = width
    build.add(Linear(torch.randn(2, before, generator=generator, dtype=torch.float64),
                     torch.zeros(2, dtype=torch.float64)))
    centre = torch.randn(1, 2, generator=generator, dtype=torch.float64) * 0.3
    return build.graph(), InputSet(centre - 0.4, centre + 0.4)


def test_one_uncertain_layer_gives_the_exact_enclosure() -> None:
    """Each entry is a sum over neurons that all switch at the centre of the box."""
    weight = torch.tensor([[1.0, 2.0], [-1.0, 1.0], [3.0, -1.0]], dtype=torch.float64)
    zero = torch.zeros(3, dtype=torch.float64)
    build = GraphBuilder((2,), torch.float64)
    build.add(Linear(weight, zero))
    build.add(Relu())
    build.add(Linear(torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64), zero[:1]))
    one = torch.ones(1, 2, dtype=torch.float64)
    terms = weight * torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)[:, None]
    for method in METHODS:
        found = jacobian_bounds(build.graph(), InputSet(-one, one), LinearRows(one[:, :1]), method)
        torch.testing.assert_close(found.lower[0], terms.clamp(max=0).sum(0))
        torch.testing.assert_close(found.upper[0], terms.clamp(min=0).sum(0))


@every_method
def test_a_kink_at_the_end_of_the_box_counts_on_both_sides(method: str) -> None:
    build = GraphBuilder((1,), torch.float64)
    build.add(Relu())
    zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    for box in (InputSet(zero, one), InputSet(-one, zero), InputSet(zero, zero)):
        found = jacobian_bounds(build.graph(), box, LinearRows(one), method)
        assert float(found.lower) <= 0 and float(found.upper) >= 1


@every_method
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(("dense", "conv", "residual")))
def test_known_derivatives_give_the_gradient(method: str, seed: int, kind: str) -> None:
    graph = random_graph(seed, kind, "Relu")
    sets = random_box(graph, seed, radius=1e-9)
    x = sets.centre_point
    sets, rows = InputSet(x, x), rows_of(graph, 1)
    there = gradients_at(graph, rows, x.unsqueeze(1))[:, 0]
    with priced(False):
        found = jacobian_bounds(graph, sets, rows, method)
    assert not found.rounded
    torch.testing.assert_close(found.lower, there, atol=1e-13, rtol=1e-13)
    torch.testing.assert_close(found.upper, there, atol=1e-13, rtol=1e-13)
    rounded = jacobian_bounds(graph, sets, rows, method)
    assert rounded.rounded
    assert float((rounded.upper - rounded.lower).max()) < 1e-11


@every_method
def test_sums_that_cancel_are_enclosed_over_the_rationals(method: str) -> None:
    """Weights of many sizes, every neuron active: the gradient is a product of matrices, known exactly."""
    generator = torch.Generator().manual_seed(1)
    wrong = 0
    for _ in range(20):
        build = GraphBuilder((3,), torch.float64)
        W = []
        for bias, rows, columns in ((1e20, 4, 3), (1e40, 4, 4), (1e60, 4, 4)):
            size = 10.0 ** torch.randint(-4, 5, (rows, columns), generator=generator).double()
            W.append(torch.randn(rows, columns, generator=generator, dtype=torch.float64) * size)
            build.add(Linear(W[-1], torch.full((rows,), bias, dtype=torch.float64)))
            build.add(Relu())
        C = torch.randn(1, 4, generator=generator, dtype=torch.float64)
        truth = (exact(C) @ exact(W[2]) @ exact(W[1]) @ exact(W[0]))[0]
        x = torch.ones(1, 3, dtype=torch.float64)
        found = jacobian_bounds(build.graph(), InputSet(x, x + 1), LinearRows(C), method)
        assert found.rounded
        assert bool((exact(found.lower[0]) <= truth).all()) and bool((truth <= exact(found.upper[0])).all())
        plain = exact((C @ W[2] @ W[1] @ W[0])[0])
        wrong += int(np.sum(plain != truth))
    assert wrong > 30  # without the padding most would fail


@every_method
def test_chains_of_matrices_are_enclosed_over_the_rationals(method: str) -> None:
    """Nothing but sums: each layer's cancel in the next, where only their own padding and prices help."""
    generator = torch.Generator().manual_seed(2)
    for _ in range(10):
        W = [torch.randn(rows, columns, generator=generator, dtype=torch.float64)
             for rows, columns in ((8, 6), (8, 8))]
        W[1] = W[1] * torch.logspace(0, -6, 8, dtype=torch.float64)
        inverse = torch.linalg.inv(W[1])
        build = GraphBuilder((6,), torch.float64)
        for weight in (W[0], W[1], inverse):
            build.add(Linear(weight, None))
        C = torch.randn(1, 8, generator=generator, dtype=torch.float64)
        C = C - (C @ inverse @ W[1] @ W[0]) @ torch.linalg.pinv(W[0])  # nearly orthogonal to all that is left
        truth = (exact(C) @ exact(inverse) @ exact(W[1]) @ exact(W[0]))[0]
        x = torch.ones(1, 6, dtype=torch.float64)
        found = jacobian_bounds(build.graph(), InputSet(x, x + 1), LinearRows(C), method)
        assert bool((exact(found.lower[0]) <= truth).all()) and bool((truth <= exact(found.upper[0])).all())


@every_method
def test_folded_parameters_are_paid_for(method: str) -> None:
    graph, sets = relu_net(2)
    node = graph.nodes[3]
    assert isinstance(node.op, Linear)
    folded = dataclasses.replace(graph, fold_errors={3: FoldError(weight=torch.full((3, 3), 0.1).double())})
    sign = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).sign()
    moved = dataclasses.replace(node, op=dataclasses.replace(node.op, weight=node.op.weight + 0.1 * sign))
    other = dataclasses.replace(graph, nodes=(*graph.nodes[:3], moved, *graph.nodes[4:]))
    rows = LinearRows(torch.ones(1, 2, dtype=torch.float64))
    found = jacobian_bounds(folded, sets, rows, method)
    there = gradients_at(other, LinearRows(rows.C, torch.zeros(1, dtype=torch.long)), samples(sets, 400))
    assert bool(((there >= found.lower) & (there <= found.upper)).all())


@every_method
@pytest.mark.parametrize("kind", ["dense", "conv", "residual", "pooling"])
def test_batched_bounds_equal_single_bounds(method: str, kind: str) -> None:
    graph = random_graph(3, kind, "mixed")
    sets, rows = random_box(graph, 1, batch=3), rows_of(graph, 3)
    assert rows.owner is not None
    together = jacobian_bounds(graph, sets, rows, method)
    for n, b in enumerate(rows.owner.tolist()):
        alone = jacobian_bounds(graph, sets.index(torch.tensor([b])), LinearRows(rows.C[n:n + 1]), method)
        torch.testing.assert_close(together.lower[n:n + 1], alone.lower, atol=1e-11, rtol=1e-11)
        torch.testing.assert_close(together.upper[n:n + 1], alone.upper, atol=1e-11, rtol=1e-11)


@every_method
def test_a_convolution_and_its_matrix_agree(method: str) -> None:
    build = GraphBuilder((1, 3, 4), torch.float64)
    generator = torch.Generator().manual_seed(8)
    for shape in ((3, 1, 2, 2), (2, 3, 2, 2)):
        build.add(conv_of(torch.randn(*shape, generator=generator, dtype=torch.float64),
                          torch.randn(shape[0], generator=generator, dtype=torch.float64), padding=(1, 1),
                          stride=(2, 1)))
        build.add(Relu())
    build.add(Reshape((torch.Size(build.shape).numel(),)))
    build.add(Linear(torch.randn(2, build.shape[0], generator=generator, dtype=torch.float64), None))
    graph = build.graph()
    sets, rows = random_box(graph, 2, batch=2), rows_of(graph, 2)
    dense = jacobian_bounds(as_dense(graph), InputSet(sets.lower.flatten(1), sets.upper.flatten(1)), rows, method)
    found = jacobian_bounds(graph, sets, rows, method)
    torch.testing.assert_close(found.lower.flatten(1), dense.lower, atol=1e-11, rtol=1e-11)
    torch.testing.assert_close(found.upper.flatten(1), dense.upper, atol=1e-11, rtol=1e-11)


@settings(max_examples=12, deadline=None)
@given(drawn=graphs_with_boxes())
def test_linear_bounds_lie_inside_interval_arithmetic(drawn: tuple[Graph, InputSet]) -> None:
    graph, sets = drawn
    rows = rows_of(graph, sets.batch, 1)
    outer = jacobian_bounds(graph, sets, rows, "fastlip")
    for method in ("recurjac", "jacobian"):
        inner = jacobian_bounds(graph, sets, rows, method)
        slack = 1e-12 * (1 + outer.magnitude)
        assert bool((inner.lower >= outer.lower - slack).all())
        assert bool((inner.upper <= outer.upper + slack).all())


def test_on_average_each_method_is_tighter_than_the_one_before() -> None:
    widths = dict.fromkeys(METHODS, 0.0)
    for seed in range(30):
        graph = random_graph(seed, "dense", "Relu")
        sets, rows = random_box(graph, seed, radius=0.6), rows_of(graph, 1)
        for method in METHODS:
            found = jacobian_bounds(graph, sets, rows, method)
            widths[method] += float((found.upper - found.lower).sum())
    assert widths["fastlip"] > widths["recurjac"] > widths["jacobian"] > 0


@pytest.mark.parametrize("name", LINES)
def test_upper_lines_lie_above_every_product(name: str) -> None:
    s, g = (Interval(*torch.randn(2, 3000, generator=torch.Generator().manual_seed(k), dtype=torch.float64).sort(0)
                     .values) for k in (1, 2))
    g = Interval(g.lower, torch.where(torch.arange(3000) % 7 == 0, g.lower, g.upper))
    s = Interval(s.lower.clamp(min=0), s.upper.clamp(min=0, max=1)) if name == "recurjac" else s
    s = Interval(torch.minimum(s.lower, s.upper), s.upper)
    line: UpperLine = LINES[name]
    slope, intercept = line(s, g)
    weights = torch.linspace(0, 1, 11, dtype=torch.float64)
    points = torch.lerp(g.lower, g.upper, weights[:, None])
    points = torch.cat([points, torch.zeros(1, 3000).double().clamp(g.lower, g.upper)])
    best = torch.maximum(s.lower * points, s.upper * points)
    assert bool((slope * points + intercept >= best - 1e-15).all())
    if name == "jacobian":  # and touches at both ends
        for end in (g.lower, g.upper):
            torch.testing.assert_close(slope * end + intercept, torch.maximum(s.lower * end, s.upper * end))


@every_method
def test_given_enclosures_are_used(method: str) -> None:
    graph, sets = relu_net(0)
    rows = LinearRows(torch.ones(1, 2, dtype=torch.float64))
    wide = {i: Interval(torch.full_like(t, -9.0), torch.full_like(t, 9.0))
            for i, t in ((1, torch.zeros(1, 3).double()), (3, torch.zeros(1, 3).double()))}
    loose, tight = (jacobian_bounds(graph, sets, rows, method, given=g) for g in (wide, None))
    assert bool((loose.upper - loose.lower >= tight.upper - tight.lower - 1e-12).all())
    assert float((loose.upper - loose.lower).sum()) > float((tight.upper - tight.lower).sum())


@every_method
def test_a_function_that_jumps_has_no_bounded_gradient(method: str) -> None:
    build = GraphBuilder((1,), torch.float64)
    build.add(Softplus(1.0, 3.0))
    build.add(Linear(torch.ones(1, 1, dtype=torch.float64), None))
    one = torch.ones(1, 1, dtype=torch.float64)
    found = jacobian_bounds(build.graph(), InputSet(2 * one, 4 * one), LinearRows(one), method)
    assert float(found.lower) == -torch.inf
    assert float(sup_norm(found, 1)) == torch.inf


def test_what_has_no_gradient_here_is_refused() -> None:
    one = torch.ones(1, 2, dtype=torch.float64)
    for op in (Sign(), Softmax()):
        build = GraphBuilder((2,), torch.float64)
        build.add(Linear(torch.eye(2, dtype=torch.float64), None))
        build.add(op)
        with pytest.raises(UnsupportedOperator, match=op.kind):
            jacobian_bounds(build.graph(), InputSet(-one, one), LinearRows(one))
    graph, sets = relu_net(0)
    with pytest.raises(ValueError, match="method must be one of"):
        jacobian_bounds(graph, sets, LinearRows(one), "exact")
    with pytest.raises(ValueError, match="over outputs alone"):
        jacobian_bounds(graph, sets, LinearRows(one, D=one))
    with pytest.raises(ValueError, match=r"shape \(N, 2\)"):
        jacobian_bounds(graph, sets, LinearRows(one[:, :1]))
    with pytest.raises(ValueError, match="one dtype"):
        jacobian_bounds(graph, sets, LinearRows(one.float()))
    with pytest.raises(ValueError, match="sets must have shape"):
        jacobian_bounds(graph, InputSet(-one[:, :1], one[:, :1]), LinearRows(one))


@every_method
def test_behind_a_jump_nothing_is_known_and_no_entry_is_no_number(method: str) -> None:
    """The prices of affine operators before the jump are infinite, and meet coefficients that are zero."""
    build = GraphBuilder((2,), torch.float64)
    build.add(Linear(torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)))
    build.add(Softplus(1.0, 3.0))
    build.add(Linear(torch.ones(1, 2, dtype=torch.float64), None))
    at = torch.tensor([[2.0, -9.0]], dtype=torch.float64)
    found = jacobian_bounds(build.graph(), InputSet(at, at + 2), LinearRows(torch.ones(1, 1, dtype=torch.float64)),
                            method)
    assert not bool((found.lower.isnan() | found.upper.isnan()).any())
    assert float(found.lower[0, 0]) == -torch.inf
    assert float(sup_norm(found, 1)) == torch.inf
