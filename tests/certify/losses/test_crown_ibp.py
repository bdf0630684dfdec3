"""CROWN-IBP as a loss, its mixture with IBP, and loss fusion: upper bounds with exact gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from bounds import crown_ibp
from bounds.ibp import propagate
from certify.losses.crown_ibp import CrownIbp, chord_slope, fused_loss
from certify.losses.ibp import Ibp
from certify.margins import by_class, ibp_margins, margin_rows, robust_cross_entropy
from certify.terms import LossTerms, Step
from tests.certify.cases import CLASSES, assert_gradients_agree, attacked_bounded_loss, network, short_run, step_of

KINDS = ["mlp", "conv", "norm", "residual"]


@pytest.mark.parametrize("fusion", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_agree_with_differences(kind: str, fusion: bool) -> None:
    net, norm = network(kind, dtype=torch.float64), 2.0 if kind == "residual" else math.inf
    step = step_of(net, natural=0.3, eps=0.05, target_eps=0.1, norm=norm, count=4)
    assert_gradients_agree(lambda: CrownIbp(fusion=fusion).loss(step).total, net, entries=2)


@pytest.mark.parametrize("fusion", [False, True])
@pytest.mark.parametrize("norm", [math.inf, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_lies_above_the_attacked_one_at_every_step(kind: str, norm: float, fusion: bool) -> None:
    def look(step: Step, terms: LossTerms) -> None:
        assert float(terms.parts["robust"]) >= float(attacked_bounded_loss(step).mean()) - 1e-5
        assert terms.margins is not None and terms.logits is not None
        assert bool((terms.logits.argmax(1) == step.y)[terms.margins > 0].all())
    eps = 0.05 if norm == math.inf else 0.2
    done = short_run(CrownIbp(1.0, 1.0, fusion), network(kind), norm=norm, natural=0.0, look=look, eps=eps, updates=20)
    assert float(done[-1].total.detach()) < float(done[0].total.detach())


@pytest.mark.parametrize("kind", KINDS)
def test_its_margins_are_those_of_crown_ibp(kind: str) -> None:
    step = step_of(network(kind, dtype=torch.float64).eval(), eps=0.06)
    rows = margin_rows(step.y, CLASSES, step.x)
    with torch.no_grad():
        margins = by_class(crown_ibp.bound(step.model.graph, step.sets(), rows).lower, step.y, CLASSES)
        found = CrownIbp(1.0, 1.0).loss(step)
    torch.testing.assert_close(found.parts["robust"], robust_cross_entropy(margins, step.y))


def test_the_weight_moves_with_the_radius() -> None:
    net, loss = network("conv"), CrownIbp()
    assert [loss.beta(step_of(net, eps=e, target_eps=0.1)) for e in (0.0, 0.05, 0.1)] == pytest.approx([1, 0.5, 0])
    assert loss.beta(step_of(net, eps=0.0)) == 0.0
    end = step_of(net, eps=0.1)
    torch.testing.assert_close(loss.loss(end).parts["robust"], Ibp().loss(end).parts["robust"])
    with pytest.raises(ValueError, match="beta"):
        CrownIbp(beta_end=1.5)


@pytest.mark.parametrize("beta", [0.3, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_fusion_bounds_the_cross_entropy_of_every_sample(kind: str, beta: float) -> None:
    """Example by example, at large logits too."""
    for scale in (1.0, 30.0):
        net = network(kind, dtype=torch.float64).eval()
        with torch.no_grad():
            for p in list(net.parameters())[-2:]:
                p.mul_(scale)
            step = step_of(net, eps=0.05)
            graph, sets = step.model.graph, step.sets()
            bound = fused_loss(graph, sets, step.y, propagate(graph, sets, rounded=False),
                               ibp_margins(graph, sets, step.y), beta)
            for x in sets.sample(50, torch.Generator().manual_seed(0)).unbind(1):
                assert bool((functional.cross_entropy(graph(x), step.y, reduction="none") <= bound + 1e-9).all())
            # No sum of chords exceeds that of their upper ends by more than what the one row loses on the way.
            assert bool(torch.isfinite(bound).all())


def test_fusion_of_a_linear_network_is_the_sum_of_chords() -> None:
    """Nothing is lost on the way there: the bound is the largest sum of chords over the corners of the set."""
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, CLASSES)).double()
    step = step_of(net, eps=0.05, clip=None, count=3)
    with torch.no_grad():
        graph, sets, y = step.model.graph, step.sets(), step.y
        found = fused_loss(graph, sets, y, propagate(graph, sets, rounded=False), ibp_margins(graph, sets, y), 1.0)
        layer = net[1]
        assert isinstance(layer, torch.nn.Linear)
        for b in range(3):
            W = layer.weight - layer.weight[y[b]]
            d = W @ step.x[b].flatten() + layer.bias - layer.bias[y[b]]
            r = 0.05 * W.abs().sum(1)
            slope = torch.where(r > 0, ((d + r).exp() - (d - r).exp()) / (2 * r).clamp(min=1e-300), torch.zeros_like(r))
            total = ((d + r).exp() - slope * r + 0 * d).sum() + 0.05 * (slope @ W).abs().sum()
            torch.testing.assert_close(found[b], total.log())


def test_without_a_radius_it_is_the_cross_entropy() -> None:
    step = step_of(network("conv", dtype=torch.float64), eps=0.0, target_eps=0.1)
    expected = functional.cross_entropy(step.model(step.x), step.y).detach()
    for loss in (CrownIbp(), CrownIbp(fusion=True)):
        torch.testing.assert_close(loss.loss(step).parts["robust"], expected)


def test_the_slope_of_a_chord_is_smooth_at_zero() -> None:
    w = torch.tensor([0.0, 1e-9, 0.99e-4, 1.01e-4, 1.0, 800.0], dtype=torch.float64, requires_grad=True)
    expected = [1.0, 1 - 0.5e-9, 1 - 0.495e-4 + 0.99e-4**2 / 6, (1 - math.exp(-1.01e-4)) / 1.01e-4, 1 - math.exp(-1),
                1 / 800]
    slope = chord_slope(w)
    torch.testing.assert_close(slope, torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=0)
    (gradient,) = torch.autograd.grad(slope.sum(), w)
    assert bool(torch.isfinite(gradient).all()) and float(gradient[0]) == -0.5
