"""Nearest witnesses: closed forms of linear classifiers, the rational oracle of tiny networks, and the gate."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from bounds.graph import Graph
from bounds.ops.linear import Linear
from bounds.ops.relu import Relu
from bounds.ops.reshape import Reshape
from tests.bounds.networks import GraphBuilder
from tests.verifier.attacks.problems import Linear as LinearModule
from tests.verifier.attacks.problems import linear, reach
from tests.verifier.radius.test_programmes import cases, truth
from tests.verifier.test_oracle import GraphReplayer
from verifier.deadline import Deadline
from verifier.exact import fraction
from verifier.radius.balls import Balls
from verifier.radius.polish import nearer
from verifier.radius.upper import NOTHING, Attacks, Bracket, Nearest, nearest_witnesses
from verifier.verdict import Evidence
from verifier.witness import Witness

NORMS = [math.inf, 2.0, 1.0]
SLACK = 1e-9  # of closed forms in float64
NEAR = 1e-5   # relative: float32 points, and a float32 replay that has to agree


def graph_of(weight: Tensor, bias: Tensor, shape: tuple[int, ...]) -> Graph:
    build = GraphBuilder(shape, torch.float32)
    build.add(Reshape((math.prod(shape),)))
    build.add(Linear(weight, bias))
    return build.graph("linear")


def network(graph: Graph) -> tuple[Graph, Graph, GraphReplayer]:
    return graph, graph.simplify(), GraphReplayer(graph)


def closed_form(weight: Tensor, bias: Tensor, balls: Balls) -> list[float]:
    """The exact distances, by `reach` to every other class, or the target, over the free features."""
    w, b = (t.double().numpy() for t in (weight, bias))
    clip = balls.clip or (-math.inf, math.inf)
    far = []
    for x, label in zip(balls.x.flatten(1).numpy(), balls.label.tolist(), strict=True):
        others = [j for j in range(len(w)) if j != label] if balls.target is None else [balls.target]
        free = balls.free.flatten().numpy()
        far.append(min(reach((w[j] - w[label]) * free, b[j] - b[label] + (w[j] - w[label]) * ~free @ x, x, balls.norm,
                             clip) for j in others))
    return far


def check(found: list[Nearest], balls: Balls, replayer: GraphReplayer) -> None:
    """Every witness replays unsafe, lies at its distance or nearer, in the clip range, and differs on free features."""
    for k, (witness, distance, by) in enumerate(found):
        if witness is None:
            assert (distance, by) == (math.inf, "")
            continue
        y = replayer.run(witness.x[None])[0]
        others = [j for j in range(len(y)) if j != balls.label[k]] if balls.target is None else [balls.target]
        assert max(y[j] for j in others) >= y[balls.label[k]]
        there = torch.from_numpy(witness.x).double()
        moved = (there - balls.x[k]).flatten()
        assert distance >= float(torch.linalg.vector_norm(moved, ord=balls.norm)) * (1 - 1e-14)
        assert distance <= float(torch.linalg.vector_norm(moved, ord=balls.norm)) * (1 + 1e-12)
        assert not bool((moved != 0).view(balls.shape)[~balls.free].any())
        if balls.clip is not None:
            low, high = (fraction(end) for end in balls.clip)
            assert all(low <= fraction(v) <= high for v in there[balls.free].tolist())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", ["plain", "clip", "mask", "target"])
def test_linear_classifiers_are_attacked_up_to_float32(norm: float, kind: str) -> None:
    known = linear(norm, clip=kind == "clip", seed=3)
    model = known.model
    assert isinstance(model, LinearModule)
    weight, bias = model.weight.data, model.bias.data
    keep = torch.ones(len(known.x), dtype=torch.bool)
    settings: dict[str, object] = {"clip": (0.0, 1.0)} if kind == "clip" else {}
    if kind == "mask":
        settings["mask"] = torch.arange(12).view(3, 4) % 3 > 0
    if kind == "target":
        settings["target"], keep = 2, known.label != 2
    balls = Balls(known.x[keep], known.label[keep], norm, **settings)  # type: ignore[arg-type]
    graph = graph_of(weight, bias, (3, 4))
    found = nearest_witnesses(network(graph), balls)
    check(found, balls, GraphReplayer(graph))
    for nearest, far in zip(found, closed_form(weight, bias, balls), strict=True):
        assert nearest.distance >= far * (1 - SLACK)
        assert nearest.distance <= far * (1 + NEAR) or far == math.inf
        assert nearest.evidence is (Evidence.ROUNDED if far < math.inf else Evidence.FLOAT)


@pytest.mark.parametrize("norm", NORMS)
def test_no_witness_is_nearer_than_the_oracle_says(norm: float) -> None:
    name = {math.inf: "inf", 2.0: "2", 1.0: "1"}[norm]
    close = 0
    for graph, x, label in cases("dense", 8):
        balls = Balls(torch.from_numpy(x)[None], torch.tensor([label]), norm)
        found = nearest_witnesses(network(graph), balls, attacks=[("fmn", {"steps": 50}), ("bb", {"steps": 5})])
        check(found, balls, GraphReplayer(graph))
        far, clear = truth(graph, x, label, name)  # as far as it looks
        assert found[0].distance >= far * (1 - SLACK) or found[0].distance > 2.0
        close += bool(clear and found[0].distance < far * (1 + 1e-3))
    assert close >= 2, "some of them are found"


def test_an_unsafe_input_is_its_own_witness() -> None:
    graph = graph_of(torch.eye(2), torch.zeros(2), (2,))
    tie_and_wrong = Balls(torch.tensor([[0.5, 0.5], [0.25, 0.5]]), torch.tensor([0, 0]))
    found = nearest_witnesses(network(graph), tie_and_wrong)
    assert [(n.distance, n.by, n.evidence) for n in found] == [(0.0, "input", Evidence.ROUNDED)] * 2
    check(found, tie_and_wrong, GraphReplayer(graph))


def test_ties_count_as_unsafe() -> None:
    graph = graph_of(torch.eye(2), torch.zeros(2), (2,))
    found = nearest_witnesses(network(graph), Balls(torch.tensor([[0.75, 0.25]]), torch.tensor([0])))
    assert found[0].distance == 0.25


def test_a_target_counts_whatever_class_is_on_top() -> None:
    """Class 2 passes the label long before it passes class 1, which is always on top of it."""
    graph = graph_of(torch.tensor([[-1.0], [1.0], [1.0]]), torch.tensor([2.0, 1.0, 0.0]), (1,))
    balls = Balls(torch.zeros(1, 1), torch.tensor([0]), target=2)
    found = nearest_witnesses(network(graph), balls)
    assert found[0].distance == pytest.approx(1.0, rel=NEAR)
    check(found, balls, GraphReplayer(graph))


def test_where_nothing_can_move_nothing_is_found() -> None:
    graph = graph_of(torch.eye(2), torch.zeros(2), (2,))
    balls = Balls(torch.tensor([[0.75, 0.25]]), torch.tensor([0]), mask=torch.zeros(2, dtype=torch.bool))
    assert nearest_witnesses(network(graph), balls) == [NOTHING]


def test_witnesses_lie_inside_a_range_whose_ends_are_no_floats() -> None:
    """The float32 next to 0.6 lies above it."""
    graph = graph_of(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([0.0, -0.2]), (2,))
    balls = Balls(torch.tensor([[0.5, 0.4]]), torch.tensor([0]), clip=(0.0, 0.6))
    found = nearest_witnesses(network(graph), balls)
    assert found[0].distance == pytest.approx(0.05, rel=NEAR)
    at_the_end = Balls(torch.tensor([[0.5, 0.4]]), torch.tensor([0]), clip=(0.0, 0.6),
                       mask=torch.tensor([True, False]))
    exactly = nearest_witnesses(network(graph), at_the_end)
    check(found, balls, GraphReplayer(graph))
    check(exactly, at_the_end, GraphReplayer(graph))


def test_fixed_features_that_are_no_float32_have_no_witness() -> None:
    graph = graph_of(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.zeros(2), (2,))
    balls = Balls(torch.tensor([[0.1, 0.7]], dtype=torch.float64), torch.tensor([0]), mask=torch.tensor([True, False]))
    assert nearest_witnesses(network(graph), balls) == [NOTHING]


class Stubborn:
    """Gives the label whatever it is shown."""

    def run(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.tile(np.array([1.0, 0.0], np.float32), (len(x), 1))


class Alarmist:
    """Gives the other class whatever it is shown."""

    def run(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.tile(np.array([0.0, 1.0], np.float32), (len(x), 1))


def test_what_the_replay_does_not_confirm_is_no_witness() -> None:
    graph = graph_of(torch.eye(2), torch.zeros(2), (2,))
    balls = Balls(torch.tensor([[0.75, 0.25], [0.0, 1.0]]), torch.tensor([0, 0]))
    assert nearest_witnesses((graph, graph.simplify(), Stubborn()), balls) == [NOTHING, NOTHING]


def test_a_replay_that_always_alarms_brings_nothing_nearer_than_the_real_boundary() -> None:
    graph = graph_of(torch.eye(2), torch.zeros(2), (2,))
    balls = Balls(torch.tensor([[0.75, 0.25]]), torch.tensor([0]))
    found = nearest_witnesses((graph, graph.simplify(), Alarmist()), balls)
    assert found[0].distance >= 0.25


def test_a_tie_of_floats_that_is_none_over_the_reals_is_no_witness() -> None:
    """1 + 2^-60 - 1 is zero in floating point, and positive."""
    graph = graph_of(torch.tensor([[1.0, 2.0**-60], [0.0, 0.0]]), torch.tensor([-1.0, 0.0]), (2,))
    balls = Balls(torch.ones(1, 2), torch.tensor([0]))
    (nearest,) = nearest_witnesses(network(graph), balls)
    assert nearest.distance > 0


def relu_network(seed: int) -> Graph:
    g = torch.Generator().manual_seed(seed)
    build = GraphBuilder((6,), torch.float32)
    build.add(Linear(torch.randn(12, 6, generator=g), torch.randn(12, generator=g)))
    build.add(Relu())
    build.add(Linear(torch.randn(4, 12, generator=g), torch.randn(4, generator=g)))
    return build.graph("relu")


@pytest.mark.parametrize("norm", NORMS)
def test_batched_witnesses_equal_single_ones(norm: float) -> None:
    graph = relu_network(1)
    x = torch.rand(3, 6, generator=torch.Generator().manual_seed(2))
    balls = Balls(x, graph(x).argmax(1), norm, (0.0, 1.0))
    together = nearest_witnesses(network(graph), balls)
    check(together, balls, GraphReplayer(graph))
    for k, nearest in enumerate(together):
        (alone,) = nearest_witnesses(network(graph), balls.take(torch.tensor([k])))
        assert alone.distance == pytest.approx(nearest.distance, rel=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_the_polish_ends_where_nothing_around_is_much_nearer(norm: float) -> None:
    """Of unsafe points drawn close around the witness; where linear pieces meet it may stop a little early."""
    graph = relu_network(3)
    x = torch.rand(4, 6, generator=torch.Generator().manual_seed(4))
    balls = Balls(x, graph(x).argmax(1), norm)
    wide, g = graph.to(dtype=torch.float64), torch.Generator().manual_seed(5)
    for k, nearest in enumerate(nearest_witnesses(network(graph), balls)):
        assert nearest.witness is not None
        around = torch.from_numpy(nearest.witness.x).double() + 1e-4 * torch.randn(4000, 6, generator=g).double()
        y = wide(around)
        unsafe = y.argmax(1) != balls.label[k]
        far = torch.linalg.vector_norm(around[unsafe] - balls.x[k], ord=norm, dim=1)
        assert float(far.min()) >= nearest.distance * (1 - 1e-4)


def test_attacks_of_the_callers_choice_are_named_as_what_found_the_point() -> None:
    graph = relu_network(1)
    x = torch.rand(3, 6, generator=torch.Generator().manual_seed(2))
    balls = Balls(x, graph(x).argmax(1))
    attacks: Attacks = [("fmn", {"steps": 30}), ("fab-t", {"steps": 5})]
    told: list[tuple[int, int]] = []
    found = nearest_witnesses(network(graph), balls, attacks=attacks, progress=lambda *at: told.append(at))
    assert {n.by for n in found} <= {"fmn", "fab-t"} and told == [(0, 2), (1, 2)]


def test_after_the_deadline_only_unsafe_inputs_are_told() -> None:
    graph = graph_of(torch.eye(2), torch.zeros(2), (2,))
    balls = Balls(torch.tensor([[0.75, 0.25], [0.0, 1.0]]), torch.tensor([0, 0]))
    found = nearest_witnesses(network(graph), balls, deadline=Deadline.starting_now(1e-9))
    assert [n.distance for n in found] == [math.inf, 0.0]


def test_the_bracket_closes_on_a_root_from_the_unsafe_side() -> None:
    kinked = [lambda s: 1 - 4 * s, lambda s: (0.1 - s).clamp(min=-1e-3), lambda s: 0.5 - s**9]
    one = torch.ones(3, dtype=torch.float64)

    def value(s: Tensor, on: Tensor) -> Tensor:
        return torch.stack([kinked[k](v) for v, k in zip(s, on.tolist(), strict=True)])

    everyone = torch.arange(3)
    found = Bracket(0 * one, value(0 * one, everyone), one, value(one, everyone)).root(value)
    assert bool((value(found, everyone) <= 0).all())
    assert found.tolist() == pytest.approx([0.25, 0.1, 0.5 ** (1 / 9)], rel=1e-9)


@pytest.mark.parametrize(("change", "says"), [
    ({"x": torch.zeros(1, 3)}, "inputs have shape"), ({"label": torch.tensor([2])}, "must be classes"),
    ({"target": 5}, "must be classes"),
])
def test_wrong_use_is_told(change: dict[str, object], says: str) -> None:
    graph = graph_of(torch.eye(2), torch.zeros(2), (2,))
    given = {"x": torch.tensor([[0.75, 0.25]]), "label": torch.tensor([0]), **change}
    with pytest.raises(ValueError, match=says):
        nearest_witnesses(network(graph), Balls(**given))  # type: ignore[arg-type]


def test_a_witness_that_rounding_took_out_of_the_range_proves_nothing_over_the_reals() -> None:
    """Unsafe is what lies above 0.1 alone, as the float32 nearest to 0.1 does."""
    above = np.array([0.1], np.float32)
    graph = graph_of(torch.tensor([[0.0], [8.0]]), torch.tensor([-5e-9, -8 * float(above[0])]), (1,))
    ball = Balls(torch.tensor([[0.05]]), torch.tensor([0]), clip=(0.0, 0.1))
    witness = Witness(above, np.zeros(2, np.float32), 0, 0.0, 1.5e-9, True)
    found = nearer(network(graph), ball, witness, "given", Deadline())
    assert found.witness is not None and found.evidence is Evidence.FLOAT
