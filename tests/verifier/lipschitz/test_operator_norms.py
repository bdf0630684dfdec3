"""Operator norms: those of matrices against enumeration, those of networks against secants."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import sparse

from bounds.graph import Graph, UnsupportedOperator
from bounds.graph.graph import Node
from bounds.ops.add import Add
from bounds.ops.base import Input
from bounds.ops.concat import Concat
from bounds.ops.conv import conv_of
from bounds.ops.linear import Linear
from bounds.ops.max_pool import MaxPool
from bounds.ops.relu import Relu
from bounds.ops.sign import Sign
from bounds.ops.softmax import Softmax
from bounds.ops.softplus import Softplus
from tests.bounds.networks import KINDS, GraphBuilder, random_graph
from tests.verifier.lipschitz.networks import dense, points, random_dense
from verifier.lipschitz import operator_norms
from verifier.lipschitz.layers import AffineMap, affine_maps, of_matrix
from verifier.lipschitz.operator_norms import NORMS, matrix_norms, operator_norm_constant, spectral_norm
from verifier.verdict import Evidence


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def largest(W: np.ndarray, norm_in: float, norm_out: float) -> float:
    """The operator norm: from 1 and from inf over the corners of the unit ball, to inf by duality, else by numpy."""
    n = W.shape[1]
    if norm_in == 2.0:
        if norm_out == 2.0:
            return float(np.linalg.norm(W, 2))
        return largest(W.T, math.inf if norm_out == 1.0 else 1.0, 2.0)
    corners = np.eye(n) if norm_in == 1.0 else np.array(list(itertools.product((-1.0, 1.0), repeat=n)))
    return max(float(np.linalg.norm(W @ c, norm_out)) for c in corners)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("norm_in", NORMS)
@pytest.mark.parametrize("norm_out", NORMS)
def test_norms_of_matrices_are_never_too_small(seed: int, norm_in: float, norm_out: float) -> None:
    W = random(2 + seed % 4, 5, seed=seed).numpy()
    true, found = largest(W, norm_in, norm_out), matrix_norms(of_matrix(W))[norm_in, norm_out]
    assert found >= true
    if norm_in == 1.0 or norm_out == math.inf or norm_in == norm_out:
        assert found == pytest.approx(true, rel=1e-9)
    else:
        assert found <= math.sqrt(5) * true * (1 + 1e-9)


@pytest.mark.parametrize("squarings", [1, 10**7])
def test_gram_iteration_lies_between_the_norm_and_the_plain_bound(monkeypatch: pytest.MonkeyPatch, squarings: int
                                                                 ) -> None:
    conv = conv_of(random(4, 3, 3, 3), None, padding=(1, 1), stride=(2, 2))
    graph = Graph((Node("x", Input(), (), (3, 7, 7)), Node("y", conv, (0,), (4, 4, 4))), 1)
    map = affine_maps(graph, 1)[0]
    W = map.matrix.toarray()
    true = np.linalg.norm(W, 2)
    assert true <= spectral_norm(map) <= true * (1 + 1e-9)
    monkeypatch.setattr(operator_norms, "SHORT_SIDE", 1)
    monkeypatch.setattr(operator_norms, "MOST_PRODUCTS", squarings)
    for unit in (1e-120, 1.0, 1e120):
        found = spectral_norm(of_matrix(unit * W)) / unit
        plain = math.sqrt(np.linalg.norm(W, 1) * np.linalg.norm(W, np.inf))
        assert true <= found < plain * (1 + 1e-9)
        if squarings > 1:
            assert found <= 1.05 * true


def test_the_matrix_of_a_convolution_may_lie_anywhere_in_its_radius(monkeypatch: pytest.MonkeyPatch) -> None:
    W = random(6, 6).numpy()
    map = AffineMap(sparse.csr_matrix(W), sparse.csr_matrix(np.full((6, 6), 0.1)), np.zeros(6), np.zeros(6))
    generator = np.random.default_rng(0)
    worst = max(np.linalg.norm(W + 0.1 * generator.choice([-1, 1], size=W.shape), 2) for _ in range(500))
    assert spectral_norm(map) >= worst
    monkeypatch.setattr(operator_norms, "SHORT_SIDE", 1)
    assert spectral_norm(map) >= worst


def test_zero_has_constant_zero() -> None:
    assert operator_norm_constant(dense([torch.zeros(3, 2), torch.zeros(1, 3)])).value < 1e-100


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_no_secant_is_steeper(kind: str, seed: int) -> None:
    graph = random_graph(seed, kind, "mixed")
    x = points(graph, 120, seed)
    pairs = torch.cat([torch.stack([x, x.roll(1, 0)], 1), torch.stack([x, x + 1e-4 * x.roll(7, 0)], 1)])
    move, change = (pairs[:, 0] - pairs[:, 1]).flatten(1), (graph(pairs[:, 0]) - graph(pairs[:, 1])).flatten(1)
    for p, q in itertools.product(NORMS, NORMS):
        found = operator_norm_constant(graph, norm_in=p, norm_out=q)
        slopes = torch.linalg.vector_norm(change, ord=q, dim=1) / torch.linalg.vector_norm(move, ord=p, dim=1)
        assert float(slopes.max()) <= found.value
        assert found.value < math.inf


def test_a_chain_has_at_most_the_product_of_its_norms() -> None:
    graph = random_dense(3, (4, 6, 5, 2))
    weights = [n.op.weight.numpy() for n in graph.nodes if isinstance(n.op, Linear)]
    for p in NORMS:
        product = math.prod(float(np.linalg.norm(W, p)) for W in weights)
        found = operator_norm_constant(graph, norm_in=p, norm_out=p)
        assert found.value <= product * (1 + 1e-9)
        assert found.evidence is Evidence.ROUNDED
    square = dense([torch.diag(torch.tensor([3.0, 1.0])), torch.diag(torch.tensor([2.0, 1.0]))])
    assert operator_norm_constant(square).value == pytest.approx(6.0, rel=1e-12)


def test_rows_are_asked_in_the_dual_norm() -> None:
    graph = dense([random(4, 3)])
    row = random(4, seed=1)
    gradient = (row @ graph.nodes[1].op.weight).numpy()  # type: ignore[attr-defined]
    for p, dual in ((1.0, math.inf), (2.0, 2.0), (math.inf, 1.0)):
        found = operator_norm_constant(graph, norm_in=p, row=row).value
        assert found == pytest.approx(np.linalg.norm(gradient, dual), rel=1e-9)
        assert found >= np.linalg.norm(gradient, dual) * (1 - 1e-15)


def branches(join: str) -> tuple[GraphBuilder, list[torch.Tensor]]:
    """Two ReLU branches of norms 3 and 4, joined."""
    weights = [random(2, 2, seed=k) for k in (0, 1)]
    weights = [m / torch.linalg.matrix_norm(m, 2) * size for m, size in zip(weights, (3.0, 4.0), strict=True)]
    build = GraphBuilder((2,), torch.float64)
    ends = []
    for weight in weights:
        build.add(Linear(weight, None), 0)
        ends.append(build.add(Relu()))
    build.add(Add(1) if join == "add" else Concat(0), *ends)
    return build, weights


def test_branches_of_a_sum_add_up_and_those_side_by_side_add_up_in_squares() -> None:
    assert operator_norm_constant(branches("add")[0].graph()).value == pytest.approx(7.0, rel=1e-9)
    assert operator_norm_constant(branches("concat")[0].graph()).value == pytest.approx(5.0, rel=1e-9)
    one = operator_norm_constant(branches("concat")[0].graph(), norm_in=1.0, norm_out=1.0).value
    assert one == pytest.approx(sum(float(torch.linalg.matrix_norm(w, 1)) for w in branches("concat")[1]), rel=1e-9)


def test_overlapping_windows_of_a_max_pool_count() -> None:
    build = GraphBuilder((1, 4, 4), torch.float64)
    build.add(MaxPool((3, 3), (1, 1), (0, 0), (1, 1)))
    graph = build.graph()
    assert operator_norm_constant(graph).value == pytest.approx(2.0)  # the middle lies in four windows
    assert operator_norm_constant(graph, norm_in=math.inf, norm_out=math.inf).value == pytest.approx(1.0)
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    x[0, 0, 1, 1] = 1.0
    assert float((graph(x) - graph(0 * x)).norm()) == pytest.approx(2.0)


def test_softmax_is_half_as_steep_as_its_input() -> None:
    build = GraphBuilder((3,), torch.float64)
    build.add(Softmax(-1))
    graph = build.graph()
    x = points(graph, 300)
    for p in NORMS:
        found = operator_norm_constant(graph, norm_in=p, norm_out=p).value
        slopes = [float(torch.linalg.vector_norm(graph(x + d) - graph(x), ord=p, dim=1).max()) / 1e-5
                  for d in 1e-5 * torch.eye(3, dtype=torch.float64)]
        assert max(slopes) <= found * (1 + 1e-4) and found <= 0.5 * (1 + 1e-9)


def test_what_has_no_constant_is_refused_by_name() -> None:
    build = GraphBuilder((2,), torch.float64)
    build.add(Sign())
    with pytest.raises(UnsupportedOperator, match="Sign"):
        operator_norm_constant(build.graph())
    with pytest.raises(ValueError, match="norms must be"):
        operator_norm_constant(random_dense(0, (2, 2)), norm_in=3.0)


def test_evidence_says_that_a_drop_was_left_out() -> None:
    found = operator_norm_constant(random_dense(0, (2, 3, 1), Softplus(1.0, 20.0)))
    assert found.evidence is Evidence.FLOAT and "drop" in found.note


@pytest.mark.parametrize("unit", [1e-160, 1e-300, 1e160])
def test_squares_that_vanish_or_overflow_do_not_spoil_mixed_norms(unit: float) -> None:
    """Sums of rows and of columns are squared."""
    W = random(3, 4, seed=5).numpy()
    true, found = matrix_norms(of_matrix(W)), matrix_norms(of_matrix(unit * W))
    for pair, norm in true.items():
        assert found[pair] == pytest.approx(unit * norm, rel=1e-9), pair
    row = dense([torch.ones(1, 1), torch.tensor([[1.0], [1.0]]).double() * unit, torch.ones(1, 2)])
    for norm_in in NORMS:
        assert operator_norm_constant(row, norm_in=norm_in, norm_out=math.inf).value >= 2 * unit


def test_constants_that_vanish_are_not_zero() -> None:
    graph = dense([torch.full((2, 2), 1e-200, dtype=torch.float64), torch.full((1, 2), 1e-200, dtype=torch.float64)])
    assert operator_norm_constant(graph).value > 0
