"""Interval bounds as a loss: an upper bound of the attacked one, with exact gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from certify.losses.ibp import Ibp
from certify.terms import LossTerms, Step
from tests.certify.cases import assert_gradients_agree, attacked_loss, network, short_run, step_of

KINDS = ["mlp", "conv", "norm", "residual"]


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_agree_with_differences(kind: str) -> None:
    net = network(kind, dtype=torch.float64)
    assert_gradients_agree(lambda: Ibp().loss(step_of(net, natural=0.3)).total, net)


@pytest.mark.parametrize("norm", [float("inf"), 2.0])
@pytest.mark.parametrize("kind", ["mlp", "conv", "residual"])
def test_the_loss_lies_above_the_attacked_one_at_every_step(kind: str, norm: float) -> None:
    def look(step: Step, terms: LossTerms) -> None:
        assert float(terms.parts["robust"]) >= float(attacked_loss(step).mean()) - 1e-5
        assert terms.margins is not None
        certified = terms.margins > 0
        assert bool((step.model(step.x).argmax(1) == step.y)[certified].all())
    done = short_run(Ibp(), network(kind), norm=norm, natural=0.0, look=look)
    assert float(done[-1].total.detach()) < float(done[0].total.detach())


def test_without_a_radius_it_is_the_cross_entropy() -> None:
    step = step_of(network("conv"), eps=0.0)
    expected = functional.cross_entropy(step.model(step.x), step.y)
    torch.testing.assert_close(Ibp().loss(step).parts["robust"], expected.detach())
