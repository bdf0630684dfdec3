"""The linear programme of a domain against activation-pattern enumeration, scipy and sampling."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

from bounds import crown
from bounds.bounds import LinearRows
from bounds.graph import Graph
from bounds.interval import Interval
from bounds.ops.base import Elementwise
from bounds.ops.conv import conv_of
from bounds.ops.linear import Linear
from bounds.ops.relu import Relu
from bounds.ops.reshape import Reshape
from bounds.sets import InputSet
from milp import Certificate, Planet, Status, UnsafeRows, certified_value
from milp.problem import LinearPrograms, Solutions
from milp.solvers.highs import Highs
from tests.bounds.networks import ACTIVATIONS, KINDS, GraphBuilder, random_box, random_graph, samples

MOST_PATTERNS = 128
SOLVER_ATOL = 1e-7  # of an optimum in a programme whose rows are scaled to size one


def random_rows(graph: Graph, count: int, seed: int, inputs: bool = False) -> UnsafeRows:
    generator = torch.Generator().manual_seed(seed)
    outputs, features = math.prod(graph.output_shape), math.prod(graph.input_shape)
    C = torch.randn(1, count, outputs, generator=generator, dtype=torch.float64)
    D = torch.randn(1, count, features, generator=generator, dtype=torch.float64) if inputs else None
    return UnsafeRows(C, torch.randn(1, count, generator=generator, dtype=torch.float64) * 0.3, D)


def proved(graph: Graph, sets: InputSet) -> dict[int, Interval]:
    nothing = torch.zeros(sets.batch, math.prod(graph.output_shape), dtype=graph.dtype)
    intervals = crown.bound(graph, sets, LinearRows(nothing)).intervals
    return {i: intervals[i] for i in graph.relaxed_inputs}


def least_violation(graph: Graph, sets: InputSet, rows: UnsafeRows, count: int = 400) -> Tensor:
    """The smallest max over the rows that sampling finds, "B"."""
    x = samples(sets, count)
    batch, points = x.shape[:2]
    y = graph(x.flatten(0, 1)).view(batch, points, -1)
    v = torch.einsum("brm,bpm->bpr", rows.C.expand(batch, -1, -1), y) - rows.bound.unsqueeze(1)
    if rows.D is not None:
        v = v + torch.einsum("brn,bpn->bpr", rows.D.expand(batch, -1, -1), x.flatten(2))
    return v.amax(2).amin(1)


# ---------------------------------------------------------------------- the oracle: activation patterns


Pattern = dict[int, Tensor]  # for each ReLU node's input which neurons are active, bool "*shape"


def patterns(graph: Graph, intervals: dict[int, Interval]) -> Iterator[Pattern]:
    """All patterns that the intervals (of one domain) allow."""
    undecided = [(i, k) for i, x in intervals.items()
                 for k in ((x.lower[0] < 0) & (x.upper[0] > 0)).flatten().nonzero().flatten().tolist()]
    for bits in itertools.product((False, True), repeat=len(undecided)):
        pattern = {i: (x.lower[0] >= 0).clone() for i, x in intervals.items()}
        for (i, k), bit in zip(undecided, bits, strict=True):
            pattern[i].view(-1)[k] = bit
        yield pattern


def some_patterns(graph: Graph, sets: InputSet, intervals: dict[int, Interval]) -> tuple[list[Pattern], bool]:
    """All patterns where they are few, otherwise some that occur and some that need not; and whether these are all."""
    first = list(itertools.islice(patterns(graph, intervals), MOST_PATTERNS + 1))
    if len(first) <= MOST_PATTERNS:
        return first, True
    values = graph.values(samples(sets, 60)[0])
    occurring = [{i: values[i][k] > 0 for i in intervals} for k in range(len(values[0]))]
    return first[:20] + occurring, False


def split(intervals: dict[int, Interval], chosen: list[Pattern]) -> dict[int, Interval]:
    """The intervals of one domain, cut to each pattern: a batch."""
    result = {}
    for i, x in intervals.items():
        active = torch.stack([p[i] for p in chosen])
        result[i] = Interval(torch.where(active, x.lower.clamp(min=0), x.lower),
                             torch.where(active, x.upper, x.upper.clamp(max=0)))
    return result


def affine_values(graph: Graph, x: Tensor, pattern: Pattern) -> list[Tensor]:
    """The network with its ReLUs replaced by the pattern's zeros and ones."""
    values: list[Tensor] = [x]
    for node in graph.nodes[1:]:
        if isinstance(node.op, Elementwise):
            values.append(values[node.inputs[0]] * pattern[node.inputs[0]])
        else:
            values.append(node.op.forward(*(values[j] for j in node.inputs)))
    return values


