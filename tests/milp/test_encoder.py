"""The mixed-integer encoding: every operator on numbers and as rows, and optima against an exact oracle."""

from __future__ import annotations

import math
from fractions import Fraction
from types import SimpleNamespace

import highspy
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from bounds.backward import Backward
from bounds.graph import Graph, UnsupportedOperator
from bounds.intermediate import refine
from bounds.interval import Interval
from bounds.ops.base import Affine
from bounds.ops.clip import Clip
from bounds.ops.leaky_relu import LeakyRelu
from bounds.ops.linear import Linear
from bounds.ops.max_pool import MaxPool
from bounds.ops.prelu import PRelu
from bounds.ops.relu import Relu
from bounds.ops.sign import Sign
from bounds.sets import InputSet, LpBall
from milp.affine_matrix import affine_matrices
from milp.certificate import UnsafeRows
from milp.encoder import Encoding
from milp.encoders.form import Form
from milp.mixed import MixedProgram, MixedStatus
from milp.questions import extreme, least_margin, meets, nearest
from milp.solvers import mixed_solver
from milp.solvers.highs_mixed import HighsMixed, _answer
from tests.bounds.networks import KINDS, GraphBuilder, random_box, random_graph
from tests.verifier.test_oracle import draw_graph, draw_property
from verifier.property import Branch, Row

ATOL = 1e-5
SOLVER = HighsMixed()


def proved(graph: Graph, sets: InputSet) -> dict[int, Interval]:
    engine = Backward(graph, sets)
    refine(engine, row_bound=engine.lower)
    return {i: engine.intervals[i] for i in graph.relaxed_inputs}


def held_at(graph: Graph, sets: InputSet, x: Tensor) -> None:
    """With the input fixed, the network's values satisfy the rows, and nothing else does."""
    intervals = proved(graph, sets)
    y = graph(x).flatten()
    for sign in (1.0, -1.0):
        for k in range(min(3, len(y))):
            encoding = Encoding(graph, sets, intervals)
            form = encoding.output
            out = int(encoding.hold(Form(form.matrix[[k]], form.constant[[k]]), np.array([-1e6]), np.array([1e6]))[0])
            program = encoding.rows.program({out: sign})
            v = encoding.start(x)
            assert is_a_point_of(program, v)
            assert v[out] == pytest.approx(float(y[k]), abs=ATOL * (1 + abs(float(y[k]))))
            program.lower[encoding.inputs] = program.upper[encoding.inputs] = x.flatten().numpy()
            answer = SOLVER.solve(program)
            assert answer.status is MixedStatus.OPTIMAL
            assert sign * answer.value == pytest.approx(float(y[k]), abs=ATOL * (1 + abs(float(y[k]))))


def is_a_point_of(program: MixedProgram, v: NDArray[np.float64]) -> bool:
    """Whether all columns keep to their ends and all rows to theirs."""
    reached = program.rows @ v
    whole = np.isin(v[program.integer], (0.0, 1.0)).all()
    return bool(whole and (program.lower <= v).all() and (v <= program.upper).all()
                and (reached >= program.row_lower - 1e-9).all() and (reached <= program.row_upper + 1e-9).all())


