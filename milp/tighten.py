"""Progressive bound tightening: intervals, then CROWN, then linear programmes, then mixed ones, each only for the
neurons that those before left undecided, layer by layer with what is known of the layers before (Tjeng, Xiao and
Tedrake, arXiv:1711.07356; in optimisation: OBBT).

A bound by a linear programme is what its multipliers are worth on the network (`certificate`), one by a mixed programme
the solver's word less its tolerances.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bounds.backward import Backward, adaptive
from bounds.graph import Graph
from bounds.intermediate import refine
from bounds.interval import Interval
from bounds.precision import rounded_down
from bounds.rows import Rows
from bounds.sets import InputSet
from milp.certificate import UnsafeRows, certified_value
from milp.encoder import Encoding
from milp.mixed import CLEAR
from milp.planet import Planet
from milp.problem import Status
from milp.solvers.highs_mixed import HighsMixed
from milp.workers import workers

EVALUATED = 64        # certificates evaluated together
ROWS_A_TASK = 32      # neuron sides that one process takes at a time


@dataclass(frozen=True)
class Tightening:
    """milp_s: seconds for each neuron side that linear programmes leave undecided (0: none); time_limit_s: of all sides
    together, after which bounds stay as they are; jobs: processes."""

    milp_s: float = 0.0
    time_limit_s: float = math.inf
    jobs: int = 1

    def refine(self, graph: Graph, sets: InputSet, known: Mapping[int, Interval] | None = None) -> dict[int, Interval]:
        """Enclosures of all nodes, "B *shape"; `known` ones are taken as proved and tightened further."""
        engine = Backward(graph, sets, adaptive)
        with polishing(self, engine) as polish, torch.no_grad():
            return refine(engine, known=known, row_bound=engine.lower, polish=polish)


@contextmanager
def polishing(settings: Tightening, engine: Backward) -> Iterator[Polish]:
    """What `bounds.intermediate.refine` takes as `polish`; its processes end with the block."""
    if settings.jobs == 1:
        yield Polish(settings, engine, None, time.monotonic() + settings.time_limit_s)
        return
    with workers(settings.jobs, torch.set_num_threads, (1,)) as pool:
        yield Polish(settings, engine, pool, time.monotonic() + settings.time_limit_s)


@dataclass(frozen=True, eq=False)
class Task:
    """Sides of some neurons of a graph's output over one set: rows `sign z[index]`, each "R"."""

    graph: Graph
    sets: InputSet
    intervals: dict[int, Interval]
    index: Tensor
    sign: Tensor
    milp_s: float
    time_limit_s: float
    enough: float | None

    def lower(self) -> Tensor:
        """Lower bounds "R" in float64; those that the time did not reach are -inf."""
        size = torch.Size(self.graph.output_shape).numel()
        C = torch.zeros(len(self.index), 1, size, dtype=torch.float64)
        C[torch.arange(len(self.index)), 0, self.index] = self.sign.double()
        rows = UnsafeRows(C, torch.zeros(len(self.index), 1, dtype=torch.float64))
        end = time.monotonic() + self.time_limit_s
        found = lp_minima(self.graph, self.sets, self.intervals, rows, self.time_limit_s)
        if self.milp_s > 0:
            found = torch.maximum(found, self._mixed(found, end))
        return found

    def _mixed(self, lower: Tensor, end: float) -> Tensor:
        """By mixed programmes, of the sides of neurons that are still undecided: sides of one neuron stand in pairs."""
        out = torch.full_like(lower, -torch.inf)
        if self.enough is not None:
            is_open = (lower.view(-1, 2) <= self.enough).all(1).repeat_interleave(2)
        else:
            is_open = torch.ones_like(lower, dtype=torch.bool)
        if not bool(is_open.any()):
            return out
        sets = self.sets if self.sets.p == 1 else InputSet(self.sets.lower, self.sets.upper)  # an l_2 ball by its box
        encoding, solver = Encoding(self.graph, sets, self.intervals), HighsMixed()
        program, form = encoding.rows.program({}), encoding.output
        matrix = form.over(program.rows.shape[1])
        for r in is_open.nonzero().flatten().tolist():
            left = end - time.monotonic()
            if left <= 0:
                break
            k, sign = int(self.index[r]), float(self.sign[r])
            asked = replace(program, cost=sign * matrix[[k]].toarray()[0], offset=sign * float(form.constant[k]))
            bound = solver.solve(asked, time_limit_s=min(left, self.milp_s)).bound
            out[r] = bound - CLEAR * (1 + abs(bound)) if math.isfinite(bound) else -math.inf
        return out


