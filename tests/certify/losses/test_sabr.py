"""SABR: small sets inside the whole ones, bounds of which lie between the attacked loss and that of IBP."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from bounds.ibp import propagate
from bounds.interval import Interval
from certify.inner import ascend
from certify.losses.ibp import Ibp
from certify.losses.sabr import Sabr, ShrunkRelu, shrunk, small_sets
from certify.margins import ibp_margins, robust_cross_entropy
from certify.terms import LossTerms, Step
from tests.certify.cases import assert_gradients_agree, network, short_run, step_of

NORMS = [math.inf, 2.0]


def frozen_statistics(net: nn.Module) -> nn.Module:
    """Running statistics, which attacks see, do not move: the attack finds the same points again."""
    for m in net.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            m.momentum = 0.0
    return net


@pytest.mark.parametrize("relu_shrinkage", [1.0, 0.8])
@pytest.mark.parametrize("kind", ["mlp", "conv", "norm", "residual"])
def test_gradients_agree_with_differences(kind: str, relu_shrinkage: float) -> None:
    net = frozen_statistics(network(kind, dtype=torch.float64))
    method = Sabr(relu_shrinkage=relu_shrinkage, steps=4)
    assert_gradients_agree(lambda: method.loss(step_of(net, natural=0.3, target_eps=0.1)).total, net, entries=4)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shrink", [0.0, 0.3, 0.9, 1.0])
def test_small_sets_hold_the_point_and_stay_inside(norm: float, shrink: float) -> None:
    step = step_of(network("conv"), eps=0.2, norm=norm)
    point, whole = ascend(step, steps=3, step_size=0.7), step.sets()
    small = small_sets(step, point, shrink)
    assert bool((small.lower >= whole.lower - 1e-6).all() and (small.upper <= whole.upper + 1e-6).all())
    assert bool((small.lower <= point + 1e-6).all() and (small.upper >= point - 1e-6).all())
    if norm == math.inf:
        torch.testing.assert_close(small.upper - small.lower, shrink * (whole.upper - whole.lower))
    else:
        assert small.centre is not None and small.radius is not None
        torch.testing.assert_close(small.radius, torch.full_like(small.radius, shrink * 0.2))
        length = torch.linalg.vector_norm((small.centre - step.x).flatten(1), dim=1)
        assert bool((length <= (1 - shrink) * 0.2 + 1e-6).all())
        away = torch.linalg.vector_norm((small.centre - point).flatten(1), dim=1)
        assert bool((away <= shrink * 0.2 + 1e-6).all())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", ["conv", "norm"])
def test_the_loss_lies_between_its_point_and_ibp_at_every_step(kind: str, norm: float) -> None:
    method = Sabr(shrink=0.3, steps=4)

    def look(step: Step, terms: LossTerms) -> None:
        again = Step(**{**vars_of(step), "memory": {}})
        point = method.adversarial(again, again.eps)
        graph = step.model.clean(step.x)[1]
        small = small_sets(again, point, 0.3)
        robust = robust_cross_entropy(ibp_margins(graph, small, step.y), step.y)
        assert bool(robust >= functional.cross_entropy(graph(point), step.y) - 1e-5)
        assert float(terms.parts["robust"]) <= float(Ibp().loss(step).parts["robust"]) + 1e-5
        assert terms.margins is None
    done = short_run(method, network(kind), natural=0.0, norm=norm, look=look)
    assert float(done[-1].total.detach()) < float(done[0].total.detach())


def vars_of(step: Step) -> dict:
    return {name: getattr(step, name) for name in step.__dataclass_fields__}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", ["mlp", "norm"])
def test_the_whole_set_is_ibp(kind: str, norm: float) -> None:
    net = network(kind)
    plain, terms = Ibp().loss(step_of(net, norm=norm)), Sabr(shrink=1.0).loss(step_of(net, norm=norm))
    torch.testing.assert_close(terms.parts["robust"], plain.parts["robust"])
    torch.testing.assert_close(terms.margins, plain.margins)


def test_no_set_at_all_is_adversarial_training() -> None:
    net = network("conv")
    method = Sabr(shrink=0.0, steps=3)
    point = method.adversarial(step_of(net), 0.05)
    with torch.no_grad():
        expected = functional.cross_entropy(net(point), step_of(net).y)
        assert bool(expected > functional.cross_entropy(net(step_of(net).x), step_of(net).y))
    torch.testing.assert_close(method.loss(step_of(net)).parts["robust"], expected)


def test_the_loss_grows_with_the_box() -> None:
    net = network("conv")
    values = [float(Sabr(shrink=s).loss(step_of(net)).parts["robust"]) for s in (0.1, 0.5, 1.0)]
    assert values[0] < values[1] < values[2]


def test_shrunk_relus_cut_the_upper_ends_of_unstable_neurons_alone() -> None:
    before = Interval(torch.tensor([[-3.0, -1.0, 0.0, 0.5]]), torch.tensor([[-1.0, 2.0, 2.0, 4.0]]))
    after = ShrunkRelu(0.75).interval(before)
    torch.testing.assert_close(after.lower, torch.tensor([[0.0, 0.0, 0.0, 0.5]]))
    torch.testing.assert_close(after.upper, torch.tensor([[0.0, 1.5, 2.0, 4.0]]))


def test_shrunk_relus_narrow_every_interval_and_certify_nothing() -> None:
    step = step_of(network("conv"))
    graph = step.model.graph
    wide = propagate(graph, step.sets(), rounded=False)
    narrow = propagate(shrunk(graph, 0.5), step.sets(), rounded=False)
    assert all(bool((n.radius <= w.radius + 1e-6).all()) for n, w in zip(narrow, wide, strict=True))
    assert bool(narrow[-1].radius.sum() < wide[-1].radius.sum())
    terms = Sabr(shrink=1.0, relu_shrinkage=0.5).loss(step)
    assert terms.margins is None
    assert float(terms.parts["robust"]) < float(Ibp().loss(step).parts["robust"])


def test_settings_are_checked() -> None:
    for name, value in {"shrink": 1.5, "relu_shrinkage": 0.0, "steps": 0, "restarts": 0, "step_size": 0.0}.items():
        with pytest.raises(ValueError, match=name):
            Sabr(**{name: value})
