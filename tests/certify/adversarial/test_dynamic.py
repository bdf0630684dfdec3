"""Training by stationarity: an example stops once its gap is small enough, and not before."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from certify.adversarial.dynamic import Dynamic
from certify.adversarial.pgd import Pgd
from certify.inner import cross_entropy_of, input_gradient
from certify.terms import Progress, Step
from tests.certify.cases import network, step_of
from verifier.attacks.fosc import stationarity_gap
from verifier.attacks.steps import random_start


@pytest.mark.parametrize(("epoch", "expected"), [
    (0.0, 0.5), (0.99, 0.5), (1.0, 0.4875), (20.0, 0.25), (39.0, 0.0125), (40.0, 0.0), (49.9, 0.0)])
def test_the_threshold_falls_to_zero_by_epoch_40_of_50(epoch: float, expected: float) -> None:
    assert Dynamic().threshold(Progress(epoch, 50, 7)) == pytest.approx(expected, abs=1e-12)


def sharp(seed: int = 0) -> nn.Module:
    """A dense network whose gradients differ from step to step."""
    net = network("mlp", seed, torch.float64)
    with torch.no_grad():
        for p in net.parameters():
            p *= 2.5
    return net


def middle_gap(step: Step, steps: int) -> float:
    """The median gap after some steps of PGD: content with that, examples stop at different times."""
    x = Pgd(steps=steps).points(step)
    with step.model.attacked():
        _, slope = input_gradient(step, x, step.everyone, cross_entropy_of(step))
    return float(stationarity_gap(slope, x, step.room(), step.everyone).median())


def by_hand(step: Step, method: Dynamic, enough: float) -> tuple[Tensor, list[int]]:
    """(points, steps made), every example by itself, the gap by its closed form for a ball without a range."""
    points, made = [], []
    x = random_start(step.room(), step.draws, step.everyone)
    for i in range(len(x)):
        here = x[i : i + 1].clone()
        for k in range(method.steps + 1):
            here.requires_grad_(True)
            loss = functional.cross_entropy(step.model(here), step.y[i : i + 1])
            (g,) = torch.autograd.grad(loss, here)
            here = here.detach()
            move = here - step.x[i : i + 1]
            gap = step.eps * float(g.abs().sum()) - float((move * g).sum())
            if k == method.steps or (k and gap <= enough):
                break
            move = (move + method.step_size * step.eps * g.sign()).clamp(-step.eps, step.eps)
            here = step.x[i : i + 1] + move
        points.append(here)
        made.append(k)
    return torch.cat(points), made


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_points_equal_those_of_examples_by_themselves(share: float) -> None:
    net = sharp()
    step = step_of(net, eps=0.1, clip=None, progress=Progress(share * 40, 50, 3))
    method = Dynamic(c_max=middle_gap(step_of(net, eps=0.1, clip=None), 3) / (1 - share))
    expected, made = by_hand(step, method, method.threshold(step.progress))
    assert len(set(made)) > 2, "some stop early, others late"
    again = step_of(net, eps=0.1, clip=None, progress=step.progress)
    torch.testing.assert_close(method.points(again), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", [math.inf, 2.0])
def test_who_stops_is_content_and_who_goes_on_is_not(norm: float) -> None:
    """After K steps every example either has a gap of at most c_t, or made all K: reversed, it would be neither."""
    net, eps = sharp(), 0.1 if norm == math.inf else 0.5
    method = Dynamic(c_max=middle_gap(step_of(net, eps=eps, norm=norm), 3), steps=5)
    step = step_of(net, eps=eps, norm=norm, progress=Progress(0, 50, 0))
    points, all_steps = method.points(step), Pgd(steps=5).points(step_of(net, eps=eps, norm=norm))
    with step.model.attacked():
        _, slope = input_gradient(step, points, step.everyone, cross_entropy_of(step))
    gap = stationarity_gap(slope, points, step.room(), step.everyone)
    full = (points - all_steps).flatten(1).abs().amax(1) < 1e-9  # another batch, another rounding
    assert bool((full | (gap <= method.c_max)).all())
    assert bool((~full).any()) and bool(full.any())


@pytest.mark.parametrize("norm", [math.inf, 2.0])
def test_with_threshold_zero_it_is_pgd(norm: float) -> None:
    net = network("conv", dtype=torch.float64)
    settings = {"eps": 0.1, "norm": norm}
    expected = Pgd().points(step_of(net, **settings))
    assert torch.equal(Dynamic(c_max=0.0).points(step_of(net, **settings)), expected)
    late = step_of(net, **settings, progress=Progress(45, 50, 0))
    assert torch.equal(Dynamic(c_max=0.5).points(late), expected)


def test_with_a_large_threshold_one_step_is_made() -> None:
    net = network("conv", dtype=torch.float64)
    early = step_of(net, eps=0.1, progress=Progress(0, 50, 0))
    assert torch.equal(Dynamic(c_max=1e9).points(early), Pgd(steps=1).points(step_of(net, eps=0.1)))
