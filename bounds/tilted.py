"""Tilted chords: lines above ReLUs that lean on everything before them.

Over a region, the ReLU of v = w y + b (y: the input and the neurons of all layers before) lies below *any* plane

    max(v, 0) <= g y + c    with    c >= sup(-g y)  and  c >= sup(v - g y),

both suprema bounded by ordinary backward passes over the region. For g = s w with the chord's slope s this is the chord
itself; but what a neuron gives away where a row is lowest is often regained by tilting g away from w. The tilts g, one
for each undecided neuron from the second layer on, the slopes of the row and those of every inner pass are climbed
together. With a box over y in place of the region these planes are the cuts of a neuron's convex hull (Anderson et al.,
arXiv:1811.08359; Tjandraatmadja et al., arXiv:2006.14076; De Palma et al., arXiv:2101.05844): the barrier that chords,
however their slopes are chosen, do not pass (arXiv:1902.08722).

It works on a reduced graph (`bounds.graph.reduce`) of one region, a box. Any parameters give valid bounds: they are
climbed in float32 and the bound that counts is evaluated once more in float64, where it pays for its rounding
(`bounds.tilted_rounding`). Every tilted neuron costs two rows in every step, as optimising its own bounds would.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bounds.adam import Moments
from bounds.graph.reduce import Reduced
from bounds.interval import Interval
from bounds.ops.relu import Relu
from bounds.rounding import is_priced, sum_down
from bounds.sets import InputSet
from bounds.tilted_rounding import price

ROW_NUMBERS = 1 << 23   # coefficients that the rows climbed together may have
MOST_NUMBERS = 1 << 26  # a single row that needs more is not climbed
LEAST_GAIN = 0.05
MEAN_SHARE = 0.05       # of each step in the mean of the minimisers
SAFETY = 1e-6           # of the centre's value: what float32 must exceed the target by before float64 is asked

Key = tuple[str, int, int]
Parameters = dict[Key, Tensor]
"""Parameters by (kind, layer, layer that they act on), all with a leading axis over domains. Kinds: `slope` of lower
lines "B u_k"; `tilt` "B t", the entries of g - s w where w is not zero, as shares of its largest entry; `inner`
"B 2p u_i", slopes of the inner rows; `beta` "B u_k" and `inner beta` "B 2p u_i", signed multipliers on the bound that a
split has set (arXiv:2103.06624)."""


@dataclass(frozen=True, eq=False)
class Chain:
    """A reduced graph over one box: s = E x + e, then r_k = relu(head of s), s <- tail + M_k r_k; layer k's neurons are
    rows `rows[k]` of s, the outputs come last; error: how far each row is from the network's (`Reduced.error`)."""

    E: Tensor
    e: Tensor
    M: tuple[Tensor, ...]
    error: Tensor
    centre: Tensor
    radius: Tensor
    rows: tuple[slice, ...]

    @staticmethod
    def of(reduced: Reduced, box: InputSet, dtype: torch.dtype) -> Chain:
        if not (box.is_box and box.batch == 1):
            raise ValueError("a chain is over one box")
        if any(not isinstance(reduced.graph.nodes[layer.reduced + 1].op, Relu) for layer in reduced.layers):
            raise ValueError(f"{reduced.graph.source}: chords are tilted of ReLUs only")
        low, high = box.lower[0].flatten().double(), box.upper[0].flatten().double()
        rows, start = [], 0
        for layer in reduced.layers:
            rows.append(slice(start, start + len(layer.index)))
            start = rows[-1].stop
        E, *M = (w.to(dtype) for w in reduced.weights)
        return Chain(E, reduced.bias.to(dtype), tuple(M), reduced.error.to(dtype),
                     ((low + high) / 2).to(dtype), ((high - low) / 2).to(dtype), tuple(rows))

    @property
    def hidden(self) -> int:
        return self.rows[-1].stop if self.rows else 0

    def effect(self, i: int, k: int) -> Tensor:
        """"u_k u_i": how layer i's neurons move the inputs of layer k > i."""
        start = self.rows[i].stop
        return self.M[i][self.rows[k].start - start:self.rows[k].stop - start]

    def before(self, k: int) -> Tensor:
        """"u_k (n + u_0 + .. + u_k-1)": layer k's inputs over the input and all neurons before."""
        return torch.cat([self.E[self.rows[k]], *(self.effect(i, k) for i in range(k))], 1)

    def minimum(self, A: Tensor) -> Tensor:
        return A @ self.centre - A.abs() @ self.radius


