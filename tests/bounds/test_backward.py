"""The backward engine itself: early decisions, enclosures that are replaced, windows at the first operator."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from bounds import backward
from bounds.backward import Backward, Block
from bounds.compute import compute_bounds
from bounds.graph import Graph
from bounds.intermediate import refine
from bounds.interval import Interval
from bounds.lines import pull_back_lines
from bounds.ops.add import Add
from bounds.ops.conv import Conv, conv_of
from bounds.ops.linear import Linear
from bounds.ops.relu import Relu
from bounds.ops.reshape import Reshape
from bounds.relaxation import Relaxation
from bounds.rows import Rows
from bounds.sets import Box, InputSet
from bounds.sweep import Sweep
from bounds.window import Owner
from tests.bounds.networks import GraphBuilder, samples


def deep_net(seed: int = 0, layers: int = 5, width: int = 12) -> tuple[Graph, InputSet]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    build = GraphBuilder((4,), torch.float64)
    for _ in range(layers):
        build.add(Linear(random(width, build.shape[0]) * (2 / build.shape[0]) ** 0.5, random(width) * 0.5))
        build.add(Relu())
    build.add(Linear(random(40, width), random(40)))
    centre = random(2, 4)
    return build.graph(), Box(centre - 0.3, centre + 0.3)


def test_rows_decided_on_their_way_keep_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows leave at several nodes; each result stands where its row stood, and no row is forgotten."""
    monkeypatch.setattr(backward, "FEWEST_TO_DECIDE", 1)
    monkeypatch.setattr(backward, "DECIDED_SHARE", 0.01)
    drops: list[int] = []
    take = Sweep.take

    def counted(sweep: Sweep, chosen: torch.Tensor) -> None:
        drops.append(sweep.count - int(chosen.shape[0]))
        take(sweep, chosen)

    monkeypatch.setattr(Sweep, "take", counted)
    most = 0
    for seed in range(6):
        graph, sets = deep_net(seed)
        engine = Backward(graph, sets)
        refine(engine, row_bound=engine.lower)
        index, sign = torch.arange(40).repeat(4), torch.tensor([1.0, -1.0]).repeat_interleave(40).repeat(2).double()
        rows = Rows.unit(index, sign, Owner(2, torch.arange(2).repeat_interleave(80)))
        block = Block(graph.output, rows)
        whole = engine.value(Block(graph.output, rows))
        least = samples(sets, 200)
        y = graph(least.flatten(0, 1)).view(2, -1, 40)[rows.owner.index].gather(
            2, index.view(-1, 1, 1).expand(-1, least.shape[1], 1)).squeeze(2) * sign[:, None]
        for threshold in (0.0, whole.median().item()):
            drops.clear()
            early = engine.decide(block, threshold)
            most = max(most, len(drops))
            torch.testing.assert_close(early[early < threshold], whole[early < threshold])
            assert (early <= y.amin(1) + 1e-9).all()
    assert most >= 2, "no block lost rows twice: the test shows nothing"


def test_a_new_enclosure_replaces_what_followed_from_the_old_one() -> None:
    graph, sets = deep_net()
    rows = Rows.full(torch.eye(40, dtype=torch.float64).repeat(2, 1), Owner(2, torch.arange(2).repeat_interleave(40)))
    wide, fresh = Backward(graph, sets), Backward(graph, sets)
    proved = refine(fresh, row_bound=fresh.lower)
    for node in graph.relaxed_inputs:
        wide.enclose(node, Interval(proved[node].lower - 5, proved[node].upper - 4))  # not an enclosure: all else moves
    wide.lower(graph.output, rows)
    for node in graph.relaxed_inputs:
        wide.enclose(node, proved[node])
    torch.testing.assert_close(wide.lower(graph.output, rows), fresh.lower(graph.output, rows))


def test_rows_that_stop_are_bounded_by_the_enclosures_of_now() -> None:
    graph, sets = deep_net()
    node = graph.relaxed_inputs[-1]
    engine = Backward(graph, sets)
    proved = refine(engine, row_bound=engine.lower)[node]
    count = proved.lower[0].numel()
    rows = Rows.unit(torch.arange(count).repeat(2), torch.ones(2 * count, dtype=torch.float64),
                     Owner(2, torch.arange(2).repeat_interleave(count)))
    for moved in (3.0, 0.0, 1.0):
        engine.enclose(node, Interval(proved.lower - moved, proved.upper + moved))
        torch.testing.assert_close(engine.at_once(Block(node, rows)), (proved.lower - moved).flatten())


