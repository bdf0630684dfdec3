"""The pool keeps every domain exactly once and whole, whatever the order of pushes and pops."""

from __future__ import annotations

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from verifier.branch_and_bound.domains import Domains, Pool

BOUNDS = st.floats(-4, 4).map(lambda v: round(v, 1)) | st.just(float("-inf"))


def domains(numbers: list[int], lower: list[float]) -> Domains:
    """Domains all of whose fields tell their number."""
    node = torch.tensor(numbers)
    fields = {name: node.view(-1, 1).double() for name in Domains.__dataclass_fields__}
    return Domains(**{**fields, "lower": torch.tensor(lower, dtype=torch.float64), "node": node})


class PoolMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.pool, self.expected, self.next = Pool(1 << 30), dict[int, float](), 0

    @rule(lower=st.lists(BOUNDS, max_size=9))
    def push(self, lower: list[float]) -> None:
        numbers = list(range(self.next, self.next + len(lower)))
        self.next += len(lower)
        given = domains(numbers, lower)
        self.pool.push(given)
        self.expected |= dict(zip(numbers, lower, strict=True))

    @rule(count=st.integers(1, 12))
    def pop(self, count: int) -> None:
        if not self.expected:
            return
        out = self.pool.pop(count)
        numbers = out.node.tolist()
        assert len(set(numbers)) == len(numbers) == min(count, len(self.expected))
        self.check(out)
        lower = [self.expected.pop(k) for k in numbers]
        assert all(max(lower) <= rest for rest in self.expected.values()), "the lowest leave first"

    def check(self, out: Domains) -> None:
        for name, value in vars(out).items():
            if name not in ("node", "lower"):
                assert value.flatten().tolist() == out.node.tolist(), f"{name} of another domain"
        assert out.lower.tolist() == [self.expected[k] for k in out.node.tolist()]

    @invariant()
    def holds_what_it_should(self) -> None:
        assert len(self.pool) == len(self.expected)
        if self.expected:
            everything = self.pool.all()
            assert sorted(everything.node.tolist()) == sorted(self.expected)
            self.check(everything)
            assert self.pool.lowest() == min(self.expected.values())


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=40, stateful_step_count=12, deadline=None)
