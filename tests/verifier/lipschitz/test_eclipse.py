"""ECLipsE: valid, no better than LipSDP with a multiplier a neuron, and (fast) no worse than the product of norms."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from bounds.graph import UnsupportedOperator
from bounds.ops.linear import Linear
from tests.bounds.networks import random_graph
from tests.verifier.lipschitz.networks import dense, random_dense, steepest
from verifier.lipschitz import eclipse as module
from verifier.lipschitz.eclipse import eclipse, multipliers
from verifier.lipschitz.layers import read_layers
from verifier.lipschitz.lipsdp import Proposal, lipsdp
from verifier.lipschitz.operator_norms import operator_norm_constant
from verifier.lipschitz.storage import proved_constant, unit_layers
from verifier.verdict import Evidence


@pytest.mark.parametrize("activation", ["Relu", "LeakyRelu", "PRelu", "Sigmoid", "Tanh", "Elu", "Clip", "mixed"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_order_of_the_bounds(activation: str, seed: int) -> None:
    graph = random_graph(seed, "dense", activation)
    fast, full, best = eclipse(graph, fast=True), eclipse(graph), lipsdp(graph)
    assert steepest(graph) <= min(fast.value, full.value)
    assert best.value <= min(fast.value, full.value) * (1 + 1e-5)
    assert full.value <= fast.value
    unit = unit_layers(read_layers(graph))
    unit = replace(unit, flattest=tuple(np.full(len(a), a.min()) for a in unit.flattest))
    product = unit.scale * math.prod(float(np.linalg.norm(W, 2)) for W in unit.weights)
    # Without the clamp at the operator norms: the theorem of the closed form.
    assert proved_constant(unit, multipliers(unit, fast=True)) <= product * (1 + 1e-6)


def test_the_closed_form_is_that_of_the_paper() -> None:
    graph = random_dense(7, (4, 6, 5, 3))
    weights = [n.op.weight.numpy() for n in graph.nodes if isinstance(n.op, Linear)]
    M = np.eye(4)
    for W in weights[:-1]:  # Xi = l I - l^2 W M^{-1} W^T / 4 with l = 2 / ||W M^{-1} W^T||
        G = W @ np.linalg.inv(M) @ W.T
        size = 2 / np.linalg.norm(G, 2)
        M = size * np.eye(len(G)) - size ** 2 * G / 4
    paper = np.linalg.norm(weights[-1] @ np.linalg.inv(M) @ weights[-1].T, 2) ** 0.5
    # The same multipliers, of which the best constant is taken from the end.
    found = eclipse(graph, fast=True).value
    assert steepest(graph) <= found <= paper * (1 + 1e-6)


@pytest.mark.parametrize("fast", [True, False])
def test_units_of_layers_do_not_matter(fast: bool) -> None:
    graph = random_dense(2, (3, 4, 3, 2))
    weights = [n.op.weight for n in graph.nodes if isinstance(n.op, Linear)]
    other = dense([weights[0] * 2, weights[1] * 3, weights[2] / 6])
    assert eclipse(other, fast=fast).value == pytest.approx(eclipse(graph, fast=fast).value, rel=1e-4)


def test_two_layers_are_lipsdp() -> None:
    graph = random_dense(3, (4, 6, 2))
    assert eclipse(graph).value == pytest.approx(lipsdp(graph).value, rel=1e-4)


def test_deep_and_wide_networks_take_the_fast_form() -> None:
    graph = random_dense(0, (20, *(120,) * 8, 5))
    found = eclipse(graph, fast=True)
    assert steepest(graph) <= found.value < operator_norm_constant(graph).value
    assert found.evidence is Evidence.ROUNDED


@pytest.mark.parametrize("factor", [0.0, 1e-3, -1.0, np.nan, 1e12])
def test_a_solver_that_lies_proves_nothing_wrong(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    graph = random_dense(4, (3, 6, 5, 2))

    def lying(weights: list[np.ndarray], flattest: list[np.ndarray], **settings: object) -> Proposal:
        return Proposal(tuple(np.full(len(a), factor) for a in flattest), 1e-3)
    monkeypatch.setattr(module, "propose", lying)
    found = eclipse(graph)
    assert steepest(graph) <= found.value <= operator_norm_constant(graph).value


def test_rows_and_degenerate_layers() -> None:
    graph = random_dense(5, (3, 4, 4, 3))
    row = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
    assert steepest(graph, row) <= eclipse(graph, row=row).value <= 2 ** 0.5 * eclipse(graph).value * (1 + 1e-4)
    dead = dense([torch.zeros(3, 2), torch.ones(2, 3), torch.ones(1, 2)])
    assert 0 <= eclipse(dead, fast=True).value < 1e-100
    linear = dense([torch.tensor([[3.0, 4.0]])])
    assert eclipse(linear).value == pytest.approx(5.0)


def test_what_is_too_large_or_not_sequential_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_NEURONS", 3)
    with pytest.raises(ValueError, match="at most 3 neurons a layer, got 4"):
        eclipse(random_dense(0, (2, 4, 1)))
    assert eclipse(random_dense(0, (2, 4, 1)), fast=True).value > 0
    with pytest.raises(UnsupportedOperator, match="Add"):
        eclipse(random_graph(0, "residual"), fast=True)
    with pytest.raises(ValueError, match="time_limit_s"):
        eclipse(random_dense(0, (2, 2, 1)), time_limit_s=-1.0)
