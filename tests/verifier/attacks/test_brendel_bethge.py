"""The walk along the boundary: its small problem against a general solver, known distances, budgets."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from tests.verifier.attacks.problems import bowl
from verifier.attacks.brendel_bethge import BrendelBethge, boundary_step
from verifier.attacks.criterion import Deviates, Misclassified
from verifier.attacks.threat import Threat

CONVEX = (math.inf, 2.0, 1.0)


def problem(rows: int, features: int) -> tuple[Tensor, ...]:
    """x, x0, slope, need, lower, upper, radius: the hyperplane passes within half a radius of x."""
    g = torch.Generator().manual_seed(0)
    x0, x = torch.rand(2, rows, features, generator=g, dtype=torch.float64)
    slope = torch.randn(rows, features, generator=g, dtype=torch.float64)
    radius = 0.3 + 0.3 * torch.rand(rows, generator=g, dtype=torch.float64)
    need = 0.3 * radius * slope.norm(dim=1) * (2 * torch.rand(rows, generator=g, dtype=torch.float64) - 1)
    return x, x0, slope, need, torch.zeros_like(x), torch.ones_like(x), radius


def by_solver(x: Any, x0: Any, slope: Any, need: float, radius: float, norm: float) -> float:
    """The optimal value by SLSQP on z = (u, t) with t >= |u - x0| (one t in l_inf), best of two starts."""
    n = len(x)
    width = {math.inf: 1, 1.0: n, 2.0: 0}[norm]

    def value(z: Any) -> float:
        return float(np.linalg.norm(z[:n] - x0)) if norm == 2.0 else float(z[n:].sum())

    limits = [{"type": "eq", "fun": lambda z: slope @ (z[:n] - x) - need},
              {"type": "ineq", "fun": lambda z: radius**2 - ((z[:n] - x) ** 2).sum()}]
    if width:
        limits += [{"type": "ineq", "fun": lambda z, s=s: z[n:] - s * (z[:n] - x0)} for s in (1, -1)]
    best = math.inf
    for start in (x, (x + x0) / 2):
        z = np.concatenate([start, np.full(width, np.abs(start - x0).max())])
        found = minimize(value, z, method="SLSQP", bounds=[(0, 1)] * n + [(0, None)] * width, constraints=limits,
                         options={"maxiter": 500, "ftol": 1e-10})
        best = min(best, found.fun) if found.success else best
    return best


@pytest.mark.parametrize("norm", CONVEX)
def test_a_step_solves_its_problem(norm: float) -> None:
    x, x0, slope, need, lower, upper, radius = problem(12, 6)
    u = boundary_step(x, x0, slope, need, lower, upper, radius, norm)
    assert bool(((u >= lower) & (u <= upper)).all())
    assert bool(((u - x).norm(dim=1) <= radius * (1 + 1e-9)).all())
    slack = 1e-3 * (need.abs() + radius * slope.norm(dim=1))
    assert bool((((slope * (u - x)).sum(1) - need).abs() <= slack).all())
    reached = torch.linalg.vector_norm(u - x0, ord=norm, dim=1)
    for k in range(len(x)):
        expected = by_solver(x[k].numpy(), x0[k].numpy(), slope[k].numpy(), float(need[k]), float(radius[k]), norm)
        assert math.isfinite(expected)
        assert float(reached[k]) <= expected * 1.02 + 0.01, k
        assert float(reached[k]) >= expected * 0.98 - 0.01, k


def test_out_of_reach_goes_to_the_edge_of_the_trust_region() -> None:
    x, x0, slope, _, lower, upper, radius = problem(5, 6)
    small = 0.01 * radius
    u = boundary_step(x, x0, slope, 2 * small * slope.norm(dim=1), lower - 9, upper + 9, small, 2.0)
    torch.testing.assert_close(u - x, small.unsqueeze(1) * slope / slope.norm(dim=1, keepdim=True))


def test_l0_steps_free_features_and_end_beyond_the_hyperplane() -> None:
    x, x0, slope, need, lower, upper, radius = problem(12, 6)
    u = boundary_step(x, x0, slope, need, lower, upper, 3 * radius, 0.0)
    assert bool(((slope * (u - x)).sum(1) >= need - 1e-9).all())
    assert float((u != x0).sum(1).double().mean()) < 4


def test_a_curved_boundary_is_reached_at_its_nearest_point() -> None:
    """In l_2, where the start is at the nearest point already, and in l_inf, where the walk has to find it."""
    known = bowl(dtype=torch.float64)
    result = BrendelBethge(steps=40).run(known.model, known.x, known.criterion, known.threat)
    np.testing.assert_allclose(result.distance.numpy(), known.distance, rtol=1e-3)
    result = BrendelBethge(steps=60).run(known.model, known.x, known.criterion, Threat(math.inf))
    a = known.x.abs()
    # ||(|x| + t)||_2 = 2 has one positive root.
    n, s = a.shape[1], a.sum(1)
    expected = (-s + (s * s - n * (a.square().sum(1) - 4)).sqrt()) / n
    np.testing.assert_allclose(result.distance.numpy(), expected.numpy(), rtol=1e-3)


def test_gradients_are_the_steps() -> None:
    known = bowl()
    result = BrendelBethge(steps=7).run(known.model, known.x, known.criterion, known.threat)
    assert (result.backward_calls == 7).all()


@pytest.mark.parametrize("norm", [math.inf, 2.0, 1.0, 0.0])
def test_the_walk_gets_nearer_than_its_start(norm: float) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4)).double()
    for parameter in net.parameters():  # as it is drawn, the net is nearly linear: the start finds the nearest point
        parameter.data *= 4
    x = torch.rand(16, 12, dtype=torch.float64)
    label = net(x).argmax(1)
    start, walk = (BrendelBethge(steps=k).run(net, x, Misclassified(label), Threat(norm, math.inf, (-2.0, 3.0)))
                   for k in (6, 60))
    found = start.success & walk.success
    assert int(found.sum()) >= 8
    assert bool((walk.distance <= start.distance * (1 + 1e-3))[found].all())
    assert bool((walk.distance < start.distance * 0.99)[found].any())


def test_a_regression_reaches_the_boundary_of_its_tolerance() -> None:
    torch.manual_seed(0)
    net = nn.Linear(4, 1).double()
    x = torch.rand(5, 4, dtype=torch.float64)
    result = BrendelBethge(steps=30).run(net, x, Deviates(net(x).detach(), 0.3), Threat(2.0))
    np.testing.assert_allclose(result.distance.numpy(), 0.3 / float(net.weight.detach().norm()), rtol=1e-3)


@pytest.mark.parametrize(("settings", "message"), [
    ({"steps": 0}, "steps"), ({"region": (0.1, 0.2)}, "region"), ({"eta": 0.5}, "eta"), ({"forget": 1.0}, "forget"),
    ({"beyond": 0.6}, "beyond"),
])
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BrendelBethge(**settings)


def test_it_goes_on_from_a_success_that_is_known() -> None:
    known = bowl(count=3)
    found = BrendelBethge(steps=30).run(known.model, known.x, known.criterion, known.threat)
    on = BrendelBethge(steps=1).run(known.model, known.x, known.criterion, known.threat, starts=found.x)
    assert bool((on.distance <= found.distance * (1 + 1e-6)).all())
    afresh = BrendelBethge(steps=1).run(known.model, known.x, known.criterion, known.threat, starts=known.x)
    assert not bool((afresh.distance <= found.distance).any()), "a start that is no success is none"
    with pytest.raises(ValueError, match="a start for every input"):
        BrendelBethge().run(known.model, known.x, known.criterion, known.threat, starts=found.x[:1])
