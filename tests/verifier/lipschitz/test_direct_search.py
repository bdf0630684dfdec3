"""Mesh adaptive direct search: its polls, and minima that are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.verifier.attacks.problems import linear
from tests.verifier.lipschitz.nets import dense, grid, square
from verifier.deadline import Deadline
from verifier.lipschitz.direct_search import direct_search, poll_directions
from verifier.lipschitz.functions import Logit
from verifier.lipschitz.range import output_range


def unconstrained(function):  # type: ignore[no-untyped-def]
    return lambda x: (function(x), torch.zeros(x.shape[0], dtype=x.dtype))


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("n", [1, 2, 5, 30])
@pytest.mark.parametrize("halvings", [0, 1, 4, 12])
def test_polls_lie_on_the_mesh_and_span_positively(n: int, halvings: int) -> None:
    normal = torch.randn(3, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    moves = poll_directions(normal, torch.full((3,), halvings))
    assert moves.shape == (3, 2 * n, n)
    on_mesh = moves * 4.0**halvings
    assert torch.equal(on_mesh, on_mesh.round())
    assert torch.equal(moves[:, :n], -moves[:, n:])
    torch.testing.assert_close(moves.abs().amax(2), torch.full((3, 2 * n), 0.5**halvings, dtype=torch.float64))
    if halvings >= 4:
        assert bool((torch.linalg.matrix_rank(moves[:, :n]) == n).all())


def test_fine_polls_are_orthogonal() -> None:
    normal = torch.randn(1, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moves = poll_directions(normal, torch.tensor([14]))[0, :6]
    moves = moves / moves.norm(dim=1, keepdim=True)
    torch.testing.assert_close(moves @ moves.T, torch.eye(6, dtype=torch.float64), atol=1e-3, rtol=0)


def test_chosen_columns_are_those_of_the_whole_poll() -> None:
    normal = torch.randn(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = poll_directions(normal, torch.tensor([3, 4]))
    some = poll_directions(normal, torch.tensor([3, 4]), torch.tensor([[4, 0], [1, 2]]))
    assert torch.equal(some[0], whole[0, [4, 0, 9, 5]])
    assert torch.equal(some[1], whole[1, [1, 2, 6, 7]])


def test_smooth_kinked_and_bent_minima_are_found() -> None:
    low, high = vector(-2, -2), vector(3, 3)
    cases = [(unconstrained(lambda x: (x - 0.3).square().sum(1)), vector(0.3, 0.3), 1e-6),
             (unconstrained(lambda x: (x - 0.3).abs().amax(1)), vector(0.3, 0.3), 1e-4),
             (unconstrained(lambda x: 10 * (x[:, 1] - x[:, 0] ** 2) ** 2 + (1 - x[:, 0]) ** 2), vector(1, 1), 1e-3),
             (unconstrained(lambda x: x.sum(1)), low, 0.0)]
    for blackbox, best, within in cases:
        found = direct_search(blackbox, vector(-1, 2), low, high, evaluations=20_000)
        assert found.feasible
        assert found.objective <= float(blackbox(best[None])[0]) + within
        assert bool(((low <= found.x) & (found.x <= high)).all())
        assert float(blackbox(found.x[None])[0]) == found.objective


def test_a_feasible_point_is_found_first_and_kept() -> None:
    """Minimise x + y outside a disc, from inside it."""
    def blackbox(x: Tensor) -> tuple[Tensor, Tensor]:
        return x.sum(1), 1 - x.square().sum(1)

    found = direct_search(blackbox, vector(0.1, 0.2), vector(0, 0), vector(2, 2))
    assert found.feasible
    assert float(found.x.square().sum()) >= 1
    assert found.objective == pytest.approx(1.0, abs=1e-3), "at (1, 0) or (0, 1)"


def test_without_a_feasible_point_the_least_violation_is_told() -> None:
    found = direct_search(lambda x: (x.sum(1), 1 + x.square().sum(1)), vector(0.7), vector(-1), vector(1))
    assert not found.feasible
    assert found.violation == pytest.approx(1.0, abs=1e-6)


def test_answers_that_are_no_numbers_are_refused() -> None:
    found = direct_search(unconstrained(lambda x: torch.where(x[:, 0] < 0, math.nan, x[:, 0])), vector(0.9),
                          vector(-1), vector(1))
    assert found.objective == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("limit", [1, 2, 17, 100])
@pytest.mark.parametrize("batch", [1, 5, 256])
def test_evaluations_are_limited_and_counted(limit: int, batch: int) -> None:
    calls: list[int] = []

    def blackbox(x: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(x.shape[0])
        return x.square().sum(1), torch.zeros(x.shape[0])

    found = direct_search(blackbox, vector(0.5, 0.7, 0.1), vector(-1, -1, -1), vector(1, 1, 1), evaluations=limit,
                          batch=batch)
    assert found.evaluations == sum(calls) <= limit
    assert max(calls) <= batch
    assert not found.complete
    assert found.objective <= 0.75


def test_is_deterministic_anytime_and_leaves_fixed_features() -> None:
    blackbox = unconstrained(lambda x: x.square().flatten(1).sum(1))
    start, low = torch.full((2, 2), 0.5, dtype=torch.float64), torch.full((2, 2), -1.0, dtype=torch.float64)
    high = -low
    low[0, 1] = high[0, 1] = 0.5
    first, again = (direct_search(blackbox, start, low, high) for _ in range(2))
    assert torch.equal(first.x, again.x)
    assert float(first.x[0, 1]) == 0.5
    assert first.objective == pytest.approx(0.25, abs=1e-6)
    stopped = direct_search(blackbox, start, low, high, deadline=Deadline.starting_now(1e-9))
    assert stopped.evaluations == 1
    assert torch.equal(stopped.x, start)


def test_ends_of_a_range_lie_inside_what_is_proved() -> None:
    graph = dense(2)
    box = square(graph)
    proved = output_range(graph, box, Logit(index=0), error=0.05)
    found = direct_search(unconstrained(lambda x: graph(x)[:, 0]), box.centre_point[0], box.lower[0], box.upper[0])
    assert found.objective >= proved.lower_proved
    assert float(graph(grid(box))[:, 0].min()) <= found.objective + 0.5


def test_the_nearest_unsafe_point_of_a_linear_classifier() -> None:
    """Distance under a constraint on the label: never below the exact distance, and near to it."""
    known = linear(2.0, shape=(4,), count=1, dtype=torch.float64)
    label = int(known.label[0])

    def blackbox(x: Tensor) -> tuple[Tensor, Tensor]:
        y = known.model(x)
        others = y.clone()
        others[:, label] = -math.inf
        return (x - known.x).norm(dim=1), y[:, label] - others.amax(1)

    found = direct_search(blackbox, known.x[0], known.x[0] - 3, known.x[0] + 3, evaluations=20_000)
    assert found.feasible
    assert known.distance[0] * (1 - 1e-9) <= found.objective <= known.distance[0] * 1.05


def test_bad_input_is_refused() -> None:
    blackbox = unconstrained(lambda x: x.sum(1))
    with pytest.raises(ValueError, match="lower <= start"):
        direct_search(blackbox, vector(2), vector(0), vector(1))
    with pytest.raises(ValueError, match="evaluations"):
        direct_search(blackbox, vector(0), vector(0), vector(1), evaluations=0)
    with pytest.raises(ValueError, match="bounded"):
        direct_search(blackbox, vector(0), vector(0), vector(math.inf))
