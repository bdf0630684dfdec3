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


@pytest.mark.parametrize(("natural", "part"), [(1.0, "natural"), (0.0, "robust")])
def test_the_weight_is_that_of_the_natural_loss(natural: float, part: str) -> None:
    terms = Ibp().loss(step_of(network("conv"), eps=0.1, natural=natural))
    assert float(terms.total.detach()) == pytest.approx(float(terms.parts[part]))
    assert float(terms.parts["robust"]) > float(terms.parts["natural"]) + 0.01


def test_the_set_has_the_radius_of_the_step_not_that_of_the_end() -> None:
    step = step_of(network("conv"), eps=0.02, target_eps=0.1)
    box = step.sets()
    assert float((box.upper - box.lower).max()) == pytest.approx(0.04, abs=1e-6)


def test_statistics_move_as_in_a_pass_of_the_module() -> None:
    net, twin = network("norm").train(), network("norm").train()
    step = step_of(net)
    step.model.clean(step.x)
    twin(step.x)
    for name, value in twin.named_buffers():
        torch.testing.assert_close(dict(net.named_buffers())[name], value)
