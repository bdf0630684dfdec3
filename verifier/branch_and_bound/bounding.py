"""Bounding a batch of domains: intermediate bounds, then every open branch's best combination of rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec

import torch
from torch import Tensor

from bounds.backward import Backward, Block, input_rows
from bounds.beta_crown import BetaCrown, Groups, Reached, Start, better_of
from bounds.bounds import LinearRows
from bounds.final import final_bounds
from bounds.graph import Graph
from bounds.intermediate import EMPTY_RTOL, refine
from bounds.interval import Interval
from bounds.journal import Journal, Noted
from bounds.ops.base import Elementwise
from bounds.precision import rounded_down
from bounds.rows import Rows
from bounds.sets import InputSet
from bounds.window import Owner
from milp.certificate import UnsafeRows
from milp.planet import Planet
from verifier.branch_and_bound.clip import clip
from verifier.branch_and_bound.confirm import Confirmer
from verifier.branch_and_bound.contract import Contractor
from verifier.branch_and_bound.cut import AffineNeurons
from verifier.branch_and_bound.domains import Domains, Layout, sets_lower, sets_upper
from verifier.branch_and_bound.recorder import Recorder
from verifier.property import LAST_PLACES, PropertyTensors

# Units in the last place of its rows that a branch must stay above to be closed by a search.
CLEAR = {torch.float64: 1e6, torch.float32: 16.0}
LEAF_ITERATIONS = 300   # of leaves in a ball that is no box
RECORDED_CLEAR = 64.0  # times as much in float32 where leaves are evaluated again in float64


@dataclass(frozen=True, eq=False)
class Question:
    """The open part of a property, as tables: `branches` "U K" (branch of each slot of a region, -1: none), `rows`
    "branches R" and `mask` "branches R" (false: padding), `target` "branches" (proved above it)."""

    tensors: PropertyTensors
    branches: Tensor
    rows: Tensor
    mask: Tensor
    target: Tensor

    @staticmethod
    def of(tensors: PropertyTensors, *, recorded: bool = False) -> Question:
        """`recorded`: leaves are to close in another order of summation, and in float64, as well."""
        device = tensors.bound.device
        counts = torch.bincount(tensors.branch, minlength=tensors.branches)
        width = max(1, int(counts.max()))
        order = tensors.branch.argsort(stable=True)
        starts = counts.cumsum(0) - counts
        offset = torch.arange(width, device=device).expand(tensors.branches, -1)
        mask = offset < counts.unsqueeze(1)
        rows = order[torch.where(mask, starts.unsqueeze(1) + offset, starts.unsqueeze(1)).clamp(max=len(order) - 1)]
        slots = torch.bincount(tensors.branch_region, minlength=tensors.sets.batch)
        branches = torch.full((tensors.sets.batch, max(1, int(slots.max()))), -1, dtype=torch.long, device=device)
        by_region = tensors.branch_region.argsort(stable=True)
        first = slots.cumsum(0) - slots
        region = tensors.branch_region[by_region]
        branches[region, torch.arange(len(region), device=device) - first[region]] = by_region
        # A closed branch needs more than rounding can lift a bound of zero by, which multipliers make more than a few
        # last places; one whose rows are all strict needs zero.
        clear = tensors.last_places * (CLEAR[tensors.bound.dtype] / LAST_PLACES)
        if recorded and clear.dtype == torch.float32:
            clear = clear * RECORDED_CLEAR
        last = torch.where(mask, clear[rows], torch.zeros_like(clear[rows])).amax(1)
        strict = (tensors.strict[rows] | ~mask).all(1)
        tiny = torch.full_like(last, -torch.finfo(last.dtype).tiny)
        return Question(tensors, branches, rows, mask, torch.where(strict, tiny, last))

    def groups(self, branch: Tensor, owner: Tensor) -> Groups:
        """The rows of `branch` "G" over the domains `owner` "G"."""
        rows = self.rows[branch]
        t = self.tensors
        return Groups(t.C[rows], -t.bound[rows], self.mask[branch], owner, None if t.D is None else t.D[rows])


@dataclass(frozen=True, eq=False)
class Bounded:
    """What a batch of domains became.

    domains: with tightened bounds, closed branches crossed out and boxes clipped; closed "B": nothing is open;
    z_low, z_high "B neurons": the bounds before.
    group_domain, group_branch "G" and group_lower "G": every open branch's bound. For the groups that stayed open
    ("H"), `reached` with `reached.open` as indices into G, and sensitivity "H n": the size of the coefficients at the
    inputs, over all rows of the group. refused: domains that must not count as closed, since float64 does not confirm
    it (None: nobody asked).
    """

    domains: Domains
    closed: Tensor
    empty: Tensor
    group_domain: Tensor
    group_slot: Tensor
    group_branch: Tensor
    group_lower: Tensor
    reached: Reached
    sensitivity: Tensor
    scores: Tensor
    engine: Backward
    numerical: bool
    z_low: Tensor
    z_high: Tensor
    refused: Tensor | None = None


def _some(start: Start, keep: Tensor) -> Start:
    """The parameters of some groups (bool)."""
    return Start({i: p[:, keep] for i, p in start.slopes.items()}, {i: s[keep] for i, s in start.multipliers.items()},
                 None if start.weights is None else start.weights[keep])


def engine_ends(layout: Layout, engine: Backward, owner: Tensor) -> Tensor:
    """The largest proved value of any neuron, by domain: what rounding is measured against."""
    ends = [torch.maximum(x.lower.abs(), x.upper.abs()).flatten(1).amax(1)
            for x in (engine.intervals[i] for i in layout.nodes)]
    return torch.stack(ends).amax(0)[owner]


def margins(groups: Groups, reached: Reached) -> Tensor:
    """"G": the largest row of each group at its point `reached.x` (all groups are open)."""
    v = torch.einsum("grm,gm->gr", groups.C, reached.y.flatten(1)) + groups.offset
    if groups.D is not None:
        v = v + torch.einsum("grn,gn->gr", groups.D, reached.x.flatten(1))
    return torch.where(groups.mask, v, torch.full_like(v, -torch.inf)).amax(1)


@dataclass(frozen=True, eq=False)
class Bounder:
    """How domains are bounded. refresh: neurons are bounded anew in every domain (else bounds are inherited and met
    with intervals); clips: boxes are cut by the planes found; warm: slopes and multipliers are kept for children;
    probes: domains that their splits leave empty are looked for; fenced: boxes of a neuron split's children are clipped
    by the neuron's planes."""

    graph: Graph
    question: Question
    layout: Layout
    method: BetaCrown
    refresh: bool
    clips: bool
    warm: bool
    probes: bool = False
    fenced: bool = False
    programmes: Planet | None = None
    affine: AffineNeurons | None = None
    contractor: Contractor | None = None
    recorder: Recorder | None = None
    confirmer: Confirmer | None = None
    rounded: bool | None = None  # see `Backward`

    @property
    def discards(self) -> bool:
        """Whether parts of domains are cut off as safe without a bound of their margin."""
        return self.clips or self.affine is not None or self.contractor is not None

    @torch.no_grad()
    def contract(self, domains: Domains) -> tuple[Domains, Tensor]:
        """(domains without what their only open branch leaves no room for, bool "B": those that are empty)."""
        gone = torch.zeros(len(domains), dtype=torch.bool, device=domains.low.device)
        alone = (domains.open.sum(1) == 1).nonzero().squeeze(1)
        if self.contractor is None or not len(alone):
            return domains, gone
        part = domains if len(alone) == len(domains) else domains.take(alone)
        branch = self.question.branches[part.region][part.open]
        groups = self.question.groups(branch, torch.arange(len(part), device=branch.device))
        part, empty = self.contractor.contract(part, groups)
        gone[alone] = empty
        if len(part) == len(domains):
            return part, gone
        names = ("low", "high", "z_low", "z_high")
        return replace(domains, **{n: getattr(domains, n).index_copy(0, alone, getattr(part, n)) for n in names}), gone

    def bound_leaves(self, domains: Domains) -> Bounded:
        """As `bound`, with linear programmes for what stays open (where their solver is installed: a machine that only
        computes bounds may lack it); boxes and choices stay."""
        programmes = self.programmes or (Planet(self.graph) if find_spec("highspy") is not None else None)
        method = self.method
        if not self.question.tensors.sets.is_box:  # the programmes know the ball's box only; multipliers know the ball
            method = replace(method, iterations=LEAF_ITERATIONS, ascent="level")
        return replace(self, programmes=programmes, clips=False, method=method).bound(domains)

    @torch.no_grad()
    def fences(self, bounded: Bounded, rows: Tensor, choice: Tensor, point: Tensor) -> Tensor:
        """ "P 2 n+1": half-spaces around the children of neuron splits. Domain `rows` "P" of the batch is split at
        neuron `choice` and `point` "P" (zeros where an input is split)."""
        layout, engine = self.layout, bounded.engine
        out = point.new_zeros(len(rows), 2, layout.inputs + 1)
        for node, shape, offset in zip(layout.nodes, layout.shapes, layout.offsets, strict=True):
            here = ((choice >= offset) & (choice < offset + torch.Size(shape).numel())).nonzero().squeeze(1)
            if not len(here) or node == 0:
                continue
            sign = torch.tensor([1.0, -1.0], dtype=point.dtype, device=point.device).repeat(len(here))
            unit = Rows.unit((choice[here] - offset).repeat_interleave(2), sign,
                             Owner.of(engine.sets.batch, rows[here].repeat_interleave(2)))
            pulled = engine.pull(Block(node, unit))
            A, b = input_rows(pulled, self.graph).flatten(1), pulled.constant
            # sign * z >= A x + b: z <= p leaves A x + b <= p, and z >= p leaves A x + b <= -p.
            b = b - sign * point[here].repeat_interleave(2)
            out[here] = torch.cat([A, b.unsqueeze(1)], 1).view(-1, 2, layout.inputs + 1)
        return out

    @torch.no_grad()
    def bound(self, domains: Domains, *, closes: bool = True) -> Bounded:
        """closes: whether domains may be closed; else all stay open, whatever their bounds."""
        engine = self.engine(domains)
        contradicted = engine.empty.clone()
        d, slot = domains.open.nonzero(as_tuple=True)
        branch = self.question.branches[domains.region[d], slot]
        groups = self.question.groups(branch, d)
        target = self.question.target[branch]
        if not closes:
            target = torch.full_like(target, torch.inf)
        weights, planes, first = self._single_rows(engine, groups)
        start = self._start(engine, domains, d, weights)
        if first is not None:
            reached = self._climb_open(engine, groups, target, start, first)
        else:
            reached = self.method.bound(engine, groups, target, start)
        if self.programmes is not None and len(reached.open):
            reached = self._by_programme(engine, domains, groups, target, reached)
        shown_empty: list[Noted] = []
        scores = self._scores(reached.gaps, reached.lower[reached.open], reached)
        if self.probes and len(reached.open):
            scores = scores + self._probe(engine, domains, groups, reached, shown_empty)
        lower = torch.maximum(reached.lower, domains.lower[d])
        numerical = bool(torch.isnan(reached.lower).any())
        lower = torch.where(torch.isnan(lower), domains.lower[d], lower)
        lower = torch.where(engine.empty[d], torch.full_like(lower, torch.inf), lower)
        out = domains.map(lambda t: t)  # fields are replaced below, never written into
        out.open = domains.open.clone()
        done = lower > target
        lower, refused = self._confirmed(domains, d, branch, lower, target, reached)
        out.open[d[done], slot[done]] = False
        still = torch.where(done, torch.full_like(lower, torch.inf), lower)
        out.lower = torch.full_like(domains.lower, torch.inf).scatter_reduce(0, d, still, "amin")
        out.z_low = self.layout.flat({i: engine.intervals[i].lower for i in self.layout.nodes}, out.z_low)
        out.z_high = self.layout.flat({i: engine.intervals[i].upper for i in self.layout.nodes}, out.z_high)
        closed = ~out.open.any(1)
        gone = torch.zeros_like(closed)
        if self.clips:
            gone = self._clip(out, closed, d, reached, planes)
            closed |= gone
        if self.recorder is not None:
            single = None
            if first is not None and weights is not None:
                single = torch.where(first > target, weights.argmax(1), torch.full_like(d, -1))
            self.recorder.bounded(self, domains, out, d, branch, done, single, contradicted, engine, reached,
                                  shown_empty)
        sensitivity = reached.steepness + reached.A.flatten(1).abs()
        if planes is not None:
            sensitivity = sensitivity + planes[0][reached.open].abs().sum(1)
        return Bounded(out, closed, engine.empty, d, slot, branch, lower, reached, sensitivity, scores, engine,
                       numerical, domains.z_low, domains.z_high, refused)

    def _confirmed(self, domains: Domains, d: Tensor, branch: Tensor, lower: Tensor, target: Tensor, reached: Reached
                   ) -> tuple[Tensor, Tensor | None]:
        """(the bounds "G", of groups that closed and close in float64 as well what is proved there; indices of domains
        with groups that closed here but not in float64, or None: nobody asks)."""
        if self.confirmer is None:
            return lower, None
        done = lower > target
        if not bool(done.any()):
            return lower, d[:0]
        proved = torch.full_like(lower, -torch.inf)
        left = done.clone()
        nothing = (torch.zeros(0, dtype=torch.long, device=d.device), Start())
        for index, start in (*reached.closed, nothing):
            if len(index):
                keep = done[index]
                index, start = index[keep], _some(start, keep)
            else:  # closed without parameters of their own: by a single row, or because nothing is left of them
                index = left.nonzero().squeeze(1)
            if len(index):
                found = self.confirmer.confirm(domains.take(d[index]), branch[index], start)
                proved[index] = rounded_down(found, lower.dtype)
                left[index] = False
        closes = done & (proved > target)
        return torch.where(closes, proved, lower), d[done & ~closes].unique()

    def engine(self, domains: Domains) -> Backward:
        """The backward engine of a batch, with intermediate bounds."""
        shape = self.graph.input_shape
        sets = self.question.tensors.sets
        if sets.is_box:
            boxes = InputSet(domains.low.view(-1, *shape), domains.high.view(-1, *shape))
        else:
            boxes = sets.index(domains.region)
        engine = Backward(self.graph, boxes, rounded=self.rounded)
        engine.splits = self.layout.split(domains.sides != 0)
        if self.recorder is not None:
            engine.journal = Journal()
        if self.affine is not None:
            z_low, z_high = self.affine.cut(domains, self.layout, self.undecided(domains))
            domains = replace(domains, z_low=z_low, z_high=z_high)
        refine(engine, known=domains.intervals(self.layout), row_bound=engine.lower if self.refresh else None)
        return engine

    def undecided(self, domains: Domains) -> Tensor:
        """bool "B neurons": those with an elementwise reader that is not linear on their interval."""
        graph, out = self.graph, {}
        for i, x in domains.intervals(self.layout).items():
            mask = torch.zeros_like(x.lower, dtype=torch.bool)
            for reader in graph.consumers[i]:
                op = graph.nodes[reader].op
                if isinstance(op, Elementwise):
                    mask |= ~op.is_linear_on(x)
            out[i] = mask
        return self.layout.flat(out, domains.z_low > 0)

    def _single_rows(self, engine: Backward, groups: Groups) -> tuple[Tensor | None, tuple[Tensor, Tensor] | None,
                                                                     Tensor | None]:
        """(weights that take the best single row, planes (A "G R n", b "G R") of all rows, the best bounds "G")."""
        count, width, _ = groups.C.shape
        if width == 1:
            return None, None, None
        owner = groups.owner.repeat_interleave(width)
        D = None if groups.D is None else groups.D.flatten(0, 1)
        found = final_bounds(engine, LinearRows(groups.C.flatten(0, 1), owner, D, groups.offset.flatten()), {})
        lower = found.lower.view(count, width)
        lower = torch.where(groups.mask & ~torch.isnan(lower), lower, torch.full_like(lower, -torch.inf))
        assert found.A is not None and found.b is not None
        planes = found.A.flatten(1).view(count, width, -1), found.b.view(count, width)
        best, at = lower.max(1)
        weights = torch.zeros_like(lower).scatter_(1, at.unsqueeze(1), 1.0)
        return weights, planes, best

    def _climb_open(self, engine: Backward, groups: Groups, target: Tensor, start: Start, first: Tensor) -> Reached:
        """Climb only the groups that no single row has closed (of domains that may not close, all)."""
        done = (first > target) | (engine.empty[groups.owner] & torch.isfinite(target))
        rest = (~done).nonzero().squeeze(1)
        part = Start({i: p[:, rest] for i, p in start.slopes.items()},
                     {i: s[rest] for i, s in start.multipliers.items()},
                     None if start.weights is None else start.weights[rest])
        if not len(rest):
            rest = rest.new_zeros(1)  # one group keeps the shapes; its bound is already known
            part = Start({i: p[:, :1] for i, p in start.slopes.items()},
                         {i: s[:1] for i, s in start.multipliers.items()},
                         None if start.weights is None else start.weights[:1])
        reached = self.method.bound(engine, groups.take(rest), target[rest], part)
        lower = first.clone()
        lower[rest] = torch.where(torch.isnan(reached.lower), reached.lower, torch.maximum(first[rest], reached.lower))
        noted = tuple(n.at(rest) for n in reached.noted)
        closed = tuple((rest[i], s) for i, s in reached.closed)
        return replace(reached, lower=lower, open=rest[reached.open], noted=noted, closed=closed)

    def _by_programme(self, engine: Backward, domains: Domains, groups: Groups, target: Tensor, reached: Reached
                      ) -> Reached:
        """Solve the linear programmes of the groups still open; their duals are evaluated like any multipliers."""
        assert self.programmes is not None
        part = groups.take(reached.open)
        owner = part.owner
        splits = {i: s[owner] for i, s in engine.splits.items()}
        rows = UnsafeRows(part.C, -part.offset, part.D, part.mask)
        answers = self.programmes.solve(engine.sets.index(owner), {
            i: engine.intervals[i].map(lambda t: t[owner]) for i in self.layout.nodes}, rows, constrained=splits)
        like = part.C
        found = answers.certificate
        at = Start({i: p.to(like) for i, p in found.params.items()},
                   {i: s.to(like) for i, s in found.multipliers.items()}, found.weights.to(like))
        # Only an optimum's point need lie in the domain; one outside would pass for a point of the set.
        x = engine.sets.project(torch.nan_to_num(answers.x.to(like)), owner)
        second = self.method.evaluate(engine, part, target[reached.open], at, x)
        lower = torch.where(torch.isnan(second.lower), torch.full_like(second.lower, -torch.inf), second.lower)
        both = better_of(reached, replace(second, lower=lower))
        # An optimum is attained at the programme's point. Any plane that is as high may be lowest elsewhere as well.
        nearer = margins(part, second) <= margins(part, both)

        def pick(a: Tensor, b: Tensor) -> Tensor:
            return torch.where(nearer.view(-1, *(1,) * (b.dim() - 1)), b, a)
        return replace(both, x=pick(both.x, second.x), y=pick(both.y, second.y),
                       z={i: pick(z, second.z[i]) for i, z in both.z.items()})

    def _probe(self, engine: Backward, domains: Domains, groups: Groups, reached: Reached,
               shown_empty: list[Noted]) -> Tensor:
        """Look for domains that their splits leave empty: bound the split neuron that the minimiser violates most, with
        multipliers on the others. (A row cannot show that: its multipliers would have to grow without end.)

        Returns scores "H neurons" as `_scores` does: where emptiness could almost be shown, what stood in the way.
        `shown_empty` gets the notes on those that were (index: their domains).
        """
        scores = self.layout.flat(reached.z, reached.b) * 0
        if not scores.shape[1]:
            return scores
        owner = groups.owner[reached.open]
        sides = domains.sides[owner]
        z = self.layout.flat(reached.z, reached.b)
        none = torch.full_like(z, -torch.inf)
        under = torch.where(sets_lower(sides), domains.z_low[owner] - z, none)
        over = torch.where(sets_upper(sides), z - domains.z_high[owner], none)
        worst, at = torch.maximum(under, over).max(1)
        rows = (worst > 0).nonzero().squeeze(1)
        rows = rows[~engine.empty[owner[rows]]]
        if not len(rows):
            return scores
        owner, at = owner[rows], at[rows]
        side = torch.where(under[rows, at] >= over[rows, at], 1.0, -1.0).to(z)
        multipliers = torch.zeros_like(z[rows]).scatter_(1, at.unsqueeze(1), side.unsqueeze(1))
        nothing = Groups(groups.C.new_zeros(len(rows), 1, groups.C.shape[2]), groups.offset.new_zeros(len(rows), 1),
                         groups.mask.new_ones(len(rows), 1), owner)
        size = torch.maximum(engine_ends(self.layout, engine, owner), torch.ones_like(side))
        start = Start({i: p[:, rows] for i, p in reached.at.slopes.items()}, self.layout.split(multipliers))
        found = self.method.bound(engine, nothing, EMPTY_RTOL[z.dtype] * size, start)
        empty = found.lower > EMPTY_RTOL[z.dtype] * size
        engine.empty[owner[empty]] = True
        shown_empty += [n.take(empty[n.index].nonzero().squeeze(1)).at(owner) for n in found.noted]
        scores[rows[found.open]] = self._scores(found.gaps, found.lower[found.open], found)
        return scores

    def _scores(self, gaps: dict[int, Tensor], lower: Tensor, reached: Reached) -> Tensor:
        """"H neurons": the gap of each neuron as a share of what the bound `lower` "H" is short of zero by."""
        zeros = torch.zeros_like
        flat = self.layout.flat({i: gaps.get(i, zeros(reached.z[i])) for i in self.layout.nodes}, lower)
        return flat.clamp(min=0) / (-lower).clamp(min=1e-6).unsqueeze(1)

    def _start(self, engine: Backward, domains: Domains, d: Tensor, weights: Tensor | None) -> Start:
        multipliers = {i: s[d] for i, s in self.layout.split(domains.multipliers).items()}
        return Start(self.unflat_slopes(domains.slopes[d]) if self.warm else {}, multipliers, weights)

    # ------------------------------------------------------------------ slopes as one flat tensor

    def flat_slopes(self, slopes: dict[int, Tensor], count: int, like: Tensor) -> Tensor:
        """"K G *shape" by node -> "G k" (nodes in order)."""
        if not self.warm or not slopes:
            return like.new_zeros(count, 0)
        return torch.cat([slopes[i].transpose(0, 1).flatten(1) for i in sorted(slopes)], 1)

    def unflat_slopes(self, flat: Tensor) -> dict[int, Tensor]:
        if not flat.shape[1]:
            return {}
        out, offset = {}, 0
        for i, kinds in self._slope_kinds:
            shape = self.graph.nodes[i].shape
            size = kinds * torch.Size(shape).numel()
            out[i] = flat[:, offset:offset + size].view(-1, kinds, *shape).transpose(0, 1)
            offset += size
        return out

    @cached_property
    def _slope_kinds(self) -> list[tuple[int, int]]:
        """(elementwise node, parameters a neuron) of all nodes with parameters."""
        found = []
        for i, node in enumerate(self.graph.nodes):
            parameters = getattr(node.op, "parameters", None)
            if parameters is not None and callable(parameters):
                shape = (1, *self.graph.nodes[node.inputs[0]].shape)
                like = self.question.tensors.C
                probe = parameters(Interval(-like.new_ones(shape), like.new_ones(shape)))
                if probe is not None:
                    found.append((i, probe[0].shape[0]))
        return found

    # ------------------------------------------------------------------ clipping

    def _clip(self, out: Domains, closed: Tensor, d: Tensor, reached: Reached,
              planes: tuple[Tensor, Tensor] | None) -> Tensor:
        """Cut the boxes of open domains down to what the open branches' planes leave; bool "B": nothing."""
        A, b = reached.A.flatten(1).unsqueeze(1), reached.b.unsqueeze(1)
        if planes is not None:
            A, b = torch.cat([planes[0][reached.open], A], 1), torch.cat([planes[1][reached.open], b], 1)
        owner = d[reached.open]
        low, high = clip(out.low[owner], out.high[owner], A, b)
        gone = (low > high).any(1)
        inf = torch.full_like(out.low, torch.inf)
        low = torch.where(gone.unsqueeze(1), torch.full_like(low, torch.inf), low)
        high = torch.where(gone.unsqueeze(1), torch.full_like(high, -torch.inf), high)
        index = owner.unsqueeze(1).expand_as(low)
        hull_low = inf.scatter_reduce(0, index, low, "amin")
        hull_high = (-inf).scatter_reduce(0, index, high, "amax")
        touched = torch.zeros_like(closed)
        touched[owner] = True
        # Every open branch of a domain has a group here, so the hull over them is all that is left.
        nothing = touched & (hull_low > hull_high).any(1) & ~closed
        keep = (~touched | nothing | closed).unsqueeze(1)
        out.low = torch.where(keep, out.low, torch.maximum(hull_low, out.low))
        out.high = torch.where(keep, out.high, torch.minimum(hull_high, out.high))
        return nothing
