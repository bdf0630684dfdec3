"""Fast IBP: the loss of interval bounds, with penalties that are gone when the ramp is over."""

from __future__ import annotations

import pytest
import torch

from bounds.ibp import propagate
from certify.classifier import Classifier
from certify.losses.fast_ibp import FastIbp
from certify.losses.ibp import Ibp
from certify.regularisers import balance, tightness
from certify.terms import LossTerms, Step
from tests.certify.cases import SHAPE, assert_gradients_agree, attacked_loss, network, short_run, step_of


@pytest.mark.parametrize("kind", ["mlp", "conv", "norm", "residual"])
def test_gradients_agree_with_differences_in_the_ramp(kind: str) -> None:
    net = network(kind, dtype=torch.float64)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(3 if p.dim() > 1 else 1)  # so that intervals explode
    loss = FastIbp(warmup_regulariser=0.7).loss
    parts = loss(step_of(net, target_eps=0.1)).parts
    assert 0 < float(parts["tightness"]) < 1
    assert 0 < float(parts["balance"]) < 2 or kind == "residual"
    assert_gradients_agree(lambda: loss(step_of(net, natural=0.3, target_eps=0.1)).total, net)


def test_the_loss_lies_above_the_attacked_one_at_every_step() -> None:
    def look(step: Step, terms: LossTerms) -> None:
        assert float(terms.parts["robust"]) >= float(attacked_loss(step).mean()) - 1e-5
        assert terms.margins is not None
        assert bool((step.model(step.x).argmax(1) == step.y)[terms.margins > 0].all())
    done = short_run(FastIbp(), network("conv"), natural=0.0, look=look)
    assert float(done[-1].total.detach()) < float(done[0].total.detach())


@pytest.mark.parametrize("eps", [0.02, 0.05])
def test_penalties_fall_with_the_radius(eps: float) -> None:
    step = step_of(network("conv"), eps=eps, target_eps=0.1, natural=0.25)
    plain, terms = Ibp().loss(step), FastIbp(warmup_regulariser=2.0).loss(step)
    added = 2.0 * (1 - eps / 0.1) * (terms.parts["tightness"] + terms.parts["balance"])
    assert float(added) > 0
    torch.testing.assert_close(terms.total, plain.total + added)


@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_without_a_ramp_it_is_ibp(eps: float) -> None:
    step = step_of(network("norm"), eps=eps, target_eps=0.1, natural=0.25)
    plain, terms = Ibp().loss(step), FastIbp().loss(step)
    torch.testing.assert_close(terms.total, plain.total)
    torch.testing.assert_close(terms.margins, plain.margins)
    assert set(terms.parts) == {"natural", "robust"}


def test_weights_are_new_only_where_asked_for() -> None:
    for asked in (True, False):
        net = network("conv")
        before = net[0].weight.clone()
        FastIbp(ibp_initialisation=asked).prepare(Classifier(net, SHAPE), *[torch.zeros(0)] * 2, {}, 0)
        assert torch.equal(net[0].weight, before) != asked


def test_the_penalties_can_be_trained_away() -> None:
    net = network("mlp")
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    seen = []
    for _ in range(30):
        step = step_of(net)
        intervals = propagate(step.model.graph, step.sets(), rounded=False)
        penalty = tightness(step.model.graph, intervals) + balance(step.model.graph, intervals)
        optimiser.zero_grad()
        penalty.backward()
        optimiser.step()
        seen.append(float(penalty.detach()))
    assert seen[-1] < 0.7 * seen[0]


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="warmup_regulariser"):
        FastIbp(warmup_regulariser=-1.0)
