"""The exact local constant: equal to the enumeration of all patterns, and a valid bracket whenever it stops."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bounds.graph import UnsupportedOperator
from bounds.ops.leaky_relu import LeakyRelu
from bounds.ops.linear import Linear
from bounds.ops.relu import Relu
from bounds.sets import InputSet
from milp.problem import LinearPrograms, Solutions, Status
from tests.bounds.networks import random_box, random_graph
from tests.verifier.lipschitz.networks import DUAL, dense, exact_by_patterns, jacobians, random_dense
from verifier.deadline import Deadline
from verifier.lipschitz import exact as module
from verifier.lipschitz.exact import exact_local
from verifier.lipschitz.operator_norms import operator_norm_constant
from verifier.verdict import Evidence

NORMS = (1.0, 2.0, math.inf)
FIRST = torch.tensor([1.0, -0.5], dtype=torch.float64)


def box(low: list[float], high: list[float]) -> InputSet:
    return InputSet(torch.tensor([low], dtype=torch.float64), torch.tensor([high], dtype=torch.float64))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("left", [0.0, 0.3, -0.5, 1.7])
@pytest.mark.parametrize("seed", range(3))
def test_the_constant_is_the_steepest_of_all_patterns(seed: int, left: float, norm: float) -> None:
    graph = random_dense(seed, (3, 4, 3, 2), Relu() if left == 0 else LeakyRelu(left))
    sets = random_box(graph, seed, radius=(0.2, 1.0, 5.0)[seed % 3])
    found = exact_local(graph, sets, FIRST, norm=norm)
    true = exact_by_patterns(graph, sets, FIRST, norm, left=left)
    assert found.complete and found.evidence is Evidence.ROUNDED
    assert found.lower <= true * (1 + 1e-12)
    assert found.upper >= true * (1 - 1e-12)
    assert found.upper <= true * (1 + 1e-6) + 1e-200


@given(st.integers(0, 10**6), st.sampled_from(("Relu", "LeakyRelu", "PRelu")), st.sampled_from(NORMS))
def test_no_sampled_gradient_exceeds_the_upper_end(seed: int, activation: str, norm: float) -> None:
    graph = random_graph(seed, "dense", activation)
    sets = random_box(graph, seed)
    row = torch.randn(graph.output_shape[0], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = torch.lerp(sets.lower, sets.upper, torch.rand(200, *graph.input_shape, dtype=torch.float64,
                                                      generator=torch.Generator().manual_seed(seed)))
    gradients = (row @ jacobians(graph, x))[:, (sets.lower < sets.upper)[0]]
    sampled = float(torch.linalg.vector_norm(gradients, ord=DUAL[norm], dim=1).max())
    found = exact_local(graph, sets, row, norm=norm)
    assert sampled <= found.upper * (1 + 1e-12)
    assert found.upper <= operator_norm_constant(graph, norm_in=norm, row=row).value * (1 + 1e-9)


def test_the_bracket_is_valid_whenever_the_time_ends() -> None:
    graph = random_dense(1, (3, 10, 8, 2))
    sets = box([-2.0] * 3, [2.0] * 3)
    whole = exact_local(graph, sets, FIRST)
    assert whole.complete
    for limit in (1e-9, 0.02, 0.1):
        part = exact_local(graph, sets, FIRST, deadline=Deadline.starting_now(limit))
        assert part.lower <= whole.upper and part.upper >= whole.lower
    first = exact_local(graph, sets, FIRST, deadline=Deadline.starting_now(1e-9))
    assert not first.complete and first.upper > whole.upper


def test_splitting_a_box_splits_the_constant() -> None:
    graph = random_dense(6, (2, 6, 5, 2))
    whole = exact_local(graph, box([-1.0, -1.0], [1.0, 1.0]), FIRST)
    halves = [exact_local(graph, box([a, -1.0], [b, 1.0]), FIRST) for a, b in ((-1.0, 0.1), (0.1, 1.0))]
    assert max(h.upper for h in halves) == pytest.approx(whole.upper, rel=1e-9)


def test_units_of_layers_do_not_matter() -> None:
    graph = random_dense(2, (3, 4, 4, 2))
    linears = [n.op for n in graph.nodes if isinstance(n.op, Linear)]
    weights, biases = [op.weight for op in linears], [op.bias for op in linears]
    assert all(b is not None for b in biases)
    other = dense([weights[0] * 2, weights[1], weights[2] / 2],
                  [biases[0] * 2, biases[1] * 2, biases[2]])  # type: ignore[operator, list-item]
    sets = random_box(graph, 0)
    assert exact_local(other, sets, FIRST).upper == pytest.approx(exact_local(graph, sets, FIRST).upper, rel=1e-9)


def test_features_that_do_not_move_take_no_part() -> None:
    graph = dense([torch.tensor([[1.0, 100.0]]), torch.tensor([[1.0]])])
    row = torch.ones(1, dtype=torch.float64)
    found = exact_local(graph, box([-1.0, 0.5], [1.0, 0.5]), row)
    assert found.lower == pytest.approx(1.0) and found.upper == pytest.approx(1.0)
    still = exact_local(graph, box([0.0, 0.5], [0.0, 0.5]), row)
    assert still.upper == 0.0 and still.complete


def test_a_constant_that_is_known_by_hand() -> None:
    # |x_0| + relu(x_1): gradient (+-1, 0 or 1).
    graph = dense([torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]), torch.ones(1, 3)])
    row = torch.ones(1, dtype=torch.float64)
    for norm, both in ((math.inf, 2.0), (2.0, 2 ** 0.5), (1.0, 1.0)):
        assert exact_local(graph, box([-1.0, -1.0], [1.0, 1.0]), row, norm=norm).upper == pytest.approx(both)
        assert exact_local(graph, box([-1.0, -1.0], [1.0, -0.1]), row, norm=norm).upper == pytest.approx(1.0)


def test_kinks_that_meet_may_leave_a_gap_but_never_a_wrong_end() -> None:
    # relu(x) - relu(-x) = x; the pattern in which both neurons are active holds at 0 only, and has slope 2.
    graph = dense([torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0, -1.0]])])
    found = exact_local(graph, box([-1.0], [1.0]), torch.ones(1, dtype=torch.float64))
    assert found.complete
    assert found.lower == pytest.approx(1.0) and 1.0 <= found.upper <= 2.0 * (1 + 1e-9)
    assert (found.upper > 1.5) == bool(found.note)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("lie", ["infeasible", "nothing", "random", "no room"])
def test_a_solver_that_lies_prunes_nothing(monkeypatch: pytest.MonkeyPatch, lie: str, seed: int) -> None:
    class Liar:
        def solve(self, problem: LinearPrograms, **settings: object) -> Solutions:
            random = np.random.default_rng(0)
            rows = len(problem.row_lower)
            dual = {"infeasible": np.full(rows, 1e9), "nothing": np.zeros(rows), "random": random.normal(size=rows)}
            point = random.uniform(-9, 9, size=problem.cost.shape)
            if lie == "no room":
                point[:, -1] = -1.0
            return Solutions(np.array([Status.INFEASIBLE], dtype=np.int8), point, dual.get(lie, dual["nothing"]))
    graph = random_dense(seed, (3, 4, 4, 2))
    sets = random_box(graph, seed, radius=2.0)
    true = exact_by_patterns(graph, sets, FIRST, math.inf)
    monkeypatch.setattr(module, "Highs", Liar)
    found = exact_local(graph, sets, FIRST)
    assert found.lower <= true * (1 + 1e-12) and found.upper >= true * (1 - 1e-12)


def test_float32_networks_that_were_simplified_stay_proved() -> None:
    graph = replace(random_dense(3, (3, 5, 4, 2)), source="net").to(dtype=torch.float32)
    sets = random_box(graph, 1)
    stored, folded = (exact_local(g, sets, FIRST) for g in (graph, graph.simplify()))
    assert stored.upper == pytest.approx(folded.upper, rel=1e-6)
    assert stored.lower <= folded.upper and folded.lower <= stored.upper


def test_what_is_not_asked_for_rightly_is_refused() -> None:
    graph = random_dense(0, (2, 3, 2))
    sets = box([0.0, 0.0], [1.0, 1.0])
    ball = InputSet(sets.lower, sets.upper, sets.lower, torch.ones(1, dtype=torch.float64), 2.0)
    for bad, message in ((ball, "with a ball"), (box([0.0], [1.0]), "one box of shape")):
        with pytest.raises(ValueError, match=message):
            exact_local(graph, bad, FIRST)
    with pytest.raises(ValueError, match="norm must be"):
        exact_local(graph, sets, FIRST, norm=3.0)
    with pytest.raises(ValueError, match="one row"):
        exact_local(graph, sets, torch.eye(2))
    with pytest.raises(UnsupportedOperator, match="Tanh"):
        exact_local(random_graph(0, "dense", "Tanh"), random_box(random_graph(0, "dense", "Tanh"), 0),
                    torch.ones(random_graph(0, "dense", "Tanh").output_shape[0]))


@pytest.mark.parametrize("left", [0.0, 0.3, -0.5, 1.7])
@pytest.mark.parametrize("ends", [(-1.0, 2.0), (-3.0, 0.5), (-1e-9, 1.0), (0.0, 1.0), (-1.0, 0.0)])
def test_an_activation_lies_between_its_parallel_lines(left: float, ends: tuple[float, float]) -> None:
    graph = dense([torch.ones(1, 1), torch.ones(1, 1)], None, LeakyRelu(left))
    network = module._Network.read(graph, box([ends[0]], [ends[1]]), torch.ones(1, dtype=torch.float64), math.inf)
    z = network.next(network.inputs, 0)
    for sign, low, high in ((0, *ends), (1, max(ends[0], 0.0), ends[1]), (-1, ends[0], min(ends[1], 0.0))):
        lines = network.passed(z, 0, np.array([sign], dtype=np.int8), np.array([ends[0]]), np.array([ends[1]]))
        x = np.unique([*np.linspace(low, high, 41), *([0.0] if low < 0 < high else [])])
        v = (x - z.b[0]) / z.A[0, 0]
        y = np.where(x >= 0, x, left * x)
        off = np.abs(y - (lines.A[0, 0] * v + lines.b[0]))
        assert (off <= lines.loose + lines.wrong + 1e-15).all()
        if sign == 0 and ends[0] < 0 < ends[1]:
            assert off.max() >= lines.loose[0] * (1 - 1e-9)
        else:
            assert lines.loose[0] < 1e-15
