"""ZOO: its differences and clocks, and the nearest points of known problems."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.verifier.attacks.problems import bowl, linear
from verifier.attacks.draws import Draws
from verifier.attacks.estimate import coordinate_slopes
from verifier.attacks.model import as_model
from verifier.attacks.run import Run
from verifier.attacks.threat import Threat
from verifier.attacks.zoo import CoordinateAdam, Zoo


def started(*, clip: bool = False, mask: torch.Tensor | None = None) -> Run:
    known = linear(2.0, dtype=torch.float64)
    threat = Threat(2.0, math.inf, (0.0, 1.0) if clip else None, mask)
    run = Run(as_model(known.model), threat.around(known.x), known.criterion, Draws(0, torch.arange(6)),
              minimum_norm=True)
    run.begin()
    return run


def test_differences_are_the_slope_of_the_margin_at_the_coordinates() -> None:
    run, i = started(), torch.arange(6)
    zoo = Zoo(coordinates=5)
    at = zoo._coordinates(run, i)
    assert at.shape == (6, 5)
    assert all(len(set(row)) == 5 for row in at.tolist()), "distinct"
    assert len({tuple(sorted(row)) for row in at.tolist()}) > 1, "each example its own"
    x = run.x0.clone().requires_grad_()
    margin = run.criterion.margin(run.model(x), x, i)
    (slope,) = torch.autograd.grad(margin.sum(), x)
    torch.testing.assert_close(zoo._differences(run, run.x0, i, at), slope.flatten(1).gather(1, at))
    assert (run.forward_calls == 1 + 2 * 5).all()


def test_plain_functions_have_differences_without_a_run() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    found = coordinate_slopes(lambda points: (points.square().sum(2), points), x, torch.tensor([[2, 0]]), 1e-3)
    torch.testing.assert_close(found, torch.tensor([[6.0, 2.0]], dtype=torch.float64))
    stuck = coordinate_slopes(lambda points: (points.square().sum(2), 0 * points), x, torch.tensor([[1]]), 1e-3)
    assert stuck.tolist() == [[0.0]], "points that did not move tell nothing"


def test_at_the_end_of_the_range_differences_are_one_sided() -> None:
    run, i = started(clip=True), torch.arange(6)
    x = run.x0.clone()
    x[:, 0, 0] = 0.0
    at = torch.zeros(6, 1, dtype=torch.long)
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(run.criterion.margin(run.model(leaf), leaf, i).sum(), leaf)
    torch.testing.assert_close(Zoo()._differences(run, x, i, at), slope.flatten(1)[:, :1])


def test_pinned_features_are_not_asked_for() -> None:
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[1] = True
    run = started(mask=mask)
    assert Zoo()._coordinates(run, torch.arange(6)).sort(1).values.tolist() == [[4, 5, 6, 7]] * 6


def test_every_coordinate_has_the_clock_of_its_own_steps() -> None:
    """Touched at some times only, a coordinate moves as under an Adam that saw these times alone."""
    adam, times = CoordinateAdam(torch.zeros(1, 2, dtype=torch.float64)), [(1, 0), (1, 1), (0, 1), (1, 0), (1, 1)]
    slopes = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moved = torch.zeros(2, dtype=torch.float64)
    for touched, slope in zip(times, slopes, strict=True):
        moved += adam.step(slope.unsqueeze(0), torch.tensor([touched], dtype=torch.bool))[0]
    for k in range(2):
        p = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        reference = torch.optim.Adam([p], lr=1.0)
        for touched, slope in zip(times, slopes, strict=True):
            if touched[k]:
                p.grad = slope[k : k + 1].clone()
                reference.step()
        assert float(moved[k]) == pytest.approx(float(p.detach()))


def test_gets_out_of_a_bowl_at_its_nearest_side() -> None:
    known = bowl(dtype=torch.float64)
    result = Zoo(steps=80).run(known.model, known.x, known.criterion, known.threat)
    np.testing.assert_allclose(result.distance.numpy(), known.distance, rtol=0.01)
    assert (result.backward_calls == 0).all()


def test_beyond_the_boundary_no_differences_are_asked_for() -> None:
    """Far fewer queries than 2 x coordinates a step, since half of the steps or so end beyond the boundary."""
    known = linear(2.0)
    result = Zoo(steps=50, searches=2).run(known.model, known.x, known.criterion, known.threat)
    assert float(result.forward_calls.double().mean()) < 0.8 * 2 * 50 * (2 * 12 + 1)


@pytest.mark.parametrize("settings", [{"steps": 0}, {"coordinates": 0}, {"searches": 0}, {"constant": 0.0},
                                      {"step_size": 0.0}, {"width": -1.0}])
def test_settings_are_checked(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        Zoo(**settings)  # type: ignore[arg-type]
