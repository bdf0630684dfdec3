"""beta-CROWN: slopes, split multipliers and row weights of many domains, climbed together.

Over a domain of a branch-and-bound search a branch of the property is out of reach when *some*
non-negative combination of its rows stays positive. For a group (one domain, one branch) this module
maximises the lower bound of `weights . rows` over

- the weights, on the simplex,
- the slopes of the relaxation, each in its box (alpha-CROWN, arXiv:2011.13824),
- a signed multiplier for every split neuron, on its lower or its upper bound (with the bound that the split has set
  this is beta-CROWN, arXiv:2103.06624; the other bound is one that the relaxation of the parent knew).

Any point of these boxes gives a valid bound, so the best value of each group is kept, and a group that
has reached the target leaves. Parameters are measured in units: a slope in its range, a multiplier in the
coefficients met at the neuron, of whose size multipliers often end up. There are two ways to step, neither of which
is the better one everywhere, and domains that one cannot close the other often can:

- "signs": every parameter by the same share of its unit, along the sign of its derivative, in ever shorter steps;
- "level": along the gradient, by as much as would reach a level beyond the target if the bound were linear (Polyak's
  step, USSR Comput. Math. Math. Phys. 9(3), 1969). It has no longest step, so that it reaches the large multipliers
  that show a domain to be empty.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from bounds.alpha_crown import on_grid
from bounds.alpha_slopes import initial
from bounds.backward import Backward, Block, Multipliers, Params, Pulled, input_rows
from bounds.journal import FINE_GRID, GRID, Noted, keeps_grid, noted_slopes, nothing, slopes_of, snapped
from bounds.ops.base import Elementwise
from bounds.ops.round_off import MORE, gamma
from bounds.relaxation import Relaxation
from bounds.rounding import magnitude
from bounds.rows import Rows
from bounds.sweep import Trace
from bounds.window import Owner

Ascent = Literal["signs", "level"]

BLOCK_COEFFICIENTS = 1 << 20  # slopes and gradients of a block, a few MB
DONE_SHARE = 0.2              # groups that reached the target leave when they are this share
AHEAD = 1.0                   # the level lies as far beyond the target as this share of what the bound is short of it
LEAST_AHEAD = 1e-3            # and further by this share of the bound


@dataclass(frozen=True, eq=False)
class Groups:
    """G groups of R rows each, `C f(x) + D x + offset`: C "G R m", offset "G R", D "G R n" or None over the flat
    inputs; mask "G R" (false: padding); owner "G": the domain of each group."""

    C: Tensor
    offset: Tensor
    mask: Tensor
    owner: Tensor
    D: Tensor | None = None

    def take(self, chosen: Tensor | slice) -> Groups:
        return Groups(self.C[chosen], self.offset[chosen], self.mask[chosen], self.owner[chosen],
                      None if self.D is None else self.D[chosen])

    def combined(self, weights: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """(C "G m", offset "G", D "G n") of the weighted rows; weights "G R"."""
        if self.C.shape[1] == 1:
            return self.C[:, 0], self.offset[:, 0], None if self.D is None else self.D[:, 0]
        w = weights.unsqueeze(2)
        return (w * self.C).sum(1), (weights * self.offset).sum(1), None if self.D is None else (w * self.D).sum(1)


@dataclass(frozen=True, eq=False)
class Start:
    """Where to start from: slopes "K G *shape" by elementwise node, multipliers "G *shape" by node, weights "G R"."""

    slopes: Params = field(default_factory=dict)
    multipliers: Multipliers = field(default_factory=dict)
    weights: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Reached:
    """lower "G", and for the groups at or below the target ("H", indices `open`):

    at: slopes, multipliers and weights as in `Start`; the plane `A "H *input" x + b "H"` below the weighted rows;
    steepness "H n", the size of the plane's coefficients before anything was optimised (at the optimum those of an
    input that settled inside its range are zero, however much depends on it); x "H *input", a point of the domain
    where the plane is lowest; y "H *output", the network there, and z its neurons by node.

    By the node that an elementwise operator reads, "H *shape": met, the rows' coefficients at its outputs, and
    gaps >= 0, what its lines lose at x. Over all neurons the gaps add up to the weighted rows' value at x less `lower`
    (and what multipliers lose).

    Where notes are kept, `noted` holds the best parameters of all groups. Where asked for (`BetaCrown.keeps`), `closed`
    holds those of the groups above the target: (their indices, parameters).
    """

    lower: Tensor
    open: Tensor
    at: Start
    A: Tensor
    b: Tensor
    steepness: Tensor
    x: Tensor
    y: Tensor
    z: dict[int, Tensor]
    met: dict[int, Tensor]
    gaps: dict[int, Tensor]
    noted: tuple[Noted, ...] = ()
    closed: tuple[tuple[Tensor, Start], ...] = ()


@dataclass(frozen=True)
class BetaCrown:
    """`iterations` evaluations of each group, in steps from `step` down to `last_step` where `ascent` is "signs", else
    towards a level beyond the (finite) target; `stop` ends them early."""

    iterations: int = 8
    step: float = 0.5
    last_step: float = 0.05
    multiplier_step: float = 0.5
    weight_step: float = 0.5
    ascent: Ascent = "signs"
    stop: Callable[[], bool] = bool
    notes: bool = False  # keep to the grid of `bounds.journal` and note the parameters of all groups
    keeps: bool = False  # answer with the parameters of closed groups, too

    def bound(self, engine: Backward, groups: Groups, target: Tensor, start: Start | None = None) -> Reached:
        """Climb until every group's bound exceeds its target "G" or the iterations are spent.

        engine: with intermediate bounds (`refine`) and `engine.splits`, bool "B *shape": the neurons that are split.
        """
        size = engine.block_size(engine.graph.output, self._rows(engine, groups, None), BLOCK_COEFFICIENTS)
        parts = [self._climb(engine, groups.take(chosen), target[chosen], _take_start(start, chosen))
                 for first in range(0, len(target), size)
                 for chosen in (torch.arange(first, min(first + size, len(target)), device=target.device),)]
        return parts[0] if len(parts) == 1 else _joined(parts)

    def evaluate(self, engine: Backward, groups: Groups, target: Tensor, at: Start, x: Tensor | None = None) -> Reached:
        """The bounds that given parameters prove, whoever proposed them (say the dual of a linear programme); nothing
        is optimised. Here multipliers of either sign may stand on the bounds of any neuron, split or not, and all
        weights of a group may be zero. x "G *input": the points at which gaps are measured."""
        size = engine.block_size(engine.graph.output, self._rows(engine, groups, None), BLOCK_COEFFICIENTS)
        parts = []
        for first in range(0, len(target), size):
            chosen = torch.arange(first, min(first + size, len(target)), device=target.device)
            climb = _Climb(engine, groups.take(chosen), _take_start(at, chosen), free=True,
                           grid=FINE_GRID if self.notes else 0)
            result = target.new_full((len(chosen),), -torch.inf)
            alive = torch.arange(len(chosen), device=target.device)
            parts.append(climb.finish(result, alive, None if x is None else x[chosen]))
        return parts[0] if len(parts) == 1 else _joined(parts)

    def _rows(self, engine: Backward, groups: Groups, weights: Tensor | None) -> Rows:
        C = groups.combined(weights)[0] if weights is not None else groups.C[:, 0]
        owner = Owner.of(engine.sets.batch, groups.owner)
        return Rows.full(C.view(-1, *engine.graph.output_shape), owner)

    # ------------------------------------------------------------------ one block

    def _climb(self, engine: Backward, groups: Groups, target: Tensor, start: Start) -> Reached:
        climb = _Climb(engine, groups, start, grid=GRID if self.notes else 0)
        noted: list[Noted] = []
        closed: list[tuple[Tensor, Start]] = []
        result = target.new_full(target.shape, -torch.inf)
        alive = torch.arange(len(target), device=target.device)
        for k in range(self.iterations):
            last = k == self.iterations - 1 or self.stop()
            now = climb.evaluate(gradient=not last)
            climb.keep_best(now)
            done = climb.best > target[alive]
            result[alive] = climb.best
            number = int(done.sum())
            if number == len(alive) or last:
                break
            length = self.step * (self.last_step / self.step) ** (k / max(1, self.iterations - 2))
            length = on_grid(length) if self.notes else length
            share = length / self.step
            if self.ascent == "level":
                climb.step_to_level(target[alive], now, share * self.weight_step)
            else:
                climb.step(length, share * self.multiplier_step, share * self.weight_step)
            if number >= DONE_SHARE * len(alive):
                if self.notes:
                    noted.append(climb.noted(done.nonzero().squeeze(1), alive))
                if self.keeps:
                    closed.append((alive[done], climb.start_of(done.nonzero().squeeze(1))))
                rest = (~done).nonzero().squeeze(1)
                alive = alive[rest]
                climb.take(rest)
        rest = (climb.best <= target[alive]).nonzero().squeeze(1)
        if len(rest) < len(alive):
            if self.notes:
                noted.append(climb.noted((climb.best > target[alive]).nonzero().squeeze(1), alive))
            if self.keeps:
                done = climb.best > target[alive]
                closed.append((alive[done], climb.start_of(done.nonzero().squeeze(1))))
            alive = alive[rest]
            climb.take(rest)
        reached = climb.finish(result, alive)
        return replace(reached, noted=(*noted, *reached.noted), closed=tuple(closed))


class _Climb:
    """The state of one block of groups while it climbs."""

    def __init__(self, engine: Backward, groups: Groups, start: Start, *, free: bool = False, grid: int = 0) -> None:
        self.engine = engine
        self.grid = grid
        self.groups = groups
        count = len(groups.owner)
        self.rows_of_one = groups.C.shape[1] == 1
        self.weighs = engine.rounded and (free or not self.rows_of_one)
        weights = start.weights
        if weights is None:
            weights = groups.mask / groups.mask.sum(1, keepdim=True)
        self.weights = weights.to(groups.C)
        if free and self.rows_of_one:  # a lone row is taken as it is, but a ray of an empty domain has no row at all
            w = self.weights.unsqueeze(2)
            groups = self.groups = replace(groups, C=groups.C * w, offset=groups.offset * self.weights,
                                           D=None if groups.D is None else groups.D * w)
        C, _, _ = groups.combined(self.weights)
        owner = Owner.of(engine.sets.batch, groups.owner)
        self.block = Block(engine.graph.output, Rows.full(C.view(count, *engine.graph.output_shape), owner))
        self.multipliers: Multipliers = {}
        self.split: dict[int, Tensor] = {}
        if free:
            self.multipliers = dict(start.multipliers)
        for node, split in () if free else engine.splits.items():
            if not bool(split.any()):
                continue
            self.split[node] = split[groups.owner]
            warm = start.multipliers.get(node)
            zeros = groups.C.new_zeros(self.split[node].shape)
            self.multipliers[node] = zeros if warm is None else torch.where(self.split[node], warm, zeros)
        self.trace: Trace = {}
        with torch.no_grad():  # one pass gathers the lines along the block and shows the coefficients met
            pulled = engine.pull(self.block, None, self.multipliers, self.trace)
            self.steepness = input_rows(pulled, engine.graph).flatten(1).abs()
            self.slopes, self.low, self.high = initial(engine, self.block)
        self.scale = {node: self._coefficients(node) for node in self.split}
        for node, warm in start.slopes.items():
            if node in self.slopes:
                value = self._in_layout(node, warm)
                self.slopes[node] = torch.minimum(torch.maximum(value, self.low[node]), self.high[node])
        if grid:
            self.slopes = {i: snapped(p, self.low[i], self.high[i], grid) for i, p in self.slopes.items()}
        self.best = groups.C.new_full((count,), -torch.inf)
        self.best_at = Start(dict(self.slopes), dict(self.multipliers), self.weights)

    def _coefficients(self, node: int) -> Tensor:
        """The size of the rows' coefficients at a node, "N 1 ..": the range in which its multipliers lie."""
        for reader in self.engine.graph.consumers[node]:
            met = self.trace.get(reader)
            if met is not None and met[0].A is not None:
                rows, lines = met
                A = met[0].A.flatten(1).abs()
                if rows.extent is None:  # which dead neurons a batch leaves out depends on all its domains: none counts
                    split = self.split[node].flatten(1)
                    split = split if rows.columns is None else split.index_select(1, rows.columns)
                    A = A * (((lines.lower_slope != 0) | (lines.upper_slope != 0)).flatten(1) | split)
                return A.amax(1).view(-1, *(1,) * (self.split[node].dim() - 1))
        ones = (len(self.groups.owner), *(1,) * (self.split[node].dim() - 1))
        return self.weights.new_ones(ones)

    @torch.no_grad()
    def _combination(self, weights: Tensor) -> Tensor:
        """What the weighted sum of the groups' rows may lose by rounding, "G"."""
        groups, engine = self.groups, self.engine
        outputs = magnitude(engine.enclosures[engine.graph.output]).flatten(1)[groups.owner]
        size = torch.einsum("grm,gm->gr", groups.C.abs(), outputs) + groups.offset.abs()
        if groups.D is not None:
            inputs = magnitude(engine.enclosures[0]).flatten(1)[groups.owner]
            size = size + torch.einsum("grn,gn->gr", groups.D.abs(), inputs)
        return MORE * gamma(groups.C.shape[1], size.dtype) * (weights * size).sum(1)

    def _layout(self, node: int) -> Rows:
        layout: Rows = self.block.gathered[node, "layout"]
        return layout

    def _in_layout(self, node: int, full: Tensor) -> Tensor:
        columns = self._layout(node).columns
        return full if columns is None else full.flatten(2).index_select(2, columns)

    def _in_full(self, node: int, value: Tensor) -> Tensor:
        """Slopes laid out as the rows were, over all neurons "K N *shape"."""
        columns = self._layout(node).columns
        shape = self.engine.graph.nodes[node].shape
        if columns is None:
            return value.reshape(*value.shape[:2], *shape)
        flat = value.new_zeros(*value.shape[:2], math.prod(shape))
        return flat.index_copy_(2, columns, value).view(*value.shape[:2], *shape)

    # ------------------------------------------------------------------ evaluation

    def _value(self) -> Tensor:
        C, offset, D = self.groups.combined(self.weights)
        if self.weighs:
            offset = offset - self._combination(self.weights)
        self.block.rows = replace(self.block.rows, A=C.view(len(offset), *self.engine.graph.output_shape))
        if D is None:
            return self.engine.prices.sum(offset, self.engine.value(self.block, self.slopes, self.multipliers))
        pulled = self.engine.pull(self.block, self.slopes, self.multipliers)
        A = input_rows(pulled, self.engine.graph) + D.view(-1, *self.engine.graph.input_shape)
        return self.engine.prices.sum(offset, pulled.constant, self.engine.minimise(A, self.block.rows.owner))

    def evaluate(self, *, gradient: bool) -> Tensor:
        """The bounds "G" at the present parameters; with `gradient` their gradients are kept for `step`."""
        if not gradient:
            with torch.no_grad():
                return self._value()
        leaves = [*self.slopes.values(), *self.multipliers.values()]
        if not self.rows_of_one:
            leaves.append(self.weights)
        if not leaves:
            self.gradients: list[Tensor | None] = []
            with torch.no_grad():
                return self._value()
        with torch.enable_grad():
            for leaf in leaves:
                leaf.requires_grad_(True)
            now = self._value()
            self.gradients = list(torch.autograd.grad(now.sum(), leaves, allow_unused=True))
        for leaf in leaves:
            leaf.requires_grad_(False)
        return now.detach()

    def keep_best(self, now: Tensor) -> None:
        better = now > self.best
        at = Start(dict(self.slopes), dict(self.multipliers), self.weights)
        if bool(better.all()):
            self.best, self.best_at = now, at
            return
        self.best = torch.where(better, now, self.best)
        old = self.best_at
        assert at.weights is not None and old.weights is not None
        self.best_at = Start({i: torch.where(_along(better, p, 1), p, old.slopes[i]) for i, p in at.slopes.items()},
                             {i: torch.where(_along(better, s, 0), s, old.multipliers[i])
                              for i, s in at.multipliers.items()},
                             torch.where(better.unsqueeze(1), at.weights, old.weights))

    def step(self, slope: float, multiplier: float, weight: float) -> None:
        """Move all parameters along the signs of their gradients."""
        gradients = iter(self.gradients)
        for i, p in self.slopes.items():
            g = next(gradients)
            if g is not None:
                moved = torch.addcmul(p, g.sign_(), self.high[i] - self.low[i], value=slope)
                self.slopes[i] = torch.minimum(torch.maximum(moved, self.low[i]), self.high[i])
        for i, s in self.multipliers.items():
            g = next(gradients)
            if g is not None:
                self.multipliers[i] = torch.addcmul(s, g.sign_() * self.split[i], self.scale[i], value=multiplier)
        self._step_weights(next(gradients, None), weight)

    def step_to_level(self, target: Tensor, now: Tensor, weight: float) -> None:
        """Move slopes and multipliers along their gradient, to where the bounds `now` "G" would reach the level beyond
        `target` "G"."""
        gradients = iter(self.gradients)
        square = torch.zeros_like(now)
        slopes: dict[int, Tensor] = {}
        multipliers: dict[int, Tensor] = {}
        for i, p in self.slopes.items():
            g = next(gradients)
            if g is not None:
                blocked = ((p >= self.high[i]) & (g > 0)) | ((p <= self.low[i]) & (g < 0))
                g = torch.where(blocked, torch.zeros_like(g), g * (self.high[i] - self.low[i]))
                if g.shape[1] == 1 < len(now):
                    raise ValueError("slopes of the groups must be their own")
                slopes[i] = g
                square = square + g.square().transpose(0, 1).flatten(1).sum(1)
        for i, s in self.multipliers.items():
            g = next(gradients)
            if g is not None:
                multipliers[i] = g = self._ascent(i, s, g) * self.split[i] * self.scale[i]
                square = square + g.square().flatten(1).sum(1)
        level = (1 + AHEAD) * (target - now).clamp(min=0) + LEAST_AHEAD * now.abs()
        flat = ~(square > torch.finfo(now.dtype).tiny) | ~torch.isfinite(level)
        length = torch.where(flat, 0.0, level / torch.where(flat, 1.0, square))
        for i, g in slopes.items():
            moved = self.slopes[i] + g * (self.high[i] - self.low[i]) * _along(length, g, 1)
            moved = torch.minimum(torch.maximum(moved, self.low[i]), self.high[i])
            self.slopes[i] = snapped(moved, self.low[i], self.high[i], self.grid) if self.grid else moved
        for i, g in multipliers.items():
            self.multipliers[i] = self.multipliers[i] + g * self.scale[i] * _along(length, g, 0)
        self._step_weights(next(gradients, None), weight)

    def _ascent(self, node: int, s: Tensor, g: Tensor) -> Tensor:
        """The derivatives of multipliers. At zero, where the bound they stand on changes from upper to lower, autograd
        adds both sides up; any between them would do, and the nearest to zero does not lead away from an optimum."""
        x = self.engine.intervals[node]
        lower, upper = x.lower[self.groups.owner], x.upper[self.groups.owner]
        return torch.where(s == 0, (g - upper).clamp(min=0) + (g - lower).clamp(max=0), g)

    def _step_weights(self, g: Tensor | None, weight: float) -> None:
        if self.rows_of_one or g is None:
            return
        g = torch.where(self.groups.mask, g, g.new_full((), -torch.inf))
        top = g.amax(1, keepdim=True)
        spread = (top - g).where(self.groups.mask, g.new_zeros(())).amax(1, keepdim=True)
        # Exponentiated gradient: the row that helps most grows, weights stay on the simplex.
        grown = (self.weights + 0.02 * self.groups.mask) * torch.exp(
            (g - top) / spread.clamp(min=torch.finfo(g.dtype).tiny) * (4 * weight))
        grown = torch.where(self.groups.mask, grown, torch.zeros_like(grown))
        self.weights = grown / grown.sum(1, keepdim=True)

    def take(self, rest: Tensor) -> None:
        """Go on with some of the groups."""
        self.groups = self.groups.take(rest)
        self.block = self.block.take(rest)
        self.weights = self.weights[rest]
        self.steepness = self.steepness[rest]
        self.best = self.best[rest]
        self.slopes, self.low, self.high, best_slopes = (
            {i: p if p.shape[1] == 1 else p.index_select(1, rest) for i, p in g.items()}
            for g in (self.slopes, self.low, self.high, self.best_at.slopes))
        self.multipliers, self.split, self.scale, best_multipliers = (
            {i: s.index_select(0, rest) for i, s in g.items()}
            for g in (self.multipliers, self.split, self.scale, self.best_at.multipliers))
        assert self.best_at.weights is not None
        self.best_at = Start(best_slopes, best_multipliers, self.best_at.weights[rest])

    @torch.no_grad()
    def start_of(self, chosen: Tensor) -> Start:
        """The best parameters of groups `chosen`, over all neurons."""
        at = self.best_at
        assert at.weights is not None
        slopes = {i: self._in_full(i, p if p.shape[1] == 1 else p.index_select(1, chosen)).expand(
            -1, len(chosen), *(-1,) * len(self.engine.graph.nodes[i].shape)) for i, p in at.slopes.items()}
        return Start(slopes, {i: s.index_select(0, chosen) for i, s in at.multipliers.items()}, at.weights[chosen])

    @torch.no_grad()
    def noted(self, chosen: Tensor, alive: Tensor) -> Noted:
        """The best parameters of groups `chosen`, whose index is `alive[chosen]`."""
        at = self.best_at
        assert at.weights is not None
        graph = self.engine.graph
        grid = self.grid if keeps_grid(graph) else 0
        slopes = {}
        for i, p in at.slopes.items():
            low, high = (t if t.shape[1] == 1 else t.index_select(1, chosen) for t in (self.low[i], self.high[i]))
            op, source = graph.nodes[i].op, self.engine.intervals[graph.nodes[i].inputs[0]]
            assert isinstance(op, Elementwise)
            gather = self._layout(i).gather
            x = source if op.reuses_lines else source.map(gather).map(
                lambda t: t if t.shape[0] == 1 else t.index_select(0, chosen))
            slopes[i] = slopes_of(op.select(gather, source.lower.shape), x, p.index_select(1, chosen), low, high, grid)
        return Noted(alive[chosen], noted_slopes(graph, slopes, len(chosen), grid, self._noted_in_full),
                     grid, {i: s.index_select(0, chosen) for i, s in at.multipliers.items()},
                     at.weights.index_select(0, chosen))

    def _noted_in_full(self, node: int, q: Tensor) -> Tensor:
        """As `_in_full`, where no parameter is met there is none."""
        columns = self._layout(node).columns
        shape = self.engine.graph.nodes[node].shape
        if columns is None:
            return q.reshape(*q.shape[:2], *shape)
        grid = self.grid if keeps_grid(self.engine.graph) else 0
        flat = q.new_full((*q.shape[:2], math.prod(shape)), nothing(grid))
        return flat.index_copy_(2, columns, q).view(*q.shape[:2], *shape)

    @torch.no_grad()
    def finish(self, result: Tensor, alive: Tensor, x: Tensor | None = None) -> Reached:
        """The answer: groups `alive` are pulled to the input once more, at their best parameters. Gaps are measured at
        x "H *input", if given, else where the planes are lowest."""
        engine, graph, at = self.engine, self.engine.graph, self.best_at
        assert at.weights is not None
        C, offset, D = self.groups.combined(at.weights)
        self.block.rows = replace(self.block.rows, A=C.view(len(offset), *graph.output_shape))
        trace: Trace = {}
        pulled: Pulled = engine.pull(self.block, at.slopes, at.multipliers, trace)
        A, b = input_rows(pulled, graph), engine.prices.sum(pulled.constant, offset)
        if self.weighs:
            b = b - self._combination(at.weights)
        if D is not None:
            A = A + D.view_as(A)
        owner = self.block.rows.owner
        lower = engine.prices.sum(b, engine.minimise(A, owner))
        result[alive] = torch.where(torch.isnan(lower), lower, torch.maximum(result[alive], lower))
        x = engine.sets.minimiser(A, owner.domains(len(offset), A)) if x is None else x
        values = graph.values(x)
        z = {i: values[i] for i in graph.relaxed_inputs}
        met: dict[int, Tensor] = {}
        gaps: dict[int, Tensor] = {}
        for node, (rows, lines) in trace.items():
            source = graph.nodes[node].inputs[0]
            coefficients, gap = self._met(node, rows, lines, values[source], values[node])
            met[source] = met[source] + coefficients if source in met else coefficients
            gaps[source] = gaps[source] + gap if source in gaps else gap
        full = {i: self._in_full(i, p) for i, p in at.slopes.items()}
        every = torch.arange(len(alive), device=alive.device)
        return Reached(result, alive, Start(full, at.multipliers, at.weights), A, b, self.steepness, x,
                       values[graph.output], z, met, gaps, noted=(self.noted(every, alive),) if self.grid else ())

    def _met(self, node: int, rows: Rows, lines: Relaxation, z: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
        """(coefficients, gaps) "H *shape" of one elementwise node whose inputs are z and outputs f at x."""
        A = rows.A
        assert A is not None
        if rows.columns is not None:
            z, f = (t.flatten(1).index_select(1, rows.columns) for t in (z, f))
        low, high = lines.lower_slope * z, lines.upper_slope * z
        if lines.lower_intercept is not None:
            low = low + lines.lower_intercept
        if lines.upper_intercept is not None:
            high = high + lines.upper_intercept
        gap = A * (f - torch.where(A >= 0, low, high))
        return self._in_full(node, A.unsqueeze(0))[0], self._in_full(node, gap.unsqueeze(0))[0]


def _along(mask: Tensor, like: Tensor, axis: int) -> Tensor:
    shape = [1] * like.dim()
    shape[axis] = -1
    return mask.view(shape)


def _take_start(start: Start | None, chosen: Tensor) -> Start:
    if start is None:
        return Start()
    return Start({i: p[:, chosen] for i, p in start.slopes.items()},
                 {i: s[chosen] for i, s in start.multipliers.items()},
                 None if start.weights is None else start.weights[chosen])


def _joined(parts: list[Reached]) -> Reached:
    """The answers of all blocks as one."""
    offset = 0
    opened = []
    for part in parts:
        opened.append(part.open + offset)
        offset += len(part.lower)

    def cat(read: Callable[[Reached], dict[int, Tensor]], axis: int = 0) -> dict[int, Tensor]:
        # A block without a split at a node has no multipliers there.
        likes = {i: t for p in parts for i, t in read(p).items()}
        return {i: torch.cat([read(p).get(i, _zeros(like, axis, len(p.open))) for p in parts], axis)
                for i, like in likes.items()}
    at = Start(cat(lambda p: p.at.slopes, 1), cat(lambda p: p.at.multipliers),
               torch.cat([p.at.weights for p in parts if p.at.weights is not None]))
    plain = {name: torch.cat([getattr(p, name) for p in parts]) for name in ("lower", "A", "b", "steepness", "x", "y")}
    counts = torch.tensor([0, *(len(p.lower) for p in parts[:-1])]).cumsum(0).tolist()
    noted = tuple(replace(n, index=n.index + first) for p, first in zip(parts, counts, strict=True) for n in p.noted)
    closed = tuple((i + first, s) for p, first in zip(parts, counts, strict=True) for i, s in p.closed)
    return Reached(open=torch.cat(opened), at=at, z=cat(lambda p: p.z), met=cat(lambda p: p.met),
                   gaps=cat(lambda p: p.gaps), noted=noted, closed=closed, **plain)


def _zeros(like: Tensor, axis: int, count: int) -> Tensor:
    shape = list(like.shape)
    shape[axis] = count
    return like.new_zeros(shape)


def better_of(first: Reached, second: Reached) -> Reached:
    """Of two answers on groups (`second` on the open ones of `first`, in order) the better one, group by group."""
    wins = second.lower > first.lower[first.open]

    def pick(a: Tensor, b: Tensor, axis: int = 0) -> Tensor:
        return torch.where(_along(wins, b, axis), b, a)

    def pick_all(a: dict[int, Tensor], b: dict[int, Tensor], axis: int = 0) -> dict[int, Tensor]:
        likes = {**a, **b}
        count = len(wins)
        return {i: pick(a.get(i, _zeros(t, axis, count)), b.get(i, _zeros(t, axis, count)), axis)
                for i, t in likes.items()}
    lower = first.lower.clone()
    lower[first.open] = torch.maximum(first.lower[first.open], second.lower)
    assert first.at.weights is not None and second.at.weights is not None
    at = Start(pick_all(first.at.slopes, second.at.slopes, 1), pick_all(first.at.multipliers, second.at.multipliers),
               pick(first.at.weights, second.at.weights))
    plain = {name: pick(getattr(first, name), getattr(second, name)) for name in ("A", "b", "x", "y")}
    winners = torch.zeros(len(first.lower), dtype=torch.bool, device=wins.device)
    winners[first.open[wins]] = True
    noted = (*(n.take((~winners[n.index]).nonzero().squeeze(1)) for n in first.noted),
             *(n.take(wins[n.index].nonzero().squeeze(1)).at(first.open) for n in second.noted))
    closed = (*first.closed, (first.open[wins], Start(
        {i: p[:, wins] for i, p in second.at.slopes.items()}, {i: s[wins] for i, s in second.at.multipliers.items()},
        second.at.weights[wins])))
    return Reached(lower=lower, open=first.open, at=at, steepness=first.steepness, z=pick_all(first.z, second.z),
                   met=pick_all(first.met, second.met), gaps=pick_all(first.gaps, second.gaps), noted=noted,
                   closed=closed, **plain)
