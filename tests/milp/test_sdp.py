"""The semidefinite relaxation against exact minima, the linear programme and sampling; and its bounds against solvers
that lie."""

from __future__ import annotations

import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor

import milp.sdp
from bounds import crown
from bounds.bounds import LinearRows
from bounds.compute import compute_bounds
from bounds.graph import Graph, UnsupportedOperator
from bounds.interval import Interval
from bounds.ops.base import Operator
from bounds.ops.leaky_relu import LeakyRelu
from bounds.ops.linear import Linear
from bounds.ops.relu import Relu
from bounds.sets import InputSet, LpBall
from milp import Planet, SdpBounds, SdpTooLarge, UnsafeRows
from milp.lifted import Lifted, QuadraticRows
from milp.mixed import MixedStatus
from milp.problem import Floats
from milp.sdp import EPS, best_shift, safe_value
from milp.solvers.cones import SOLVERS, ConeProgram, Multipliers
from tests.bounds.networks import GraphBuilder, random_box, random_graph, samples
from tests.verifier.test_oracle import Truth, draw_graph, draw_region
from verifier.property import Row

ROUNDING = 1e-9   # of a bound and of the network's own values
SOLVED = {"clarabel": 1e-6, "scs": 1e-3}   # what a bound may lose, relative to one and its form


def rows_of(graph: Graph, count: int = 1, seed: int = 0, inputs: bool = False) -> LinearRows:
    generator = torch.Generator().manual_seed(seed)
    C = torch.randn(count, math.prod(graph.output_shape), generator=generator, dtype=torch.float64)
    D = torch.randn(count, math.prod(graph.input_shape), generator=generator, dtype=torch.float64) if inputs else None
    return LinearRows(C.to(graph.dtype), None, D if D is None else D.to(graph.dtype),
                      torch.randn(count, generator=generator, dtype=torch.float64).to(graph.dtype))


def values_of(graph: Graph, rows: LinearRows, x: Tensor) -> Tensor:
    """Of points "N *input" every row, "N R"."""
    value = graph(x).flatten(1) @ rows.C.T
    if rows.D is not None:
        value = value + x.flatten(1) @ rows.D.T
    return value if rows.offset is None else value + rows.offset


def lifted_of(graph: Graph, sets: InputSet, both_parts: bool = False) -> Lifted:
    intervals = crown.bound(graph, sets, rows_of(graph)).intervals
    return Lifted(graph, sets, intervals, both_parts=both_parts)


def unit_form(lifted: Lifted) -> Floats:
    """The first output's form, scaled to size one."""
    form = lifted.output[0, 1:]
    return form / max(np.abs(form).sum(), 1e-300)


def points_of(lifted: Lifted, graph: Graph, x: Tensor) -> Floats:
    """The v = (1, w) "N n" of network inputs "N *input": solved from the values of all nodes."""
    values = graph.values(x)
    matrix, wanted = [np.eye(1, lifted.size)], [np.ones((len(x), 1))]
    probe = _Recorder(graph, lifted.sets, lifted.intervals)
    for i, form in probe.forms.items():
        matrix.append(form)
        wanted.append(values[i].flatten(1).numpy())
    return np.linalg.lstsq(np.concatenate(matrix), np.concatenate(wanted, 1).T, rcond=None)[0].T


class _Recorder(Lifted):
    """Keeps the form of every node."""

    def __init__(self, *args: object, **settings: object) -> None:
        self.forms: dict[int, Floats] = {}
        super().__init__(*args, **settings)  # type: ignore[arg-type]
        self.forms[0] = self.input

    def _affine(self, node, forms):  # type: ignore[no-untyped-def]
        return self._kept(node, super()._affine(node, forms))

    def _bent(self, node, forms):  # type: ignore[no-untyped-def]
        return self._kept(node, super()._bent(node, forms))

    def _kept(self, node, form):  # type: ignore[no-untyped-def]
        self.forms[self.graph.nodes.index(node)] = form
        return form


# ---------------------------------------------------------------------- the rows


@pytest.mark.parametrize("both_parts", [False, True])
@pytest.mark.parametrize("activation", ["Relu", "LeakyRelu", "PRelu"])
@pytest.mark.parametrize("kind", ["dense", "conv", "residual"])
def test_points_of_the_network_satisfy_every_row(kind: str, activation: str, both_parts: bool) -> None:
    for seed in range(3):
        graph = random_graph(seed, kind, activation)
        sets = random_box(graph, seed, 1, 1.5)
        lifted = lifted_of(graph, sets, both_parts)
        rows = lifted.rows()
        v = points_of(lifted, graph, samples(sets, 50)[0])
        assert np.abs(v).max() <= 1 + ROUNDING
        P = (v[:, :, None] * v[:, None, :]).reshape(len(v), -1)
        value = P @ rows.matrix
        assert value[:, ~rows.equal].max() <= ROUNDING
        assert not rows.equal.any() or np.abs(value[:, rows.equal]).max() <= ROUNDING
        assert abs(rows.matrix).max() <= 1


