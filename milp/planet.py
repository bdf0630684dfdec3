"""The linear programme of a domain: the Planet relaxation (Ehlers, arXiv:1705.01320) of everything proved about it.

Over one domain of a branch and bound (a box, and proved intervals of the neurons) the least violation of a branch's
rows is bounded by

    min t   subject to   C y + D x - bound <= t,   the lines of every neuron,   l <= z <= u where proved,

whose optimum is the best bound that any row weights, relaxation parameters and multipliers give together (LP duality;
for ReLU: Salman et al., arXiv:1902.08722). Where every neuron is linear on its interval, the programme is the network
itself on its activation region and the optimum is exact.

The programme is condensed: its variables are the inputs that can move and one for each neuron that is not linear on its
interval; everything else is an affine form in these (`milp.columns`), built for many domains in one pass.
The dual solution comes back as a `Certificate`; the optimum that a solver names is never used.

Left out: a ball is replaced by its box; tangents beyond those at the ends of the parameters' boxes; more than one bound
below and above each output of a max-pool.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from bounds.graph.graph import Graph
from bounds.interval import Interval
from bounds.ops.base import Affine, Elementwise, Input, Relaxed
from bounds.sets import InputSet
from milp.certificate import Certificate, UnsafeRows, certified_value
from milp.columns import NARROWEST_ROW, Form, RowBlock, RowBlocks
from milp.loosened import rounding, ulps_of
from milp.problem import Floats, LinearPrograms, Solutions, Status
from milp.relaxed_node import Encoded, EncodedElementwise, EncodedRelaxed
from milp.safe_bound import clipped, safe_bounds
from milp.solvers.highs import Highs

IMPLIED = 1e-9                # relative: a bound that the box of the variables all but implies is no row
FINAL_ROUNDING = 2.0 ** -51   # of a product and a sum
NO_WEIGHT = 1e-6              # row weights in all below which multipliers are a ray
FORM_ENTRIES = 1 << 23        # coefficients of all nodes' forms that one batch of domains may hold (64 MB)


@dataclass(frozen=True, eq=False)
class Answers:
    """Of every domain: status "B" (of `Status`), value "B" (what the multipliers show of the programme as stored, with
    all rounding accounted for (`safe_bound`); inf where infeasible, -inf where undecided), the point x "B *input" in
    the box (the minimiser where optimal), and the certificate. Of the network nothing is proved but by
    `certified_value`."""

    status: Tensor
    value: Tensor
    x: Tensor
    certificate: Certificate

    @staticmethod
    def joined(parts: list[Answers]) -> Answers:
        """Answers of consecutive batches of domains."""
        if len(parts) == 1:
            return parts[0]
        first = parts[0].certificate
        return Answers(
            torch.cat([p.status for p in parts]), torch.cat([p.value for p in parts]), torch.cat([p.x for p in parts]),
            Certificate(torch.cat([p.certificate.weights for p in parts]),
                        {i: torch.cat([p.certificate.params[i] for p in parts], 1) for i in first.params},
                        {i: torch.cat([p.certificate.multipliers[i] for p in parts]) for i in first.multipliers}))


@dataclass(frozen=True, eq=False)
class Planet:
    """The linear programmes of one network. Keeps the network in float64 on the CPU."""

    graph: Graph
    solver: Highs = field(default_factory=Highs)

    def __post_init__(self) -> None:
        object.__setattr__(self, "graph", self.graph.to(dtype=torch.float64, device="cpu"))

    def solve(self, sets: InputSet, intervals: Mapping[int, Interval], rows: UnsafeRows, *,
              constrained: Mapping[int, Tensor] | None = None, cutoff: float = math.inf,
              time_limit_s: float = math.inf) -> Answers:
        """Solve the programme of each of B domains.

        `intervals` hold proved bounds of every node in `graph.relaxed_inputs`, "B *shape" or "1 *shape". `constrained`
        (bool, same shapes; a node left out: none) says which of them become rows, where the box and the lines do not
        imply them; None: all. Exact up to the solver's tolerance where all neurons are linear and the bounds that
        made them so are constrained.

        A programme ends early once its value is shown to exceed `cutoff`: three times sooner where the margin is clear
        (measured on ACAS Xu with 70 undecided neurons: 1 ms for 3 ms).
        """
        deadline = time.monotonic() + time_limit_s
        sets, known, ulps = self._prepared(sets, intervals)
        rows = rows.double()
        if constrained is not None:
            constrained = {i: mask.cpu().expand(known[i].lower.shape) for i, mask in constrained.items()}
        size = self._batch_size(sets, known)
        parts = []
        for begin in range(0, sets.batch, size):
            chosen = slice(begin, begin + size)
            programme = _Programme(
                self.graph, InputSet(sets.lower[chosen], sets.upper[chosen]),
                {i: x.map(lambda t, c=chosen: t[c]) for i, x in known.items()}, rows.take(chosen),
                None if constrained is None else {i: mask[chosen] for i, mask in constrained.items()}, ulps, cutoff)
            parts.append(programme.solve(self.solver, deadline - time.monotonic()))
        return Answers.joined(parts)

    def minima(self, sets: InputSet, intervals: Mapping[int, Interval], rows: UnsafeRows, *,
               time_limit_s: float = math.inf) -> Answers | None:
        """The least values of R rows, "R 1 m" each a branch of its own, over one domain: as `solve` of R copies of the
        domain, which is encoded once and solved for one row from the basis of the one before. Of the first rows only
        where the time does not suffice for all, None where it suffices for none."""
        if sets.batch != 1 or rows.bound.shape[1] != 1:
            raise ValueError(f"expected one domain and one row a branch, got {sets.batch} and {rows.bound.shape[1]}")
        sets, known, ulps = self._prepared(sets, intervals)
        box, rows = InputSet(sets.lower, sets.upper), rows.double()
        programme = _Programme(self.graph, box, known, rows.take(slice(0, 1)), None, ulps, math.inf)
        return programme.minima(self.solver, rows, time_limit_s)

    def _prepared(self, sets: InputSet, intervals: Mapping[int, Interval]
                  ) -> tuple[InputSet, dict[int, Interval], float]:
        """Sets and intervals in float64 on the CPU, and what these intervals may be wrong by."""
        sets = sets.to(dtype=torch.float64, device=torch.device("cpu"))
        given = [intervals[i].lower.dtype for i in self.graph.relaxed_inputs if i in intervals]
        ulps = max((ulps_of(dtype) for dtype in given), default=0.0)
        return sets, {i: self._interval(i, intervals, sets.batch) for i in self.graph.relaxed_inputs}, ulps

    def _interval(self, i: int, intervals: Mapping[int, Interval], batch: int) -> Interval:
        if i not in intervals:
            raise ValueError(f"proved bounds of node {i} ({self.graph.nodes[i].name}) are missing")
        x = intervals[i].map(lambda t: t.to("cpu", torch.float64).expand(batch, *self.graph.nodes[i].shape))
        return x.uncrossed()

    def _batch_size(self, sets: InputSet, known: Mapping[int, Interval]) -> int:
        """How many domains' forms fit into FORM_ENTRIES."""
        variables = int((sets.lower < sets.upper).any(0).sum())
        width = sum(torch.Size(node.shape).numel() for node in self.graph.nodes)
        for node in self.graph.nodes:
            if isinstance(node.op, Elementwise):
                variables += int((~node.op.is_linear_on(known[node.inputs[0]])).flatten(1).sum(1).max())
            elif isinstance(node.op, Relaxed):
                variables += torch.Size(node.shape).numel()
        return max(1, FORM_ENTRIES // max(1, variables * width))


class _Programme:
    """The programmes of a batch of domains, and their translation."""

    def __init__(self, graph: Graph, sets: InputSet, intervals: dict[int, Interval], rows: UnsafeRows,
                 constrained: Mapping[int, Tensor] | None, ulps: float, cutoff: float) -> None:
        self.graph, self.sets, self.intervals, self.constrained = graph, sets, intervals, constrained
        self.ulps, self.cutoff = ulps, cutoff
        self.unsafe = rows
        self.rows = RowBlocks()
        self.encoded: dict[int, Encoded] = {}
        self.proved: dict[int, tuple[int, Tensor, Tensor]] = {}  # node -> its block, domains and flat indices
        self.moves = (sets.lower < sets.upper).any(0).flatten()
        if not bool(self.moves.any()):
            self.moves[0] = True  # a programme has a variable
        self.variables = int(self.moves.sum())
        self.input, self.output = self._encode_network()
        self._encode_rows()

    @property
    def batch(self) -> int:
        return self.sets.batch

    # ------------------------------------------------------------------ the network

    def _encode_network(self) -> tuple[Form, Form]:
        graph = self.graph
        needed = {0, *graph.ancestors}
        last_use = {j: i for i, node in enumerate(graph.nodes) if i in needed for j in node.inputs}
        forms = {0: self._input_form()}
        first = forms[0]
        for i, node in enumerate(graph.nodes):
            if i not in needed or isinstance(node.op, Input):
                continue
            inputs = tuple(forms[j] for j in node.inputs)
            if isinstance(node.op, Affine):
                forms[i] = self._affine(node.op, inputs)
            else:
                forms[i] = self._relaxed(i, inputs)
            for j in dict.fromkeys(node.inputs):
                if last_use[j] == i:
                    if j in self.intervals:
                        self._encode_proved(j, forms[j])
                    if j != graph.output:
                        del forms[j]
        return first, forms[graph.output]

    def _input_form(self) -> Form:
        centre, radius = self.sets.centre_point, (self.sets.upper - self.sets.lower) / 2
        index = self.moves.nonzero().squeeze(1)
        columns = centre.new_zeros(self.batch, index.shape[0], self.moves.shape[0])
        columns[:, torch.arange(index.shape[0]), index] = radius.flatten(1)[:, index]
        return Form(columns.view(self.batch, -1, *self.graph.input_shape), centre)

    def _affine(self, op: Affine, inputs: tuple[Form, ...]) -> Form:
        count = max(form.columns.shape[1] for form in inputs)
        pushed = op.linear(*(form.widened(count).flatten(0, 1) for form in inputs))
        return Form(pushed.view(self.batch, count, *pushed.shape[1:]), op.forward(*(form.constant for form in inputs)))

    def _relaxed(self, i: int, inputs: tuple[Form, ...]) -> Form:
        node = self.graph.nodes[i]
        known = tuple(self.intervals[j] for j in node.inputs)
        encoded: Encoded
        if isinstance(node.op, Elementwise):
            encoded = EncodedElementwise(node, known[0], inputs[0], self.rows, self.variables)
        else:
            encoded = EncodedRelaxed(node, known, inputs, self.rows, self.variables)
        self.variables = max(self.variables, encoded.form.columns.shape[1])
        self.encoded[i] = encoded
        return encoded.form

    def _encode_proved(self, j: int, form: Form) -> None:
        """Rows for the proved bounds of a node, once all that read it are encoded."""
        x, radius = self.intervals[j], form.radius
        loose_lower, loose_upper = (torch.where(t == 0, 0, rounding(t, self.ulps)) for t in (x.lower, x.upper))
        reach = radius * (1 - IMPLIED)
        moves = radius > self.ulps  # what stands still is the network's own rounding, zero or not
        lower = form.constant - reach < x.lower - torch.where(moves, loose_lower, rounding(x.lower, self.ulps))
        upper = form.constant + reach > x.upper + torch.where(moves, loose_upper, rounding(x.upper, self.ulps))
        if self.constrained is not None:
            mask = self.constrained.get(j)
            if mask is None:
                return
            lower, upper = lower & mask, upper & mask
        for i in self.graph.consumers[j]:
            implied = self.encoded[i].implied() if i in self.encoded else None
            if implied is not None:
                lower, upper = lower & ~implied[0], upper & ~implied[1]
        lower, upper = lower.flatten(1), upper.flatten(1)
        domain, index = (lower | upper).nonzero(as_tuple=True)
        if not domain.numel():
            return
        shift = form.constant.flatten(1)[domain, index]
        low, high = (t.flatten(1)[domain, index] - shift for t in (x.lower - loose_lower, x.upper + loose_upper))
        block = RowBlock(domain, form.columns.flatten(2)[domain, :, index],
                         torch.where(lower[domain, index], low, -torch.inf),
                         torch.where(upper[domain, index], high, torch.inf))
        self.proved[j] = self.rows.add(block), domain, index

    # ------------------------------------------------------------------ the rows of the branch

    def _encode_rows(self) -> None:
        """The objective: the only row itself, or t above all rows."""
        unsafe, batch = self.unsafe, self.batch
        C = unsafe.C.expand(batch, -1, -1)
        columns = C @ self.output.columns.flatten(2).transpose(1, 2)                      # "B R V"
        constant = (C @ self.output.constant.flatten(1).unsqueeze(2)).squeeze(2) - unsafe.bound
        if unsafe.D is not None:
            D = unsafe.D.expand(batch, -1, -1)
            inputs = D @ self.input.columns.flatten(2).transpose(1, 2)
            columns = torch.cat([columns, columns.new_zeros(*columns.shape[:2], max(
                0, inputs.shape[2] - columns.shape[2]))], 2)
            columns[:, :, :inputs.shape[2]] += inputs
            constant = constant + (D @ self.input.constant.flatten(1).unsqueeze(2)).squeeze(2)
        count = columns.shape[1]
        self.present = torch.ones(batch, count, dtype=torch.bool) if unsafe.present is None \
            else unsafe.present.expand(batch, -1)
        self.best_row = self.present.to(torch.float64)  # weights of the row that alone gives most
        self.rows_block: int | None = None
        if count == 1:
            cost, self.offset = columns[:, 0] * self.present, torch.where(self.present[:, 0], constant[:, 0], 0)
            cost = torch.cat([cost, cost.new_zeros(batch, self.variables - cost.shape[1])], 1)
        elif count == 0:
            cost, self.offset = columns.new_zeros(batch, self.variables), columns.new_zeros(batch)
        else:
            cost = self._encode_margin(columns, constant)
        self.cost = cost

    def _encode_margin(self, columns: Tensor, constant: Tensor) -> Tensor:
        """t above every row; its cost is one. Its box is wider than what the rows can be, so that it does not bind and
        the row weights sum to one; and it begins below the cutoff, which only weights and multipliers can then pass."""
        batch = self.batch
        radius = columns.abs().sum(2)
        least, most = (torch.where(self.present, constant + sign * radius, -torch.inf) for sign in (-1, 1))
        low, high = (torch.where(self.present.any(1), t.amax(1), 0) for t in (least, most))
        self.best_row.zero_().scatter_(1, least.argmax(1, keepdim=True), 1.0).mul_(self.present)
        pad = (high - low).clamp(min=NARROWEST_ROW) / 2
        low, high = low.clamp(max=self.cutoff) - pad, high + pad
        self.offset, size = (low + high) / 2, (high - low) / 2
        self.t = self.variables
        self.variables += 1
        domain, row = self.present.nonzero(as_tuple=True)
        side = self.offset[domain] - constant[domain, row]
        self.rows_block = self.rows.add(RowBlock(
            domain, columns[domain, row], torch.full_like(side, -torch.inf), side,
            torch.full_like(domain, self.t), -size[domain]))
        cost = columns.new_zeros(batch, self.variables)
        cost[:, self.t] = size
        return cost

    # ------------------------------------------------------------------ solving and translating

    def solve(self, solver: Highs, time_limit_s: float) -> Answers:
        size = self._size()
        programmes, scale, place = self.rows.programmes(self.cost / size.unsqueeze(1))
        limit = None if self.cutoff == math.inf else ((self.cutoff - self.offset) / size).numpy()
        solutions = solver.solve(programmes, cutoff=limit, time_limit_s=time_limit_s)
        return self._answers(programmes, scale, place, solutions)

    def minima(self, solver: Highs, rows: UnsafeRows, time_limit_s: float) -> Answers | None:
        """Of rows "R 1 m", over the one domain."""
        each = [rows.take(slice(r, r + 1)) for r in range(rows.bound.shape[0])]
        costs = []
        for row in each:
            self.unsafe = row
            self._encode_rows()
            costs.append(self.cost / self._size().unsqueeze(1))
        programmes, scale, place = self.rows.programmes(costs[0])
        found = solver.solve_costs(programmes, torch.cat(costs).numpy(), time_limit_s=time_limit_s)
        dual = found.dual.reshape(len(each), -1)
        answers = []
        for r, row in enumerate(each):
            if found.status[r] == Status.TIME_LIMIT:
                break
            self.unsafe = row
            self._encode_rows()
            one = Solutions(found.status[r:r + 1], found.point[r:r + 1], dual[r])
            answers.append(self._answers(replace(programmes, cost=costs[r].numpy()), scale, place, one))
        return Answers.joined(answers) if answers else None

    def _size(self) -> Tensor:
        """What costs are divided by, "B"."""
        size = self.cost.abs().sum(1)
        return torch.where(size > 0, size, torch.ones_like(size))

    def _answers(self, programmes: LinearPrograms, scale: Tensor, place: Tensor, solutions: Solutions) -> Answers:
        size, status = self._size(), torch.from_numpy(solutions.status)
        asked = torch.zeros_like(place, dtype=torch.bool)  # the rows of the branch, as the solver has them
        if self.rows_block is not None:
            asked[place[-self.rows.blocks[-1].domain.shape[0]:]] = True
        owner = torch.from_numpy(programmes.row_owner)
        factor = (size[owner] / scale[place.argsort()]).numpy()
        no_rows = (status == Status.CUTOFF) & (self.rows_block is not None)
        no_rows &= self._sums(owner, -solutions.dual * factor * asked.numpy()) <= NO_WEIGHT
        status = torch.where(no_rows, int(Status.INFEASIBLE), status)  # what was reached is a ray
        optimal, infeasible, cut = (status == s for s in (Status.OPTIMAL, Status.INFEASIBLE, Status.CUTOFF))
        bounded = optimal | cut
        # A ray needs no row of the branch: t can be above them all.
        keep = (bounded[owner] | (infeasible[owner] & ~asked)).numpy()
        duals, reduced, shown = self._multipliers(programmes, np.where(keep, solutions.dual, 0), bounded)
        certificate = self._certificate(self.rows.split(torch.from_numpy(duals * factor)[place]),
                                        reduced * (size * (bounded | infeasible)).unsqueeze(1), bounded)
        certificate, empty = self._with_clear_rays(certificate, infeasible)
        status = torch.where(infeasible & ~empty, int(Status.FAILED), status)
        point = torch.from_numpy(solutions.point)
        scaled = shown * size
        proved = scaled + self.offset - FINAL_ROUNDING * (scaled.abs() + self.offset.abs())
        value = torch.where(bounded, proved, torch.where(empty, torch.inf, -torch.inf))
        value = torch.where(bounded & ~self.present.any(1), -torch.inf, value)
        return Answers(status, value, self._inputs(point), certificate)

    def _sums(self, owner: Tensor, values: Floats) -> Tensor:
        """Sums of values of rows "N" over each programme, "B"."""
        return torch.zeros(self.batch, dtype=torch.float64).index_add_(0, owner, torch.from_numpy(values))

    @staticmethod
    def _multipliers(programmes: LinearPrograms, dual: Floats, bounded: Tensor) -> tuple[Floats, Tensor, Tensor]:
        """Row multipliers "N" of the right sign, the reduced costs "B V" that go with them, and the dual value "B"."""
        dual = clipped(dual, programmes.row_lower, programmes.row_upper)
        reduced = programmes.cost * bounded.numpy()[:, None] - programmes.transposed(dual)
        return dual, torch.from_numpy(reduced), torch.from_numpy(safe_bounds(programmes, dual))

    def _inputs(self, point: Tensor) -> Tensor:
        form = self.input
        x = form.constant + torch.einsum("bv,bv...->b...", point[:, :form.columns.shape[1]], form.columns)
        return torch.minimum(torch.maximum(x, self.sets.lower), self.sets.upper)

    def _certificate(self, duals: list[Tensor], reduced: Tensor, bounded: Tensor) -> Certificate:
        weights, factor = self._weights(duals, bounded)
        params: dict[int, Tensor] = {}
        multipliers: dict[int, Tensor] = {}
        for i, encoded in self.encoded.items():
            translation = encoded.translate(duals, reduced)
            if translation.params is not None:
                params[i] = translation.params
            for j, s in zip(self.graph.nodes[i].inputs, translation.multipliers, strict=True):
                multipliers[j] = multipliers[j] + s if j in multipliers else s
        for j, (block, domain, index) in self.proved.items():
            if j not in multipliers:  # what reads it is no ancestor of the output
                multipliers[j] = self.cost.new_zeros(self.batch, *self.graph.nodes[j].shape)
            multipliers[j].view(self.batch, -1).index_put_((domain, index), duals[block], accumulate=True)
        scaled = {j: s * factor.view(-1, *(1,) * (s.dim() - 1)) for j, s in multipliers.items()}
        return Certificate(weights, params, scaled)

    def _weights(self, duals: list[Tensor], bounded: Tensor) -> tuple[Tensor, Tensor]:
        """(row weights "B R" with sum one, the factor "B" that made it so)."""
        one = torch.ones(self.batch, dtype=torch.float64)
        if self.rows_block is None:
            return self.best_row, one
        weights = torch.zeros_like(self.best_row)
        weights[self.present] = (-duals[self.rows_block]).clamp(min=0)
        total = weights.sum(1)
        found = bounded & (total > 0)
        factor = torch.where(found, 1 / torch.where(found, total, 1), one)
        return torch.where(found.unsqueeze(1), weights * factor.unsqueeze(1), self.best_row), factor

    def _loose(self, x: Interval) -> Interval:
        """Proved ends as the programme has them."""
        lower, upper = (torch.where(t == 0, 0, rounding(t, self.ulps)) for t in (x.lower, x.upper))
        return Interval(x.lower - lower, x.upper + upper)

    def _with_clear_rays(self, certificate: Certificate, infeasible: Tensor) -> tuple[Certificate, Tensor]:
        """Rays without row weights, scaled so that they are worth one; and bool "B" where they are worth anything.
        Those that are not are dropped."""
        if not bool(infeasible.any()):
            return certificate, infeasible
        rays = Certificate(certificate.weights * ~infeasible.unsqueeze(1), certificate.params, certificate.multipliers)
        # A ray counts where it survives what the intervals may be wrong by.
        value = certified_value(self.graph, self.sets, {i: self._loose(x) for i, x in self.intervals.items()},
                                self.unsafe, rays)
        empty = infeasible & (value > 0)
        factor = torch.where(infeasible, torch.where(empty, 1 / torch.where(empty, value, 1), 0), 1)
        scaled = {j: s * factor.view(-1, *(1,) * (s.dim() - 1)) for j, s in certificate.multipliers.items()}
        return Certificate(certificate.weights * ~empty.unsqueeze(1), certificate.params, scaled), empty
