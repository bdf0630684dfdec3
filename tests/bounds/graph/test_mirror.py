"""Repeated and mirrored neurons are kept once: the same function, exactly, with fewer neurons and tighter bounds."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from bounds import crown, ibp
from bounds.bounds import LinearRows
from bounds.graph import Graph, mirror
from bounds.graph.mirror import Exact, alike, last_bit, nothing_repeats
from bounds.ops.base import Elementwise
from bounds.sets import InputSet

MAXIMUM = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])  # of two numbers: four ReLUs
HALVES = torch.tensor([[0.5, -0.5, 0.5, 0.5]])


def dense(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight.data = weight.clone()
    if bias is not None:
        layer.bias.data = bias.clone()
    return layer


def nonlinear(graph: Graph) -> int:
    return sum(torch.Size(n.shape).numel() for n in graph.nodes if isinstance(n.op, Elementwise))


def in_float64(graph: Graph, x: Tensor) -> Tensor:
    return graph.to(dtype=torch.float64)(x.double())


def integers(*shape: int, size: int = 3) -> Tensor:
    return torch.randint(-size, size + 1, shape).float()


# ---------------------------------------------------------------------- exact matrices


@pytest.mark.parametrize(("number", "bit"), [
    (1.0, 1.0), (-6.0, 2.0), (0.75, 0.25), (3 * 2.0**-40, 2.0**-40), (1 + 2.0**-52, 2.0**-52), (2.0**200, 2.0**200),
    (5e-324, 5e-324), (3 * 5e-324, 5e-324), (0.0, float("inf"))])
def test_last_bit(number: float, bit: float) -> None:
    assert float(last_bit(torch.tensor(number, dtype=torch.float64))) == bit


def as_fractions(t: Tensor) -> list[list[Fraction]]:
    return [[Fraction(float(v)) for v in row] for row in t.double()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_and_sums_are_exact_or_refused(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    made = {True: 0, False: 0}
    for spread in (0, 2, 12, 25, 40):
        for _ in range(10):
            a, b, c = (torch.randn(shape, dtype=dtype).mul(8).round() * (torch.rand(shape) < 0.4)
                       * 2.0 ** torch.randint(-spread, spread + 1, shape) for shape in ((4, 5), (5, 3), (4, 3)))
            product = Exact.of(a).times(Exact.of(b))
            result = None if product is None else product.plus(Exact.of(c))
            made[result is not None] += 1
            if result is not None:
                x, y, z = as_fractions(a), as_fractions(b), as_fractions(c)
                assert as_fractions(result.dense()) == [
                    [sum((x[i][k] * y[k][j] for k in range(5)), z[i][j]) for j in range(3)] for i in range(4)]
                assert bool((result.value != 0).all())
                order = result.row * 3 + result.column
                assert bool((order[1:] > order[:-1]).all())
    assert made[True] and made[False]


def test_selections_equal_those_of_dense_matrices() -> None:
    torch.manual_seed(0)
    w = integers(6, 5)
    w[2] = 0
    w[:, 3] = 0
    rows, columns = torch.tensor([0, 2, 5]), torch.tensor([1, 3])
    e = Exact.of(w)
    assert torch.equal(e.rows(rows).dense(), w[rows].double())
    assert torch.equal(e.columns(columns).dense(), w[:, columns].double())
    assert torch.equal(e.beside(Exact.of(w[:, :2])).dense(), torch.cat([w, w[:, :2]], 1).double())
    place, factor = torch.tensor([1, 0, 1, 0, 1]), torch.tensor([1.0, -1, 0, 1, 1], dtype=torch.float64)
    moved = e.columns_to(place, factor, 2)
    assert moved is not None
    assert torch.equal(moved.dense(), torch.stack([w[:, 3] - w[:, 1], w[:, 0] + w[:, 4]], 1).double())


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (8, 8), (7, 31), (2, 0)])
def test_entries_of_any_shape_are_found(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    for density in (0.0, 0.1, 1.0):
        w = torch.randn(shape) * (torch.rand(shape) < density)
        e = Exact.of(w)
        assert torch.equal(torch.stack([e.row, e.column], 1), w.nonzero())
        assert torch.equal(e.dense(), w.double())
        assert torch.equal(Exact.of(w.t()).dense(), w.t().double())


@pytest.mark.parametrize("kind", ["small integers", "normal"])
def test_alike_finds_what_a_loop_over_pairs_finds(kind: str) -> None:
    torch.manual_seed(0)
    for _ in range(20):
        if kind == "small integers":
            w = integers(30, 3, size=1)
        else:
            w = torch.randn(10, 3)[torch.randint(10, (30,))] * (torch.randint(3, (30, 1)) - 1)
        first, sign = alike(Exact.of(w))
        for i in range(30):
            expected = next(j for j in range(30) if bool((w[j] == w[i]).all()) or bool((w[j] == -w[i]).all()))
            assert int(first[i]) == expected
            assert torch.equal(sign[i] * w[expected].double(), w[i].double())
            assert (float(sign[i]) == 0) == (not bool(w[i].any()))
        assert not nothing_repeats(w)
    assert nothing_repeats(torch.randn(30, 3))


def test_rows_whose_keys_agree_by_accident_stay_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "_keys", lambda matrix, sign: torch.zeros(len(sign), dtype=torch.int64))
    w = torch.tensor([[1.0, 2.0], [2.0, 1.0], [-1.0, -2.0], [-1.0, 2.0], [0.0, 0.0], [0.0, 2.0], [1.0, 2.0]])
    first, sign = alike(Exact.of(w))
    assert first.tolist() == [0, 1, 0, 3, 4, 5, 0]
    assert sign.tolist() == [1, 1, -1, 1, 0, 1, 1]
    assert torch.equal(sign.unsqueeze(1) * w[first].double(), w.double())


# ---------------------------------------------------------------------- networks


def test_a_maximum_needs_one_relu() -> None:
    graph = Graph.from_torch(nn.Sequential(dense(MAXIMUM), nn.ReLU(), dense(HALVES)), (2,))
    simple = graph.simplify()
    assert nonlinear(graph) == 4 and nonlinear(simple) == 1
    assert simple.fold_errors == {}
    x = torch.tensor([[1.0, 3.0], [3.0, 1.0], [-2.0, -5.0], [0.0, 0.0], [4.0, 4.0]])
    assert torch.equal(simple(x), x.amax(1, keepdim=True))


def test_a_relu_less_its_mirror_image_is_linear() -> None:
    layers = nn.Sequential(dense(torch.tensor([[2.0], [-2.0]]), torch.tensor([1.0, -1.0])), nn.ReLU(),
                           dense(torch.tensor([[3.0, -3.0]]), torch.tensor([0.5])))
    simple = Graph.from_torch(layers, (1,)).simplify()
    assert [n.op.kind for n in simple.nodes] == ["Input", "Linear"]
    assert simple(torch.tensor([[-2.0], [5.0]])).tolist() == [[-8.5], [33.5]]


def planted(inputs: int, width: int, depth: int, *, biases: bool) -> nn.Sequential:
    """Dense layers of small integers, many of whose neurons are copies, mirror images or zero."""
    layers: list[nn.Module] = []
    size = inputs
    for _ in range(depth):
        chosen = torch.randint(width, (2 * width,))
        sign = torch.randint(3, (2 * width,)) - 1.0
        weight = integers(width, size)[chosen] * sign.unsqueeze(1)
        bias = integers(width)[chosen] * sign if biases else None
        layers += [dense(weight, bias), nn.ReLU()]
        size = 2 * width
    return nn.Sequential(*layers, dense(integers(2, size), integers(2)))


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_planted_neurons_go_and_values_stay_exactly(seed: int, biases: bool) -> None:
    torch.manual_seed(seed)
    graph = Graph.from_torch(planted(3, 4, 3, biases=biases), (3,))
    simple = graph.simplify()
    assert nonlinear(simple) < nonlinear(graph)
    x = integers(50, 3, size=20)  # integers: float64 has no rounding here
    assert torch.equal(in_float64(simple, x), in_float64(graph, x))
    again = simple.simplify()
    assert [n.op.kind for n in again.nodes] == [n.op.kind for n in simple.nodes]
    assert nonlinear(again) == nonlinear(simple)


@pytest.mark.parametrize("seed", range(5))
def test_a_tree_of_maxima_written_as_one_layer_a_level(seed: int) -> None:
    """Dense layers that stand between two ReLUs both end one comparison and begin the next."""
    torch.manual_seed(seed)
    tree = list(maxima(3))
    layers: list[nn.Module] = [dense(tree[0].weight.data, 2 * tree[0].weight.data @ integers(8))]
    for i in range(1, 9, 3):
        layers += [nn.ReLU(), dense(tree[i + 2].weight.data @ tree[i + 1].weight.data) if i < 7 else tree[i + 1]]
    graph = Graph.from_torch(nn.Sequential(*layers), (8,))
    simple = graph.simplify()
    assert nonlinear(graph) == 28 and nonlinear(simple) <= 16
    x = integers(50, 8, size=20)
    assert torch.equal(in_float64(simple, x), in_float64(graph, x))


def test_an_absolute_value_stays_two_relus() -> None:
    layers = nn.Sequential(dense(torch.tensor([[1.0], [-1.0]])), nn.ReLU(), dense(torch.ones(1, 2)))
    simple = Graph.from_torch(layers, (1,)).simplify()
    assert nonlinear(simple) == 2
    sets = InputSet(torch.tensor([[-1.0]]), torch.tensor([[1.0]]))
    bounds = ibp.bound(simple, sets, LinearRows(torch.ones(1, 1)))
    assert -1e-5 < float(bounds.lower) <= 0  # not the -2 of one ReLU and a negation; rounding included


class Copies(nn.Module):
    """A hidden layer with equal neurons that is read in several ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.how = how
        rows = integers(3, 2)[[0, 1, 1, 2, 0, 2]]
        self.first = dense(torch.cat([rows, -rows[:2]]), torch.arange(8.0) * 0)
        self.second = dense(integers(4, 8))
        self.third = dense(integers(4, 8))
        self.slopes = nn.PReLU(8)
        self.slopes.weight.data = torch.arange(8) / 8

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        if self.how == "two dense readers":
            return self.second(torch.relu(z)) + self.third(torch.relu(z))
        if self.how == "read before and after":
            return self.second(torch.relu(z)) + self.third(z)
        if self.how == "a sum":
            return self.second(torch.relu(z) + z)
        if self.how == "an activation that differs between neurons":
            return self.second(self.slopes(z))
        if self.how == "two activations":
            return self.second(torch.relu(torch.tanh(z)))
        assert self.how == "the output"
        return torch.relu(z)


