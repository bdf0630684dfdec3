"""What every domain of a search must keep, held against sampled points while searches run.

The gate refuses all candidates, so that searches go on where counterexamples exist.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bounds.graph import Graph
from tests.bounds.networks import random_graph
from tests.verifier.branch_and_bound.cases import MODES, Case, draw_case, plan_with, problem_of, values_of
from verifier.branch_and_bound.bounding import Bounded, Bounder
from verifier.branch_and_bound.domains import Domains
from verifier.branch_and_bound.search import Search
from verifier.branch_and_bound.stage import BranchAndBoundStage
from verifier.problem import Problem, State
from verifier.property import Branch, Property, Region, Row
from verifier.stages import BoundStage

POINTS = 16           # samples of each domain's box
PAIRED = 2            # domains of a batch that are bounded again, each by itself
SLACK = {torch.float64: 1e-7, torch.float32: 2e-3}
WAYS = [("dense", mode) for mode in MODES] + [("residual", mode) for mode in MODES if "inputs" not in mode] \
    + [("conv", "neurons, contracts"), ("conv", "mixed"), ("pooling", "mixed"), ("pooling", "mixed, cuts")]


@dataclass(eq=False)
class Watch:
    """Checks each step of one search. `points` "P n" of all regions are followed to the leaves: one that a branch
    counts as unsafe must stay in an open domain (or in a leaf that could not be closed) until the end."""

    problem: Problem
    points: Tensor
    region: Tensor
    leaves: list[Domains] = field(default_factory=list)
    batches: int = 0
    seen: dict[str, int] = field(default_factory=dict)

    @property
    def slack(self) -> float:
        return SLACK[self.problem.graph.dtype]

    def count(self, what: str, number: int) -> None:
        self.seen[what] = self.seen.get(what, 0) + number

    def margin(self, x: Tensor) -> Tensor:
        """"P branches" at points "P n"."""
        x = x.to(self.problem.graph.dtype).view(-1, *self.problem.graph.input_shape)
        tensors = self.problem.tensors
        return tensors.branch_margin(tensors.violation(x, self.problem.graph(x)))

    def is_unsafe(self, margin: Tensor) -> Tensor:
        """Of margins "... branches": strict rows are not met at zero."""
        strict = torch.zeros(margin.shape[-1], dtype=torch.bool)
        strict[self.problem.tensors.branch[self.problem.tensors.strict]] = True
        return (margin < 0) | ((margin == 0) & ~strict)

    # ------------------------------------------------------------------ one batch

    def samples(self, bounder: Bounder, domains: Domains, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Points of the boxes "B P n" and whether all that is known of the domain holds there, bool "B P"."""
        low, high = domains.low.unsqueeze(1), domains.high.unsqueeze(1)
        t = torch.rand(len(domains), POINTS, domains.low.shape[1], generator=generator, dtype=torch.float64).to(low)
        t[:, ::2] = t[:, ::2].round()
        x = torch.minimum(torch.maximum(low + t * (high - low), low), high)
        z = values_of(bounder.graph, bounder.layout.nodes, x.flatten(0, 1).view(-1, *bounder.graph.input_shape))
        z = z.view(*x.shape[:2], -1)
        inside = ((z >= domains.z_low.unsqueeze(1)) & (z <= domains.z_high.unsqueeze(1))).all(2)
        if domains.plane.shape[1]:
            inside &= torch.einsum("bn,bpn->bp", domains.plane[:, :-1], x) + domains.plane[:, -1:] <= 0
        return x, inside

    def bounded(self, bounder: Bounder, domains: Domains, result: Bounded) -> None:
        """Bounds of a batch, at samples of its domains."""
        self.batches += 1
        generator = torch.Generator().manual_seed(self.batches)
        x, inside = self.samples(bounder, domains, generator)
        self.count("points", int(inside.sum()))
        margin = self.margin(x.flatten(0, 1)).view(*x.shape[:2], -1)
        claimed = result.group_lower.unsqueeze(1)
        here = margin[result.group_domain, :, result.group_branch]
        ok = (here >= claimed - self.slack) | ~inside[result.group_domain]
        assert bool(ok.all()), f"a bound exceeds the network by {float((claimed - here)[~ok].max())}"
        assert not bool((result.empty.unsqueeze(1) & inside).any()), "a domain with points was called empty"
        out = result.domains
        z = values_of(bounder.graph, bounder.layout.nodes, x.flatten(0, 1).view(-1, *bounder.graph.input_shape))
        z = z.view(*x.shape[:2], -1)
        wrong = (z < out.z_low.unsqueeze(1) - self.slack * (1 + z.abs())) \
            | (z > out.z_high.unsqueeze(1) + self.slack * (1 + z.abs()))
        assert not bool((wrong.any(2) & inside).any()), "a neuron leaves its proved interval"
        # What clipping and closing took away was safe for every branch that was open.
        within = ((x >= out.low.unsqueeze(1)) & (x <= out.high.unsqueeze(1))).all(2) & ~result.closed.unsqueeze(1)
        branches = bounder.question.branches[domains.region]
        unsafe = self.is_unsafe(margin).gather(2, branches.clamp(min=0).unsqueeze(1).expand(-1, POINTS, -1)) \
            & (branches >= 0).unsqueeze(1) & domains.open.unsqueeze(1) & inside.unsqueeze(2)
        kept = within.unsqueeze(2) & out.open.unsqueeze(1)
        assert not bool((unsafe & ~kept).any()), "an unsafe point was cut off"
        self.count("unsafe", int(unsafe.sum()))
        self.count("closed", int(result.closed.sum()))

    def alone(self, bounder: Bounder, bound: Callable[..., Bounded], domains: Domains, result: Bounded) -> None:
        """The first few domains of the batch, bounded one by one."""
        for b in range(min(PAIRED, len(domains))):
            single = bound(bounder, domains.take(torch.tensor([b])))
            here = (result.group_domain == b).nonzero().squeeze(1)
            assert result.group_branch[here].tolist() == single.group_branch.tolist()
            target = bounder.question.target[single.group_branch]
            together = result.group_lower[here]
            # A group that reached its target may go on climbing while others do not.
            assert (together > target).tolist() == (single.group_lower > target).tolist()
            still = together <= target
            torch.testing.assert_close(together[still], single.group_lower[still], rtol=self.slack, atol=self.slack)
            assert bool(result.closed[b]) == bool(single.closed[0])

    # ------------------------------------------------------------------ splits

    def split(self, bounder: Bounder, parents: Domains, children: Domains) -> None:
        """Each sample of a parent lies in the child (or children) that its side of the split leads to."""
        generator = torch.Generator().manual_seed(len(parents))
        x, inside = self.samples(bounder, parents, generator)
        z = values_of(bounder.graph, bounder.layout.nodes, x.flatten(0, 1).view(-1, *bounder.graph.input_shape))
        where = torch.cat([x, z.view(*x.shape[:2], -1)], 2)
        at = where.gather(2, parents.choice.view(-1, 1, 1).expand(-1, POINTS, 1)).squeeze(2)
        point = parents.point.unsqueeze(1)
        z = z.view(*x.shape[:2], -1)
        for child, side in ((children.take(torch.arange(len(parents))), at <= point),
                            (children.take(torch.arange(len(parents), 2 * len(parents))), at >= point)):
            loose = self.slack * 1e-3 * (1 + z.abs())
            stays = ((x >= child.low.unsqueeze(1)) & (x <= child.high.unsqueeze(1))).all(2) \
                & ((z >= child.z_low.unsqueeze(1) - loose) & (z <= child.z_high.unsqueeze(1) + loose)).all(2)
            assert not bool((inside & side & ~stays).any()), "a split loses points"
        self.count("split", int(inside.sum()))
        for name in ("region", "open", "lower"):
            assert torch.equal(getattr(children, name), torch.cat([getattr(parents, name)] * 2))
        assert bool((children.depth == torch.cat([parents.depth] * 2) + 1).all())

    # ------------------------------------------------------------------ the whole tree

    def covered(self, search: Search) -> None:
        """Every unsafe point is in an open domain, for each branch that it belongs to."""
        bounder = search.bounder
        margin = self.margin(self.points)
        z = values_of(bounder.graph, bounder.layout.nodes, self.points.view(-1, *bounder.graph.input_shape))
        found = torch.zeros_like(margin, dtype=torch.bool)
        for domains in [*search.open, *self.leaves]:
            loose = self.slack * 1e-3 * (1 + z.abs()).unsqueeze(1)
            x = self.points.unsqueeze(1)
            inside = ((x >= domains.low) & (x <= domains.high)).all(2) & (self.region.unsqueeze(1) == domains.region)
            inside &= ((z.unsqueeze(1) >= domains.z_low - loose) & (z.unsqueeze(1) <= domains.z_high + loose)).all(2)
            branches = bounder.question.branches[domains.region]
            for slot in range(branches.shape[1]):
                has = inside & (domains.open[:, slot] & (branches[:, slot] >= 0))
                p, b = has.nonzero(as_tuple=True)
                found[p, branches[b, slot]] = True
        mine = self.problem.tensors.branch_region.unsqueeze(0) == self.region.unsqueeze(1)
        unsafe = self.is_unsafe(margin) & mine & search.seen
        self.count("followed", int(unsafe.sum()))
        assert not bool((unsafe & ~found).any()), "an unsafe point is in no open domain"


