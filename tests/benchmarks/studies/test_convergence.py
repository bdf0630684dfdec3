"""FOSC along attacks, where it is known exactly, and the plain numbers that are made of samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmarks.studies import convergence
from benchmarks.studies.convergence import (
    LEVELS,
    density,
    distances,
    distribution,
    grid,
    median,
    summary,
    trajectory,
)
from certify.classifier import Classifier
from certify.data.dataset import Examples

EPS = 0.3


def linear(seed: int = 0) -> tuple[Classifier, Examples]:
    """Two classes of a linear network: the gradient's signs are the same everywhere."""
    random = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 2))
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=random))
    x = torch.rand(23, 1, 2, 3, generator=random)
    return Classifier(net.eval(), (1, 2, 3)), Examples(x, torch.arange(23) % 2)


def test_fosc_of_a_linear_network_is_what_is_left_to_go() -> None:
    model, examples = linear()
    seen = trajectory(model, examples, eps=EPS, clip=None, steps=5, step_size=0.25, seed=0, random=False)
    left = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(seen.fosc, left[:, None] * EPS * seen.slope, rtol=1e-4, atol=1e-6)
    assert bool((seen.loss[1:5] > seen.loss[:4]).all()), "every step but the last, which moves nothing, gains"
    logits = model(examples.x)
    start = seen.after(0)
    expected = functional.cross_entropy(logits, examples.y, reduction="none").double()
    torch.testing.assert_close(start.loss, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(start.correct, logits.argmax(1) == examples.y)
    assert start.accuracy == float((logits.argmax(1) == examples.y).double().mean())


def test_fgsm_of_a_linear_network_is_stationary_within_the_range_of_inputs() -> None:
    model, examples = linear(1)
    end = distribution(model, examples, eps=EPS, clip=(0.0, 1.0), steps=1, step_size=1.0, seed=0, random=False)
    start = distribution(model, examples, eps=EPS, clip=(0.0, 1.0), steps=0, step_size=1.0, seed=0, random=False)
    assert float(end.fosc.max()) < 1e-6 < float(start.fosc.min())
    assert bool((start.fosc <= EPS * start.slope * (1 + 1e-6)).all()), "the range leaves less than the ball does"
    assert end.accuracy <= start.accuracy


def test_the_end_of_a_path_is_the_distribution_however_examples_are_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    model, examples = linear()
    where = {"eps": EPS, "clip": (0.0, 1.0), "steps": 3, "step_size": 0.1}
    path = trajectory(model, examples, **where, seed=3)
    assert path.fosc.shape == path.loss.shape == path.slope.shape == path.correct.shape == (4, 23)
    monkeypatch.setattr(convergence, "AT_ONCE", 7)
    end = distribution(model, examples, **where, seed=3)
    torch.testing.assert_close(end.fosc, path.fosc[-1], rtol=1e-5, atol=1e-7)
    other = distribution(model, examples, **where, seed=4)
    assert not torch.allclose(other.fosc, end.fosc), "another seed, other starts"


@pytest.mark.parametrize("values", [torch.zeros(50), torch.rand(400, generator=torch.Generator().manual_seed(0)),
                                    torch.cat([torch.zeros(300), torch.linspace(0, 1, 100)])])
def test_densities_hold_everything_and_nothing_below_zero(values: torch.Tensor) -> None:
    places = [float(v) for v in np.linspace(0, 2, 401)]
    found = np.array(density(values, places))
    assert found.min() >= 0
    assert np.trapezoid(found, places) == pytest.approx(1.0, abs=0.01)


def test_a_grid_ends_where_all_but_outliers_have_come() -> None:
    places = grid([torch.linspace(0, 1, 1000), torch.tensor([100.0])])
    assert places[0] == 0 and 0.9 < places[-1] < 1 and len(places) == convergence.GRID_POINTS
    assert grid([torch.zeros(5)])[-1] == 1.0


def test_a_summary_has_the_quantiles() -> None:
    values = torch.arange(101, dtype=torch.float64)
    found = summary(values, grid([values]))
    assert found["count"] == 101 and found["mean"] == 50 and median(found) == 50
    assert found["quantiles"][0] == 0 and found["quantiles"][-1] == 100 and len(found["quantiles"]) == len(LEVELS)


def test_distances_of_samples() -> None:
    a, b = torch.linspace(0, 1, 50), torch.linspace(2, 3, 50)
    assert distances([a, a]) == [0.0] and distances([a, b, a]) == [1.0, 0.0, 1.0]
    assert distances([a, torch.cat([a[:25], b[25:]])]) == [0.5]