@pytest.mark.parametrize("how", ["two dense readers", "read before and after", "a sum", "two activations",
                                 "an activation that differs between neurons", "the output"])
def test_values_stay_whoever_reads_equal_neurons(how: str) -> None:
    graph = Graph.from_torch(Copies(how), (2,))
    simple = graph.simplify()
    x = torch.randn(20, 2)
    torch.testing.assert_close(in_float64(simple, x), in_float64(graph, x), atol=1e-12, rtol=1e-12)
    assert nonlinear(simple) < nonlinear(graph) or how in ("a sum", "the output") or "differs" in how


def test_sums_that_round_are_not_formed() -> None:
    """1 + 2^-60 has no place in float64: the equal neurons stay two."""
    first = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    for tiny, left in ((2.0**-20, 1), (2.0**-60, 2)):
        graph = Graph.from_torch(nn.Sequential(dense(first), nn.ReLU(), dense(torch.tensor([[1.0, tiny]]))), (2,))
        simple = graph.simplify()
        x = torch.randn(9, 2)
        torch.testing.assert_close(in_float64(simple, x), in_float64(graph, x), atol=1e-14, rtol=1e-14)
        assert nonlinear(simple) == left


def test_a_path_that_would_round_is_two_layers_joined_with_their_error() -> None:
    torch.manual_seed(0)
    half = torch.randn(6, 3)
    bias = torch.randn(6)
    layers = nn.Sequential(dense(torch.cat([half, -half]), torch.cat([bias, -bias])), nn.ReLU(),
                           dense(torch.randn(2, 6) @ torch.cat([torch.eye(6), -0.1 * torch.eye(6)], 1), torch.randn(2)))
    graph = Graph.from_torch(layers, (3,))
    simple = graph.simplify()
    assert nonlinear(simple) == 6
    assert simple.fold_errors
    x = torch.randn(30, 3)
    torch.testing.assert_close(in_float64(simple, x), in_float64(graph, x), atol=1e-5, rtol=1e-5)
    wide = graph.to(dtype=torch.float64)
    torch.testing.assert_close(wide.simplify()(x.double()), wide(x.double()), atol=1e-13, rtol=1e-13)