def region_optimum(graph: Graph, sets: InputSet, rows: UnsafeRows, pattern: Pattern) -> float:
    """min of the largest row over the pattern's region, by scipy; inf where the region is empty."""
    features = math.prod(graph.input_shape)
    points = torch.cat([torch.zeros(1, features), torch.eye(features)]).double().view(-1, *graph.input_shape)
    values = affine_values(graph, points, pattern)

    def affine(t: Tensor) -> tuple[np.ndarray, np.ndarray]:
        flat = t.flatten(1)
        return (flat[1:] - flat[0]).T.numpy(), flat[0].numpy()

    A, b = [], []
    for i, active in pattern.items():
        slope, constant = affine(values[i])
        sign = np.where(active.flatten().numpy(), -1.0, 1.0)  # sign z <= 0
        A.append(np.concatenate([sign[:, None] * slope, np.zeros((len(sign), 1))], 1))
        b.append(-sign * constant)
    slope, constant = affine(values[graph.output])
    C = rows.C[0].numpy()
    total = C @ slope + (0 if rows.D is None else rows.D[0].numpy())
    A.append(np.concatenate([total, -np.ones((len(total), 1))], 1))
    b.append(rows.bound[0].numpy() - C @ constant)
    box = [*zip(sets.lower.flatten().tolist(), sets.upper.flatten().tolist(), strict=True), (None, None)]
    answer = linprog([0.0] * features + [1.0], np.concatenate(A), np.concatenate(b), bounds=box, method="highs")
    assert answer.status in (0, 2), "solved or infeasible"
    return float(answer.fun) if answer.status == 0 else math.inf


# ---------------------------------------------------------------------- exact leaves


@pytest.mark.parametrize("kind", ["dense", "residual"])
@pytest.mark.parametrize("seed", range(8))
def test_split_domains_are_solved_exactly(kind: str, seed: int) -> None:
    graph = random_graph(seed, kind, "Relu")
    sets = random_box(graph, seed, 1, 1.0)
    rows = random_rows(graph, 1 + seed % 3, seed, inputs=seed % 2 == 1)
    intervals = proved(graph, sets)
    chosen, are_all = some_patterns(graph, sets, intervals)
    leaves = split(intervals, chosen)
    boxes = InputSet(sets.lower.expand(len(chosen), -1), sets.upper.expand(len(chosen), -1))
    answers = Planet(graph).solve(boxes, leaves, rows)
    values = certified_value(graph, boxes, leaves, rows, answers.certificate)
    expected = torch.tensor([region_optimum(graph, sets, rows, p) for p in chosen], dtype=torch.float64)
    empty = expected.isinf()
    assert torch.equal(answers.status == Status.INFEASIBLE, empty)
    assert torch.allclose(answers.value[~empty], expected[~empty], atol=SOLVER_ATOL)
    assert torch.allclose(values[~empty], expected[~empty], atol=SOLVER_ATOL)
    assert (values[empty] > 0.5).all()
    assert (answers.certificate.weights >= 0).all()
    assert torch.allclose(answers.certificate.weights.sum(1)[~empty], torch.ones(1, dtype=torch.float64))
    if are_all:  # the regions together are the box
        assert (least_violation(graph, sets, rows) >= expected.min() - SOLVER_ATOL).all()


@pytest.mark.parametrize("seed", range(6))
def test_point_of_a_split_domain_attains_the_optimum(seed: int) -> None:
    graph = random_graph(seed, "dense", "Relu")
    sets = random_box(graph, seed, 1, 1.0)
    rows = random_rows(graph, 2, seed, inputs=True)
    intervals = proved(graph, sets)
    chosen, _ = some_patterns(graph, sets, intervals)
    boxes = InputSet(sets.lower.expand(len(chosen), -1), sets.upper.expand(len(chosen), -1))
    answers = Planet(graph).solve(boxes, split(intervals, chosen), rows)
    assert rows.D is not None
    v = graph(answers.x) @ rows.C[0].T - rows.bound + answers.x @ rows.D[0].T
    optimal = answers.status == Status.OPTIMAL
    assert optimal.any()
    assert torch.allclose(v.amax(1)[optimal], answers.value[optimal], atol=SOLVER_ATOL)


