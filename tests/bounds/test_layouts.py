"""The layouts of rows (unit, columns, windows, phases) are shortcuts: bounds equal those of dense rows."""

from __future__ import annotations

import pytest
import torch

from bounds import backward, intermediate, rows
from bounds.alpha_crown import AlphaCrown
from bounds.backward import Backward
from bounds.bounds import Bounds
from bounds.compute import compute_bounds
from bounds.graph import Graph
from bounds.ops.add import Add
from bounds.ops.avg_pool import AvgPool
from bounds.ops.base import Operator
from bounds.ops.conv import Conv, conv_of
from bounds.ops.expand import Expand
from bounds.ops.linear import Linear
from bounds.ops.max_pool import MaxPool
from bounds.ops.reduce import Reduce
from bounds.ops.relu import Relu
from bounds.ops.reshape import Reshape
from bounds.ops.scale import Scale
from bounds.ops.sigmoid import Sigmoid
from bounds.sets import Box, InputSet
from tests.bounds.networks import GraphBuilder

CASES = {
    "plain": [((4, 3, 3), {"padding": (1, 1)}), ((4, 3, 3), {"padding": (1, 1)})],
    "strided": [((4, 4, 4), {"stride": (2, 2), "padding": (1, 1)}), ((6, 3, 3), {"stride": (2, 2), "padding": (1, 1)})],
    "uneven": [((3, 3, 2), {"stride": (2, 1), "padding": (1, 0)}), ((4, 2, 3), {"padding": (0, 2)})],
    "dilated": [((4, 3, 3), {"dilation": (2, 1), "padding": (2, 1)}), ((4, 3, 3), {"dilation": (1, 2)})],
    "grouped": [((4, 3, 3), {"padding": (1, 1)}), ((4, 3, 3), {"groups": 2, "padding": (1, 1)})],
    "remainder": [((3, 3, 3), {"stride": (3, 3)}), ((3, 2, 2), {"stride": (2, 2), "padding": (1, 1)})],
}


def conv_net(case: str, *, residual: bool, activation: type = Relu, seed: int = 0,
             pool: Operator | None = None) -> Graph:
    """Convolutions on 10 x 9 maps, an optional residual block with a strided shortcut, two dense layers."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def conv(shape: tuple[int, ...], **settings: object) -> int:
        inputs = build.shape[0] // settings.get("groups", 1)  # type: ignore[operator]
        weight = random(shape[0], inputs, *shape[1:])
        weight = weight * (3 / weight[0].numel()) ** 0.5
        return build.add(conv_of(weight, random(shape[0]) * 0.2, **settings))

    build = GraphBuilder((2, 10, 9), torch.float64)
    for shape, settings in CASES[case]:
        conv(shape, **settings)
        build.add(activation())
    if pool is not None:
        build.add(pool)
    if residual:
        start = len(build.nodes) - 1
        channels = build.shape[0]
        conv((5, 3, 3), stride=(2, 2), padding=(1, 1))
        build.add(activation())
        inner = conv((5, 3, 3), padding=(1, 1))
        weight = random(5, channels, 1, 1)
        shortcut = build.add(conv_of(weight, None, stride=(2, 2)), start)
        scaled = build.add(Scale(random(5, 1, 1), random(5, 1, 1)), shortcut)
        build.add(Add(-1), inner, scaled)
        build.add(activation())
    build.add(Reshape((torch.Size(build.shape).numel(),)))
    for width in (12, 3):
        build.add(Linear(random(width, build.shape[0]) / build.shape[0] ** 0.5, random(width) * 0.2))
        if width != 3:
            build.add(activation())
    return build.graph()


def boxes(batch: int = 2) -> InputSet:
    generator = torch.Generator().manual_seed(1)
    centre = torch.randn(batch, 2, 10, 9, generator=generator, dtype=torch.float64)
    radius = 0.06 * torch.rand(batch, 2, 10, 9, generator=generator, dtype=torch.float64)
    return Box(centre - radius, centre + radius)


def dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch every shortcut off."""
    monkeypatch.setattr(rows, "DENSE_SHARE", 0.0)
    monkeypatch.setattr(rows, "SMALL_DENSE_SHARE", 0.0)
    monkeypatch.setattr(backward, "COLUMNS_SHARE", 0.0)
    monkeypatch.setattr(backward, "DECIDED_SHARE", 2.0)
    monkeypatch.setattr(intermediate, "TWO_PHASE_COEFFICIENTS", 10**12)
    monkeypatch.setattr(Backward, "first", 0)


