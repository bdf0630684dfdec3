"""What multipliers prove: never less than the steepest gradient, and as much as the whole matrix inequality says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bounds.graph import Graph
from bounds.ops.leaky_relu import LeakyRelu
from bounds.ops.relu import Relu
from tests.bounds.networks import random_graph
from tests.verifier.lipschitz.networks import random_dense, steepest
from verifier.lipschitz import storage
from verifier.lipschitz.layers import read_layers
from verifier.lipschitz.lipsdp import condition
from verifier.lipschitz.storage import UnitLayers, proved_constant, unit_layers


def least_rho(layers: UnitLayers, multipliers: list[np.ndarray]) -> float:
    """The least rho for which the whole matrix of LipSDP is positive semidefinite, by bisection."""
    constant, columns = condition(layers.weights, layers.flattest)
    size = len(constant)
    base = constant + (columns @ np.concatenate(multipliers)).reshape(size, size)
    corner = np.zeros(size)
    corner[:layers.weights[0].shape[1]] = 1.0
    low, high = 0.0, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if np.linalg.eigvalsh(base + middle * np.diag(corner))[0] >= 0 else (middle, high)
    return high


def generous(layers: UnitLayers, random: np.random.Generator) -> list[np.ndarray]:
    """Multipliers that exceed what their layers need."""
    need = float(np.linalg.norm(layers.weights[-1], 2)) ** 2
    found: list[np.ndarray] = []
    for W, a in zip(reversed(layers.weights[:-1]), reversed(layers.flattest), strict=True):
        found.insert(0, need * (2 + random.random(len(a))) / (1 - a))
        need *= 4 * float(np.linalg.norm(W, 2)) ** 2 / (1 - a.min())
    return found


@pytest.mark.parametrize("seed", range(12))
def test_layer_by_layer_proves_as_much_as_the_whole_matrix(seed: int) -> None:
    op = Relu() if seed % 2 else LeakyRelu(0.2 * (seed % 5) - 0.3)
    layers = unit_layers(read_layers(random_dense(seed, (3, 4, 3, 2)[:3 + seed % 2], op)))
    chosen = generous(layers, np.random.default_rng(seed))
    rho = least_rho(layers, chosen)
    assert rho < 1e5
    found = (proved_constant(layers, chosen) / layers.scale) ** 2
    assert rho * (1 - 1e-9) <= found <= rho * (1 + 1e-6)


@given(st.integers(0, 10**6), st.sampled_from(("Relu", "LeakyRelu", "PRelu", "Sigmoid", "Tanh", "SteepElu", "mixed")),
       st.sampled_from((0.0, 1e-3, 1.0, 1e6)))
def test_no_multipliers_prove_too_little(seed: int, activation: str, size: float) -> None:
    graph = random_graph(seed, "dense", activation)
    layers = unit_layers(read_layers(graph))
    random = np.random.default_rng(seed)
    chosen = [size * random.normal(size=len(a)) for a in layers.flattest]  # half of them negative
    assert proved_constant(layers, chosen) >= steepest(graph) * (1 - 1e-12)


def test_multipliers_that_are_no_numbers_count_as_zero() -> None:
    graph = random_dense(1, (3, 4, 2))
    layers = unit_layers(read_layers(graph))
    for bad in (np.nan, np.inf, -np.inf):
        assert proved_constant(layers, [np.full(4, bad)]) == proved_constant(layers, [np.zeros(4)])
    with pytest.raises(ValueError, match="each of"):
        proved_constant(layers, [np.zeros(3)])


@given(st.integers(0, 10**6), st.sampled_from(("Relu", "PRelu", "Sigmoid", "SteepElu")))
def test_unit_layers_are_the_network_in_other_units(seed: int, activation: str) -> None:
    graph = random_graph(seed, "dense", activation)
    layers = read_layers(graph)
    unit = unit_layers(layers)
    product, bare = np.eye(layers.widths[0]), np.eye(layers.widths[0])
    for k, m in enumerate(layers.maps):
        product, bare = m.matrix.toarray() @ product, unit.weights[k] @ bare
        if k < len(layers.slopes):
            product = layers.slopes[k].steepest[:, None] * product
        if min(m.shape) > 1:
            assert 0.3 < np.linalg.norm(unit.weights[k], 2) < 3
    assert np.allclose(unit.scale * bare, product, rtol=1e-12)
    for a, known in zip(unit.flattest, layers.slopes, strict=True):
        assert (a >= -1).all() and (a * known.steepest <= known.lower + 1e-15).all()


def test_a_network_without_activations_has_its_norm() -> None:
    graph = random_dense(2, (3, 4))
    found = proved_constant(unit_layers(read_layers(graph)), [])
    true = float(torch.linalg.matrix_norm(graph.nodes[1].op.weight, 2))  # type: ignore[attr-defined]
    assert true <= found <= true * (1 + 1e-9)


def test_a_layer_whose_inequality_is_not_proved_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = unit_layers(read_layers(random_dense(1, (3, 4, 2))))
    chosen = generous(layers, np.random.default_rng(0))
    assert proved_constant(layers, chosen) < math.inf
    monkeypatch.setattr(storage, "is_positive_definite", lambda block, error: False)
    assert proved_constant(layers, chosen) == math.inf


def test_a_layer_that_is_too_large_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "MOST_ROWS", 6)
    with pytest.raises(ValueError, match="layer 2 has 4 inputs and 3 neurons"):
        unit_layers(read_layers(random_dense(0, (2, 4, 3, 2))))


def test_a_gradient_of_the_whole_network_bounds_nothing_from_above() -> None:
    graph: Graph = random_dense(5, (3, 6, 6, 2))
    layers = unit_layers(read_layers(graph))
    assert steepest(graph) <= proved_constant(layers, generous(layers, np.random.default_rng(0))) < math.inf