def test_splits_alone_suffice_as_constraints() -> None:
    graph = random_graph(3, "dense", "Relu")
    sets = random_box(graph, 3, 1, 1.0)
    rows = random_rows(graph, 2, 3)
    intervals = proved(graph, sets)
    chosen, _ = some_patterns(graph, sets, intervals)
    leaves = split(intervals, chosen)
    boxes = InputSet(sets.lower.expand(len(chosen), -1), sets.upper.expand(len(chosen), -1))
    masks = {i: (x.lower < 0) & (x.upper > 0) for i, x in intervals.items()}
    everything, only_splits = (Planet(graph).solve(boxes, leaves, rows, constrained=c) for c in (None, masks))
    assert torch.allclose(everything.value, only_splits.value, atol=SOLVER_ATOL)
    without = Planet(graph).solve(boxes, leaves, rows, constrained={})
    assert (without.value <= everything.value + SOLVER_ATOL).all()
    assert (without.value < everything.value - 1e-3).any(), "the splits matter in this example"


# ---------------------------------------------------------------------- relaxations


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", [*ACTIVATIONS, "mixed"])
def test_relaxation_is_sound_and_its_certificate_is_worth_the_optimum(kind: str, activation: str) -> None:
    for seed in range(4):
        graph = random_graph(seed, kind, activation)
        sets = random_box(graph, seed, 2, 0.7)
        rows = random_rows(graph, 1 + seed % 3, seed, inputs=seed % 2 == 1)
        intervals = proved(graph, sets)
        answers = Planet(graph).solve(sets, intervals, rows)
        values = certified_value(graph, sets, intervals, rows, answers.certificate)
        assert (answers.status == Status.OPTIMAL).all()
        sampled = least_violation(graph, sets, rows)
        assert (answers.value <= sampled + SOLVER_ATOL).all()
        assert (values <= sampled + SOLVER_ATOL).all()
        # A parameter as steep as several weighted tangents touches higher than they do.
        assert (values >= answers.value - SOLVER_ATOL).all()
        if activation in ("Relu", "LeakyRelu", "PRelu", "Clip", "Relu6"):
            assert torch.allclose(values, answers.value, atol=SOLVER_ATOL)


def test_no_other_certificate_is_better() -> None:
    """Weak duality: random weights, slopes and multipliers stay below the optimum."""
    graph = random_graph(5, "residual", "Relu")
    sets = random_box(graph, 5, 1, 1.0)
    rows = random_rows(graph, 2, 5)
    intervals = proved(graph, sets)
    answers = Planet(graph).solve(sets, intervals, rows)
    best = answers.certificate
    generator = torch.Generator().manual_seed(0)

    def noise(t: Tensor, size: float) -> Tensor:
        return size * torch.randn(t.shape, generator=generator, dtype=torch.float64)

    for k in range(100):
        size = 10.0 ** -(k % 4)
        weights = (best.weights + noise(best.weights, size)).abs()
        other = Certificate(weights / weights.sum(1, keepdim=True),
                            {i: p + noise(p, size) for i, p in best.params.items()},
                            {i: s + noise(s, size) for i, s in best.multipliers.items()})
        value = certified_value(graph, sets, intervals, rows, other)
        assert (value <= answers.value + SOLVER_ATOL).all()