@pytest.mark.parametrize("intercepts", [False, True])
def test_gradients_through_lines_equal_finite_differences(intercepts: bool) -> None:
    """The derivatives are written by hand; coefficients are kept away from zero, where the line changes."""
    random = _random()
    A = random(4, 6)
    A = A.sign() * (A.abs() + 0.1)
    lines = [random(4, 6), random(4, 6), random(1, 6), random(1, 6)]
    for t in (A, *lines):
        t.requires_grad_(True)

    def pulled(A: torch.Tensor, low: torch.Tensor, high: torch.Tensor, below: torch.Tensor, above: torch.Tensor
               ) -> tuple[torch.Tensor, torch.Tensor]:
        return pull_back_lines(A, Relaxation(low, below if intercepts else None, high, above if intercepts else None))
    inputs = (A, *lines) if intercepts else (A, *lines[:2], *(t.detach() for t in lines[2:]))
    assert torch.autograd.gradcheck(pulled, inputs)


@pytest.mark.parametrize("settings", [{}, {"stride": (2, 2)}, {"groups": 2}], ids=str)
def test_windows_that_leave_the_first_map_count_for_nothing(monkeypatch: pytest.MonkeyPatch,
                                                            settings: dict[str, object]) -> None:
    """Two padded convolutions without an activation between them: the second reads cells that the first has not."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    build = GraphBuilder((2, 9, 9), torch.float64)
    build.add(conv_of(random(4, 2 // int(settings.get("groups", 1)), 3, 3), random(4),  # type: ignore[call-overload]
                      padding=(1, 1), **settings))
    build.add(conv_of(random(3, 4, 3, 3), random(3), padding=(2, 2)))
    build.add(Relu())
    build.add(Reshape((torch.Size(build.shape).numel(),)))
    build.add(Linear(random(2, build.shape[0])))
    graph = build.graph()
    centre = random(2, 2, 9, 9)
    sets = Box(centre - 0.1, centre + 0.1)
    fast = compute_bounds(graph, sets, method="crown")
    monkeypatch.setattr(backward.Rows, "covers", lambda *_: True)
    monkeypatch.setattr(Conv, "pull_back_neuron", lambda *_: None)
    slow = compute_bounds(graph, sets, method="crown")
    torch.testing.assert_close(fast.lower, slow.lower)
    torch.testing.assert_close(fast.upper, slow.upper)


def _random(seed: int = 0) -> Callable[..., torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_rows_that_two_branches_share_are_not_overwritten() -> None:
    """u + v + w(v): the rows of u and v are one tensor, and what comes back through w is added to those of v while
    those of u still wait. Without gradients rows may be overwritten, with gradients they never are."""
    random = _random()
    build = GraphBuilder((2, 6, 6), torch.float64)
    build.add(conv_of(random(3, 2, 3, 3), random(3), padding=(1, 1)))
    v = build.add(Relu())
    u = build.add(conv_of(random(3, 3, 3, 3), random(3), padding=(1, 1)), v)
    w = build.add(conv_of(random(3, 3, 1, 1), None), v)
    build.add(Add(1), build.add(Add(1), u, v), w)
    build.add(conv_of(random(2, 3, 2, 2), random(2)))
    build.add(Relu())
    build.add(Reshape((50,)))
    build.add(Linear(random(2, 50)))
    graph, centre = build.graph(), random(2, 2, 6, 6)
    sets = Box(centre - 0.05, centre + 0.05)
    slow = compute_bounds(graph, sets, method="crown")
    with torch.no_grad():
        fast = compute_bounds(graph, sets, method="crown")
    torch.testing.assert_close(fast.lower, slow.lower)
    torch.testing.assert_close(fast.upper, slow.upper)


def test_an_input_that_is_read_twice() -> None:
    """Rows then wait at the input and at its first reader at once."""
    random = _random()
    build = GraphBuilder((3,), torch.float64)
    first = build.add(Linear(random(3, 3), random(3)))
    build.add(Relu())
    inner = build.add(Linear(random(3, 3)))
    build.add(Add(1), inner, 0)
    build.add(Relu())
    build.add(Add(-1), len(build.nodes) - 1, first)
    build.add(Relu())
    build.add(Linear(random(2, 3)))
    graph, centre = build.graph(), random(2, 3)
    sets = Box(centre - 0.5, centre + 0.5)
    answer = compute_bounds(graph, sets, method="crown")
    x = samples(sets, 300)
    for i, value in enumerate(graph.values(x.flatten(0, 1))):
        value = value.view(2, -1, *graph.nodes[i].shape)
        assert (value >= answer.intervals[i].lower[:, None] - 1e-9).all()
        assert (value <= answer.intervals[i].upper[:, None] + 1e-9).all()