@pytest.mark.parametrize("both_parts", [False, True])
@pytest.mark.parametrize("op", [Relu(), LeakyRelu(0.1), LeakyRelu(2.0), LeakyRelu(-0.5)], ids=repr)
def test_rows_of_one_neuron_hold_at_its_ends_and_its_kink_and_are_tight_there(op: Operator, both_parts: bool) -> None:
    for low, high in ((-1.0, 1.0), (-0.1, 2.0), (-3.0, 0.2)):
        build = GraphBuilder((1,), torch.float64)
        build.add(op)
        graph = build.graph("neuron")
        sets = InputSet(torch.full((1, 1), low).double(), torch.full((1, 1), high).double())
        lifted = Lifted(graph, sets, {0: Interval(sets.lower, sets.upper)}, both_parts=both_parts)
        rows = lifted.rows()
        x = torch.cat([torch.linspace(low, high, 41), torch.zeros(1)]).double().view(-1, 1)
        v = points_of(lifted, graph, x)
        value = (v[:, :, None] * v[:, None, :]).reshape(len(v), -1) @ rows.matrix
        assert rows.equal.sum() == 1 and np.abs(value[:, rows.equal]).max() <= 1e-14
        assert value[:, ~rows.equal].max() <= 1e-14
        assert value.max(0).min() >= -1e-13, "every row is met with equality somewhere"


# ---------------------------------------------------------------------- bounds


@pytest.mark.parametrize("kind", ["dense", "residual", "conv"])
def test_no_bound_exceeds_the_exact_minimum(kind: str) -> None:
    random = np.random.default_rng(5)
    for trial in range(5):
        graph = draw_graph(random, kind)
        region = draw_region(random, math.prod(graph.input_shape))
        c = [int(k) for k in random.integers(-2, 3, 2)]
        least = float(Truth.of(graph, region).minimum(
            Row(tuple((i, Fraction(k)) for i, k in enumerate(c) if k), (), Fraction(0))))
        sets = InputSet(*(torch.from_numpy(t).double().view(1, *graph.input_shape)
                          for t in (region.lower, region.upper)))
        for dtype in (torch.float64, torch.float32):
            rows = LinearRows(torch.tensor([c], dtype=dtype))
            bound = SdpBounds(both_parts=bool(trial % 2)).bound(graph.to(dtype=dtype), sets.to(dtype=dtype), rows)
            assert float(bound.lower) <= least + ROUNDING
            assert bound.lower.dtype == dtype


@pytest.mark.parametrize(("solver", "kind", "activation"), [
    *(("clarabel", kind, name) for kind in ("dense", "conv", "residual") for name in ("Relu", "LeakyRelu", "PRelu")),
    ("scs", "dense", "Relu"), ("scs", "residual", "LeakyRelu")])
def test_never_looser_than_the_linear_programme_and_never_above_a_value(solver: str, kind: str, activation: str
                                                                        ) -> None:
    for seed in (3, 4):
        graph = random_graph(seed, kind, activation)
        sets = random_box(graph, seed, 1, 1.0)
        rows = rows_of(graph, 1, seed, inputs=True)
        bounds = SdpBounds(solver).bound(graph, sets, rows)
        known = {i: bounds.intervals[i] for i in graph.relaxed_inputs}
        unsafe = UnsafeRows(rows.C[None], -rows.offset[None], rows.D[None])
        linear = float(Planet(graph).solve(sets, known, unsafe).value)
        slack = SOLVED[solver] * (1 + abs(linear))
        assert float(bounds.lower) >= linear - slack
        assert float(bounds.lower) <= float(values_of(graph, rows, samples(sets, 500)[0]).min()) + ROUNDING


def test_ends_of_decided_neurons_count() -> None:
    """With a split that CROWN's lines do not know of, the bound is that of the half."""
    build = GraphBuilder((2,), torch.float64)
    build.add(Linear(torch.tensor([[1.0, 1.0]]).double(), None))
    build.add(Relu())
    graph = build.graph("half")
    sets = InputSet(-torch.ones(1, 2).double(), torch.ones(1, 2).double())
    active = {1: Interval(torch.zeros(1, 1).double(), torch.full((1, 1), 2.0).double())}
    rows = LinearRows(torch.ones(1, 1).double())
    assert float(SdpBounds().bound(graph, sets, rows, given=active).lower) == pytest.approx(0, abs=1e-6)


