"""Radii certified by Lipschitz constants against exact distances, dense grids, and inputs that are ties."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from bounds.graph import Graph
from bounds.jacobian.compute import METHODS
from bounds.ops.linear import Linear
from bounds.ops.relu import Relu
from tests.bounds.networks import GraphBuilder
from verifier.deadline import Deadline
from verifier.lipschitz import radius as module
from verifier.lipschitz.local import LocalConstants
from verifier.lipschitz.radius import lipschitz_radius
from verifier.radius.balls import Balls
from verifier.verdict import Evidence

NORMS = (1.0, 2.0, math.inf)
every_method = pytest.mark.parametrize("method", METHODS)
every_norm = pytest.mark.parametrize("norm", NORMS)


def double(values: list[list[float]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def linear_net() -> Graph:
    """Scores (0, 3 x + 4 y - 5)."""
    build = GraphBuilder((2,), torch.float64)
    build.add(Linear(double([[0.0, 0.0], [3.0, 4.0]]), double([[0.0, -5.0]])[0]))
    return build.graph()


def random_net(seed: int) -> Graph:
    generator = torch.Generator().manual_seed(seed)
    build = GraphBuilder((2,), torch.float64)
    for rows, columns in ((6, 2), (5, 6), (3, 5)):
        build.add(Linear(torch.randn(rows, columns, generator=generator, dtype=torch.float64),
                         torch.randn(rows, generator=generator, dtype=torch.float64) * 0.3))
        if rows != 3:
            build.add(Relu())
    return build.graph()


@every_method
@every_norm
def test_a_linear_network_gets_its_exact_distance_less_a_little(method: str, norm: float) -> None:
    truth = 5.0 / {math.inf: 7.0, 2.0: 5.0, 1.0: 4.0}[norm]
    balls = Balls(double([[0.0, 0.0]]), torch.tensor([0]), norm)
    found = lipschitz_radius(linear_net(), balls, method=method)
    assert truth * (1 - 2e-3) <= float(found.radius) < truth
    assert found.evidence is Evidence.ROUNDED


@every_norm
def test_the_radius_stays_below_a_tie_however_long_the_search(norm: float) -> None:
    steepness = {math.inf: 7, 2.0: 5, 1.0: 4}[norm]
    balls = Balls(double([[0.0, 0.0]]), torch.tensor([0]), norm)
    found = float(lipschitz_radius(linear_net(), balls, method="fastlip", tolerance=1e-16, steps=100).radius)
    assert Fraction(5, steepness) * (1 - Fraction(1, 10**12)) < Fraction(found) < Fraction(5, steepness)


def test_quotients_stay_below_the_exact_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """A margin that is lost at the constant's slope within the quotient would be a tie, or worse."""
    balls = Balls(double([[0.0, 0.0]]), torch.tensor([0]))
    search = module._Search(linear_net(), balls, balls.rows(2), "fastlip")
    random = torch.Generator().manual_seed(0)
    for _ in range(200):
        margin, constant = (torch.rand(1, generator=random, dtype=torch.float64) + 0.1 for _ in range(2))
        search.margin = margin
        found = LocalConstants(constant, Evidence.ROUNDED, None)  # type: ignore[arg-type]
        monkeypatch.setattr(module, "local_lipschitz", lambda *_, found=found, **__: found)
        quotient = float(search._quotient(double([[1.0]])[0], torch.tensor([0])))
        assert Fraction(quotient) * Fraction(float(constant)) < Fraction(float(margin))


