"""Contraction: what the rows of a branch and proved bounds of neurons leave of a domain, without any split.

A domain whose only open branch is a conjunction of rows loses every point at which some row is positive. Three rules,
repeated until they gain little, carry that to the input and back:

- Row to neuron. Pulled back through lines, a row is a plane below it, and at each point exceeds its plane by the sum of
  what all neurons' lines lose there, no term of which is negative. So where the row is at most 0, no single line loses
  more, per unit of its coefficient, than `-(minimum of the plane)`: a neuron whose line would lose more is bounded
  (`Elementwise.near`; in integer programming: reduced cost tightening).
- Row to input. The plane itself cuts the box (`clip`).
- Neuron to input and back. A neuron that is an affine function `l <= w x + b <= u` of the input bounds each input from
  what the others leave (HC4, Benhamou et al. 1999; on clauses: unit propagation), and the new box bounds the neuron.

Every cut is moved out by `SLACK` of the sizes met, so that rounding removes no point.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bounds.backward import Backward, Block, input_rows
from bounds.beta_crown import Groups
from bounds.graph import Graph
from bounds.intermediate import refine
from bounds.interval import Interval
from bounds.ops.base import Elementwise
from bounds.relaxation import Relaxation
from bounds.rows import Rows
from bounds.sets import InputSet
from bounds.sweep import Trace
from bounds.window import Owner
from verifier.branch_and_bound.clip import SLACK, clip, ends_slack, slack_of
from verifier.branch_and_bound.cut import AffineNeurons
from verifier.branch_and_bound.domains import Domains, Layout

ROUNDS = 4       # passes of all three rules
STEPS = 8        # passes of the third rule within one: a chain of implications of this length is followed at once
GAIN = 0.01      # a domain goes on where some input lost this share of its width
PAYS = 0.05      # share of domains that must have lost an input's better half, or everything
FIRST, MEMORY = 256, 2048  # domains before that share counts, and domains that it is remembered for
AGAIN = 32       # every so many batches a contraction that does not pay is tried again


@dataclass(frozen=True, eq=False)
class Contractor:
    """Contracts domains over boxes, each with one open branch."""

    graph: Graph
    layout: Layout
    affine: AffineNeurons

    def contract(self, domains: Domains, groups: Groups) -> tuple[Domains, Tensor]:
        """(the domains with smaller boxes and tighter neurons, bool "B": those of which nothing is left).

        groups: the open branch of each domain, in order. Points of a domain at which all rows of its branch are at
        most 0 stay in it.
        """
        out = replace(domains, low=domains.low.clone(), high=domains.high.clone(), z_low=domains.z_low.clone(),
                      z_high=domains.z_high.clone())
        gone = torch.zeros(len(domains), dtype=torch.bool, device=domains.low.device)
        active = torch.arange(len(domains), device=domains.low.device)
        for _ in range(ROUNDS):
            part = out.take(active)
            before = part.high - part.low
            engine = self._engine(part)
            part.z_low, part.z_high = (self.layout.flat({i: end(engine.intervals[i]) for i in self.layout.nodes})
                                       for end in (_lower, _upper))
            A, b = self._rows(engine, part, groups.take(active))
            low, high = clip(part.low, part.high, A, b)
            low, high = self._propagate(part, low, high)
            empty = engine.empty | (low > high).any(1)
            gone[active] = empty
            on = ~empty
            chosen = active[on]
            out.low[chosen], out.high[chosen] = low[on], high[on]
            out.z_low[chosen], out.z_high[chosen] = part.z_low[on], part.z_high[on]
            active = active[on & (high - low < (1 - GAIN) * before).any(1)]
            if not len(active):
                break
        return out, gone

    def _engine(self, domains: Domains) -> Backward:
        shape = self.graph.input_shape
        engine = Backward(self.graph, InputSet(domains.low.view(-1, *shape), domains.high.view(-1, *shape)))
        refine(engine, known=domains.intervals(self.layout))
        return engine

    def _rows(self, engine: Backward, domains: Domains, groups: Groups) -> tuple[Tensor, Tensor]:
        """The planes (A "B R n", b "B R") below the rows; the neurons of the domains are tightened by them."""
        graph = self.graph
        B, R, _ = groups.C.shape
        owner = torch.arange(B, device=groups.C.device).repeat_interleave(R)
        trace: Trace = {}
        rows = Rows.full(groups.C.reshape(-1, *graph.output_shape), Owner.of(B, owner))
        pulled = engine.pull(Block(graph.output, rows), trace=trace)
        A = input_rows(pulled, graph).flatten(1).view(B, R, -1)
        b = pulled.constant.view(B, R) + groups.offset
        if groups.D is not None:
            A = A + groups.D
        slack = slack_of(A.shape[2], A.dtype)
        least = torch.where(A > 0, A * domains.low.unsqueeze(1), A * domains.high.unsqueeze(1))
        size = least.abs().sum(2) + b.abs()
        room = (slack * size - least.sum(2) - b).clamp(min=0)
        room = torch.where(groups.mask, room, torch.full_like(room, torch.inf))  # padding says nothing
        A, b = A * groups.mask.unsqueeze(2), torch.where(groups.mask, b, torch.zeros_like(b))
        low, high = self.layout.split(domains.z_low), self.layout.split(domains.z_high)
        for node, (met, lines) in trace.items():
            source = graph.nodes[node].inputs[0]
            x = self._near(node, met, lines, engine.lines(node).paid, room, engine.intervals[source])
            if x is not None:
                low[source].copy_(torch.maximum(low[source], x.lower))
                high[source].copy_(torch.minimum(high[source], x.upper))
        return A, b

    def _near(self, node: int, rows: Rows, lines: Relaxation, paid: Tensor | None, room: Tensor, x: Interval
              ) -> Interval | None:
        """Where neurons of one elementwise node stay within what the rows allow their lower lines to lose; paid: how
        far these were moved out for rounding, which is no loss."""
        op = self.graph.nodes[node].op
        if not isinstance(op, Elementwise) or rows.extent is not None or rows.A is None:
            return None  # on windows nothing is learnt
        B, R = room.shape
        A = rows.A.flatten(1)

        def flat(t: Tensor) -> Tensor:
            return t.flatten(1) if rows.columns is None else t.flatten(1).index_select(1, rows.columns)
        z, op = x.map(flat), op.select(flat, (1, *x.lower.shape[1:]))
        every = z.map(lambda t: t.repeat_interleave(R, 0))
        share = room.view(-1, 1) / A.clamp(min=torch.finfo(A.dtype).tiny)  # infinite where the upper line was taken
        share = torch.where(A > 0, share, torch.full_like(share, torch.inf))
        if paid is not None:
            share = share + 2 * flat(paid).repeat_interleave(R, 0)
        slope = lines.lower_slope.flatten(1).expand_as(A)
        intercept = None if lines.lower_intercept is None else lines.lower_intercept.flatten(1).expand_as(A)
        near = op.near(every, slope, intercept, share)
        if near is None:
            return None
        slack = ends_slack(z.lower, z.upper, SLACK[A.dtype])
        low = torch.maximum(z.lower, near.lower.view(B, R, -1).amax(1) - slack)
        high = torch.minimum(z.upper, near.upper.view(B, R, -1).amin(1) + slack)
        if rows.columns is None:
            return Interval(low.view_as(x.lower), high.view_as(x.upper))
        return Interval(x.lower.flatten(1).index_copy(1, rows.columns, low).view_as(x.lower),
                        x.upper.flatten(1).index_copy(1, rows.columns, high).view_as(x.upper))

    def _propagate(self, domains: Domains, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The third rule until it gains little; ends that cross show that nothing is left."""
        at = self.affine.at
        lower, upper = domains.z_low[:, at], domains.z_high[:, at]
        for _ in range(STEPS):
            width = high - low
            low, high = self.affine.narrow(low, high, lower, upper)
            now = high - low
            crossed = (now < 0).any(1, keepdim=True)
            if not bool(((now < (1 - GAIN) * width) & ~crossed).any()):
                break
        return low, high


@dataclass
class Payoff:
    """Whether contraction pays: on most networks planes and splits leave the inputs alone."""

    examined: float = 0.0
    useful: float = 0.0
    batches: int = 0

    def wanted(self) -> bool:
        """Whether the next batch is to be contracted."""
        self.batches += 1
        return self.examined < FIRST or self.useful >= PAYS * self.examined or self.batches % AGAIN == 0

    def note(self, before: Domains, after: Domains, gone: Tensor) -> None:
        """What became of a batch."""
        narrow = (after.high - after.low < (before.high - before.low) / 2).any(1)
        self.examined += len(gone)
        self.useful += int((gone | narrow).sum())
        if self.examined > MEMORY:
            self.examined, self.useful = self.examined / 2, self.useful / 2


def _lower(x: Interval) -> Tensor:
    return x.lower


def _upper(x: Interval) -> Tensor:
    return x.upper