@dataclass(frozen=True, eq=False)
class Lines:
    """Chords and the choice of lower slopes over "B" domains, one entry a layer: slope s and intercept t of the chord,
    low and high ends of the lower slope, where the neuron is undecided, and the ends l and u of its interval."""

    s: list[Tensor]
    t: list[Tensor]
    low: list[Tensor]
    high: list[Tensor]
    open: list[Tensor]
    l: list[Tensor]
    u: list[Tensor]

    @staticmethod
    def of(intervals: Sequence[Interval], dtype: torch.dtype) -> Lines:
        lines = Lines([], [], [], [], [], [], [])
        for x in intervals:
            l, u = x.lower.to(dtype), x.upper.to(dtype)
            is_open = (l < 0) & (u > 0)
            one, zero = torch.ones_like(u), torch.zeros_like(u)
            fixed = torch.where(l >= 0, one, zero)
            chord = Relu().relax(Interval(l, u))  # holds as stored, but for numbers that vanish
            assert chord.upper_intercept is not None
            lines.s.append(torch.where(is_open, chord.upper_slope, fixed))
            lines.t.append(torch.where(is_open, chord.upper_intercept + torch.finfo(dtype).tiny, zero))
            lines.low.append(torch.where(is_open, zero, fixed))
            lines.high.append(torch.where(is_open, one, fixed))
            lines.open.append(is_open)
            lines.l.append(l)
            lines.u.append(u)
        return lines

    def take(self, chosen: Tensor) -> Lines:
        names = ("s", "t", "low", "high", "open", "l", "u")
        return Lines(*([t[chosen] for t in getattr(self, name)] for name in names))


