"""A search in float32 closes what float64 confirms, and nothing else."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from bounds.beta_crown import Start
from tests.verifier.branch_and_bound.cases import MODES, Case, draw_case, problem_of, search, verdict
from verifier.branch_and_bound.confirm import Confirmer
from verifier.branch_and_bound.domains import Domains

MODE = MODES["neurons"]


@cache
def confirmed_cases() -> list[Case]:
    """Questions that a search over neurons proves, after some splits."""
    found: list[Case] = []
    for seed in range(40):
        case = draw_case(np.random.default_rng(seed), "dense", margins=(1 / 16,), branches=1)
        problem = problem_of(case.graph, case.property, torch.float32)
        state = search(problem, MODE)
        if problem.double is not None and verdict(problem, state) == "verified" and state.domains > 3:
            found.append(case)
        if len(found) == 2:
            break
    return found


def test_what_float64_refuses_is_never_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where domains are split further, nor at the leaves, where nothing is left to split."""
    cases = confirmed_cases()
    assert cases

    def refuse(self: Confirmer, domains: Domains, branch: Tensor, start: Start) -> Tensor:
        return torch.full((len(domains),), -torch.inf, dtype=torch.float64)
    monkeypatch.setattr(Confirmer, "confirm", refuse)
    for case in cases:
        problem = problem_of(case.graph, case.property, torch.float32)
        state = search(problem, MODE)
        assert verdict(problem, state) == "unknown" and not bool(state.branch_closed.any())


def test_domains_that_only_float32_calls_empty_are_split_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A conjunction of rows: what is empty has no group that a single row has left open."""
    monkeypatch.setattr(Confirmer, "confirm", lambda self, domains, branch, start: torch.full(
        (len(domains),), -torch.inf, dtype=torch.float64))
    case = draw_case(np.random.default_rng(0), "dense", margins=(1 / 16,), branches=1)
    problem = problem_of(case.graph, case.property, torch.float32, steps=300)
    state = search(problem, MODE)
    assert problem.double is not None and not bool(state.branch_closed.any())


def test_float64_confirms_the_half_that_the_search_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    confirm, halves = Confirmer.confirm, {-1: 0, 1: 0}

    def watched(self: Confirmer, domains: Domains, branch: Tensor, start: Start) -> Tensor:
        result, layout = confirm(self, domains, branch, start), self.bounder.layout
        low, high = self._sides(domains, layout)
        least, most = (torch.cat([end(self.double.proved[i])[domains.region].flatten(1) for i in layout.nodes], 1)
                       for end in (lambda x: x.lower, lambda x: x.upper))
        for side, ends, expected in ((1, (low, high), (least.clamp(min=0), most)),
                                     (-1, (low, high), (least, most.clamp(max=0)))):
            here = domains.sides == side
            halves[side] += int(here.sum())
            assert all(torch.equal(a[here], b[here]) for a, b in zip(ends, expected, strict=True))
        return result
    monkeypatch.setattr(Confirmer, "confirm", watched)
    for case in confirmed_cases():
        search(problem_of(case.graph, case.property, torch.float32), MODE)
    assert min(halves.values()) > 0
