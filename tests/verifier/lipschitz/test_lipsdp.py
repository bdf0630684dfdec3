"""LipSDP: between the steepest gradient and the operator norms, whatever the solver says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bounds.graph import UnsupportedOperator
from bounds.ops.leaky_relu import LeakyRelu
from bounds.ops.softplus import Softplus
from tests.bounds.networks import random_graph
from tests.verifier.lipschitz.networks import dense, random_dense, steepest
from verifier.lipschitz import lipsdp as module
from verifier.lipschitz.layers import read_layers
from verifier.lipschitz.lipsdp import MOST_NEURONS, Proposal, condition, lipsdp, propose
from verifier.lipschitz.operator_norms import operator_norm_constant
from verifier.lipschitz.storage import unit_layers
from verifier.verdict import Evidence

ACTIVATIONS = ("Relu", "LeakyRelu", "PRelu", "Sigmoid", "Tanh", "Softplus", "SteepElu", "Clip", "mixed")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_constant_lies_between_gradients_and_norms(activation: str, seed: int) -> None:
    graph = random_graph(seed, "dense", activation)
    neuron, layer = lipsdp(graph), lipsdp(graph, variant="layer")
    assert steepest(graph) <= neuron.value
    assert neuron.value <= layer.value * (1 + 1e-5)
    assert layer.value <= operator_norm_constant(graph).value


@pytest.mark.parametrize("seed", range(4))
def test_what_is_proved_is_what_the_solver_claims_but_for_its_tolerance(seed: int) -> None:
    graph = random_dense(seed, (3, 5, 4, 2))
    unit = unit_layers(read_layers(graph))
    claimed = propose(unit.weights, unit.flattest)
    assert claimed is not None
    assert lipsdp(graph).value == pytest.approx(unit.scale * claimed.claimed ** 0.5, rel=1e-4)


def test_one_hidden_neuron_is_exact() -> None:
    graph = dense([torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0]])])
    assert lipsdp(graph).value == pytest.approx(10.0, rel=1e-6)


def test_rows_have_constants_of_their_own() -> None:
    graph = random_dense(1, (3, 5, 3))
    row = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    found = lipsdp(graph, row=row)
    assert steepest(graph, row) <= found.value <= 2 ** 0.5 * lipsdp(graph).value * (1 + 1e-6)
    assert found.evidence is Evidence.ROUNDED and found.method == "LipSDP-neuron"


@pytest.mark.parametrize("activation", [None, LeakyRelu(0.2)])
def test_units_of_layers_do_not_matter(activation: LeakyRelu | None) -> None:
    graph = random_dense(2, (3, 4, 3, 2), activation)
    weights = [n.op.weight for n in graph.nodes if hasattr(n.op, "weight")]
    other = dense([weights[0] * 2, weights[1] * 3, weights[2] / 6], None, activation)
    assert lipsdp(other).value == pytest.approx(lipsdp(graph).value, rel=1e-5)


@pytest.mark.parametrize("lie", ["nothing", "zero", "little", "huge", "negative", "no numbers", "a small rho"])
def test_a_solver_that_lies_proves_nothing_wrong(monkeypatch: pytest.MonkeyPatch, lie: str) -> None:
    graph = random_dense(4, (3, 6, 5, 2))
    true = propose

    def lying(weights: list[np.ndarray], flattest: list[np.ndarray], **settings: object) -> Proposal | None:
        honest = true(weights, flattest)
        assert honest is not None
        factor = {"nothing": None, "zero": 0.0, "little": 0.5, "huge": 1e9, "negative": -1.0, "no numbers": np.nan,
                  "a small rho": 1.0}[lie]
        if factor is None:
            return None
        return Proposal(tuple(factor * T for T in honest.multipliers), 1e-6)
    monkeypatch.setattr(module, "propose", lying)
    found = lipsdp(graph)
    assert steepest(graph) <= found.value <= operator_norm_constant(graph).value
    if lie == "nothing":
        assert found.value == operator_norm_constant(graph).value and "no less" in found.note


def test_full_multipliers_claim_too_little_and_are_not_offered() -> None:
    # relu(x + 1) - relu(x - 1) has slope 1 on [-1, 1]. With T = (e_1 - e_2)(e_1 - e_2)^T, which the variant "network"
    # allows, T W = 0 and the condition holds with rho = 0.
    W, out = np.array([[1.0], [1.0]]), np.array([[1.0, -1.0]])
    T = np.outer([1.0, -1.0], [1.0, -1.0])
    matrix = np.block([[np.zeros((1, 1)), -0.5 * W.T @ T], [-0.5 * T @ W, T - out.T @ out]])
    assert np.linalg.eigvalsh(matrix)[0] >= 0
    graph = dense([torch.tensor(W), torch.tensor(out)], [torch.tensor([1.0, -1.0]), torch.zeros(1)])
    x = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    assert float(graph(x)[1] - graph(x)[0]) == 2.0
    assert lipsdp(graph).value >= 1.0
    with pytest.raises(ValueError, match="not valid"):
        lipsdp(graph, variant="network")


def test_the_condition_is_the_sum_of_its_quadratic_forms() -> None:
    random = np.random.default_rng(0)
    weights = [random.normal(size=s) for s in ((3, 2), (4, 3), (2, 4))]
    flattest = [random.uniform(-1, 0.9, 3), random.uniform(-1, 0.9, 4)]
    T = [random.random(3), random.random(4)]
    constant, columns = condition(weights, flattest)
    size = len(constant)
    matrix = constant + (columns @ np.concatenate(T)).reshape(size, size)
    x = [random.normal(size=n) for n in (2, 3, 4)]
    expected = -float(np.sum((weights[2] @ x[2]) ** 2))
    for k in range(2):
        z = weights[k] @ x[k]
        expected -= float(((x[k + 1] - flattest[k] * z) * T[k] * (z - x[k + 1])).sum())
    whole = np.concatenate(x)
    assert whole @ matrix @ whole == pytest.approx(expected)


def test_evidence_says_that_a_drop_was_left_out() -> None:
    found = lipsdp(random_dense(0, (2, 3, 1), Softplus(1.0, 20.0)))
    assert found.evidence is Evidence.FLOAT and "drop" in found.note


def test_what_is_too_large_or_not_sequential_is_refused() -> None:
    with pytest.raises(ValueError, match=f"at most {MOST_NEURONS['neuron']} hidden neurons, got 501"):
        lipsdp(random_dense(0, (2, 501, 1)))
    with pytest.raises(UnsupportedOperator, match="Add"):
        lipsdp(random_graph(0, "residual"))
    with pytest.raises(ValueError, match="time_limit_s"):
        lipsdp(random_dense(0, (2, 2, 1)), time_limit_s=0.0)


def test_stored_float32_networks_are_read_exactly() -> None:
    graph = random_dense(3, (3, 4, 2)).to(dtype=torch.float32)
    assert lipsdp(graph).value == pytest.approx(lipsdp(graph.to(dtype=torch.float64)).value, rel=1e-12)