@dataclass(frozen=True, eq=False)
class Tilts:
    """Which neurons of a layer are tilted, and where: neurons `at` "p", their w "p (n + ..)", its largest entries
    `size` "p 1", and the flat positions `support` "t" in it that may be tilted."""

    at: Tensor
    w: Tensor
    size: Tensor
    support: Tensor

    @property
    def sizes(self) -> Tensor:
        """"t": the unit of each tilt."""
        return self.size.flatten()[self.support // self.w.shape[1]]


@dataclass(frozen=True, eq=False)
class InnerPass:
    """How the inner rows g, g - w of a layer's planes were bounded: rows "B 2p (n + u_0 + ..)", constant "B 2p", and by
    layer what they met there on lower lines and on chords, "B 2p u_i"."""

    rows: Tensor
    constant: Tensor
    met: dict[int, tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Used:
    """How a row met a layer: coefficients "B u" on lower lines and on chords, those on tilted planes "B p", these
    planes g "B p y", c "B p", and where it is traced how c was found."""

    low: Tensor
    high: Tensor
    tilted: Tensor | None
    g: Tensor | None
    c: Tensor | None
    inner: InnerPass | None


@dataclass(frozen=True, eq=False)
class Start:
    """Parameters to start from, and the tilted neurons that they are about."""

    tilts: dict[int, Tilts]
    parameters: Parameters

    def expand(self, count: int) -> Start:
        """Those of one row, for `count` rows."""
        return Start(self.tilts, {key: p.expand(count, *p.shape[1:]).clone() for key, p in self.parameters.items()})


@dataclass(frozen=True, eq=False)
class TiltedBounds:
    """lower "B" in float64; x "B n", the mean of where the planes were lowest; gaps "B u_0 + u_1 + ..", what each
    neuron's lines lose there; starts: where the rows at or below their target ended, by row."""

    lower: Tensor
    x: Tensor
    gaps: Tensor
    starts: dict[int, Start]

    def take(self, k: int) -> TiltedBounds:
        """Those of one row."""
        one = slice(k, k + 1)
        starts = {0: self.starts[k]} if k in self.starts else {}
        return TiltedBounds(self.lower[one], self.x[one], self.gaps[one], starts)


@dataclass(frozen=True)
class Tilted:
    """`iterations` steps of Adam (arXiv:1412.6980) at most, falling to `last` of their first length; `stop` ends them.
    Every `patience` steps rows leave that came no nearer to their target by a twentieth, or so slowly that they will
    stay short of it by more than the share `close` of what they were short of at first."""

    iterations: int = 400
    tilt_step: float = 0.01
    slope_step: float = 0.1
    last: float = 0.02
    patience: int = 25
    close: float = 0.2
    stop: Callable[[], bool] = field(default=bool)

    def bound(self, reduced: Reduced, box: InputSet, intervals: Mapping[int, Interval], C: Tensor, offset: Tensor,
              target: Tensor, D: Tensor | None = None, *, sides: Sequence[Tensor] | None = None,
              start: Start | None = None) -> TiltedBounds | None:
        """Lower bounds of C "B m" f(x) + D "B n" x + offset "B", a row each over the box, where `intervals` "B u" or
        "1 u" of the reduced graph's neurons hold; a row above its target "B" is not climbed further. None where one row
        alone is too large. sides "B u_k": +1 or -1 where a split has set a neuron's lower or upper bound; start: of one
        row."""
        parts: list[TiltedBounds] = []
        chain = Chain.of(reduced, box, torch.float32)
        size = max(1, ROW_NUMBERS // max(1, numbers(chain)))
        if numbers(chain) > MOST_NUMBERS or not len(C):
            return None
        layers = [intervals[layer.reduced] for layer in reduced.layers]
        for rows in torch.arange(len(C), device=C.device).split(size):
            here = [x.map(lambda t, r=rows: t.expand(len(C), -1)[r]) for x in layers]
            climb = _Climb(self, chain, Chain.of(reduced, box, torch.float64), here, C[rows].double(),
                           offset[rows].double(), None if D is None else D[rows].double(),
                           None if sides is None else [t[rows] for t in sides],
                           None if start is None else start.expand(len(rows)))
            parts.append(climb.run(target[rows].double()))
        starts = {i * size + row: at for i, p in enumerate(parts) for row, at in p.starts.items()}
        return TiltedBounds(torch.cat([p.lower for p in parts]), torch.cat([p.x for p in parts]),
                            torch.cat([p.gaps for p in parts]), starts)


def numbers(chain: Chain) -> int:
    """Coefficients that all inner rows of one row have."""
    n, total = len(chain.centre), 0
    for k, rows in enumerate(chain.rows):
        if k:
            total += 2 * (rows.stop - rows.start) * (n + 2 * rows.start)
    return total


class _Climb:
    """Some rows over their domains while they climb."""

    def __init__(self, settings: Tilted, chain: Chain, exact: Chain, intervals: Sequence[Interval], C: Tensor,
                 offset: Tensor, D: Tensor | None, sides: Sequence[Tensor] | None = None, start: Start | None = None
                 ) -> None:
        self.settings, self.chain, self.exact = settings, chain, exact
        self.intervals = list(intervals)
        self.C, self.offset, self.D = C, offset, D
        self.lines = Lines.of(intervals, chain.E.dtype)
        self.parameters: Parameters = {}
        B = len(C)
        first = [torch.where(is_open, (x.upper + x.lower > 0).to(s), s)
                 for x, is_open, s in zip(intervals, self.lines.open, self.lines.s, strict=True)]
        for k, slope in enumerate(first):
            self.parameters["slope", k, k] = slope
        self.tilts: dict[int, Tilts] = {}
        if start is None:
            for k, (at, w) in self._worth_tilting().items():
                size = w.abs().amax(1, keepdim=True)
                self.tilts[k] = Tilts(at, w, size, (w != 0).flatten().nonzero().squeeze(1))
                self.parameters["tilt", k, k] = w.new_zeros(B, len(self.tilts[k].support))
                for i in range(k):
                    self.parameters["inner", k, i] = first[i].unsqueeze(1).repeat(1, 2 * len(at), 1)
        else:
            self.tilts = start.tilts
            self.parameters.update(start.parameters)
        self.sides = [torch.zeros_like(s, dtype=torch.int8) for s in self.lines.s] if sides is None else list(sides)
        self._split()
        self.parameters = {key: self._boxed(key, p) for key, p in self.parameters.items()}
        self.gradients: Parameters = {}
        self.mean: Tensor | None = None
        self.moments = {key: Moments.of(p) for key, p in self.parameters.items()}

    def _split(self) -> None:
        """Multipliers of the splits, zero at first."""
        self.units: dict[Key, Tensor] = {}
        if not any(bool(side.any()) for side in self.sides):
            return
        with torch.no_grad():
            _, _, met, _ = _value(self.chain, self.lines, self.tilts, self.parameters, *self._rows(self.chain))
        for k, side in enumerate(self.sides):
            if not bool(side.any()):
                continue
            self.parameters.setdefault(("beta", k, k), torch.zeros_like(self.lines.s[k]))
            self.units["beta", k, k] = met[k].abs().amax(1, keepdim=True)
            for j, tilts in self.tilts.items():
                if j > k:
                    rows = self.chain.rows
                    at = len(self.chain.centre) + rows[k].start
                    size = tilts.w[:, at:at + len(side[0])].abs().amax(1, keepdim=True).repeat(2, 1)
                    shape = (len(side), *size.shape[:1], len(side[0]))
                    self.parameters.setdefault(("inner beta", j, k), size.new_zeros(shape))
                    self.units["inner beta", j, k] = size.expand(len(side), -1, 1)

    def _boxed(self, key: Key, p: Tensor) -> Tensor:
        """A parameter inside its box."""
        if key[0] == "tilt":
            return p
        if "beta" in key[0]:
            side = self.sides[key[2]] if p.dim() == 2 else self.sides[key[2]].unsqueeze(1)
            return torch.where(side > 0, p.clamp(min=0), torch.where(side < 0, p.clamp(max=0), torch.zeros_like(p)))
        low, high = self.lines.low[key[2]], self.lines.high[key[2]]
        low, high = (low, high) if p.dim() == 2 else (low.unsqueeze(1), high.unsqueeze(1))
        return torch.minimum(torch.maximum(p, low.to(p)), high.to(p))

    def _worth_tilting(self) -> dict[int, tuple[Tensor, Tensor]]:
        """By layer from the second on, the undecided neurons whose upper lines some row meets, and their w. (Those of
        the first layer are `bounds.leaning`'s.)"""
        found = {}
        with torch.no_grad():
            self.tilts = {}
            _, _, met, _ = _value(self.chain, self.lines, {}, self.parameters, *self._rows(self.chain))
        for k in range(1, len(self.chain.rows)):
            at = ((met[k] < 0) & self.lines.open[k]).any(0).nonzero().squeeze(1)
            if len(at):
                found[k] = at, self.chain.before(k)[at]
        return found

    def _rows(self, chain: Chain) -> tuple[Tensor, Tensor, Tensor | None]:
        like = chain.E
        return self.C.to(like), self.offset.to(like), None if self.D is None else self.D.to(like)

    def run(self, target: Tensor) -> TiltedBounds:
        n = len(self.chain.centre)
        found = TiltedBounds(torch.full_like(target, -torch.inf), self.C.new_zeros(len(target), n),
                             self.C.new_zeros(len(target), self.chain.hidden), {})
        lower = found.lower
        alive = torch.arange(len(target), device=target.device)
        self.checked = 0
        slack = SAFETY * (1 + self.offset.abs())
        for k in range(self.settings.iterations if self.parameters else 0):
            now = self._evaluate()
            if k == 0:
                self.first = self.nearest = target[alive] - now
            above = now.double() > target[alive] + slack[alive]
            if bool(above.any()):
                done = above.nonzero().squeeze(1)
                self._record(done, alive, found)
                rest = (lower[alive] <= target[alive]).nonzero().squeeze(1)
                if not len(rest):
                    return found
                if len(rest) < len(alive):
                    alive = alive[rest]
                    self._take(rest)
                    continue
            if self.settings.stop():
                break
            if k >= self.checked + self.settings.patience:
                promising = self._promising(k, target[alive] - now)
                if not bool(promising.all()):
                    self._leave((~promising).nonzero().squeeze(1), alive, target, found)
                    rest = promising.nonzero().squeeze(1)
                    if not len(rest):
                        return found
                    alive = alive[rest]
                    self._take(rest)
                    continue
            self._step(k)
        self._leave(torch.arange(len(alive), device=alive.device), alive, target, found)
        return found

    def _leave(self, chosen: Tensor, alive: Tensor, target: Tensor, found: TiltedBounds) -> None:
        """Record some rows, and where those that are still open got to."""
        self._record(chosen, alive, found)
        for k, row in zip(chosen.tolist(), alive[chosen].tolist(), strict=True):
            if float(found.lower[row]) <= float(target[row]):
                found.starts[row] = Start(self.tilts, {key: p[k:k + 1] for key, p in self.parameters.items()})

    def _promising(self, k: int, short: Tensor) -> Tensor:
        """bool "B": rows that came nearer to their targets since the last check, and fast enough: going on at that
        pace, which falls, a row would get within the share `close` of what it was short of first. short "B": what each
        is short of."""
        gain = self.nearest - short
        left = (self.settings.iterations - k) / self.settings.patience
        hopeful = (gain > LEAST_GAIN * self.nearest) & (short - left * gain <= self.settings.close * self.first)
        self.nearest, self.checked = torch.minimum(self.nearest, short), k
        return hopeful

    def _record(self, chosen: Tensor, alive: Tensor, found: TiltedBounds) -> None:
        """Evaluate some rows in float64 and keep what is better."""
        with torch.no_grad():
            lines = Lines.of([v.map(lambda t: t[chosen].double()) for v in self.intervals], torch.float64)
            C, offset, D = self._rows(self.exact)
            tilts = {k: replace(t, w=self.exact.before(k)[t.at], size=t.size.double()) for k, t in self.tilts.items()}
            parameters = {key: p[chosen].double() for key, p in self.parameters.items()}
            for key, p in parameters.items():
                if key[0] in ("slope", "inner"):
                    low, high = lines.low[key[2]], lines.high[key[2]]
                    low, high = (low, high) if p.dim() == 2 else (low.unsqueeze(1), high.unsqueeze(1))
                    parameters[key] = torch.minimum(torch.maximum(p, low), high)
            rows = C[chosen], offset[chosen], None if D is None else D[chosen]
            pays = is_priced(self.exact.E.dtype)
            value, A, _, used = _value(self.exact, lines, tilts, parameters, *rows, traced=pays)
            if pays:
                value = sum_down(value, -price(self.exact, lines, tilts, parameters, *rows, used))
            x = self.exact.centre - self.exact.radius * A.sign() if self.mean is None else self.mean[chosen].double()
            gaps = _gaps(self.exact, lines, tilts, parameters, used, x)
        at = alive[chosen]
        better = value > found.lower[at]
        found.lower[at] = torch.where(better, value, found.lower[at])
        found.x[at], found.gaps[at] = x, gaps

    def _take(self, rest: Tensor) -> None:
        self.first, self.nearest = self.first[rest], self.nearest[rest]
        self.mean = None if self.mean is None else self.mean[rest]
        self.C, self.offset = self.C[rest], self.offset[rest]
        self.D = None if self.D is None else self.D[rest]
        self.intervals = [x.map(lambda t: t[rest]) for x in self.intervals]
        self.lines = self.lines.take(rest)
        self.sides = [t[rest] for t in self.sides]
        self.units = {key: t[rest] for key, t in self.units.items()}
        self.parameters = {key: p[rest] for key, p in self.parameters.items()}
        self.moments = {key: m.take(rest) for key, m in self.moments.items()}
        self.gradients = {key: g[rest] for key, g in self.gradients.items()}

    def _evaluate(self) -> Tensor:
        leaves = {key: p.detach().requires_grad_(True) for key, p in self.parameters.items()}
        value, A, _, _ = _value(self.chain, self.lines, self.tilts, leaves, *self._rows(self.chain))
        # Where the plane is lowest jumps from corner to corner; its mean over the climb tends to the relaxation's own
        # minimiser, as in subgradient methods.
        x = self.chain.centre - self.chain.radius * A.detach().sign()
        self.mean = x if self.mean is None else torch.lerp(self.mean, x, MEAN_SHARE)
        found = torch.autograd.grad(value.sum(), list(leaves.values()), allow_unused=True)
        self.gradients.update({key: torch.zeros_like(self.parameters[key]) if g is None else g
                               for key, g in zip(leaves, found, strict=True)})
        return value.detach()

    def _step(self, k: int) -> None:
        settings = self.settings
        shrink = settings.last ** (k / settings.iterations)
        for key, p in self.parameters.items():
            size = shrink * (settings.tilt_step if key[0] == "tilt" else settings.slope_step)
            moved = size * self.moments[key].direction(self.gradients[key], k)
            self.parameters[key] = self._boxed(key, p + moved * self.units[key] if key in self.units else p + moved)


def _value(chain: Chain, lines: Lines, tilts: Mapping[int, Tilts], parameters: Parameters, C: Tensor, offset: Tensor,
           D: Tensor | None, *, traced: bool = False) -> tuple[Tensor, Tensor, list[Tensor], dict[int, Used]]:
    """(lower bounds "B", planes A "B n" below the rows, the coefficients met at each layer, and how lines were used) at
    given parameters; `traced`: inner passes are kept."""
    used: dict[int, Used] = {}
    end = chain.hidden
    A, constant = C @ chain.E[end:], C @ chain.e[end:] + offset
    if D is not None:
        A = A + D
    met = [C @ M[end - rows.stop:] for M, rows in zip(chain.M, chain.rows, strict=True)]
    z: list[Tensor] = []
    for k in reversed(range(len(chain.rows))):
        low, high = met[k].clamp(min=0), met[k].clamp(max=0)
        tilted = g = c = inner = None
        if k in tilts:
            tilted, g, c, inner = _tilted(chain, lines, tilts[k], parameters, k, high, traced=traced)
            high = high.index_add(1, tilts[k].at, -tilted)
            plane = torch.einsum("bp,bpy->by", tilted, g)
            first, *others = plane.split([len(chain.centre), *(r.stop - r.start for r in chain.rows[:k])], 1)
            A, constant = A + first, constant + (tilted * c).sum(1)
            met[:k] = [a + b for a, b in zip(met[:k], others, strict=True)]
        used[k] = Used(low, high, tilted, g, c, inner)
        here = low * parameters["slope", k, k] + high * lines.s[k]
        constant = constant + (high * lines.t[k]).sum(1)
        if ("beta", k, k) in parameters:
            beta = parameters["beta", k, k]
            constant = constant + (beta.clamp(min=0) * lines.l[k] + beta.clamp(max=0) * lines.u[k]).sum(1)
            here = here - beta
        met[:k] = [a + here @ chain.effect(i, k) for i, a in enumerate(met[:k])]
        z.insert(0, here)
    if z:
        over = torch.cat(z, 1)
        A, constant = A + over @ chain.E[:end], constant + over @ chain.e[:end]
    return constant + chain.minimum(A), A, met, used


def _gaps(chain: Chain, lines: Lines, tilts: Mapping[int, Tilts], parameters: Parameters, used: Mapping[int, Used],
          x: Tensor) -> Tensor:
    """"B u_0 + u_1 + ..": what the lines of each neuron lose at x "B n"."""
    state, y, out = x @ chain.E.T + chain.e, x, []
    for k, M in enumerate(chain.M):
        size = M.shape[1]
        v = state[:, :size]
        r = v.clamp(min=0)
        u = used[k]
        gap = u.low * (r - parameters["slope", k, k] * v) + u.high * (r - lines.s[k] * v - lines.t[k])
        if u.tilted is not None and u.g is not None and u.c is not None:
            plane = torch.einsum("bpy,by->bp", u.g, y) + u.c
            gap = gap.index_add(1, tilts[k].at, u.tilted * (r[:, tilts[k].at] - plane))
        out.append(gap)
        state, y = state[:, size:] + r @ M.T, torch.cat([y, r], 1)
    return torch.cat(out, 1) if out else x.new_zeros(len(x), 0)


def _tilted(chain: Chain, lines: Lines, tilts: Tilts, parameters: Parameters, k: int, high: Tensor, *,
            traced: bool = False) -> tuple[Tensor, Tensor, Tensor, InnerPass | None]:
    """(coefficients "B p" that take a tilted plane, its g "B p y", its c "B p", how c was found if that is traced) at
    layer k; `high` "B u_k" are the coefficients that take an upper line."""
    at = tilts.at
    count, width = tilts.w.shape
    tilt = parameters["tilt", k, k]
    g = torch.zeros(len(tilt), count * width, dtype=tilt.dtype, device=tilt.device)
    g = g.index_add(1, tilts.support, tilt * tilts.sizes).view(-1, count, width)
    g = g + lines.s[k][:, at].unsqueeze(2) * tilts.w
    e = chain.e[chain.rows[k]][at]
    rows = torch.cat([g, g - tilts.w], 1)
    constant = torch.cat([torch.zeros_like(e), -e]).expand(len(tilt), -1)
    slopes = [parameters["inner", k, i] for i in range(k)]
    betas = [parameters.get(("inner beta", k, i)) for i in range(k)]
    inner = InnerPass(rows, constant, {}) if traced else None
    below = _inner(chain, lines, rows, constant, slopes, betas, None if inner is None else inner.met)
    c = torch.maximum(-below[:, :count], -below[:, count:])
    return high[:, at] * lines.open[k][:, at], g, c, inner


def _inner(chain: Chain, lines: Lines, rows: Tensor, constant: Tensor, slopes: Sequence[Tensor],
           betas: Sequence[Tensor | None], trace: dict[int, tuple[Tensor, Tensor]] | None = None) -> Tensor:
    """Lower bounds "B q" of rows "B q (n + u_0 + ..)" by chords alone, with lower slopes and multipliers "B q u_i".
    `trace` takes what met the lines of each layer."""
    k = len(slopes)
    A, *met = rows.split([len(chain.centre), *(r.stop - r.start for r in chain.rows[:k])], 2)
    z: list[Tensor] = []
    for j in reversed(range(k)):
        low, high = met[j].clamp(min=0), met[j].clamp(max=0)
        if trace is not None:
            trace[j] = low, high
        here = low * slopes[j] + high * lines.s[j].unsqueeze(1)
        constant = constant + torch.einsum("bqu,bu->bq", high, lines.t[j])
        if (beta := betas[j]) is not None:
            constant = constant + torch.einsum("bqu,bu->bq", beta.clamp(min=0), lines.l[j])
            constant = constant + torch.einsum("bqu,bu->bq", beta.clamp(max=0), lines.u[j])
            here = here - beta
        met[:j] = [a + here @ chain.effect(i, j) for i, a in enumerate(met[:j])]
        z.insert(0, here)
    over = torch.cat(z, 2)
    end = chain.rows[k - 1].stop
    return constant + over @ chain.e[:end] + chain.minimum(A + over @ chain.E[:end])
