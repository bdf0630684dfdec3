"""TAPS: an attack in the box of a latent layer, its gradient connector, and what it is multiplied with."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bounds.ibp import propagate
from bounds.interval import Interval
from certify.classifier import Classifier
from certify.losses.ibp import Ibp
from certify.losses.sabr import Sabr
from certify.losses.taps import Staps, Taps, behind, connect, margins_at, scale_gradient, split_node
from certify.margins import interval_margins, others, robust_cross_entropy
from certify.terms import LossTerms, Step
from tests.certify.cases import CLASSES, SHAPE, assert_gradients_agree, network, short_run, step_of
from tests.certify.losses.test_sabr import frozen_statistics


def normalised(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Batch normalisation before and behind the box."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 12),
                         nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, CLASSES)).to(dtype).train()


# ---------------------------------------------------------------- where the network is cut

@pytest.mark.parametrize("layers", [1, 2, 3])
def test_so_many_activations_lie_behind_the_node(layers: int) -> None:
    net = network("conv")
    graph = Classifier(net, SHAPE).graph
    cut = split_node(graph, layers)
    assert sum(n.op.kind == "Relu" for n in graph.nodes[cut + 1:]) == layers
    assert cut == 0 if layers == 3 else graph.nodes[cut].op.kind == "Relu"
    x = step_of(net).x
    torch.testing.assert_close(behind(graph, cut, graph.values(x)[cut]), graph(x))


def test_a_branch_is_not_cut() -> None:
    graph = Classifier(network("residual"), SHAPE).graph
    cut = split_node(graph, 1)
    assert graph.nodes[cut].op.kind == "Relu" and len(graph.consumers[cut]) == 2
    assert split_node(graph, 2) == 0
    with pytest.raises(ValueError, match="split may be 1, 2"):
        split_node(graph, 3)


class Parallel(nn.Module):
    """Two activations side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(36, 5), nn.Linear(36, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.last(self.first(x).relu() + self.second(x).relu())


def test_activations_side_by_side_count_together() -> None:
    graph = Classifier(Parallel(), SHAPE).graph
    assert split_node(graph, 2) == 0
    with pytest.raises(ValueError, match="split may be 2"):
        split_node(graph, 1)


# ---------------------------------------------------------------- gradients

@pytest.mark.parametrize("threshold", [0.5, 1.0, 0.1])
def test_the_connector_passes_gradients_to_the_nearer_end(threshold: float) -> None:
    lower = torch.tensor([[-1.0, 0.0, 2.0, 2.0, 1.0]], dtype=torch.float64, requires_grad=True)
    upper = torch.tensor([[3.0, 4.0, 3.0, 6.0, 1.0]], dtype=torch.float64, requires_grad=True)
    points = torch.tensor([[[3.0, 3.0, 2.0, 4.0, 1.0], [1.0, 0.5, 2.25, 2.0, 1.0]]], dtype=torch.float64)
    slope = torch.tensor([[[1.0, -2.0, 3.0, 5.0, 7.0], [11.0, 13.0, -17.0, 19.0, 23.0]]], dtype=torch.float64)
    linked = connect(points, Interval(lower, upper), threshold)
    assert torch.equal(linked, points)
    (slope * linked).sum().backward()
    to_lower, to_upper = torch.zeros(1, 5, dtype=torch.float64), torch.zeros(1, 5, dtype=torch.float64)
    for k in range(2):
        for i in range(5):
            low, high, z = (float(t.detach()) for t in (lower[0, i], upper[0, i], points[0, k, i]))
            width = high - low
            up = max(0.0, 1 - (high - z) / (threshold * width)) if width else 0.5
            down = max(0.0, 1 - (z - low) / (threshold * width)) if width else 0.5
            to_upper[0, i] += up * slope[0, k, i]
            to_lower[0, i] += down * slope[0, k, i]
    torch.testing.assert_close(lower.grad, to_lower)
    torch.testing.assert_close(upper.grad, to_upper)


def test_the_product_weighs_both_gradients() -> None:
    for scale in (1.0, 4.0):
        low, high = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.5, 3.0))
        total = Taps(gradient_scale=scale).combined(low, high)
        assert float(total.detach()) == 1.5
        total.backward()
        share = scale / (1 + scale)
        torch.testing.assert_close(low.grad, torch.tensor(2 * share * 3.0, dtype=torch.float64))
        torch.testing.assert_close(high.grad, torch.tensor((2 - 2 * share) * 0.5, dtype=torch.float64))
    assert Taps(combination="estimate").combined(low, high) is low
    x = torch.tensor(2.0, requires_grad=True)
    scale_gradient(x**2, 3.0).backward()
    assert float(x.grad) == 12.0


@pytest.mark.parametrize("method", [Taps(gradient_scale=1.0, steps=3), Staps(gradient_scale=1.0, steps=3)])
@pytest.mark.parametrize("kind", ["mlp", "residual", "batch norm"])
def test_gradients_behind_the_box_agree_with_differences(kind: str, method: Taps) -> None:
    net = frozen_statistics(normalised(torch.float64) if kind == "batch norm" else network(kind, dtype=torch.float64))
    rear = {"mlp": ["3", "5"], "residual": ["last"], "batch norm": ["4", "5", "7"]}[kind]
    behind_the_box = nn.ModuleList(net.get_submodule(name) for name in rear)
    assert_gradients_agree(lambda: method.loss(step_of(net, natural=0.3)).total, behind_the_box)


@pytest.mark.parametrize("method", [Taps(), Staps(steps=3)])
@pytest.mark.parametrize("kind", ["mlp", "norm", "residual"])
def test_gradients_agree_with_differences_in_the_ramp(kind: str, method: Taps) -> None:
    net = frozen_statistics(network(kind, dtype=torch.float64))
    assert_gradients_agree(lambda: method.loss(step_of(net, natural=0.3, target_eps=0.1)).total, net, entries=3)