OPERATORS = {
    "Relu": Relu(), "LeakyRelu": LeakyRelu(0.1), "steep": LeakyRelu(2.0), "negative": LeakyRelu(-0.5),
    "PRelu": PRelu(torch.tensor([0.25, -0.5, 1.0, 3.0]).double()), "Clip": Clip(-0.25, 0.5), "Clip low": Clip(0.25),
    "Clip high": Clip(high=-0.25), "ReLU6": Clip(0.0, 6.0), "Sign": Sign(),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_is_its_encoding(name: str) -> None:
    """Intervals on each side of the kinks, across one, across both; values at the ends, at kinks and between."""
    for low, high in ((-1.0, 1.0), (-2.0, -0.5), (-0.2, -0.1), (0.6, 2.0), (0.1, 0.2), (-0.3, 0.1), (-0.25, 0.5),
                      (0.0, 1.0), (-1.0, 0.0)):
        build = GraphBuilder((4,), torch.float64)
        build.add(Linear(torch.eye(4).double(), torch.zeros(4).double()))
        build.add(OPERATORS[name])
        graph = build.graph(name)
        sets = InputSet(torch.full((1, 4), low).double(), torch.full((1, 4), high).double())
        middle = (low + high) / 2 or 0.125
        points = [low, high, middle, *(k for k in (-0.25, 0.0, 0.25, 0.5) if low <= k <= high)]
        others = [low, high, middle]
        if name == "Sign":  # at zero its rows allow all three values
            points, others = [v or middle for v in points], [v or middle for v in others]
        for first in points:
            held_at(graph, sets, torch.tensor([[first, *others]]).double())


@pytest.mark.parametrize("settings", [((2, 2), (2, 2), (0, 0), (1, 1)), ((2, 2), (1, 1), (1, 1), (1, 1)),
                                      ((3, 2), (2, 1), (1, 0), (1, 1))])
def test_max_pools_are_their_encoding(settings: tuple[tuple[int, int], ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    build = GraphBuilder((2, 3, 4), torch.float64)
    build.add(MaxPool(*settings))
    graph = build.graph("pool")
    centre = torch.randn(1, 2, 3, 4, generator=generator).double()
    sets = InputSet(centre - 0.7, centre + 0.7)
    for _ in range(4):
        held_at(graph, sets, centre + (torch.rand(centre.shape, generator=generator).double() * 2 - 1) * 0.7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ["Relu", "LeakyRelu", "Clip"])
@pytest.mark.parametrize("seed", range(2))
def test_whole_networks_are_their_encoding(kind: str, activation: str, seed: int) -> None:
    graph = random_graph(seed, kind, activation)
    if any(not isinstance(n.op, Affine | Relu | LeakyRelu | Clip | MaxPool) for n in graph.nodes[1:]):
        pytest.skip("a kind of network with other operators")
    sets = random_box(graph, seed)
    generator = torch.Generator().manual_seed(seed)
    t = torch.rand(sets.lower.shape, generator=generator, dtype=torch.float64)
    held_at(graph, sets, sets.lower + t * (sets.upper - sets.lower))


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_of_affine_operators(kind: str) -> None:
    graph = random_graph(1, kind, "Relu")
    generator = torch.Generator().manual_seed(0)
    for node in graph.nodes[1:]:
        if isinstance(node.op, Affine):
            shapes = [graph.nodes[j].shape for j in node.inputs]
            matrices, constant = affine_matrices(node.op, shapes)
            x = [torch.randn(1, *s, generator=generator, dtype=torch.float64) for s in shapes]
            got = constant + sum(m @ v.flatten().numpy() for m, v in zip(matrices, x, strict=True))
            np.testing.assert_allclose(got, node.op.forward(*x).flatten().numpy(), atol=1e-9)


# ---------------------------------------------------------------------- questions


def asked(graph: Graph, branch: Branch) -> tuple[InputSet, UnsafeRows]:
    region = branch.region
    sets = InputSet(*(torch.tensor([[float(v) for v in ends]], dtype=torch.float64).view(1, *graph.input_shape)
                      for ends in (region.exact_lower, region.exact_upper)))
    m, n = math.prod(graph.output_shape), math.prod(graph.input_shape)
    C, D = torch.zeros(1, len(branch.rows), m).double(), torch.zeros(1, len(branch.rows), n).double()
    for r, row in enumerate(branch.rows):
        for i, c in row.y:
            C[0, r, i] += float(c)
        for j, c in row.x:
            D[0, r, j] += float(c)
    return sets, UnsafeRows(C, torch.tensor([[float(row.bound) for row in branch.rows]]).double(), D)


@pytest.mark.parametrize("kind", ["dense", "residual", "conv", "pooling"])
@pytest.mark.parametrize("seed", range(8))
def test_margins_are_those_of_the_rational_oracle(kind: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    graph = draw_graph(random, kind).simplify()
    prop, truths = draw_property(random, graph)
    for branch in prop.branches:
        sets, rows = asked(graph, branch)
        true = float(truths[branch.region].margin(branch.rows))
        found = least_margin(graph, sets, proved(graph, sets), rows, SOLVER)
        assert found.answer.status is MixedStatus.OPTIMAL and found.x is not None
        assert found.answer.value == pytest.approx(true, abs=ATOL)
        assert found.answer.bound <= true + ATOL
        sign = least_margin(graph, sets, proved(graph, sets), rows, SOLVER, below=0.0, above=0.0).answer
        assert sign.bound <= true + ATOL and sign.value >= true - ATOL
        if abs(true) > ATOL:
            assert (sign.value <= 0) if true < 0 else (sign.bound > 0)


@pytest.mark.parametrize("solver", ["highs", "cbc"])
@pytest.mark.parametrize("kind", ["dense", "residual", "conv", "pooling"])
@pytest.mark.parametrize("seed", range(3))
def test_reachable_outputs_are_those_of_the_rational_oracle(kind: str, solver: str, seed: int) -> None:
    random = np.random.default_rng(70 + seed)
    graph = draw_graph(random, kind).simplify()
    prop, truths = draw_property(random, graph)
    truth = truths[prop.branches[0].region]
    sets, _ = asked(graph, prop.branches[0])
    for k in range(2):
        for largest in (False, True):
            sign = Fraction(-1 if largest else 1)
            true = float(truth.minimum(Row(((k, sign),), (), Fraction(0))))
            found = extreme(graph, sets, proved(graph, sets), k, mixed_solver(solver), largest=largest)
            assert found.answer.status is MixedStatus.OPTIMAL and found.x is not None
            assert found.answer.value == pytest.approx(true, abs=ATOL) and found.answer.bound <= true + ATOL
            assert float(graph(found.x.unsqueeze(0)).flatten()[k]) == pytest.approx(float(sign) * true, abs=ATOL)


@pytest.mark.parametrize(("norm", "solver"), [("inf", "highs"), ("1", "highs"), ("inf", "cbc"), ("1", "cbc"),
                                               ("2", "scip")])
@pytest.mark.parametrize("kind", ["dense", "residual", "conv", "pooling"])
@pytest.mark.parametrize("seed", range(3))
def test_distances_are_those_of_the_rational_oracle(kind: str, norm: str, solver: str, seed: int) -> None:
    if solver == "scip":
        pytest.importorskip("pyscipopt")
    chosen = mixed_solver(solver)
    random = np.random.default_rng(50 + seed)
    graph = draw_graph(random, kind).simplify()
    prop, truths = draw_property(random, graph)
    for branch in prop.branches:
        sets, rows = asked(graph, branch)
        x = sets.centre_point[0]
        far = truths[branch.region].distance(branch.rows, [Fraction(v) for v in x.flatten().tolist()], norm)
        if abs(truths[branch.region].margin(branch.rows)) < ATOL:
            continue  # a solver's tolerance decides whether any point counts
        found = nearest(graph, sets, proved(graph, sets), rows, x, norm, chosen)  # type: ignore[arg-type]
        if far == math.inf:
            assert found.answer.status is MixedStatus.INFEASIBLE
            continue
        assert found.answer.status is MixedStatus.OPTIMAL and found.x is not None
        close = 1e-3 if norm == "2" else 10 * ATOL  # of squares a millionth
        assert found.answer.value == pytest.approx(far, abs=close) and found.answer.bound <= far + close
        moved = (found.x - x).flatten()
        order = {"inf": math.inf, "1": 1.0, "2": 2.0}[norm]
        assert float(moved.norm(order)) == pytest.approx(found.answer.value, abs=close)
        assert meets(graph, sets, proved(graph, sets), rows, chosen).answer.status is MixedStatus.OPTIMAL


def test_a_margin_over_an_l1_ball() -> None:
    """A linear network against the closed form; a bent one against samples and at the point that was found."""
    generator = torch.Generator().manual_seed(0)
    centre = torch.rand(1, 4, generator=generator).double()
    ball = LpBall(centre, 0.5, p=1.0, scale=torch.tensor([[1.0, 2.0, 0.5, 1.0]]).double(), clip=(0.1, 0.9))
    build = GraphBuilder((4,), torch.float64)
    build.add(Linear(torch.randn(2, 4, generator=generator).double()))
    graph = build.graph("linear")
    weight = graph.nodes[1].op.weight  # type: ignore[attr-defined]
    for k in range(2):
        found = extreme(graph, ball, {}, k, SOLVER)
        assert found.answer.value == pytest.approx(float(ball.minimise(weight[k:k + 1])), abs=ATOL)
    for seed in range(4):
        graph = random_graph(seed, "dense", "Relu")
        x = torch.randn(1, *graph.input_shape, generator=generator).double()
        ball = LpBall(x, 0.6, p=1.0)
        box = InputSet(x - 0.6, x + 0.6)
        found = extreme(graph, ball, proved(graph, box), 0, SOLVER)
        assert found.x is not None and float((found.x - x[0]).abs().sum()) <= 0.6 + ATOL
        assert float(graph(found.x.unsqueeze(0)).flatten()[0]) == pytest.approx(found.answer.value, abs=ATOL)
        samples = ball.sample(2000, generator)[0]
        assert found.answer.value <= float(graph(samples).flatten(1)[:, 0].min()) + ATOL


@pytest.mark.parametrize("outcome", [o for o in highspy.HighsModelStatus.__members__.values()
                                     if o.name not in ("kOptimal", "kTimeLimit", "kInterrupt", "kObjectiveTarget",
                                                       "kInfeasible")], ids=lambda o: o.name)
def test_no_other_end_of_a_solver_proves_anything(outcome: highspy.HighsModelStatus) -> None:
    """Its numbers are left alone, whatever they are."""
    graph = random_graph(0, "dense", "Relu")
    sets = random_box(graph, 0)
    program = Encoding(graph, sets, proved(graph, sets)).rows.program({0: 1.0})
    info = SimpleNamespace(mip_node_count=1, mip_dual_bound=5.0, primal_solution_status=None)
    solver = SimpleNamespace(getModelStatus=lambda: outcome, getInfo=lambda: info, getRunTime=lambda: 1.0,
                             getSolution=lambda: SimpleNamespace(col_value=[0.0] * len(program.cost)))
    answer = _answer(solver, program, highspy, below=0.0, above=0.0)
    assert answer.status is MixedStatus.FAILED and answer.bound == -math.inf and answer.point is None


def test_bounds_that_are_wrong_by_rounding_cut_nothing_off() -> None:
    """An interval in float32 whose ends lie a few units in the last place too far in."""
    build = GraphBuilder((1,), torch.float64)
    build.add(Linear(torch.eye(1).double(), torch.zeros(1).double()))
    build.add(Relu())
    graph, eps = build.graph("one"), torch.finfo(torch.float32).eps
    sets = InputSet(torch.full((1, 1), -1.0).double(), torch.full((1, 1), 1.0).double())
    given = {1: Interval(torch.full((1, 1), -1 + 4 * eps), torch.full((1, 1), 1 - 4 * eps))}
    assert -extreme(graph, sets, given, 0, SOLVER, largest=True).answer.value >= 1 - 1e-9
    fixed = InputSet(sets.upper, sets.upper)
    assert extreme(graph, fixed, given, 0, SOLVER).answer.status is MixedStatus.OPTIMAL


def test_what_is_not_piecewise_linear_is_refused_by_name() -> None:
    graph = random_graph(0, "dense", "Sigmoid")
    sets = random_box(graph, 0)
    with pytest.raises(UnsupportedOperator, match=r"Sigmoid \("):
        Encoding(graph, sets, proved(graph, sets))
    relu = random_graph(0, "dense", "Relu")
    with pytest.raises(ValueError, match="proved bounds of node"):
        Encoding(relu, random_box(relu, 0), {})
    with pytest.raises(ValueError, match="one input set"):
        Encoding(relu, random_box(relu, 0, 2), proved(relu, random_box(relu, 0, 2)))


def test_entries_that_solvers_drop_cut_nothing_off() -> None:
    """Weights of 9e-10 (HiGHS drops what is not above 1e-9) on inputs up to 1e8 are worth two."""
    build = GraphBuilder((24,), torch.float64)
    weight = torch.zeros(3, 24).double()
    weight[0, :20], weight[1:, 20:] = 9e-10, torch.randn(2, 4, generator=torch.Generator().manual_seed(0)).double()
    build.add(Linear(weight))
    build.add(Relu())
    build.add(Linear(torch.tensor([[-1.0, 1.0, 1.0]]).double(), torch.tensor([0.9]).double()))
    graph = build.graph("tiny")
    high = torch.cat([torch.full((20,), 1e8), torch.ones(4)]).double().unsqueeze(0)
    low = torch.cat([torch.zeros(20), -torch.ones(4)]).double().unsqueeze(0)
    sets = InputSet(low, high)
    at = torch.cat([high[:, :20], torch.zeros(1, 4).double()], 1)
    found = extreme(graph, sets, proved(graph, sets), 0, SOLVER)
    assert found.answer.bound <= float(graph(at)) + ATOL


def test_bounds_that_are_no_numbers_are_refused() -> None:
    graph = random_graph(0, "dense", "Relu")
    sets = random_box(graph, 0)
    known = proved(graph, sets)
    first = min(known)
    known[first] = Interval(torch.full_like(known[first].lower, torch.nan), known[first].upper)
    with pytest.raises(ValueError, match="not numbers"):
        Encoding(graph, sets, known)


def test_a_sign_near_zero_stays_open() -> None:
    """The slack of a wide float32 interval is that of its larger end."""
    build = GraphBuilder((1,), torch.float64)
    build.add(Linear(torch.eye(1).double()))
    build.add(Sign())
    graph = build.graph("sign")
    sets = InputSet(torch.zeros(1, 1).double(), torch.full((1, 1), 100.0).double())
    given = {1: Interval(torch.full((1, 1), 3e-6), torch.full((1, 1), 100.0))}
    assert Encoding(graph, sets, given).rows.program({}).integer.sum() == 2
