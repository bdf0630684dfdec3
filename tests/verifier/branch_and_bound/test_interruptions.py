"""Searches that run out of memory or of time, are interrupted, or meet candidates that are refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.verifier.branch_and_bound.cases import MODES, folded_case, problem_of, search, verdict
from tests.verifier.branch_and_bound.test_decides import assert_right
from tests.verifier.test_oracle import GraphReplayer
from verifier import verify
from verifier.branch_and_bound import search as search_module
from verifier.branch_and_bound.bounding import Bounded, Bounder
from verifier.branch_and_bound.domains import Domains
from verifier.branch_and_bound.search import Search
from verifier.verdict import Reason
from verifier.witness import Witness, confirm

WAYS = ["inputs", "neurons, cuts", "mixed"]
VERIFIED = folded_case(1, 1 / 64)          # 24 domains and more
FALSIFIED = folded_case(6, 1 / 64, -1 / 64)


Bound = Callable[[Bounder, Domains], Bounded]


def faulty(error: BaseException | None, *, above: int = 0, after: int = 0) -> tuple[Bound, list[list[int]]]:
    """`Bounder.bound` that raises for batches larger than `above`, from call `after` on; and the numbers of the domains
    that it bounded (leaves, which are bounded for a second time, left out)."""
    bound, batches = Bounder.bound, list[list[int]]()

    def replacement(self: Bounder, domains: Domains) -> Bounded:
        if error is not None and len(domains) > above and len(batches) >= after:
            raise error
        if self.programmes is None:
            batches.append(domains.node.tolist())
        return bound(self, domains)
    return replacement, batches


@pytest.mark.parametrize("mode", WAYS)
@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError()],
                         ids=["device", "host"])
def test_a_batch_too_large_for_memory_is_halved(monkeypatch: pytest.MonkeyPatch, mode: str, error: Exception) -> None:
    for case in (VERIFIED, FALSIFIED):
        with monkeypatch.context() as patch:
            replacement, batches = faulty(error, above=2)
            patch.setattr(Bounder, "bound", replacement)
            problem = problem_of(case.graph, case.property)
            assert_right(problem, search(problem, MODES[mode]), case)
        assert max(map(len, batches)) <= 2
        if case is VERIFIED:
            numbers = sorted(k for batch in batches for k in batch)
            assert numbers == [*range(len(numbers))], "every domain is bounded, once"


def test_memory_that_does_not_hold_one_domain_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    case = VERIFIED
    monkeypatch.setattr(Bounder, "bound", faulty(MemoryError(), after=2)[0])
    result = verify(case.graph, case.property, replayer=GraphReplayer(case.graph), method="bab")
    assert (result.name, result.reason) == ("unknown", Reason.MEMORY)
    assert result.lower <= min(case.margins) + 1e-6


@pytest.mark.parametrize("mode", WAYS)
@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_interrupted_batch_loses_nothing(monkeypatch: pytest.MonkeyPatch, mode: str, after: int) -> None:
    problem = problem_of(VERIFIED.graph, VERIFIED.property)
    runs: list[Search] = []
    run = Search.run
    monkeypatch.setattr(Search, "run", lambda self, roots: (runs.append(self), run(self, roots))[1])
    monkeypatch.setattr(Bounder, "bound", faulty(KeyboardInterrupt(), after=after)[0])
    with pytest.raises(KeyboardInterrupt):
        search(problem, MODES[mode])
    assert not runs[0].complete
    assert sum(map(len, runs[0].open)) > 0


def test_an_interrupt_is_an_unknown_with_the_bounds_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    case = VERIFIED
    lowers = []
    for after in (0, 2):
        with monkeypatch.context() as patch:
            patch.setattr(Bounder, "bound", faulty(KeyboardInterrupt(), after=after)[0])
            result = verify(case.graph, case.property, replayer=GraphReplayer(case.graph), method="bab")
        assert (result.name, result.reason) == ("unknown", Reason.INTERRUPTED)
        assert result.lower <= min(case.margins) + 1e-6
        lowers.append(result.lower)
    assert lowers[1] >= lowers[0] > -np.inf


@pytest.mark.parametrize("mode", WAYS)
def test_a_deadline_between_batches_keeps_sound_bounds(mode: str) -> None:
    for case in (VERIFIED, FALSIFIED):
        for steps in (2, 12, 40, 120):
            problem = problem_of(case.graph, case.property, steps=steps)
            state = search(problem, MODES[mode])
            for proved, closed, margin in zip(state.branch_proved.tolist(), state.branch_closed.tolist(), case.margins,
                                              strict=True):
                assert proved <= margin + 1e-5
                assert margin > 0 or not closed
            if steps == 2 and case is VERIFIED:
                assert verdict(problem, state) == "unknown"


@pytest.mark.parametrize("mode", WAYS)
def test_a_late_witness_ends_the_search(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """The first candidates are refused; the one that is confirmed is the last."""
    case = folded_case(0, -1 / 2)
    problem = problem_of(case.graph, case.property)
    offered: list[bool] = []

    def gate(*asked: Any, **more: Any) -> Witness | None:
        witness = None if len(offered) < 3 else confirm(*asked, **more)
        offered.append(witness is not None)
        return witness
    monkeypatch.setattr("verifier.problem.confirm", gate)
    state = search(problem, MODES[mode])
    assert state.witness is not None
    assert offered.count(True) == 1
    assert offered[-1]
    assert state.branch_proved[0] <= -1 / 2 + 1e-6
    assert not bool(state.branch_closed.any())


def bare_search(question: SimpleNamespace, gate: Callable[[Tensor], bool]) -> Search:
    """A search of which only single steps are asked."""
    fields: dict[str, Any] = {f.name: None for f in dataclasses.fields(Search)}
    fields |= {"bounder": SimpleNamespace(question=question, recorder=None, method=None), "batch": 1,
               "gate": gate, "plan": SimpleNamespace(ascents=())}
    return Search(**fields)


def test_refusals_do_not_close_the_gate() -> None:
    """Once many candidates were refused, one that is clearly better is still offered."""
    offered: list[float] = []
    question = SimpleNamespace(rows=torch.zeros(1, 1, dtype=torch.long), target=torch.zeros(1), tensors=SimpleNamespace(
        C=torch.ones(1, 1), bound=torch.zeros(1), D=None))

    def gate(x: Tensor) -> bool:
        offered.append(float(x))
        return offered[-1] < -1
    run = bare_search(question, gate)
    for value in [-1e-9] * (2 * search_module.GATE_TRIES) + [-2.0, -3.0]:
        at = torch.tensor([[value]])
        reached = SimpleNamespace(open=torch.zeros(1, dtype=torch.long), x=at, y=at)
        if not run.found:
            bounded = SimpleNamespace(reached=reached, group_branch=torch.zeros(1, dtype=torch.long))
            run._candidates(cast(Bounded, bounded))
    assert run.found
    assert offered[-1] == -2.0
    assert len(offered) == search_module.GATE_TRIES + 1


def test_the_worst_group_is_one_of_the_open_ones() -> None:
    """Targets differ between branches: a closed group may have the lower bound."""
    question = SimpleNamespace(target=torch.tensor([-1e-30, 1e-3]))
    run = bare_search(question, lambda _: False)
    bounded = SimpleNamespace(
        reached=SimpleNamespace(open=torch.tensor([0, 1, 2, 3])), domains=[0, 1],
        group_domain=torch.tensor([0, 0, 1, 1]), group_branch=torch.tensor([0, 1, 0, 1]),
        group_lower=torch.tensor([0.0, 1e-4, -2.0, -3.0]))
    assert run._worst_groups(cast(Bounded, bounded), torch.tensor([0, 1])).tolist() == [1, 3]