def test_layers_without_equal_neurons_keep_their_tensors() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 3))
    graph = Graph.from_torch(module, (4,))
    simple = graph.simplify()
    assert [n.op.kind for n in simple.nodes] == ["Input", "Linear", "Relu", "Linear"]
    for old, new in zip(graph.parameters(), simple.parameters(), strict=True):
        assert new.dtype == torch.float32 and torch.equal(old, new)


# ---------------------------------------------------------------------- bounds


def maxima(levels: int) -> nn.Sequential:
    """The maximum of 2^levels numbers as a tree of ReLU comparisons."""
    layers: list[nn.Module] = []
    for level in reversed(range(levels)):
        eye = torch.eye(2**level)
        layers += [dense(torch.kron(eye, MAXIMUM)), nn.ReLU(), dense(torch.kron(eye, HALVES))]
    return nn.Sequential(*layers)


def test_bounds_of_a_tree_of_maxima() -> None:
    """Where no comparison is decided the bounds still hold, and they are tighter than those of single neurons."""
    torch.manual_seed(0)
    graph = Graph.from_torch(maxima(3), (8,))
    simple = graph.simplify()
    assert nonlinear(graph) == 28 and nonlinear(simple) == 7
    centre = torch.randn(5, 8)
    sets = InputSet(centre - 0.8, centre + 0.8)
    rows = LinearRows(torch.tensor([[1.0], [-1.0]]).repeat(5, 1), torch.arange(5).repeat_interleave(2))
    loose, tight = (crown.bound(g, sets, rows).lower.detach() for g in (graph, simple))
    x = sets.sample(2000, torch.Generator().manual_seed(0))
    y = x.amax(2)
    lowest = torch.stack([y.amin(1), -y.amax(1)], 1).flatten()
    assert bool((tight <= lowest + 1e-5).all())
    assert bool((tight >= loose - 1e-5).all()) and float((tight - loose).mean()) > 1.0