def crossing() -> tuple[Graph, InputSet, LinearRows]:
    """-(max(x1 + x2, 0) + max(x1 - x2, 0)) over the box [-1, 1]^2: the minimum is -2."""
    build = GraphBuilder((2,), torch.float64)
    build.add(Linear(torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double(), None))
    build.add(Relu())
    return (build.graph("crossing"), InputSet(-torch.ones(1, 2).double(), torch.ones(1, 2).double()),
            LinearRows(-torch.ones(1, 2).double()))


@pytest.mark.parametrize("solver", SOLVERS)
def test_products_tighten_what_no_linear_relaxation_can(solver: str) -> None:
    """Both chords allow -3, at x = (1, 0). From y^2 = y z follows |y| <= |z| <= 2, hence y1 + y2 <= 2 sqrt(2)."""
    graph, sets, rows = crossing()
    bounds = SdpBounds(solver).bound(graph, sets, rows)
    linear = float(Planet(graph).solve(sets, {1: bounds.intervals[1]},
                                       UnsafeRows(rows.C[None], torch.zeros(1, 1).double())).value)
    assert linear == pytest.approx(-3)
    assert -2 * math.sqrt(2) - SOLVED[solver] <= float(bounds.lower) <= -2


def test_both_parts_are_never_looser() -> None:
    gains = []
    for seed in range(4, 8):
        graph = random_graph(seed, "dense")
        sets, rows = random_box(graph, seed, 1, 1.0), rows_of(graph)
        plain, both = (float(SdpBounds(both_parts=b).bound(graph, sets, rows).lower) for b in (False, True))
        assert both >= plain - SOLVED["clarabel"] * (1 + abs(plain))
        gains.append(both - plain)
    assert max(gains) > 1e-3


def test_decided_neurons_are_exact_and_need_no_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ConeProgram, "__init__", lambda *_: pytest.fail("no programme is needed"))
    graph = random_graph(1, "residual")
    sets = random_box(graph, 1, 1, 1e-4)
    rows = rows_of(graph, 3, inputs=True)
    corners = samples(sets, 0)[0]
    least = values_of(graph, rows, corners).amin(0)
    assert torch.allclose(SdpBounds().bound(graph, sets, rows).lower, least, atol=1e-12, rtol=0)