def lp_minima(graph: Graph, sets: InputSet, intervals: Mapping[int, Interval], rows: UnsafeRows,
              time_limit_s: float = math.inf) -> Tensor:
    """Lower bounds "R" in float64 of rows "R 1 m" over one set, by linear programmes: what their certificates are worth
    on the network. -inf where the time did not suffice, and where a programme has no point: over a set that nothing was
    split off, that shows intervals which contradict each other by rounding, and proves nothing."""
    value = torch.full((len(rows.bound),), -torch.inf, dtype=torch.float64)
    answers = Planet(graph).minima(sets, intervals, rows, time_limit_s=time_limit_s)
    for chosen in torch.arange(0 if answers is None else len(answers.value)).split(EVALUATED):
        assert answers is not None
        one = slice(int(chosen[0]), int(chosen[-1]) + 1)
        value[one] = certified_value(graph, sets.index(torch.zeros_like(chosen)), intervals, rows.take(one),
                                     answers.certificate.take(one))
        ended = (answers.status[one] == Status.OPTIMAL) | (answers.status[one] == Status.CUTOFF)
        value[one] = torch.where(ended & torch.isfinite(value[one]), value[one], -torch.inf)
    return value


@dataclass(eq=False)
class Polish:
    """Bounds rows of undecided neurons, in `pool` if there is one."""

    settings: Tightening
    engine: Backward
    pool: Executor | None
    end: float

    def __call__(self, node: int, rows: Rows, enough: float | None) -> Tensor:
        """Lower bounds "N" of unit rows of a node, sides of one neuron in pairs."""
        graph, sets = self.engine.graph, self.engine.sets
        assert rows.index is not None and rows.sign is not None, "unit rows"
        out = torch.full_like(rows.sign, -torch.inf)
        part = replace(graph, nodes=graph.nodes[:node + 1], output=node)
        owner = rows.owner.domains(rows.count, rows.index)
        tasks: list[tuple[Tensor, Task]] = []
        for d in owner.unique().tolist():
            one = torch.tensor([d], device=owner.device)
            intervals = {i: self.engine.intervals[i].map(lambda t, d=d: t[d:d + 1]) for i in part.relaxed_inputs}
            for at in (owner == d).nonzero().flatten().split(ROWS_A_TASK if self.pool else len(owner)):
                tasks.append((at, Task(part, sets.index(one), intervals, rows.index[at], rows.sign[at],
                                       self.settings.milp_s, 0.0, enough)))
        for at, value in self._solved(tasks):
            out[at] = rounded_down(value, out.dtype).to(out.device)
        return out

    def _solved(self, tasks: list[tuple[Tensor, Task]]) -> Iterator[tuple[Tensor, Tensor]]:
        if self.pool is None:
            for at, task in tasks:
                left = self.end - time.monotonic()
                if left <= 0:
                    return
                yield at, replace(task, time_limit_s=left).lower()
            return
        left = self.end - time.monotonic()
        if left > 0:
            futures = [self.pool.submit(Task.lower, replace(task, time_limit_s=left)) for _, task in tasks]
            for (at, _), future in zip(tasks, futures, strict=True):
                yield at, future.result()