def watched(monkeypatch: pytest.MonkeyPatch, problem: Problem, mode: dict[str, Any], *, limit: int = 40,
            crown: bool = True) -> Watch:
    """Run a search of at most `limit` domains under watch; the gate refuses everything."""
    sets = problem.tensors.sets
    points = sets.sample(60, torch.Generator().manual_seed(1)).flatten(2)
    region = torch.arange(sets.batch).repeat_interleave(points.shape[1])
    watch = Watch(problem, points.flatten(0, 1), region)
    bound, children, leaves, batch = Bounder.bound, Search._children, Bounder.bound_leaves, Search._bound
    with monkeypatch.context() as patch:
        def bounding(self: Bounder, domains: Domains, **how: bool) -> Bounded:
            before = domains.map(torch.clone)
            result = bound(self, domains, **how)
            for name, value in vars(before).items():
                assert torch.equal(value, getattr(domains, name)), f"bounding writes into {name}"
            watch.bounded(self, domains, result)
            if self.programmes is None:
                watch.alone(self, partial(bound, **how), domains, result)
            return result

        def splitting(self: Search, parents: Domains) -> Domains:
            both = children(self, parents)
            watch.split(self.bounder, parents, both)
            return both

        def ending(self: Bounder, domains: Domains) -> Bounded:
            result = leaves(self, domains)
            watch.leaves.append(result.domains.take((~result.closed).nonzero().squeeze(1)))
            return result

        def batching(self: Search, domains: Domains) -> None:
            batch(self, domains)
            waiting = self.waiting.pop()  # as the search itself does when a batch has ended
            watch.covered(self)
            self.waiting.append(waiting)
            if self.tree.domains >= limit:
                self.stop = lambda: True
        patch.setattr(Bounder, "bound", bounding)
        patch.setattr(Bounder, "bound_leaves", ending)
        patch.setattr(Search, "_children", splitting)
        patch.setattr(Search, "_bound", batching)
        patch.setattr("verifier.problem.confirm", lambda *_, **__: None)
        state = State.of(problem)
        if crown:
            BoundStage("crown", keep=True).run(problem, state)
            state.row_lower.fill_(-torch.inf)
        BranchAndBoundStage(plan_with(problem, **mode)).run(problem, state)
    for k, proved in enumerate(state.branch_proved.tolist()):
        mine = region == problem.tensors.branch_region[k]
        assert proved <= float(watch.margin(watch.points[mine])[:, k].min()) + watch.slack
    return watch


