"""Zonotopes as a loss: an upper bound with exact gradients, in groups as in one."""

from __future__ import annotations

import math

import pytest
import torch

from bounds import zonotope
from bounds.zonotope import ZonotopeTooLarge
from certify.losses.zonotope import ZonotopeLoss, zonotope_margins
from certify.margins import ibp_margins, margin_rows
from certify.terms import LossTerms, Step
from tests.certify.cases import CLASSES, assert_gradients_agree, attacked_bounded_loss, network, short_run, step_of

KINDS = ["mlp", "conv", "norm", "residual"]


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_agree_with_differences(kind: str) -> None:
    net = network(kind, dtype=torch.float64)
    step = step_of(net, natural=0.3, count=4)
    assert_gradients_agree(lambda: ZonotopeLoss().loss(step).total, net, entries=2)


@pytest.mark.parametrize("norm", [math.inf, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_lies_above_the_attacked_one_at_every_step(kind: str, norm: float) -> None:
    def look(step: Step, terms: LossTerms) -> None:
        assert float(terms.parts["robust"]) >= float(attacked_bounded_loss(step).mean()) - 1e-5
        assert terms.margins is not None and terms.logits is not None
        assert bool((terms.logits.argmax(1) == step.y)[terms.margins > 0].all())
    done = short_run(ZonotopeLoss(), network(kind), norm=norm, natural=0.0, look=look, updates=20)
    assert float(done[-1].total.detach()) < float(done[0].total.detach())


@pytest.mark.parametrize("kind", KINDS)
def test_margins_are_the_zonotopes(kind: str) -> None:
    """Where the method of `bounds`, which takes the better of zonotope and intervals, is not better by intervals."""
    step = step_of(network(kind, dtype=torch.float64).eval(), eps=0.05)
    graph, sets = step.model.graph, step.sets()
    with torch.no_grad():
        found = zonotope_margins(graph, zonotope.Interval(sets.lower, sets.upper), step.y)
        expected = zonotope.bound(graph, sets, margin_rows(step.y, CLASSES, step.x)).lower.view(-1, CLASSES - 1)
        label = torch.nn.functional.one_hot(step.y, CLASSES).bool()
        own, boxes = found[~label].view_as(expected), ibp_margins(graph, sets, step.y)[~label].view_as(expected)
    torch.testing.assert_close(torch.maximum(own, boxes), expected, rtol=1e-7, atol=1e-7)
    assert bool((own > boxes).any())


def test_groups_change_nothing() -> None:
    net = network("conv", dtype=torch.float64)
    step = step_of(net, natural=0.2)
    gradients, losses = [], []
    for memory in (2.0, 1.5e-3):
        net.zero_grad()
        total = ZonotopeLoss(memory_gib=memory).loss(step).total
        total.backward()
        losses.append(total.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_network_too_large_for_one_example_is_refused() -> None:
    with pytest.raises(ZonotopeTooLarge, match="GiB"):
        ZonotopeLoss(memory_gib=1e-6).loss(step_of(network("conv")))


def test_the_share_of_the_abstract_loss() -> None:
    step = step_of(network("mlp"), natural=0.5)
    terms = ZonotopeLoss(abstract=0.1 / 1.1).loss(step)
    natural, robust = terms.parts["natural"], terms.parts["robust"]
    torch.testing.assert_close(terms.total.detach(), 0.5 * natural + 0.5 * (natural + 0.1 * robust) / 1.1)
    with pytest.raises(ValueError, match="abstract"):
        ZonotopeLoss(abstract=0.0)
    with pytest.raises(ValueError, match="memory"):
        ZonotopeLoss(memory_gib=0)