def test_gradients_reach_the_first_layer_through_the_connector() -> None:
    net = network("mlp")
    Taps(combination="estimate").loss(step_of(net)).total.backward()
    assert float(net[1].weight.grad.abs().sum()) > 0


# ---------------------------------------------------------------- values

@pytest.mark.parametrize("norm", [math.inf, 2.0])
@pytest.mark.parametrize("kind", ["conv", "norm", "residual"])
@pytest.mark.parametrize("method", [Taps(steps=4), Staps(steps=4, shrink=0.5)])
def test_the_estimate_lies_below_ibp_at_every_step(method: Taps, kind: str, norm: float) -> None:
    def look(step: Step, terms: LossTerms) -> None:
        plain = Ibp().loss(step)
        assert bool(terms.parts["estimate"] <= terms.parts["ibp"] + 1e-5)
        assert bool(terms.parts["ibp"] <= plain.parts["robust"] + 1e-5)
        torch.testing.assert_close(terms.parts["robust"], terms.parts["estimate"] * terms.parts["ibp"])
        if isinstance(method, Staps):
            assert terms.margins is None
        else:
            torch.testing.assert_close(terms.margins, plain.margins)
    done = short_run(method, network(kind), natural=0.0, norm=norm, look=look)
    assert float(done[-1].total.detach()) < float(done[0].total.detach())


def test_points_stay_in_the_box_and_beat_random_ones() -> None:
    step = step_of(network("conv"), eps=0.1)
    graph = step.model.graph
    cut = split_node(graph, 1)
    box = propagate(graph, step.sets(), rounded=False)[cut]
    points = Taps(steps=10)._worst(step, graph, cut, box)
    assert bool((points >= box.lower.unsqueeze(1)).all() and (points <= box.upper.unsqueeze(1)).all())
    with torch.no_grad():
        found = margins_at(graph, cut, points, step.y)
        generator = torch.Generator().manual_seed(0)
        for _ in range(50):
            share = torch.rand(points.shape, generator=generator)
            z = box.lower.unsqueeze(1) + share * (box.upper - box.lower).unsqueeze(1)
            assert bool((margins_at(graph, cut, z, step.y) >= found - 1e-4).all())


def test_more_restarts_find_smaller_margins() -> None:
    net = network("conv")
    found = []
    for restarts in (1, 4):
        step = step_of(net, eps=0.1)
        graph = step.model.graph
        cut = split_node(graph, 2)
        box = propagate(graph, step.sets(), rounded=False)[cut]
        points = Taps(steps=1, restarts=restarts)._worst(step, graph, cut, box)
        with torch.no_grad():
            found.append(margins_at(graph, cut, points, step.y))
    assert bool((found[1] <= found[0] + 1e-6).all()) and bool((found[1] < found[0] - 1e-4).any())


def test_margins_at_points_are_those_of_their_class() -> None:
    step = step_of(network("mlp"))
    graph = step.model.graph
    cut = split_node(graph, 1)
    z = torch.rand(len(step.y), CLASSES - 1, *graph.nodes[cut].shape, generator=torch.Generator().manual_seed(0))
    found, rest = margins_at(graph, cut, z, step.y), others(step.y, CLASSES)
    for b in range(len(step.y)):
        for k in range(CLASSES - 1):
            logits = behind(graph, cut, z[b, k].unsqueeze(0))[0]
            torch.testing.assert_close(found[b, k], logits[step.y[b]] - logits[rest[b, k]])


def test_without_a_radius_the_estimate_is_the_cross_entropy() -> None:
    net = network("residual")
    step = step_of(net, eps=0.0)
    expected = functional.cross_entropy(net(step.x), step.y).detach()
    torch.testing.assert_close(Taps().loss(step).parts["estimate"], expected)


def test_the_ramp_is_left_to_intervals_unless_asked_otherwise() -> None:
    net = network("conv")
    ramp = {"eps": 0.05, "target_eps": 0.1}
    plain, terms = Ibp().loss(step_of(net, **ramp)), Taps().loss(step_of(net, **ramp))
    torch.testing.assert_close(terms.parts["robust"], plain.parts["robust"])
    small, terms = Sabr(shrink=0.5).loss(step_of(net, **ramp)), Staps(shrink=0.5).loss(step_of(net, **ramp))
    torch.testing.assert_close(terms.total, small.total)
    assert "estimate" in Taps(estimate_in_ramp=True).loss(step_of(net, **ramp)).parts


def test_the_small_box_of_the_whole_set_is_taps() -> None:
    net = network("conv")
    whole, small = Taps().loss(step_of(net)), Staps(shrink=1.0).loss(step_of(net))
    torch.testing.assert_close(small.total, whole.total)
    torch.testing.assert_close(small.margins, whole.margins)


def test_shrunk_relus_certify_nothing() -> None:
    net = network("conv")
    terms = Staps(shrink=1.0, relu_shrinkage=0.5).loss(step_of(net))
    assert terms.margins is None
    step = step_of(net)
    bounded = interval_margins(step.model.graph, step.sets(), step.y,
                               propagate(step.model.graph, step.sets(), rounded=False))
    assert bool(terms.parts["ibp"] < robust_cross_entropy(bounded, step.y))


def test_settings_are_checked() -> None:
    for name, value in {"split": 0, "gradient_scale": 0.0, "soft_threshold": 0.0, "combination": "sum",
                        "restarts": 0, "shrink": -0.1}.items():
        with pytest.raises(ValueError, match=name):
            Staps(**{name: value})
