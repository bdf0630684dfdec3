"""The search: domains are split, bounded and closed until none is left, a witness is found or the time is up."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from verifier.branch_and_bound.bounding import Bounded, Bounder
from verifier.branch_and_bound.branching.rule import Rule
from verifier.branch_and_bound.contract import Payoff
from verifier.branch_and_bound.descent import descended
from verifier.branch_and_bound.domains import NO_CHOICE, Domains, Pool
from verifier.branch_and_bound.leaves import Leaves
from verifier.branch_and_bound.plan import Plan
from verifier.out_of_memory import is_out_of_memory

DESCENT_SHARE = 0.05  # of the time, for descents from minimisers
OFFERS = 4         # candidates of one batch that may go to the gate
FIRST_BATCH = 64
SHORT_S, LONG_S = 0.2, 1.0  # seconds of a batch that may grow, and of one that must shrink
POOL_SHARE = 0.25            # growing copies the domains, so that twice as much may be in use for a moment
UNKNOWN_MEMORY = 1 << 30     # where the system does not tell how much is free
GATE_TRIES = 64    # refusals after which only clearly better candidates are offered


def memory_budget(device: torch.device) -> int:
    """Bytes that open domains may take: a share of what is free now."""
    if device.type == "cuda":
        return int(POOL_SHARE * torch.cuda.mem_get_info(device)[0])
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return UNKNOWN_MEMORY
    return max(int(POOL_SHARE * free), UNKNOWN_MEMORY // 4)


@dataclass(eq=False)
class Tree:
    """What the search has done so far. floor "branches": the least bound of the closed leaves; `stuck` domains could be
    neither closed nor split."""

    floor: Tensor
    domains: int = 0
    batches: int = 0
    nodes: int = 0
    leaves: int = 0
    depth: int = 0
    stuck: int = 0
    numerical: str = ""


class Exact(Protocol):
    """Something that decides small domains by itself."""

    def takes(self, bounder: Bounder, domains: Domains) -> Tensor:
        """bool "B": which domains it wants instead of a split."""
        ...

    def solve(self, bounder: Bounder, domain: Domains, branch: int) -> tuple[float, Tensor | None]:
        """(a lower bound of the branch's margin over the one domain, a point "*input" to offer)."""
        ...


@dataclass(eq=False)
class Search:
    """Branch and bound from the root domains. `gate` takes a candidate point and says whether it is a witness;
    `stop` ends the search between batches; `exact` decides the domains that it takes; `leaves` learns what is closed
    and what is left open, for a search over another ball."""

    bounder: Bounder
    rule: Rule
    batch: int
    gate: Callable[[Tensor], bool]
    stop: Callable[[], bool]
    report: Callable[[Search], None]
    plan: Plan
    exact: Exact | None = None
    leaves: Leaves | None = None

    def __post_init__(self) -> None:
        question, method = self.bounder.question, self.bounder.method
        self.bounders = [replace(self.bounder, method=replace(method, ascent=a)) for a in self.plan.ascents]
        self.tree = Tree(floor=torch.full_like(question.target, math.inf))
        self.pool = Pool(memory_budget(question.target.device))
        self.waiting: list[Domains] = []
        self.moving = False  # domains are between the pool and the waiting list
        self.largest = self.batch
        self.batch = min(self.batch, FIRST_BATCH)
        self.seen = torch.zeros(len(question.target), dtype=torch.bool, device=question.target.device)
        self.found = False
        self.payoff = Payoff()
        self.upper = math.inf
        self.recorder = self.bounder.recorder
        self.begun, self.descents_s = time.monotonic(), 0.0
        self._refused = 0
        self._least_refused = 0.0

    def run(self, roots: Sequence[Domains], paused: Domains | None = None) -> None:
        """Search until nothing is open. What is still open when it stops lies in `pool` and `waiting`.

        roots: in parts that may differ in the number of their slopes; paused: what the pool of an earlier search of the
        same question held."""
        everything = [*roots, *([] if paused is None else [paused])]
        for part in everything:
            self._cover(part)
            part.node = self.tree.nodes + torch.arange(len(part), device=part.node.device)
            self.tree.nodes += len(part)
        if self.recorder is not None:
            self.recorder.begin(self.bounder, self.plan, roots[0])
        self.waiting = [part.take(some) for part in roots
                        for some in torch.arange(len(part), device=part.node.device).split(self.batch)]
        if paused is not None:
            self.pool.push(paused)
        self._run()
        if self.leaves is not None and not self.moving:
            self.leaves.end(self.bounder.question, self.waiting, self.pool.all() if len(self.pool) else None)
        if self.recorder is not None:
            self.recorder.end(self.tree.nodes, self.complete and not self.found)

    def _run(self) -> None:
        while (self.waiting or len(self.pool)) and not self.found and not self.stop():
            if not self.waiting:
                self.moving = True
                self.waiting.append(self._children(self.pool.pop(max(1, self.batch // 2))))
                self.moving = False
            domains = self.waiting[-1]
            start = time.monotonic()
            try:
                self._bound(domains)
            except Exception as error:
                if len(domains) == 1 or not is_out_of_memory(error):
                    raise
                self.batch = self.largest = max(1, len(domains) // 2)
                self.waiting[-1:] = [domains.take(half) for half in
                                     torch.arange(len(domains), device=domains.node.device).split(self.batch)]
                continue
            if self.found:
                return  # what is open stays where bounds of the margin look for it
            self.waiting.pop()
            self._adapt(len(domains), time.monotonic() - start)
            self.report(self)

    @property
    def open(self) -> list[Domains]:
        """Everything that is not closed."""
        return [*self.waiting, *([self.pool.all()] if len(self.pool) else [])]

    @property
    def complete(self) -> bool:
        """Whether every domain was closed."""
        return not (self.waiting or len(self.pool) or self.tree.stuck or self.moving)

    def _children(self, parents: Domains) -> Domains:
        children = parents.children(self.bounder.layout)
        # The k-th split makes the nodes 2k and 2k + 1 after the roots.
        places = torch.arange(len(children), device=children.node.device)
        children.node = self.tree.nodes + 2 * (places % len(parents)) + places // len(parents)
        self.tree.nodes += len(children)
        if self.recorder is not None:
            self.recorder.split(parents)
        return children

    def _adapt(self, count: int, seconds: float) -> None:
        """Batches that are over soon grow, those that hold up the clock shrink."""
        if seconds > LONG_S:
            self.batch = max(2, count // 2)
        elif count >= self.batch - 1 and seconds < SHORT_S:
            self.batch = min(2 * self.batch, self.largest)

    def _cover(self, roots: Domains) -> None:
        """Note which branches the roots ask about."""
        question = self.bounder.question
        d, slot = roots.open.nonzero(as_tuple=True)
        self.seen[question.branches[roots.region[d], slot]] = True

    def _bound(self, domains: Domains) -> None:
        tree = self.tree
        tree.domains += len(domains)
        domains = self._contracted(domains)
        if not len(domains):
            return
        bounder = self.bounders[self.tree.batches % len(self.bounders)]
        bounded = bounder.bound(domains)
        tree.batches += 1
        if bounded.numerical:
            tree.numerical = "a bound is not a number"
        done = bounded.group_lower > self.bounder.question.target[bounded.group_branch]
        tree.floor = tree.floor.scatter_reduce(0, bounded.group_branch[done], bounded.group_lower[done], "amin")
        tree.leaves += int(bounded.closed.sum())
        self._candidates(bounded)
        if not self.found:
            self._descend(bounded)
        if self.found:
            return
        if self.leaves is not None:
            gone = bounded.closed.clone()
            if bounded.refused is not None:
                gone[bounded.refused] = False
            self.leaves.close(domains.take(gone), self.bounder.question)
        rest = (~bounded.closed).nonzero().squeeze(1)
        if len(rest):
            self._split(bounded, rest)
        if bounded.refused is not None and len(bounded.refused) and not self.found:
            # Their bounds are above the target by no more than rounding: they are split once more.
            again = bounder.bound(domains.take(bounded.refused), closes=False)
            self._split(again, torch.arange(len(bounded.refused), device=bounded.refused.device))

    def _contracted(self, domains: Domains) -> Domains:
        """The domains of a batch that contraction leaves, as it leaves them."""
        if self.bounder.contractor is None or not self.payoff.wanted():
            return domains
        after, gone = self.bounder.contract(domains)
        self.payoff.note(domains, after, gone)
        self.tree.leaves += int(gone.sum())
        if self.leaves is not None:
            self.leaves.close(domains.take(gone), self.bounder.question)
        return after.take((~gone).nonzero().squeeze(1)) if bool(gone.any()) else after

    def _split(self, bounded: Bounded, rest: Tensor) -> None:
        """Choose the next split of the open domains and put them into the pool."""
        reached = bounded.reached
        group = self._worst_groups(bounded, rest)
        domains = bounded.domains.take(rest)
        bounder = self.bounder
        multipliers = {i: s[group] for i, s in reached.at.multipliers.items()}
        if multipliers:
            zeros = domains.lower.new_zeros
            domains.multipliers = bounder.layout.flat(
                {i: multipliers.get(i, zeros(len(rest), *s))
                 for i, s in zip(bounder.layout.nodes, bounder.layout.shapes, strict=True)})
        slopes = {i: p[:, group] for i, p in reached.at.slopes.items()}
        domains.slopes = bounder.flat_slopes(slopes, len(rest), domains.lower)
        domains.choice, domains.point = self.rule.choose(bounder, bounded, domains, group)
        if bounder.fenced:
            domains.fences = bounder.fences(bounded, rest, domains.choice, domains.point)
        if self.recorder is not None and bounder.affine is None:
            # Children start from the root's intervals and their splits, so that a proof need not follow their parents.
            domains.z_low, domains.z_high = bounded.z_low[rest], bounded.z_high[rest]
        if bounder.affine is not None:
            plane = torch.cat([reached.A[group].flatten(1), reached.b[group].unsqueeze(1)], 1)
            alone = (domains.open.sum(1) == 1).unsqueeze(1)  # the plane speaks of one branch
            domains.plane = torch.where(alone, plane, torch.zeros_like(plane))
        stuck = domains.choice == NO_CHOICE
        if bool(stuck.any()):
            self._leaves(domains.take(stuck.nonzero().squeeze(1)))
            if self.found:
                return
            domains = domains.take((~stuck).nonzero().squeeze(1))
        if self.exact is not None:
            taken = self.exact.takes(bounder, domains)
            self._exactly(domains.take(taken.nonzero().squeeze(1)))
            if self.found:
                return
            domains = domains.take((~taken).nonzero().squeeze(1))
        self.tree.depth = max(self.tree.depth, int(domains.depth.max()) if len(domains) else 0)
        self.pool.push(domains)

    def _worst_groups(self, bounded: Bounded, rest: Tensor) -> Tensor:
        """For each open domain the position, among the groups that stayed open, of the one with the lowest bound."""
        opened = bounded.reached.open
        owner, lower = bounded.group_domain[opened], bounded.group_lower[opened]
        # Rounding may close a group after it was left open; its plane says nothing of the branches still open.
        done = lower > self.bounder.question.target[bounded.group_branch[opened]]
        order = torch.where(done, torch.full_like(lower, math.inf), lower).argsort(stable=True)
        place = torch.arange(len(order), device=rest.device)
        first = torch.full((len(bounded.domains),), len(order), dtype=torch.long, device=rest.device)
        first = first.scatter_reduce(0, owner[order], place, "amin")
        return order[first[rest]]

    def _exactly(self, domains: Domains) -> None:
        """Domains that `exact` takes, one after the other; those that the time does not reach stay as they are."""
        assert self.exact is not None
        tree, question = self.tree, self.bounder.question
        for k in range(len(domains)):
            domain = domains.take(torch.tensor([k], device=domains.node.device))
            for slot in domain.open[0].nonzero().flatten().tolist():
                branch = int(question.branches[domain.region[0], slot])
                lower, x = (float(domain.lower[0]), None) if self.stop() else \
                    self.exact.solve(self.bounder, domain, branch)
                if x is not None and self.gate(x):
                    self.found = True
                    return
                lower = lower if lower == lower else -math.inf  # what is no number must not leave the floor as it was
                tree.floor[branch] = min(float(tree.floor[branch]), lower)
                tree.stuck += int(not lower > float(question.target[branch]))
                tree.leaves += 1

    def _leaves(self, leaves: Domains) -> None:
        """Domains with nothing left to split: linear programmes, exact where every neuron is linear."""
        bounded = self.bounder.bound_leaves(leaves)
        done = bounded.group_lower > self.bounder.question.target[bounded.group_branch]
        tree = self.tree
        tree.floor = tree.floor.scatter_reduce(0, bounded.group_branch, bounded.group_lower, "amin")
        tree.leaves += int(bounded.closed.sum())
        if bounded.refused is not None:
            done &= ~torch.isin(bounded.group_domain, bounded.refused)
        tree.stuck += int((~done).sum())
        if self.leaves is not None:  # groups are in the order of their domains, one each
            self.leaves.close(leaves.take(done), self.bounder.question)
            self.leaves.keep(leaves.take(~done), self.bounder.question)
        self._candidates(bounded)

    def _candidates(self, bounded: Bounded) -> None:
        """Offer the minimisers of open groups that the search graph puts into the unsafe set."""
        reached = bounded.reached
        if not len(reached.open):
            return
        margin = self._margins(bounded)
        self.upper = min(self.upper, float(margin.min()))
        for i in margin.topk(min(OFFERS, len(margin)), largest=False).indices.tolist():
            value = float(margin[i])
            if value > 0 or (self._refused >= GATE_TRIES and value >= 2 * self._least_refused):
                break
            if self.gate(reached.x[i]):
                self.found = True
                return
            self._refused += 1
            self._least_refused = min(self._least_refused, value)

    def _margins(self, bounded: Bounded) -> Tensor:
        """Of the minimisers of open groups, by the search graph: "H", at most 0 where they are unsafe."""
        reached, question = bounded.reached, self.bounder.question
        rows = question.rows[bounded.group_branch[reached.open]]
        t = question.tensors
        v = torch.einsum("hrm,hm->hr", t.C[rows], reached.y.flatten(1)) - t.bound[rows]
        if t.D is not None:
            v = v + torch.einsum("hrn,hn->hr", t.D[rows], reached.x.flatten(1))
        return v.amax(1)

    def _descend(self, bounded: Bounded) -> None:
        """Offer what a short descent reaches from the best minimisers, for a small share of the time."""
        now, reached = time.monotonic(), bounded.reached
        if not len(reached.open) or self.descents_s > DESCENT_SHARE * (now - self.begun):
            return
        near = self._margins(bounded).topk(min(OFFERS, len(reached.open)), largest=False).indices
        branch = bounded.group_branch[reached.open[near]]
        points, value = descended(self.bounder.graph, self.bounder.question, reached.x[near], branch)
        self.upper = min(self.upper, float(value.min()))
        self.found = any(self.gate(points[i]) for i in (value <= 0).nonzero().flatten().tolist())
        self.descents_s += time.monotonic() - now