def assert_equal_bounds(fast: Bounds, slow: Bounds, *, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(fast.lower, slow.lower, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(fast.upper, slow.upper, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", ["crown", "fastlin"])
def test_layouts_do_not_change_the_bounds(monkeypatch: pytest.MonkeyPatch, case: str, residual: bool,
                                          method: str) -> None:
    graph = conv_net(case, residual=residual)
    fast = compute_bounds(graph, boxes(), method=method)
    dense(monkeypatch)
    assert_equal_bounds(fast, compute_bounds(graph, boxes(), method=method))


@pytest.mark.parametrize("pool", [
    AvgPool((2, 2), (2, 2), (0, 0), (0, 0)), AvgPool((3, 2), (2, 1), (0, 0), (0, 0)),
    AvgPool((2, 2), (2, 2), (1, 1), (1, 1), count_padding=True), AvgPool((3, 3), (2, 2), (1, 1), (1, 1)),
    AvgPool((2, 2), (2, 2), (0, 0), (0, 0), ceil=True),
    MaxPool((2, 2), (2, 2), (0, 0), (1, 1), False)], ids=str)
def test_layouts_do_not_change_the_bounds_of_pooled_networks(monkeypatch: pytest.MonkeyPatch, pool: Operator) -> None:
    graph = conv_net("plain", residual=True, pool=pool)
    fast = compute_bounds(graph, boxes(), method="crown")
    dense(monkeypatch)
    assert_equal_bounds(fast, compute_bounds(graph, boxes(), method="crown"))


@pytest.mark.parametrize("case", CASES)
def test_two_phases_and_early_decisions_do_not_change_the_bounds(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    graph = conv_net(case, residual=True)
    slow = compute_bounds(graph, boxes(), method="crown")
    monkeypatch.setattr(intermediate, "TWO_PHASE_COEFFICIENTS", 0)
    monkeypatch.setattr(backward, "DECIDED_SHARE", 0.0)
    monkeypatch.setattr(backward, "FEWEST_TO_DECIDE", 1)
    monkeypatch.setattr(backward, "ONE_DOMAIN_COEFFICIENTS", 0)
    # Interval bounds of decided neurons may differ and reach later layers, so tightness is compared loosely.
    fast = compute_bounds(graph, boxes(), method="crown")
    assert_equal_bounds(fast, slow, tolerance=0.1)
    nodes = graph.values(boxes().sample(200).flatten(0, 1))
    for i, x in fast.intervals.items():
        value = nodes[i].reshape(2, 200, *nodes[i].shape[1:])
        assert (value >= x.lower[:, None] - 1e-9).all()
        assert (value <= x.upper[:, None] + 1e-9).all()


@pytest.mark.parametrize("activation", [Relu, Sigmoid])
@pytest.mark.parametrize("case", CASES)
def test_optimised_slopes_stay_sound_on_windows(case: str, activation: type) -> None:
    """Windows reach over the edge of the map, where parameters are not zero."""
    graph = conv_net(case, residual=True, activation=activation)
    answer = AlphaCrown(iterations=6).bound(graph, boxes(), compute_rows(graph))
    x = boxes().sample(300, torch.Generator().manual_seed(3))
    nodes = graph.values(x.flatten(0, 1))
    for i, interval in answer.intervals.items():
        value = nodes[i].reshape(2, 300, *nodes[i].shape[1:])
        assert (value >= interval.lower[:, None] - 1e-9).all(), f"node {i}"
        assert (value <= interval.upper[:, None] + 1e-9).all(), f"node {i}"
    y = nodes[graph.output].reshape(2, 300, -1)
    assert (y.min(1).values.flatten() >= answer.lower - 1e-9).all()


def compute_rows(graph: Graph):  # type: ignore[no-untyped-def]
    from bounds.bounds import LinearRows
    outputs = torch.Size(graph.output_shape).numel()
    return LinearRows(torch.eye(outputs, dtype=torch.float64).repeat(2, 1), torch.arange(2).repeat_interleave(outputs))


def test_small_blocks_do_not_change_the_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = conv_net("strided", residual=True)
    whole = compute_bounds(graph, boxes(), method="crown")
    monkeypatch.setattr(Backward.block_size, "__defaults__", (1,))
    monkeypatch.setattr(Backward.blocks, "__defaults__", (1,))
    assert_equal_bounds(compute_bounds(graph, boxes(), method="crown"), whole)


def test_float32_agrees_with_float64() -> None:
    graph = conv_net("strided", residual=True)
    double = compute_bounds(graph, boxes(), method="crown")
    single = compute_bounds(graph.to(dtype=torch.float32), boxes().to(dtype=torch.float32), method="crown")
    torch.testing.assert_close(single.lower.double(), double.lower, rtol=1e-3, atol=1e-3)


def test_windows_that_a_reshape_moved_apart_are_not_added_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """One neuron starts at different places on the maps behind a sum and behind a reshape, with equal strides."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    build = GraphBuilder((1, 8, 8), torch.float64)
    build.add(conv_of(random(2, 1, 3, 3), random(2), padding=(1, 1)))
    start = build.add(Relu())
    near = build.add(conv_of(random(4, 2, 3, 3), random(4), padding=(1, 1)), start)
    build.add(conv_of(random(16, 2, 5, 5), random(16)), start)
    folded = build.add(Reshape((4, 8, 8)))
    build.add(Add(1), near, folded)
    build.add(Relu())
    build.add(Reshape((256,)))
    build.add(Linear(random(3, 256)))
    graph = build.graph()
    centre = random(2, 1, 8, 8)
    sets = Box(centre - 0.1, centre + 0.1)
    fast = compute_bounds(graph, sets, method="crown")
    dense(monkeypatch)
    monkeypatch.setattr(Conv, "pull_back_neuron", lambda *_: None)
    assert_equal_bounds(fast, compute_bounds(graph, sets, method="crown"))


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("rank", [1, 2])
def test_rows_that_share_memory_are_never_added_in_place(rank: int, mean: bool) -> None:
    """x - mean(x): what is pulled back through the mean is one number seen from many places."""
    generator = torch.Generator().manual_seed(0)
    build = GraphBuilder((4, 3)[:rank], torch.float64)
    width = build.shape[-1]
    build.add(Linear(torch.randn(width, width, generator=generator, dtype=torch.float64)))
    start = build.add(Relu())
    build.add(Reduce((0,), True, mean), start)
    spread = build.add(Expand(build.nodes[start].shape))
    build.add(Add(-1), start, spread)
    build.add(Relu())
    graph = build.graph()
    centre = torch.randn(2, *graph.input_shape, generator=generator, dtype=torch.float64)
    sets = Box(centre - 0.2, centre + 0.2)
    with_gradients = compute_bounds(graph, sets, method="crown")
    with torch.no_grad():
        assert_equal_bounds(compute_bounds(graph, sets, method="crown"), with_gradients)


def test_frozen_weights_of_a_module_may_change_in_place() -> None:
    """Nothing computed from a kernel outlives a change of the kernel."""
    conv = torch.nn.Conv2d(1, 2, 2, stride=2)
    module = torch.nn.Sequential(conv, torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8, 2)).double()
    module.requires_grad_(False)
    graph = Graph.from_torch(module, (1, 4, 4))
    sets = Box(torch.zeros(1, 1, 4, 4, dtype=torch.float64), torch.ones(1, 1, 4, 4, dtype=torch.float64))
    compute_bounds(graph, sets, method="crown")
    conv.weight.mul_(10)
    assert_equal_bounds(compute_bounds(graph, sets, method="crown"),
                        compute_bounds(Graph.from_torch(module, (1, 4, 4)), sets, method="crown"))