def test_a_point_is_its_value() -> None:
    graph = random_graph(1, "conv")
    x = torch.randn(1, *graph.input_shape, generator=torch.Generator().manual_seed(0)).double()
    rows = rows_of(graph, 2)
    assert torch.allclose(SdpBounds().bound(graph, InputSet(x, x), rows).lower, values_of(graph, rows, x)[0],
                          atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_batched_bounds_equal_single_bounds(dtype: torch.dtype) -> None:
    graph = random_graph(4, "dense", dtype=dtype)
    sets = random_box(graph, 2, 3, 1.0)
    owner = torch.tensor([2, 0, 2, 1, 0])
    rows = rows_of(graph, 5, inputs=True)
    rows = LinearRows(rows.C, owner, rows.D, rows.offset)
    bounds = SdpBounds().bound(graph, sets, rows)
    assert bounds.lower.dtype == dtype
    x = samples(sets, 200)
    for k, b in enumerate(owner.tolist()):
        one = LinearRows(rows.C[k:k + 1], None, rows.D[k:k + 1], rows.offset[k:k + 1])
        alone = SdpBounds().bound(graph, sets.index(torch.tensor([b])), one)
        assert float(bounds.lower[k]) == pytest.approx(float(alone.lower), abs=1e-6)
        assert float(bounds.lower[k]) <= float(values_of(graph, one, x[b]).min()) + 1e-5
    each = SdpBounds().bound(graph, sets, rows_of(graph, 3))
    assert each.lower.shape == (3,)


def test_a_ball_is_tighter_than_its_box_and_holds() -> None:
    graph = random_graph(5, "dense")
    centre = torch.zeros(1, *graph.input_shape).double()
    rows = rows_of(graph)
    for p in (1, 2):
        ball = LpBall(centre, 0.8, p, scale=torch.full_like(centre, 1.5))
        bounds = SdpBounds().bound(graph, ball, rows)
        box = SdpBounds().bound(graph, InputSet(ball.lower, ball.upper), rows)
        assert float(bounds.lower) > float(box.lower)
        inside = ball.sample(2000, torch.Generator().manual_seed(0))[0]
        assert float(bounds.lower) <= float(values_of(graph, rows, inside).min()) + ROUNDING


# ---------------------------------------------------------------------- what a solver says is not believed


@pytest.mark.parametrize("solver", SOLVERS)
def test_little_is_lost_from_what_the_solver_claims(solver: str) -> None:
    for seed in range(4):
        graph = random_graph(seed, "dense")
        lifted = lifted_of(graph, random_box(graph, seed, 1, 1.0))
        rows, form = lifted.rows(), unit_form(lifted)
        found = ConeProgram(rows, solver).solve(form, {})
        assert found.status in (MixedStatus.OPTIMAL, MixedStatus.INACCURATE)
        value = safe_value(rows, form, found.values)
        assert value <= found.claimed + 1e-4
        assert value >= found.claimed - (1e-6 if solver == "clarabel" else 1e-3)


def least_form(lifted: Lifted, graph: Graph, form: Floats) -> float:
    """The smallest value of a form over 2000 points."""
    return float((points_of(lifted, graph, samples(lifted.sets, 2000)[0])[:, 1:] @ form).min())


def corruptions(values: Floats, rows: QuadraticRows) -> list[Floats]:
    random = np.random.default_rng(0)
    noise = [values + size * random.standard_normal(len(values)) for size in (1e-6, 1e-2, 1.0, 1e3)]
    wild = np.where(random.random(len(values)) < 0.3, np.nan, values)
    return [*noise, 1e3 * values, -values, 1e3 * -values, 0 * values, wild, np.full(len(values), np.inf),
            np.full(len(values), 1e200), np.full(len(values), -1e-300), values[::-1].copy(),
            np.where(rows.equal, -1e3, values)]


def test_any_multipliers_give_a_valid_bound() -> None:
    for seed in range(4):
        graph = random_graph(seed, ("dense", "residual")[seed % 2], ("Relu", "LeakyRelu")[seed // 2])
        lifted = lifted_of(graph, random_box(graph, seed, 1, 1.0))
        rows, form = lifted.rows(), unit_form(lifted)
        least = least_form(lifted, graph, form)
        best = ConeProgram(rows, "clarabel").solve(form, {}).values
        for values in [best, *corruptions(best, rows)]:
            assert safe_value(rows, form, values) <= least + ROUNDING


def test_the_rounding_of_the_safe_value_is_accounted_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """No rows but w^2 <= 1: the minimum is -1. Multipliers that are exact, and a t one unit too large."""
    random = np.random.default_rng(0)
    for n in range(2, 30):
        form = 2.0 ** -np.minimum(np.arange(1, n), n - 2) * random.choice((-1, 1), n - 1)
        assert np.abs(form).sum() == 1
        for t in (-1.0, np.nextafter(-1.0, 0)):
            with monkeypatch.context() as patch:
                patch.setattr(milp.sdp, "best_shift", lambda S, t=t: (t, 0.0))
                value = safe_value(box_rows(n), form, np.abs(form) / 2)
            assert -1 - 1e4 * n * EPS <= value <= -1
        assert -1 - 1e4 * n * EPS <= safe_value(box_rows(n), form, np.abs(form) / 2) <= -1


def box_rows(n: int, linear: Floats | None = None) -> QuadraticRows:
    """The rows `w^2 <= 1`, and `linear v >= 0`."""
    matrices = np.zeros((n, n, n))
    for k in range(1, n):
        matrices[k, k, k], matrices[k, 0, 0] = 1, -1
    if linear is not None:
        matrices[0, 0] -= linear / 2
        matrices[0, :, 0] -= linear / 2
    chosen = matrices if linear is not None else matrices[1:]
    return QuadraticRows(n, sparse.csc_matrix(chosen.reshape(len(chosen), -1).T), np.zeros(len(chosen), dtype=bool))


def test_a_wrong_sign_is_clipped_and_a_wrong_shift_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Minimise -w over 0 <= w <= 1: it is -1. A multiplier -1 of w >= 0 would cancel the form."""
    rows, form = box_rows(2, np.array([0.0, 1.0])), np.array([-1.0])
    assert safe_value(rows, form, np.array([-1.0, 0.5])) == pytest.approx(-1)
    assert safe_value(rows, form, np.array([-1.0, 0.0])) == pytest.approx(-1)
    assert safe_value(rows, -form, np.array([1.0, 0.0])) == pytest.approx(0)
    for lie in ((1e9, 0.0), (0.0, 0.0), (0.0, 0.3), (-0.9, 0.5)):
        monkeypatch.setattr(milp.sdp, "best_shift", lambda S, lie=lie: lie)
        assert safe_value(rows, form, np.array([0.0, 0.0])) <= -1


def test_the_best_shift_is_feasible_and_best() -> None:
    random = np.random.default_rng(1)
    for n in (2, 3, 8):
        for _ in range(10):
            S = random.standard_normal((n, n))
            S = S + S.T
            t, shift = best_shift(S)

            def least(t: float, d: float, S: Floats = S, n: int = n) -> float:
                moved = S + d * np.diag([1.0 - n, *[1.0] * (n - 1)])
                moved[0, 0] -= t
                return float(np.linalg.eigvalsh(moved)[0])

            assert shift >= 0
            assert least(t, shift) >= -1e-9 * (1 + abs(t))
            assert all(least(t + 1e-4, shift + step) < 0 for step in (-1e-3, 0, 1e-3, 0.1) if shift + step >= 0)


class Liar:
    """A solver that answers nonsense and calls it optimal."""

    def __init__(self, values: float) -> None:
        self.values = values

    def __call__(self, program: ConeProgram, form: Floats) -> Multipliers:
        return Multipliers(np.full(program.count, self.values), 1e9, MixedStatus.OPTIMAL)


@pytest.mark.parametrize("values", [0.0, 1.0, -1.0, 1e6, -1e300, math.nan, math.inf])
def test_a_solver_that_lies_proves_nothing_wrong(values: float, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = random_graph(2, "dense")
    sets = random_box(graph, 2, 1, 1.0)
    rows = rows_of(graph, 2)
    liar = Liar(values)
    monkeypatch.setattr(ConeProgram, "solve", lambda self, form, options: liar(self, form))
    lower = SdpBounds().bound(graph, sets, rows).lower
    assert bool(torch.isfinite(lower).all())
    assert bool((lower <= values_of(graph, rows, samples(sets, 2000)[0]).amin(0) + ROUNDING).all())


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_solver_that_fails_or_has_no_time_leaves_a_bound(solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import cvxpy
    graph, sets, rows = crossing()
    hurried = SdpBounds(solver, row_time_limit_s=1e-9).bound(graph, sets, rows)
    crown = float(compute_bounds(graph, sets, rows, "crown").lower)
    assert crown - ROUNDING <= float(hurried.lower) <= -2  # two neurons in [0, 2]

    def fail(*_: object, **__: object) -> None:
        raise cvxpy.error.SolverError("no")
    monkeypatch.setattr(cvxpy.Problem, "solve", fail)
    assert float(SdpBounds(solver).bound(graph, sets, rows).lower) == pytest.approx(crown)


def test_contradicting_intervals_end_in_a_bound() -> None:
    """An empty domain: the programme is unbounded, and any bound is valid."""
    graph, sets, rows = crossing()
    empty = {1: Interval(torch.full((1, 2), 3.0).double(), torch.full((1, 2), 4.0).double())}
    assert not bool(torch.isnan(SdpBounds().bound(graph, sets, rows, given=empty).lower).any())


# ---------------------------------------------------------------------- the edge


def test_refusals() -> None:
    for kind, activation, name in (("pooling", "Relu", "MaxPool"), ("dense", "Sigmoid", "Sigmoid"),
                                   ("dense", "Clip", "Clip")):
        graph = random_graph(0, kind, activation)
        with pytest.raises(UnsupportedOperator, match=name):
            SdpBounds().bound(graph, random_box(graph, 0), rows_of(graph))
    graph = random_graph(0, "dense")
    with pytest.raises(SdpTooLarge, match=r"has \d+ variables .* more than 2"):
        SdpBounds(most_variables=2).bound(graph, random_box(graph, 0, 1, 2.0), rows_of(graph))
    with pytest.raises(ValueError, match="solver must be one of clarabel, scs"):
        SdpBounds("sdpa")
    with pytest.raises(ValueError, match="row_time_limit_s must be > 0"):
        SdpBounds(row_time_limit_s=0)
    with pytest.raises(ValueError, match="one set"):
        Lifted(graph, random_box(graph, 0, 2), {})


def test_the_modelling_language_is_loaded_late() -> None:
    code = "import sys, milp.sdp, milp, verifier; assert not {'cvxpy', 'clarabel', 'scs'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True, timeout=60)
