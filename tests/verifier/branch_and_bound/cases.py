"""Questions with known answers, and ways to search them: shared by the tests of branch and bound."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor

from bounds.graph import Graph
from bounds.ops.base import Affine
from bounds.ops.linear import Linear
from bounds.ops.max_pool import MaxPool
from bounds.ops.relu import Relu
from bounds.rounding import priced
from tests.bounds.networks import GraphBuilder
from tests.verifier.test_oracle import GraphReplayer, affine_values, draw_graph, quarters, windows_of
from verifier.branch_and_bound.plan import Plan, plan_for
from verifier.branch_and_bound.stage import BranchAndBoundStage
from verifier.problem import Problem, State
from verifier.property import Branch, Property, Region, Row
from verifier.stages import BoundStage

MILP_ATOL = 1e-5  # the solver's tolerance on a row is 1e-6, times coefficients below ten


@dataclass(eq=False)
class Steps:
    """A deadline that counts how often it is looked at: the same on every machine."""

    count: int = 60_000

    def left(self) -> float:
        self.count -= 1
        return math.inf if self.count > 0 else 0.0

    def passed(self) -> bool:
        return self.count <= 0

    def elapsed(self) -> float:
        return 0.0


def problem_of(graph: Graph, prop: Property, dtype: torch.dtype = torch.float64, steps: int = 60_000) -> Problem:
    searched = graph.simplify().to(dtype=dtype)
    return Problem(searched, prop, prop.tensors(searched.input_shape, dtype=dtype), GraphReplayer(graph),
                   Steps(steps), torch.Generator().manual_seed(0))  # type: ignore[arg-type]


def plan_with(problem: Problem, **choices: object) -> Plan:
    """The plan of a problem with some choices forced; a box must not be cut where there is none."""
    known = {f.name for f in fields(Plan)}
    forced: dict[str, Any] = {k: v for k, v in choices.items() if k in known}
    return replace(plan_for(problem), why="forced", **forced)


def way(*chosen: str, batch: int = 64) -> dict[str, object]:
    """What a plan is forced to: the named choices and no others."""
    names = ("inputs", "neurons", "refresh", "clips", "joint", "cuts", "contracts")
    assert set(chosen) <= set(names)
    return {"batch": batch, "ascents": ("signs", "level"), **{name: name in chosen for name in names}}


# One row a way to search.
MODES: dict[str, dict[str, object]] = {
    "inputs": way("inputs", "refresh", "clips", "joint"),
    "inputs, kept bounds": way("inputs", batch=2),
    "inputs, cuts": way("inputs", "clips", "joint", "cuts"),
    "neurons": way("neurons"),
    "neurons, joint": way("neurons", "refresh", "joint", batch=1),
    "neurons, clips": way("neurons", "clips", "joint"),
    "neurons, cuts": way("neurons", "clips", "cuts"),
    "neurons, contracts": way("neurons", "clips", "cuts", "contracts"),
    "mixed": way("inputs", "neurons", "refresh", "clips", "joint"),
    "mixed, cuts": way("inputs", "neurons", "clips", "joint", "cuts", batch=2),
    "mixed, bare": way("inputs", "neurons", batch=1),
}


def search(problem: Problem, mode: dict[str, object], *, crown: bool = True) -> State:
    """Branch and bound alone (after CROWN's bounds of neurons): no attack, nothing else that decides."""
    state = State.of(problem)
    with priced(not mode["contracts"]):  # as the strategy has it
        if crown:
            BoundStage("crown", keep=True).run(problem, state)
            state.row_lower.fill_(-torch.inf)
        BranchAndBoundStage(plan_with(problem, **mode)).run(problem, state)
    return state


def verdict(problem: Problem, state: State) -> str:
    if state.witness is not None:
        return "falsified"
    return "unknown" if bool(state.open_branches(problem.tensors).any()) else "verified"


# ---------------------------------------------------------------------- an oracle for any number of inputs


def exact_margin(graph: Graph, region: Region, rows: tuple[Row, ...]) -> float:
    """The minimum over a region of the largest violation of the rows, as a mixed-integer programme (big M from interval
    arithmetic) in the hands of scipy; right up to `MILP_ATOL`. No code of the bound methods is used."""
    builder = _Milp(np.array([float(v) for v in region.exact_lower]), np.array([float(v) for v in region.exact_upper]))
    places: list[list[int]] = [[*range(len(region.exact_lower))]]
    for node in graph.nodes[1:]:
        sources = [k for j in node.inputs for k in places[j]]
        if isinstance(node.op, Affine):
            matrix, constant = affine_values(node.op, tuple(graph.nodes[j].shape for j in node.inputs))
            places.append([builder.affine([(sources[k], w) for k, w in enumerate(row) if w], c)
                           for row, c in zip(matrix, constant, strict=True)])
        elif isinstance(node.op, Relu):
            places.append([builder.maximum([k], 0.0) for k in sources])
        else:
            assert isinstance(node.op, MaxPool)
            places.append([builder.maximum([sources[k] for k in window], None)
                           for window in windows_of(node.op, graph.nodes[node.inputs[0]].shape)])
    output = places[graph.output]
    t = builder.variable(-1e6, 1e6)
    for row in rows:
        terms = [(output[i], float(c)) for i, c in row.y] + [(j, float(c)) for j, c in row.x]
        builder.row([*terms, (t, -1.0)], -np.inf, float(row.bound))
    return builder.minimum(t)


class _Milp:
    """Variables with their intervals, rows, and which variables are binary."""

    def __init__(self, lower: np.ndarray, upper: np.ndarray) -> None:
        self.lower, self.upper = lower.tolist(), upper.tolist()
        self.binary = [0] * len(self.lower)
        self.rows: list[tuple[list[tuple[int, float]], float, float]] = []

    def variable(self, lower: float, upper: float, binary: int = 0) -> int:
        self.lower.append(lower)
        self.upper.append(upper)
        self.binary.append(binary)
        return len(self.lower) - 1

    def row(self, terms: list[tuple[int, float]], lower: float, upper: float) -> None:
        self.rows.append((terms, lower, upper))

    def affine(self, terms: list[tuple[int, float]], constant: float) -> int:
        low = sum(w * (self.lower if w > 0 else self.upper)[k] for k, w in terms) + constant
        high = sum(w * (self.upper if w > 0 else self.lower)[k] for k, w in terms) + constant
        z = self.variable(low, high)
        self.row([*terms, (z, -1.0)], -constant, -constant)
        return z

    def maximum(self, arguments: list[int], also: float | None) -> int:
        """max of variables (and of a number): one of them is it."""
        lows = [self.lower[k] for k in arguments] + ([] if also is None else [also])
        highs = [self.upper[k] for k in arguments] + ([] if also is None else [also])
        y = self.variable(max(lows), max(highs))
        picks = [self.variable(0, 1, 1) for _ in lows]
        for k, pick in zip(arguments, picks, strict=False):
            self.row([(y, 1.0), (k, -1.0)], 0, np.inf)
            reach = self.upper[y] - self.lower[k]
            self.row([(y, 1.0), (k, -1.0), (pick, reach)], -np.inf, reach)
        if also is not None:
            reach = self.upper[y] - also
            self.row([(y, 1.0), (picks[-1], reach)], -np.inf, reach + also)
        self.row([(p, 1.0) for p in picks], 1, 1)
        return y

    def minimum(self, t: int) -> float:
        matrix = np.zeros((len(self.rows), len(self.lower)))
        for i, (terms, _, _) in enumerate(self.rows):
            for k, w in terms:
                matrix[i, k] += w
        cost = np.zeros(len(self.lower))
        cost[t] = 1
        for presolve in (True, False):  # the solver fails now and then
            answer = milp(cost, integrality=np.array(self.binary), bounds=Bounds(self.lower, self.upper),
                          constraints=LinearConstraint(matrix, [r[1] for r in self.rows], [r[2] for r in self.rows]),
                          options={"presolve": presolve})
            if answer.status == 0:
                break
        assert answer.status == 0, answer.message
        return float(answer.fun)


# ---------------------------------------------------------------------- questions


@dataclass(frozen=True)
class Case:
    """A network and a property; margins: what each branch's margin is, up to MILP_ATOL."""

    graph: Graph
    property: Property
    margins: tuple[float, ...]


MARGINS = (-1.0, -1 / 16, -1 / 256, 1 / 256, 1 / 16, 1.0)


def draw_case(random: np.random.Generator, kind: str, *, margins: tuple[float, ...] = MARGINS, moving: int = 6,
              branches: int = 3, rows: int = 3) -> Case:
    """One to three branches over one or two regions; rows are shifted together so that a branch has a margin drawn."""
    graph = draw_graph(random, kind)
    inputs = math.prod(graph.input_shape)
    regions = [_region(random, inputs, moving) for _ in range(random.integers(1, 3))]
    drawn, exact = [], []
    for _ in range(random.integers(1, branches + 1)):
        region = regions[random.integers(len(regions))]
        free = tuple(_row(random, inputs) for _ in range(random.integers(1, rows + 1)))
        shift = Fraction(exact_margin(graph, region, free)).limit_denominator(1 << 20) \
            - Fraction(margins[random.integers(len(margins))])
        drawn.append(Branch(region, tuple(Row(r.y, r.x, r.bound + shift, r.strict) for r in free)))
        exact.append(exact_margin(graph, region, drawn[-1].rows))
    return Case(graph, Property(tuple(drawn), inputs, 2, "drawn"), tuple(exact))


def _region(random: np.random.Generator, inputs: int, moving: int) -> Region:
    lower = [Fraction(int(k), 8) for k in random.integers(-8, 8, inputs)]
    moves = random.permutation(inputs)[:moving]
    return Region(tuple(lower), tuple(v + (Fraction(int(random.integers(1, 13)), 8) if i in moves else 0)
                                      for i, v in enumerate(lower)))


def _row(random: np.random.Generator, inputs: int) -> Row:
    y = tuple((i, Fraction(int(c))) for i, c in enumerate(random.integers(-2, 3, 2)) if c) or ((0, Fraction(1)),)
    x = ((int(random.integers(inputs)), Fraction(int(random.integers(1, 3)))),)[:int(random.integers(3) == 0)]
    return Row(y, x, Fraction(int(random.integers(-4, 5)), 4), bool(random.integers(2)))


def values_of(graph: Graph, nodes: tuple[int, ...], x: Tensor) -> Tensor:
    """"B neurons" at points "B *input"."""
    values = graph.values(x)
    return torch.cat([values[i].flatten(1) for i in nodes], 1)


def folded_case(seed: int, *margins: float) -> Case:
    """Two layers of eight ReLUs over three inputs, one branch a margin: a search of many domains."""
    random = np.random.default_rng(seed)
    build = GraphBuilder((3,), torch.float64)
    for width in (8, 8):
        build.add(Linear(quarters(random, width, build.shape[0]), quarters(random, width)))
        build.add(Relu())
    build.add(Linear(quarters(random, 2, 8), quarters(random, 2)))
    graph, region = build.graph("folded"), Region((Fraction(-1),) * 3, (Fraction(1),) * 3)
    branches = []
    for k, margin in enumerate(margins):
        free = Row(((k % 2, Fraction(1)),), (), Fraction(0))
        least = Fraction(exact_margin(graph, region, (free,))).limit_denominator(1 << 20)
        branches.append(Branch(region, (Row(free.y, (), least - Fraction(margin)),)))
    return Case(graph, Property(tuple(branches), 3, 2, "folded"), margins)