@pytest.mark.parametrize(("kind", "mode"), WAYS, ids=lambda v: v.replace(" ", "-"))
@settings(max_examples=2, deadline=None,
          suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), float32=st.booleans())
@example(seed=26005215, float32=True)  # boxes shrink to points in "mixed, cuts"
def test_no_step_loses_or_overrates_a_point(monkeypatch: pytest.MonkeyPatch, kind: str, mode: str, seed: int,
                                            float32: bool) -> None:
    case: Case = draw_case(np.random.default_rng(seed), kind, margins=(-1.0, -1 / 2, 1 / 64))
    problem = problem_of(case.graph, case.property, torch.float32 if float32 else torch.float64)
    watched(monkeypatch, problem, MODES[mode], crown=seed % 3 > 0)


@pytest.mark.parametrize("activation", ["mixed", "LeakyRelu", "Clip", "Sigmoid"])
@settings(max_examples=2, deadline=None,
          suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**31 - 1), kind=st.sampled_from(["dense", "residual"]), mode=st.sampled_from(list(MODES)))
def test_nor_with_other_activations(monkeypatch: pytest.MonkeyPatch, activation: str, seed: int, kind: str,
                                    mode: str) -> None:
    graph: Graph = random_graph(seed, kind, activation)
    problem = sampled_question(graph, seed)
    watched(monkeypatch, problem, MODES[mode], limit=30)


