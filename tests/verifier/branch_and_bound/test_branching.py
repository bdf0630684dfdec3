"""Branching rules: each leads to the right answer, and chooses what its definition says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bounds.beta_crown import BetaCrown
from bounds.ops.linear import Linear
from bounds.ops.relu import Relu
from tests.bounds.networks import GraphBuilder
from tests.verifier.branch_and_bound.cases import draw_case, folded_case, problem_of, search, way
from tests.verifier.branch_and_bound.test_decides import assert_right
from verifier.branch_and_bound.bounding import Bounded, Bounder, Question
from verifier.branch_and_bound.branching import BRANCHING
from verifier.branch_and_bound.branching.babsr import Scores, at_rest
from verifier.branch_and_bound.branching.kfsb import FilteredSmart
from verifier.branch_and_bound.branching.look_ahead import TIE
from verifier.branch_and_bound.branching.rule import rule_of
from verifier.branch_and_bound.domains import NO_CHOICE, Domains, Layout
from verifier.branch_and_bound.plan import plan_for
from verifier.branch_and_bound.stage import root_domains
from verifier.problem import Problem, State
from verifier.strategy import verify

RULES = BRANCHING[1:]  # the default is what all other tests search with


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["dense", "residual", "conv"])
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32 - 1), float32=st.booleans(), refresh=st.booleans())
def test_every_rule_decides_as_the_oracle_does(rule: str, kind: str, seed: int, float32: bool, refresh: bool) -> None:
    case = draw_case(np.random.default_rng(seed), kind, margins=(-1.0, -1 / 16, 1 / 256, 1.0))
    problem = problem_of(case.graph, case.property, torch.float32 if float32 else torch.float64)
    mode = way("neurons", *(["refresh"] if refresh else ["clips", "cuts"]))
    assert_right(problem, search(problem, {**mode, "branching": rule}), case)


def root(problem: Problem) -> tuple[Bounder, Bounded, Domains, Tensor]:
    """(bounder, the root bounded, its open domains with what their children start from, worst group of each)."""
    layout = Layout.of(problem.graph)
    question = Question.of(problem.tensors)
    bounder = Bounder(problem.graph, question, layout, BetaCrown(), refresh=False, clips=False, warm=True)
    plan = replace(plan_for(problem), joint=False)
    bounded = bounder.bound(root_domains(problem, State.of(problem), {}, bounder, plan))
    rest = (~bounded.closed).nonzero().squeeze(1)
    group = torch.arange(len(rest))  # one branch a domain: groups are in order
    domains = bounded.domains.take(rest)
    domains.slopes = bounder.flat_slopes(bounded.reached.at.slopes, len(rest), domains.lower)
    return bounder, bounded, domains, group


def test_values_at_rest_are_the_biases() -> None:
    build = GraphBuilder((2,), torch.float64)
    first, second = torch.tensor([1.0, -2.0, 3.0]).double(), torch.tensor([5.0, 7.0]).double()
    build.add(Linear(torch.ones(3, 2).double(), first))
    build.add(Relu())
    build.add(Linear(torch.ones(2, 3).double(), second))
    graph = build.graph("biases")
    values = at_rest(graph)
    assert values[1].flatten().tolist() == first.tolist()
    assert values[graph.output].flatten().tolist() == second.tolist()


@pytest.mark.parametrize("seed", range(4))
def test_estimates_of_relus_are_as_published(seed: int) -> None:
    """Neuron by neuron, with plain numbers."""
    bounder, bounded, domains, group = root(problem_of((case := folded_case(seed, 1 / 64)).graph, case.property))
    found = Scores.of(bounder, bounded, domains, group)
    layout, rest = bounder.layout, at_rest(bounder.graph)
    biases = torch.cat([rest[i].flatten() for i in layout.nodes]).tolist()
    met = torch.cat([bounded.reached.met[i].flatten(1) for i in layout.nodes], 1)[0].tolist()
    undecided = 0
    for j, (low, high, bias, a) in enumerate(zip(domains.z_low[0].tolist(), domains.z_high[0].tolist(), biases, met,
                                                 strict=True)):
        estimate, backup = float(found.estimate[0, j]), float(found.backup[0, j])
        if low >= 0 or high <= 0:
            assert estimate == backup == -1
            continue
        undecided += 1
        v = -a
        slope = high / (high - low)
        line = max(0, v) * slope * low
        assert estimate == pytest.approx(abs(max(0, v * bias) - slope * v * bias + line))
        assert backup == pytest.approx(-line)
    assert undecided > 3


@pytest.mark.parametrize("seed", range(4))
def test_smart_branching_takes_the_best_of_all_where_none_is_filtered_out(seed: int) -> None:
    case = folded_case(seed, 1 / 64)
    bounder, bounded, domains, group = root(problem_of(case.graph, case.property))
    choice, point = FilteredSmart(candidates=domains.z_low.shape[1]).choose(bounder, bounded, domains, group)
    found = Scores.of(bounder, bounded, domains, group)
    plain = replace(bounder, method=BetaCrown(iterations=1))

    def worth(at: int) -> float:
        j, p = found.split(bounder, bounded, domains, group, torch.tensor([at]))
        if int(j) == NO_CHOICE:
            return -np.inf
        lower = plain.bound(replace(domains, choice=j, point=p).children(bounder.layout)).domains.lower.clamp(max=0)
        return float(lower.min() + TIE * lower.max())
    every = [worth(at) for at in range(domains.z_low.shape[1])]
    assert len({round(w, 9) for w in every if w > -np.inf}) > 1, "the choice matters"
    assert worth(int(choice[0]) - bounder.layout.inputs) == pytest.approx(max(every))
    assert float(point[0]) == 0.0


def test_rules_are_taken_by_name() -> None:
    case = folded_case(0, 1 / 64)
    problem = problem_of(case.graph, case.property)
    for name in BRANCHING:
        plan = plan_for(problem, name)
        assert plan.branching == name and plan.neurons
        assert plan.inputs == (name == BRANCHING[0])
        assert type(rule_of(plan, None)).__name__ == {"realised-gap": "RealisedGap", "babsr": "Babsr",
                                                      "kfsb": "FilteredSmart"}[name]
    with pytest.raises(ValueError, match="branching must be one of"):
        verify(case.graph, case.property, replayer=problem.replayer, branching="none")