def test_conjunction_needs_a_combination_of_its_rows() -> None:
    """x <= -0.1 and -x <= -0.1 on [-1, 1]: each row holds somewhere, both nowhere."""
    build = GraphBuilder((1,), torch.float64)
    build.add(Linear(torch.eye(1, dtype=torch.float64)))
    graph = build.graph()
    sets = InputSet(-torch.ones(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    rows = UnsafeRows(torch.tensor([[[1.0], [-1.0]]]).double(), torch.tensor([[-0.1, -0.1]]).double())
    answers = Planet(graph).solve(sets, {}, rows)
    assert torch.allclose(answers.value, torch.tensor([0.1]).double())
    assert torch.allclose(answers.certificate.weights, torch.tensor([[0.5, 0.5]]).double())
    assert torch.allclose(certified_value(graph, sets, {}, rows, answers.certificate), answers.value)


def test_branches_of_different_numbers_of_rows_share_a_batch() -> None:
    graph = random_graph(2, "dense", "Relu")
    sets = random_box(graph, 2, 1, 0.5)
    both = InputSet(sets.lower.expand(2, -1), sets.upper.expand(2, -1))
    intervals = proved(graph, sets)
    rows = random_rows(graph, 3, 2)
    present = torch.tensor([[True, True, True], [False, True, False]])
    mixed = UnsafeRows(rows.C.expand(2, -1, -1), rows.bound.expand(2, -1), None, present)
    together = Planet(graph).solve(both, intervals, mixed)
    apart = [Planet(graph).solve(sets, intervals, r).value for r in (
        rows, UnsafeRows(rows.C[:, 1:2], rows.bound[:, 1:2]))]
    assert torch.allclose(together.value, torch.cat(apart), atol=SOLVER_ATOL)
    assert torch.allclose(certified_value(graph, both, intervals, mixed, together.certificate), together.value)


def test_batches_of_domains_equal_single_domains(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = random_graph(7, "conv", "Relu")
    sets = random_box(graph, 7, 5, 0.6)
    rows = random_rows(graph, 2, 7)
    intervals = proved(graph, sets)
    together = Planet(graph).solve(sets, intervals, rows)
    monkeypatch.setattr("milp.planet.FORM_ENTRIES", 1)  # one domain a batch
    apart = Planet(graph).solve(sets, intervals, rows)
    assert torch.allclose(together.value, apart.value, atol=SOLVER_ATOL)
    assert torch.allclose(certified_value(graph, sets, intervals, rows, apart.certificate), apart.value)


def test_fixed_inputs_are_no_variables() -> None:
    """A wide convolution of which two pixels move."""
    build = GraphBuilder((3, 16, 16), torch.float32)
    generator = torch.Generator().manual_seed(0)
    build.add(conv_of(torch.randn(4, 3, 3, 3, generator=generator) * 0.3, torch.randn(4, generator=generator),
                      padding=(1, 1)))
    build.add(Relu())
    build.add(Reshape((4 * 256,)))
    build.add(Linear(torch.randn(2, 1024, generator=generator) * 0.1, torch.zeros(2)))
    graph = build.graph()
    lower = torch.rand(2, 3, 16, 16, generator=generator)
    upper = lower.clone()
    upper.view(2, -1)[:, [300, 301]] += 0.5
    sets = InputSet(lower, upper)
    rows = UnsafeRows(torch.tensor([[[1.0, -1.0]]]), torch.zeros(1, 1))
    intervals = proved(graph, sets)
    answers = Planet(graph).solve(sets, intervals, rows)
    values = certified_value(graph, sets, intervals, rows, answers.certificate)
    assert torch.allclose(values, answers.value, atol=1e-6)
    x = lower + (upper - lower) * torch.rand(50, 1, 3, 16, 16, generator=generator)
    sampled = graph(x.flatten(0, 1)) @ torch.tensor([1.0, -1.0])
    assert (values <= sampled.view(50, 2).amin(0) + 1e-5).all()


def test_tiny_domains_keep_their_accuracy() -> None:
    graph = random_graph(4, "dense", "Relu")
    sets = random_box(graph, 4, 4, 1e-7)
    rows = random_rows(graph, 2, 4)
    intervals = proved(graph, sets)
    answers = Planet(graph).solve(sets, intervals, rows)
    values = certified_value(graph, sets, intervals, rows, answers.certificate)
    assert torch.allclose(values, answers.value, rtol=0, atol=1e-13)
    assert torch.allclose(values, least_violation(graph, sets, rows), rtol=0, atol=1e-12)


@pytest.mark.parametrize("count", [1, 3])
def test_cutoff_ends_early_with_a_certificate_above_it(count: int) -> None:
    ended = 0
    for seed in range(10):
        graph = random_graph(seed, "conv", "Relu")
        sets = random_box(graph, seed, 3, 1.0)
        rows = random_rows(graph, count, seed)
        intervals = proved(graph, sets)
        optimum = Planet(graph).solve(sets, intervals, rows).value
        highest = float(optimum.max())
        for cutoff in (highest - 5.0, highest - 0.5, highest - 0.05, highest + 0.5):
            answers = Planet(graph).solve(sets, intervals, rows, cutoff=cutoff)
            values = certified_value(graph, sets, intervals, rows, answers.certificate)
            cut = answers.status == Status.CUTOFF
            ended += int(cut.sum())
            assert (values >= answers.value - SOLVER_ATOL).all()
            assert (values <= optimum + SOLVER_ATOL).all()
            assert (values[cut] >= cutoff - SOLVER_ATOL).all()
            assert torch.allclose(answers.value[~cut], optimum[~cut], atol=SOLVER_ATOL)
            assert not cut[optimum <= cutoff - SOLVER_ATOL].any()
    assert ended > 0


# ---------------------------------------------------------------------- edges


def test_time_limit_leaves_domains_undecided_with_a_valid_certificate() -> None:
    graph = random_graph(1, "dense", "Relu")
    sets = random_box(graph, 1, 3, 0.5)
    rows = random_rows(graph, 2, 1)
    intervals = proved(graph, sets)
    answers = Planet(graph).solve(sets, intervals, rows, time_limit_s=0.0)
    assert (answers.status == Status.TIME_LIMIT).all()
    assert (answers.value == -math.inf).all()
    values = certified_value(graph, sets, intervals, rows, answers.certificate)
    assert (values <= least_violation(graph, sets, rows) + SOLVER_ATOL).all()
    assert torch.equal(answers.certificate.weights.sum(1), torch.ones(3, dtype=torch.float64)), "no ray"


def test_missing_intervals_are_refused() -> None:
    graph = random_graph(1, "dense", "Relu")
    with pytest.raises(ValueError, match="proved bounds of node"):
        Planet(graph).solve(random_box(graph, 1), {}, random_rows(graph, 1, 1))


def test_rows_of_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="B R m"):
        UnsafeRows(torch.zeros(3, 2), torch.zeros(3))


def test_crossed_bounds_prove_nothing_but_by_their_certificate() -> None:
    """A neuron whose proved bounds cross widely: whatever the solver says, the value is what the multipliers give."""
    graph = random_graph(1, "dense", "Relu")
    sets = random_box(graph, 1, 1, 0.5)
    rows = random_rows(graph, 1, 1)
    intervals = proved(graph, sets)
    i = graph.relaxed_inputs[0]
    x = intervals[i]
    intervals[i] = Interval(x.upper + 1, x.upper + 0.5)
    answers = Planet(graph).solve(sets, intervals, rows)
    assert int(answers.status[0]) != Status.OPTIMAL
    assert not torch.isnan(certified_value(graph, sets, intervals, rows, answers.certificate)).any()


def test_a_solver_that_calls_every_domain_infeasible_empties_none() -> None:
    """Whatever its rays are, domains with points stay open."""
    graph = random_graph(1, "dense", "Relu")
    sets = random_box(graph, 1, 3, 0.5)
    rows, intervals = random_rows(graph, 2, 1), proved(graph, sets)

    class Liar(Highs):
        def solve(self, problem: LinearPrograms, **settings: object) -> Solutions:
            generator = np.random.default_rng(0)
            status = np.full(problem.count, Status.INFEASIBLE, dtype=np.int8)
            return Solutions(status, np.zeros_like(problem.cost), generator.normal(size=problem.row_lower.shape))
    answers = Planet(graph, Liar()).solve(sets, intervals, rows)
    assert (answers.status == Status.FAILED).all() and (answers.value == -math.inf).all()
    values = certified_value(graph, sets, intervals, rows, answers.certificate)
    assert (values <= least_violation(graph, sets, rows) + SOLVER_ATOL).all()


def test_negative_weights_of_rows_count_for_nothing() -> None:
    graph = random_graph(1, "dense", "Relu")
    sets = random_box(graph, 1, 3, 0.5)
    rows, intervals = random_rows(graph, 2, 1), proved(graph, sets)

    def value(first: float, second: float) -> Tensor:
        weights = torch.tensor([[first, second]], dtype=torch.float64).expand(3, -1)
        return certified_value(graph, sets, intervals, rows, Certificate(weights, {}, {}))
    assert torch.equal(value(1.0, -2.0), value(1.0, 0.0)) and torch.equal(value(-3.0, 0.5), value(0.0, 0.5))
    assert torch.equal(value(-1.0, -1.0), torch.zeros(3, dtype=torch.float64))