@pytest.mark.parametrize("mode", ["inputs, cuts", "mixed, cuts"])
@pytest.mark.parametrize("seed", range(2))
def test_nor_where_branches_leave_opposite_parts_of_a_domain(monkeypatch: pytest.MonkeyPatch, mode: str, seed: int
                                                             ) -> None:
    """The least and the largest values of an output are unsafe: what one branch leaves of a domain the other does
    not."""
    graph = random_graph(seed, "dense", "Relu")
    inputs, outputs = int(np.prod(graph.input_shape)), int(np.prod(graph.output_shape))
    region = Region((Fraction(-1),) * inputs, (Fraction(1),) * inputs)
    x = torch.rand(500, inputs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1
    y = graph(x.view(-1, *graph.input_shape)).flatten(1)[:, 0].numpy()
    ends = [(Fraction(1), np.quantile(y, 0.1)), (Fraction(-1), -np.quantile(y, 0.9))]
    branches = tuple(Branch(region, (Row(((0, sign),), (), Fraction(float(bound))),)) for sign, bound in ends)
    watched(monkeypatch, problem_of(graph, Property(branches, inputs, outputs)), MODES[mode], limit=40)


def sampled_question(graph: Graph, seed: int) -> Problem:
    """Rows whose thresholds are values that samples reach, so that about each second branch is unsafe."""
    random = np.random.default_rng(seed)
    inputs, outputs = int(np.prod(graph.input_shape)), int(np.prod(graph.output_shape))
    lower = random.normal(size=inputs).round(2)
    region = Region(tuple(map(Fraction, lower)), tuple(map(Fraction, lower + random.random(inputs).round(2))))
    x = torch.from_numpy(lower + random.random((50, inputs)) * 0.9).view(-1, *graph.input_shape)
    y = graph(x).flatten(1).numpy()
    branches = []
    for _ in range(2):
        rows = []
        for _ in range(int(random.integers(1, 3))):
            c = random.integers(-2, 3, outputs) + 0.5
            bound = np.quantile(y @ c, random.random() / 2)
            rows.append(Row(tuple((i, Fraction(float(w))) for i, w in enumerate(c)), (), Fraction(float(bound))))
        branches.append(Branch(region, tuple(rows)))
    return problem_of(graph, Property(tuple(branches), inputs, outputs))
