"""Tiny networks are always decided, and rightly, whichever way the search is told to go."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bounds.ops.linear import Linear
from tests.bounds.networks import GraphBuilder
from tests.verifier.branch_and_bound.cases import (
    MILP_ATOL,
    MODES,
    Case,
    draw_case,
    exact_margin,
    problem_of,
    search,
    verdict,
)
from tests.verifier.test_oracle import KINDS, TOLERANCE, Truth, draw_graph, draw_property
from verifier.problem import Problem, State
from verifier.property import Branch, Property, Region, Row

# The oracle here is not exact for max-pools: those networks are held against the rational one in test_splits.
WAYS = [(kind, mode) for kind in KINDS for mode in MODES if kind != "pooling"]
SLACK = {torch.float64: MILP_ATOL, torch.float32: 1e-4}  # of the oracle, and of bounds in each dtype


def assert_right(problem: Problem, state: State, case: Case) -> None:
    """The verdict is that of the oracle, and no bound says more than what is true."""
    slack = SLACK[problem.graph.dtype]
    expected = "falsified" if min(case.margins) <= 0 else "verified"
    assert verdict(problem, state) == expected, f"margins {case.margins}, bounds {state.branch_proved}"
    for proved, closed, margin in zip(state.branch_proved.tolist(), state.branch_closed.tolist(), case.margins,
                                      strict=True):
        assert proved <= margin + slack
        assert margin > 0 or not closed, "a branch that is reached was closed"
    assert state.upper >= min(case.margins) - slack


@pytest.mark.parametrize(("kind", "mode"), WAYS, ids=lambda v: v.replace(" ", "-"))
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32 - 1), float32=st.booleans(), crown=st.booleans())
def test_every_mode_decides_as_the_oracle_does(kind: str, mode: str, seed: int, float32: bool, crown: bool) -> None:
    bisects_only = not MODES[mode]["neurons"]
    random = np.random.default_rng(seed)
    case = draw_case(random, kind, moving=2 if bisects_only else 6,
                     margins=(-1.0, -1 / 8, 1 / 8, 1.0) if bisects_only else (-1.0, -1 / 16, -1 / 256, 1 / 256, 1.0))
    problem = problem_of(case.graph, case.property, torch.float32 if float32 else torch.float64)
    assert_right(problem, search(problem, MODES[mode], crown=crown), case)


@pytest.mark.parametrize("kind", ["dense", "residual", "conv"])
@pytest.mark.parametrize("mode", ["neurons", "neurons, cuts", "mixed, cuts"])
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32 - 1))
def test_thresholds_met_exactly(kind: str, mode: str, seed: int) -> None:
    """In rationals, margins of zero included: only these may stay unknown, for the point that meets a closed row need
    not be a float, and bounds of a strict row may lie below zero by rounding."""
    random = np.random.default_rng(seed)
    graph = draw_graph(random, kind)
    prop, truths = draw_property(random, graph)
    margins = [truths[b.region].margin(b.rows) for b in prop.branches]
    unsafe = [m < 0 or (m == 0 and not any(row.strict for row in b.rows))
              for m, b in zip(margins, prop.branches, strict=True)]
    problem = problem_of(graph, prop, steps=400)
    state = search(problem, MODES[mode])
    got = verdict(problem, state)
    if got == "verified":
        assert not any(unsafe)
    elif got == "falsified":
        assert any(m <= TOLERANCE for m in margins)
    else:
        assert not any(m < 0 for m in margins), "a branch is reached by more than rounding"
        assert any(m == 0 for m in margins), f"undecided, but the margins are {margins}"
    for proved, closed, margin, bad in zip(state.branch_proved.tolist(), state.branch_closed.tolist(), margins, unsafe,
                                           strict=True):
        assert proved <= float(margin) + TOLERANCE
        assert not (closed and bad)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(2))
def test_the_two_oracles_agree(kind: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    graph = draw_graph(random, kind)
    prop, truths = draw_property(random, graph)
    for branch in prop.branches:
        assert isinstance(truths[branch.region], Truth)
        exact = float(truths[branch.region].margin(branch.rows))
        assert exact_margin(graph, branch.region, branch.rows) == pytest.approx(exact, abs=MILP_ATOL)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("height", "expected"), [(0.5, "falsified"), (1.5, "verified")])
def test_an_affine_network_is_one_leaf(mode: str, height: float, expected: str) -> None:
    """Rows x + y <= -height, x - y <= 0 and y - x <= 0: together they leave x = y <= -height / 2 in [-1/2, 1/2]."""
    build = GraphBuilder((2,), torch.float64)
    build.add(Linear(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)))
    half, one = Fraction(1, 2), Fraction(1)
    rows = (Row(((0, one),), (), -Fraction(height)), *(Row(((1, sign),), (), Fraction(0)) for sign in (one, -one)))
    prop = Property((Branch(Region((-half, -half), (half, half)), rows),), 2, 2, "affine")
    problem = problem_of(build.graph(), prop, steps=4000)
    if MODES[mode]["neurons"] or expected == "verified":
        assert verdict(problem, search(problem, MODES[mode])) == expected