@every_method
@every_norm
@pytest.mark.parametrize("seed", range(3))
def test_no_grid_point_within_the_radius_is_unsafe(method: str, norm: float, seed: int) -> None:
    graph = random_net(seed)
    x = torch.rand(4, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    label = graph(x).argmax(1)
    balls = Balls(x, label, norm, clip=(0.0, 1.0))
    radius = lipschitz_radius(graph, balls, method=method).radius
    assert bool((radius > 0).all())
    axis = torch.linspace(0, 1, 301, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    scores = graph(grid)
    for i in range(4):
        others = scores.clone()
        others[:, label[i]] = -math.inf
        unsafe = grid[others.amax(1) >= scores[:, label[i]]]
        distance = torch.linalg.vector_norm(unsafe - x[i], norm, -1)
        assert not bool((distance <= radius[i]).any())


@every_method
def test_ties_and_wrong_labels_have_radius_zero(method: str) -> None:
    x = double([[1.0, 0.5], [2.0, 2.0], [0.0, 0.0]])  # on the boundary, beyond it, before it
    found = lipschitz_radius(linear_net(), Balls(x, torch.tensor([0, 0, 0])), method=method).radius
    assert found[:2].tolist() == [0.0, 0.0]
    assert float(found[2]) > 0.7


@every_method
def test_a_batch_equals_its_inputs_one_by_one(method: str) -> None:
    graph = random_net(1)
    x = torch.rand(3, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    balls = Balls(x, graph(x).argmax(1), 2.0)
    together = lipschitz_radius(graph, balls, method=method).radius
    alone = [lipschitz_radius(graph, balls.take(torch.tensor([i])), method=method).radius for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-9, atol=0)


def test_tighter_constants_certify_more() -> None:
    graph = random_net(2)
    x = torch.rand(6, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    balls = Balls(x, graph(x).argmax(1))
    found = [float(lipschitz_radius(graph, balls, method=m).radius.sum()) for m in METHODS]
    assert found[0] < found[1] * (1 + 1e-3) and found[1] < found[2] * (1 + 1e-3)


def test_masked_features_clip_ranges_and_targets_are_respected() -> None:
    graph = linear_net()
    zero, label = double([[0.0, 0.0]]), torch.tensor([0])
    masked = Balls(zero, label, mask=torch.tensor([True, False]))
    assert float(lipschitz_radius(graph, masked).radius) == pytest.approx(5 / 3, rel=2e-3)
    safe = Balls(zero, label, clip=(0.0, 0.5))
    assert float(lipschitz_radius(graph, safe).radius) == pytest.approx(0.5, rel=2e-3)
    with pytest.raises(ValueError, match="shape"):
        lipschitz_radius(graph, Balls(zero[:, :1], label))
    with pytest.raises(ValueError, match="tolerance"):
        lipschitz_radius(graph, masked, tolerance=0.0)
    with pytest.raises(ValueError, match="method"):
        lipschitz_radius(graph, masked, method="exact")


def test_only_the_target_counts_where_there_is_one() -> None:
    build = GraphBuilder((1,), torch.float64)
    build.add(Linear(double([[0.0], [1.0], [-1.0]]), double([[0.0, -1.0, -3.0]])[0]))
    found = [float(lipschitz_radius(build.graph(), Balls(double([[0.0]]), torch.tensor([0]), target=t)).radius)
             for t in (None, 1, 2)]
    assert found == pytest.approx([1.0, 1.0, 3.0], rel=2e-3)


def test_a_function_that_does_not_change_is_safe_wherever_it_was_tried() -> None:
    build = GraphBuilder((1,), torch.float64)
    build.add(Linear(double([[0.0], [0.0]]), double([[1.0, 0.0]])[0]))
    balls = Balls(double([[0.2]]), torch.tensor([0]))
    assert float(lipschitz_radius(build.graph(), balls).radius) > 1e6
    clipped = Balls(double([[0.2]]), torch.tensor([0]), clip=(0.0, 1.0))
    assert float(lipschitz_radius(build.graph(), clipped).radius) == pytest.approx(0.8, rel=1e-3)


def test_a_passed_deadline_leaves_what_was_proved() -> None:
    balls = Balls(double([[0.0, 0.0]]), torch.tensor([0]))
    deadline = Deadline(1e-9, 0.0)
    assert float(lipschitz_radius(linear_net(), balls, deadline=deadline).radius) == 0.0
