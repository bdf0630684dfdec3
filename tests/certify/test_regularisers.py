"""Tight and balanced intervals, measured by hand on a layer or two."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bounds.graph import Graph
from bounds.interval import Interval
from certify.regularisers import activations, balance, strength, tightness
from tests.certify.cases import network, step_of


def one_relu() -> Graph:
    return Graph.from_torch(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), (2,))


def intervals_of(lower: list[float], upper: list[float], radius: float = 1.0) -> tuple[Graph, list[Interval]]:
    """One ReLU whose input has these ends; the input of the network has `radius`."""
    graph = one_relu()
    (before,) = activations(graph)
    intervals = [Interval(torch.zeros(1, *n.shape), torch.zeros(1, *n.shape)) for n in graph.nodes]
    intervals[0] = Interval(torch.full((1, 2), -radius), torch.full((1, 2), radius))
    intervals[before] = Interval(torch.tensor([lower]), torch.tensor([upper]))
    return graph, intervals


@pytest.mark.parametrize(("radius", "expected"), [(1.0, 0.0), (2.0, 0.0), (4.0, 0.5), (1e9, 1.0)])
def test_intervals_may_grow_twice(radius: float, expected: float) -> None:
    found = tightness(*intervals_of([-radius] * 4, [radius] * 4))
    torch.testing.assert_close(found, torch.tensor(expected))


def test_balance_of_a_layer() -> None:
    # centres 1, 3, -2, 0; two active, one inactive, one neither
    graph, intervals = intervals_of([0.5, 1.0, -3.0, -1.0], [1.5, 5.0, -1.0, 1.0])
    size, spread = 2 / 4, 2.5**2 / (0.5**2 + 2.5**2)  # about the mean 0.5
    expected = (max(0.0, 0.5 - size) + max(0.0, 0.5 - spread)) / 0.5
    torch.testing.assert_close(balance(graph, intervals), torch.tensor(expected))
    # centres 1, 7, -2, 0
    graph, intervals = intervals_of([0.5, 1.0, -3.0, -1.0], [1.5, 13.0, -1.0, 1.0])
    size, spread = 2 / 8, 3.5**2 / (0.5**2 + 5.5**2)
    torch.testing.assert_close(balance(graph, intervals), torch.tensor((1 - size - spread) / 0.5))
    mirrored = [Interval(-i.upper, -i.lower) for i in intervals]
    torch.testing.assert_close(balance(graph, mirrored), balance(graph, intervals))


def test_a_layer_all_on_one_side_is_least_balanced_and_an_unstable_one_is_left_out() -> None:
    for lower, upper, expected in (([1.0, 2.0, 3.0, 4.0], [2.0, 3.0, 4.0, 5.0], 2.0),
                                   ([-5.0, -4.0, -3.0, -2.0], [-4.0, -3.0, -2.0, -1.0], 2.0),
                                   ([-1.0, -2.0, -3.0, -4.0], [2.0, 3.0, 4.0, 5.0], 0.0)):
        graph, intervals = intervals_of(lower, upper)
        ends = [Interval(i.lower.requires_grad_(), i.upper.requires_grad_()) for i in intervals]
        value = balance(graph, ends)
        torch.testing.assert_close(value.detach(), torch.tensor(expected))
        value.backward()
        grads: list[Tensor] = [e.lower.grad for e in ends if e.lower.grad is not None]
        assert grads and all(bool(torch.isfinite(g).all()) for g in grads)


def test_a_network_without_activations_has_no_penalty() -> None:
    graph = Graph.from_torch(nn.Sequential(nn.Linear(2, 2)).eval(), (2,))
    intervals = [Interval(-torch.ones(1, 2), torch.ones(1, 2))] * len(graph.nodes)
    assert float(tightness(graph, intervals)) == 0 and float(balance(graph, intervals)) == 0


def test_smooth_activations_are_kept_tight_but_have_no_sides() -> None:
    graph = Graph.from_torch(nn.Sequential(nn.Linear(2, 4), nn.Sigmoid(), nn.ReLU(), nn.Linear(4, 2)).eval(), (2,))
    assert len(activations(graph)) == 2 and len(activations(graph, kinked=True)) == 1


@pytest.mark.parametrize(("eps", "expected"), [(0.0, 0.0), (0.025, 0.375), (0.075, 0.125), (0.1, 0.0)])
def test_the_weight_falls_while_the_radius_grows(eps: float, expected: float) -> None:
    assert strength(0.5, step_of(network("mlp"), eps=eps, target_eps=0.1)) == pytest.approx(expected)
