"""Every solver of mixed-integer programmes against the enumeration of their binaries."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import cvxpy
import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.optimize import linprog

from bounds.ops.linear import Linear
from bounds.ops.relu import Relu
from milp.encoder import Encoding
from milp.mixed import MixedAnswer, MixedProgram, MixedStatus, SquaredNorm
from milp.questions import MixedSolver, least_margin
from milp.solvers import MIXED_SOLVERS, SolverMissing, SolverUnsuitable, mixed_solver
from milp.solvers.cbc import _printed_bound, run_cbc
from milp.solvers.closing import closing
from milp.solvers.mps import mps_text
from milp.solvers.pulp_mixed import PulpMixed
from milp.solvers.statuses import CVXPY, meaning
from tests.bounds.networks import GraphBuilder, random_box
from tests.milp.test_encoder import asked, proved
from tests.verifier.test_oracle import draw_graph, draw_property

ROOT = Path(__file__).resolve().parents[3]
ATOL = 1e-5
BACKENDS = ("highs", "cbc", "scip", "scip through PuLP")


def backend(name: str) -> MixedSolver:
    if "scip" in name:
        pytest.importorskip("pyscipopt")
    return PulpMixed("scip") if name == "scip through PuLP" else mixed_solver(name)


def draw(seed: int, *, binaries: int = 4, others: int = 4, rows: int = 6) -> MixedProgram:
    """Costs of both signs; rows with one end, two ends, equal ends and none; a row without entries; an offset."""
    random = np.random.default_rng(seed)
    columns = binaries + others
    matrix = random.normal(size=(rows, columns)) * (random.random((rows, columns)) < 0.7)
    matrix[-1] = 0
    lower, upper = np.zeros(columns), np.ones(columns)
    integer = np.zeros(columns, dtype=bool)
    integer[random.permutation(columns)[:binaries]] = True
    lower[~integer], upper[~integer] = -random.random(others) * 3, random.random(others) * 3
    inside = lower + random.random(columns) * (upper - lower)
    inside[integer] = np.round(inside[integer])
    at = matrix @ inside
    row_lower, row_upper = at - random.random(rows), at + random.random(rows)
    kind = random.integers(4, size=rows)
    row_lower[kind == 0], row_upper[kind == 1] = -np.inf, np.inf
    row_lower[0] = row_upper[0] = at[0]
    row_lower[1], row_upper[1] = -np.inf, np.inf
    return MixedProgram(random.normal(size=columns), lower, upper, integer, sparse.csr_matrix(matrix), row_lower,
                        row_upper, float(random.normal() * 5))


def enumerated(program: MixedProgram) -> float:
    """The optimum, by one linear programme for each assignment; inf where there is no point."""
    rows = program.rows.toarray()
    A, b = np.vstack([rows, -rows]), np.concatenate([program.row_upper, -program.row_lower])
    A, b = A[b < np.inf], b[b < np.inf]
    best = math.inf
    for values in itertools.product((0.0, 1.0), repeat=int(program.integer.sum())):
        lower, upper = program.lower.copy(), program.upper.copy()
        lower[program.integer] = upper[program.integer] = values
        done = linprog(program.cost, A, b, bounds=np.stack([lower, upper], 1), method="highs")
        if done.status == 0:
            best = min(best, done.fun + program.offset)
    return best


def assert_is(answer: MixedAnswer, true: float) -> None:
    if true == math.inf:
        assert answer.status is MixedStatus.INFEASIBLE and answer.point is None and answer.bound == math.inf
        return
    assert answer.status is MixedStatus.OPTIMAL and answer.point is not None
    assert answer.value == pytest.approx(true, abs=ATOL)
    assert true - 10 * ATOL <= answer.bound <= true + ATOL


def network_program(seed: int, width: int = 8) -> MixedProgram:
    """The least output of a random network with two hidden layers: it takes a tree."""
    generator = torch.Generator().manual_seed(seed)
    build = GraphBuilder((6,), torch.float64)
    for outputs in (width, width, 1):
        weight = torch.randn(outputs, build.shape[0], generator=generator, dtype=torch.float64)
        build.add(Linear(weight, torch.randn(outputs, generator=generator, dtype=torch.float64)))
        if outputs > 1:
            build.add(Relu())
    graph = build.graph()
    sets = random_box(graph, seed, 1, 1.0)
    encoding = Encoding(graph, sets, proved(graph, sets))
    cost = encoding.output.over(encoding.rows.columns).toarray()[0]
    program = encoding.rows.program({j: float(c) for j, c in enumerate(cost) if c})
    return dataclasses.replace(program, offset=float(encoding.output.constant[0]))


# ---------------------------------------------------------------------- optima


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("binaries", [0, 1, 4, 6])
def test_optima_are_those_of_the_enumeration(name: str, binaries: int, capfd: pytest.CaptureFixture[str]) -> None:
    for seed in range(8):
        program = draw(seed, binaries=binaries)
        assert_is(backend(name).solve(program), enumerated(program))
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("binaries", [0, 3])
def test_what_has_no_point_is_infeasible(name: str, binaries: int) -> None:
    program = draw(3, binaries=binaries)
    over = program.row_lower.copy()
    over[0] += 100
    assert_is(backend(name).solve(dataclasses.replace(program, row_lower=over, row_upper=np.maximum(
        over, program.row_upper))), math.inf)
    empty = program.row_lower.copy()
    empty[-1] = 0.5
    empty = dataclasses.replace(program, row_lower=empty, row_upper=np.maximum(empty, program.row_upper))
    assert_is(backend(name).solve(empty), math.inf)


@pytest.mark.parametrize("name", BACKENDS)
def test_binaries_between_whole_numbers_are_infeasible(name: str) -> None:
    row = sparse.csr_matrix([[1.0, 1.0]])
    program = MixedProgram(np.ones(2), np.zeros(2), np.ones(2), np.ones(2, dtype=bool), row, np.array([0.4]),
                           np.array([0.6]))
    assert_is(backend(name).solve(program), math.inf)


def test_cbc_is_called_without_its_integer_preprocessing() -> None:
    """CBC 2.10.3 calls a point optimal here that is 1.5 above the optimum, with the options that PuLP gives it."""
    program = draw(16, binaries=4, others=2)
    assert enumerated(program) == pytest.approx(-8.1289, abs=1e-3)
    assert_is(backend("cbc").solve(program), enumerated(program))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kind", ["dense", "residual", "conv", "pooling"])
@pytest.mark.parametrize("seed", range(2))
def test_margins_by_every_solver_are_those_of_the_rational_oracle(name: str, kind: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    graph = draw_graph(random, kind).simplify()
    prop, truths = draw_property(random, graph)
    for branch in prop.branches:
        sets, rows = asked(graph, branch)
        true = float(truths[branch.region].margin(branch.rows))
        assert_is(least_margin(graph, sets, proved(graph, sets), rows, backend(name)).answer, true)
        sign = least_margin(graph, sets, proved(graph, sets), rows, backend(name), below=0.0, above=0.0).answer
        assert sign.bound <= true + ATOL and sign.value >= true - ATOL
        if abs(true) > ATOL:
            assert (sign.value <= 0) if true < 0 else (sign.bound > 0)


# ---------------------------------------------------------------------- ends before the optimum


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("limit", [0.0, 0.02, 0.1])
def test_a_bound_at_the_time_limit_is_one(name: str, limit: float) -> None:
    program = network_program(0)
    best = mixed_solver("highs").solve(program)
    assert best.status is MixedStatus.OPTIMAL
    answer = backend(name).solve(program, time_limit_s=limit)
    assert answer.status in (MixedStatus.TIME_LIMIT, MixedStatus.OPTIMAL)
    assert answer.bound <= best.value + ATOL and answer.value >= best.value - ATOL
    assert limit > 0 or answer.status is MixedStatus.TIME_LIMIT


@pytest.mark.parametrize("name", BACKENDS)
def test_a_start_is_not_lost(name: str) -> None:
    program = network_program(1)
    best = mixed_solver("highs").solve(program)
    assert best.point is not None
    assert_is(backend(name).solve(program, start=best.point), best.value)
    if name != "highs":
        assert backend(name).solve(program, start=best.point, time_limit_s=0.0).value == pytest.approx(best.value)
    wrong = np.full_like(best.point, 0.5)
    assert_is(backend(name).solve(program, start=wrong), best.value)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("seed", range(3))
def test_searches_may_end_once_a_sign_is_known(name: str, seed: int) -> None:
    program = network_program(seed)
    true = mixed_solver("highs").solve(program).value
    for threshold in (true - 0.5, true + 0.5):
        answer = backend(name).solve(program, below=threshold, above=threshold)
        assert answer.status in (MixedStatus.TARGET, MixedStatus.OPTIMAL)
        assert answer.bound <= true + ATOL and answer.value >= true - ATOL
        assert answer.bound > threshold if threshold < true else answer.value <= threshold


def test_scip_ends_once_a_sign_is_known() -> None:
    program = network_program(0, 24)
    solver = backend("scip")
    whole = solver.solve(program)
    low = solver.solve(program, below=whole.value + 0.5 * abs(whole.value))
    high = solver.solve(program, above=whole.value - 2 * abs(whole.value))
    for early in (low, high):
        assert early.status is MixedStatus.TARGET and early.bound < whole.value - ATOL and early.nodes <= whole.nodes


# ---------------------------------------------------------------------- quadratic rows


def ball(centre: list[float], radius: float) -> SquaredNorm:
    return SquaredNorm(np.arange(len(centre)), np.array(centre), np.full(len(centre), radius), 1.0)


def free(columns: int, cost: list[float], squares: tuple[SquaredNorm, ...], half: list[float] | None = None,
         least: float = 0.0) -> MixedProgram:
    rows = sparse.csr_matrix([half if half is not None else [0.0] * columns])
    return MixedProgram(np.array(cost), np.full(columns, -50.0), np.full(columns, 50.0), np.zeros(columns, dtype=bool),
                        rows, np.array([least if half is not None else -np.inf]), np.array([np.inf]), squares=squares)


@pytest.mark.parametrize("radius", [1e-2, 1.0])
def test_least_linear_functions_over_balls(radius: float) -> None:
    """c @ centre - radius |c|, also where the centre is far from zero."""
    solver = backend("scip")
    for centre in ([0.0, 0.0, 0.0], [10.0, -3.0, 0.5]):
        c = [1.0, -2.0, 0.5]
        answer = solver.solve(free(3, c, (ball(centre, radius),)))
        true = float(np.dot(c, centre) - radius * np.linalg.norm(c))
        assert_is(answer, true)


def test_distances_to_half_spaces() -> None:
    """The least t with |v - centre|^2 <= t and w @ v >= b is the squared distance."""
    w, b, centre = np.array([1.0, 2.0]), 4.0, np.array([0.5, -0.5])
    square = SquaredNorm(np.arange(2), centre, np.ones(2), 0.0, column=2)
    answer = backend("scip").solve(free(3, [0.0, 0.0, 1.0], (square,), [*w, 0.0], b))
    assert_is(answer, float((b - w @ centre) ** 2 / (w @ w)))


@pytest.mark.parametrize("seed", range(4))
def test_binaries_in_balls(seed: int) -> None:
    """Each assignment by a solver of smooth convex programmes."""
    random = np.random.default_rng(seed)
    program = draw(seed, binaries=2, others=3)
    columns = np.flatnonzero(~program.integer)
    lower, upper = program.lower[columns], program.upper[columns]
    square = SquaredNorm(columns, lower + random.random(3) * (upper - lower), np.array([0.7, 1.0, 1.3]), 0.8)
    program = dataclasses.replace(program, squares=(square,), row_lower=program.row_lower - 0.5)
    best = math.inf
    rows = program.rows.toarray()
    for values in itertools.product((0.0, 1.0), repeat=2):
        low, high = program.lower.copy(), program.upper.copy()
        low[program.integer] = high[program.integer] = values
        v = cvxpy.Variable(len(low))
        moved = (v[columns] - square.centre) / square.scale
        asked_for = [v >= low, v <= high, cvxpy.sum_squares(moved) <= square.limit]
        asked_for += [rows[i] @ v <= u for i, u in enumerate(program.row_upper) if u < np.inf]
        asked_for += [rows[i] @ v >= u for i, u in enumerate(program.row_lower) if u > -np.inf]
        problem = cvxpy.Problem(cvxpy.Minimize(program.cost @ v), asked_for)
        problem.solve(solver="CLARABEL")
        if problem.status == "optimal":
            best = min(best, float(problem.value) + program.offset)
    answer = backend("scip").solve(program)
    assert_is(answer, best)
    if answer.point is not None:
        assert_is(backend("scip").solve(program, start=answer.point), best)


@pytest.mark.parametrize("name", ["highs", "cbc", "scip through PuLP"])
def test_linear_solvers_refuse_quadratic_rows(name: str) -> None:
    with pytest.raises(SolverUnsuitable, match=r"pip install pyscipopt"):
        backend(name).solve(free(3, [1.0, 0.0, 0.0], (ball([0.0, 0.0, 0.0], 1.0),)))


# ---------------------------------------------------------------------- what a word is worth


def test_points_and_bounds_are_held_against_the_programme() -> None:
    program = draw(0)
    best = mixed_solver("highs").solve(program)
    assert best.point is not None
    ends = {"below": -math.inf, "above": math.inf, "seconds": 0.0}
    good = closing(MixedStatus.OPTIMAL, program, best.point, best.value - 1e-7, **ends)
    assert good.status is MixedStatus.OPTIMAL and good.bound == best.value - 1e-7
    for point, bound in ((best.point + 0.5, best.value), (None, best.value), (best.point, best.value + 1)):
        bad = closing(MixedStatus.OPTIMAL, program, point, bound, **ends)
        assert bad.status is MixedStatus.INACCURATE and bad.bound == -math.inf
    failed = closing(MixedStatus.FAILED, program, best.point, best.value, **ends)
    assert failed.status is MixedStatus.FAILED and failed.bound == -math.inf
    assert closing(MixedStatus.TIME_LIMIT, program, None, math.inf, **ends).bound == -math.inf


def test_printed_bounds_are_loosened_by_what_they_are_rounded_by() -> None:
    log = "Cbc0005I Partial search - best objective 1 (best possible {}), took 1 iterations\nLower bound:        {}\n"
    assert -16.2478 < _printed_bound(log.format("-16.247783", "-16.248")) < -16.247783
    assert _printed_bound(log.format("-3.5", "-16.248")) < -16.248
    assert _printed_bound(log.format("-1e+50", "-1e+50")) == -math.inf
    assert _printed_bound("Lower bound:    -16.248\n") == -math.inf


def test_every_word_of_cvxpy_has_a_meaning_and_no_other_word_does() -> None:
    known = {value for name, value in vars(cvxpy.settings).items() if name in (
        "OPTIMAL", "OPTIMAL_INACCURATE", "INFEASIBLE", "INFEASIBLE_INACCURATE", "UNBOUNDED", "UNBOUNDED_INACCURATE",
        "INFEASIBLE_OR_UNBOUNDED", "USER_LIMIT", "SOLVER_ERROR")}
    assert set(CVXPY) == known
    assert meaning(CVXPY, "optimal_inaccurate") is MixedStatus.INACCURATE
    assert meaning(CVXPY, "as good as optimal") is MixedStatus.FAILED


def test_files_have_every_digit() -> None:
    program = draw(5)
    text = mps_text(program)
    for i, j in zip(*program.rows[program.row_lower > -np.inf].nonzero(), strict=True):
        value = float(program.rows[program.row_lower > -np.inf][i, j])
        assert f" {value!r}" in text and f" c{j} " in text


def test_files_are_cleaned_up_whatever_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    backend("cbc").solve(draw(0))

    def broken(*_: object, **__: object) -> None:
        raise KeyboardInterrupt
    monkeypatch.setattr(subprocess, "run", broken)
    with pytest.raises(KeyboardInterrupt):
        backend("cbc").solve(draw(0))
    assert not list(tmp_path.iterdir())


def test_a_solver_that_overruns_is_ended(tmp_path: Path) -> None:
    program, slow = draw(0), tmp_path / "cbc"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    answer = run_cbc(str(slow), program, 1, 1e-6, time_limit_s=0.1, below=-math.inf, above=math.inf, start=None)
    assert answer.status is MixedStatus.TIME_LIMIT and answer.bound == -math.inf and answer.seconds < 10


# ---------------------------------------------------------------------- solvers by name


def test_solvers_that_are_not_there_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SolverMissing, match="choose one of highs, cbc, scip"):
        mixed_solver("simplex")
    with pytest.raises(ValueError, match="threads must be >= 1"):
        mixed_solver("highs", 0)
    found = importlib.util.find_spec
    commercial = {"gurobi": "gurobipy", "cplex": "cplex", "xpress": "xpress", "copt": "coptpy"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n in commercial.values() else found(n))
    for name, package in commercial.items():
        with pytest.raises(SolverMissing, match=f"licence: install it with `pip install {package}`"):
            mixed_solver(name)
    for name, module in (("scip", "pyscipopt"), ("cbc", "pulp")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(SolverMissing, match=f"pip install {module}"):
            mixed_solver(name)
    assert mixed_solver("highs", 2).name == MIXED_SOLVERS[0]


def test_no_solver_is_loaded_before_it_is_asked_for() -> None:
    code = """import sys
import milp, verifier, milp.solvers, milp.solvers.registry, milp.solvers.statuses
assert milp.solvers.MIXED_SOLVERS
assert 'torch' not in sys.modules
import verifier.milp_stage, milp.solvers.highs_mixed, milp.solvers.pulp_mixed, milp.solvers.scip_mixed
print([m for m in ('pulp', 'highspy', 'pyscipopt', 'cvxpy', 'gurobipy') if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
