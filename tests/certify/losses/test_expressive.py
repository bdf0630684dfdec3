"""Expressive losses: adversarial training at coefficient 0, IBP at 1, and monotone between."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from certify.inner import ascend
from certify.losses.expressive import CcIbp, ExpIbp, Expressive, MtlIbp
from certify.losses.ibp import Ibp
from certify.terms import LossTerms, Step
from tests.certify.cases import assert_gradients_agree, attacked_loss, network, short_run, step_of
from tests.certify.losses.test_sabr import frozen_statistics

METHODS = [CcIbp, MtlIbp, ExpIbp]
COEFFICIENTS = (0.0, 0.1, 0.35, 0.6, 0.85, 1.0)


@pytest.mark.parametrize("kind", ["mlp", "conv", "norm", "residual"])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_agree_with_differences(method: type[Expressive], kind: str) -> None:
    net = frozen_statistics(network(kind, dtype=torch.float64))
    chosen = method(coefficient=0.3, steps=3)
    assert_gradients_agree(lambda: chosen.loss(step_of(net, natural=0.3, target_eps=0.1)).total, net, entries=3)


@pytest.mark.parametrize("kind", ["conv", "norm"])
@pytest.mark.parametrize("method", METHODS)
def test_ends_are_adversarial_training_and_ibp(method: type[Expressive], kind: str) -> None:
    net = frozen_statistics(network(kind))
    point = method(steps=3).adversarial(step_of(net), 0.05)
    step = step_of(net)
    expected = functional.cross_entropy(step.model.clean(step.x)[1](point), step.y)
    none = method(coefficient=0.0, steps=3).loss(step_of(net)).parts["robust"]
    torch.testing.assert_close(none, expected.detach())
    plain = Ibp().loss(step_of(net))
    terms = method(coefficient=1.0, steps=3).loss(step_of(net))
    torch.testing.assert_close(terms.parts["robust"], plain.parts["robust"])
    torch.testing.assert_close(terms.margins, plain.margins)


@pytest.mark.parametrize("method", METHODS)
def test_every_example_grows_with_the_coefficient(method: type[Expressive]) -> None:
    rows = []
    for coefficient in COEFFICIENTS:
        chosen = Recorded.of(method(coefficient=coefficient, steps=3))
        chosen.loss(step_of(network("conv")))
        rows.append(Recorded.seen)
    rows = torch.stack(rows)
    assert bool((rows.diff(dim=0) > 0).all())


class Recorded:
    """A method whose losses "B" can be looked at."""

    seen: Tensor

    @staticmethod
    def of(method: Expressive) -> Expressive:
        def combined(self: Expressive, *inputs: Tensor) -> Tensor:
            Recorded.seen = type(method).combined(self, *inputs).detach()
            return type(method).combined(self, *inputs)
        kind = type("Watched", (type(method),), {"combined": combined})
        return kind(**{f.name: getattr(method, f.name) for f in dataclasses.fields(method)})


def test_the_three_combine_as_the_paper_says() -> None:
    attacked, bounded = torch.tensor([[0.0, 2.0, 3.0]]), torch.tensor([[0.0, -1.0, 1.0]])
    y = torch.tensor([0])
    low, high = (torch.log(1 + torch.exp(-m[0, 1:]).sum()) for m in (attacked, bounded))
    mixed = 0.75 * attacked + 0.25 * bounded
    expected = {CcIbp: torch.log(1 + torch.exp(-mixed[0, 1:]).sum()), MtlIbp: 0.75 * low + 0.25 * high,
                ExpIbp: torch.exp(0.75 * low.log() + 0.25 * high.log())}
    for method, value in expected.items():
        torch.testing.assert_close(method(coefficient=0.25).combined(attacked, bounded, y), value.view(1))


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_lies_between_its_ends_and_ibp_bounds_the_attack_at_every_step(method: type[Expressive]) -> None:
    def look(step: Step, terms: LossTerms) -> None:
        parts = {name: float(part) for name, part in terms.parts.items()}
        assert parts["adversarial"] - 1e-5 <= parts["robust"] <= parts["ibp"] + 1e-5
        assert parts["ibp"] >= float(attacked_loss(step).mean()) - 1e-5
        assert terms.margins is not None
        assert bool((step.model(step.x).argmax(1) == step.y)[terms.margins > 0].all())
    done = short_run(method(coefficient=0.3, steps=3), network("conv"), natural=0.0, look=look)
    assert float(done[-1].total.detach()) < float(done[0].total.detach())


def test_the_attack_is_the_one_that_the_settings_name() -> None:
    net = network("conv")
    settings = {"steps": 2, "restarts": 3, "step_size": 0.4}
    found = MtlIbp(**settings).adversarial(step_of(net), 0.08)
    assert torch.equal(found, ascend(step_of(net), eps=0.08, **settings))
    for name, value in {"steps": 3, "restarts": 1, "step_size": 0.3}.items():
        assert not torch.equal(found, ascend(step_of(net), eps=0.08, **{**settings, name: value}))


def test_a_wider_attack_leaves_the_set() -> None:
    net = network("conv")
    narrow, wide = (MtlIbp(coefficient=0.0, attack_eps=factor, steps=4) for factor in (1.0, 2.0))
    for method, radius in ((narrow, 0.05), (wide, 0.1)):
        step = step_of(net)
        far = (method.adversarial(step, method.attack_eps * step.eps) - step.x).abs().amax()
        torch.testing.assert_close(far, torch.tensor(radius), rtol=1e-4, atol=0)
    assert float(wide.loss(step_of(net)).total.detach()) > float(narrow.loss(step_of(net)).total.detach())


def test_without_a_radius_all_are_the_cross_entropy() -> None:
    net = network("residual")
    step = step_of(net, eps=0.0)
    expected = functional.cross_entropy(net(step.x), step.y).detach()
    for method in METHODS:
        torch.testing.assert_close(method().loss(step).parts["robust"], expected)


def test_a_loss_of_zero_has_a_finite_gradient() -> None:
    net = network("mlp")
    with torch.no_grad():
        net[-1].weight.zero_()
        net[-1].bias.copy_(torch.tensor([1000.0, 0.0, 0.0, 0.0]))
    step = step_of(net)
    step.y.zero_()
    ExpIbp(coefficient=0.3, steps=1).loss(step).total.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in net.parameters())


def test_settings_are_checked() -> None:
    for name, value in {"coefficient": 1.1, "attack_eps": 0.0}.items():
        with pytest.raises(ValueError, match=name):
            MtlIbp(**{name: value})
