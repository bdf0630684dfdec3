"""Leaning planes: planes over the input above the ReLUs of the first layer.

A first-layer ReLU of v = w x + b lies, over the box of its inputs, below *any* plane

    max(v, 0) <= g x + c    with    c = max(sup(-g x), sup(v - g x)),

both suprema exact in the box. Chords lean along w alone; where a neuron sees few inputs, as behind a convolution, what
they give away where a row is lowest is much of what the row is short of, and neurons that see the same inputs can share
it out. Over all g the planes make up the neuron's convex hull over its box (Anderson et al., arXiv:1811.08359;
Tjandraatmadja et al., arXiv:2006.14076). Each row climbs with its own g, together with the slopes of all layers.

Any parameters give valid bounds: they are climbed in the dtype of the network, and the bound that counts is evaluated
once more in float64, where it pays for its rounding (`bounds.leaning_rounding`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from bounds.adam import Moments
from bounds.alpha_crown import initial
from bounds.backward import Backward, Block, Params, input_rows
from bounds.bounds import LinearRows
from bounds.graph import Graph
from bounds.interval import Interval
from bounds.leaning_rounding import price
from bounds.ops.conv import Conv
from bounds.ops.linear import Linear
from bounds.ops.relu import Relu
from bounds.ops.reshape import Reshape
from bounds.rounding import Prices, sum_down
from bounds.rows import Rows
from bounds.sets import InputSet
from bounds.window import Owner

MOST_NUMBERS = 1 << 24   # coefficients of the planes of all rows that are climbed together
LEAST_GAIN = 0.05        # of what a row is short of: with less a stretch it would take the whole climb for nothing


@dataclass(frozen=True, eq=False)
class Windows:
    """What the neurons of one node see of the input: value j = weight[j] . x[index[j]] + bias[j]; index "m k" (the
    number of inputs where a window reaches into the padding), weight "m k", bias "m"."""

    index: Tensor
    weight: Tensor
    bias: Tensor

    @staticmethod
    def of(graph: Graph, node: int, neurons: Tensor) -> Windows | None:
        """Of flat `neurons` "m" of a convolution or dense layer over the input itself; None for other nodes."""
        op, source = graph.nodes[node].op, graph.nodes[node].inputs
        n = torch.Size(graph.input_shape).numel()
        before = source[0] if source else 0
        while isinstance(graph.nodes[before].op, Reshape):
            before = graph.nodes[before].inputs[0]
        if before != 0:
            return None
        if isinstance(op, Linear) and op.weight.shape[1] == n:
            weight, bias = op.weight[neurons], op.bias
            index = torch.arange(n, device=weight.device).expand(len(neurons), -1)
            return Windows(index, weight, weight.new_zeros(len(neurons)) if bias is None else bias[neurons])
        if not isinstance(op, Conv) or op.weight.dim() != 4 or op.groups != 1:
            return None
        seen = op.taps(graph.nodes[source[0]].shape).T
        seen = torch.where(seen < 0, n, seen)
        channel = neurons // len(seen)
        bias = op.weight.new_zeros(len(op.weight)) if op.bias is None else op.bias
        return Windows(seen[neurons % len(seen)], op.weight.flatten(1)[channel], bias[channel])

    def to(self, dtype: torch.dtype) -> Windows:
        return Windows(self.index, self.weight.to(dtype), self.bias.to(dtype))


@dataclass(frozen=True)
class Leaning:
    """`iterations` steps of Adam (arXiv:1412.6980) at most, falling to `last` of their first length; `stop` ends them,
    and so does a stretch of `patience` steps in which no row came nearer to its target by a twentieth and fast enough
    to reach it."""

    iterations: int = 150
    plane_step: float = 0.02
    slope_step: float = 0.05
    last: float = 0.02
    patience: int = 15
    stop: Callable[[], bool] = field(default=bool)

    def bound(self, graph: Graph, sets: InputSet, rows: LinearRows, target: Tensor, given: Mapping[int, Interval],
              double: Graph | None = None) -> Tensor | None:
        """Lower bounds "R" (float64) of the rows, where `given` encloses what relaxations read; a row above its target
        "R" is not climbed further. None where the network has no such first layer, or the set is no box. double: the
        graph in float64, where it differs from the converted one by what counts as noise."""
        layer = first_layer(graph, given)
        if layer is None or not sets.is_box or not set(graph.relaxed_inputs) <= set(given):
            return None
        owner = torch.arange(len(rows.C), device=target.device) % sets.batch if rows.owner is None else rows.owner
        numbers = max(1, layer.windows.index.numel())
        if numbers > MOST_NUMBERS:
            return None
        double = graph.to(dtype=torch.float64) if double is None else double
        parts = []
        for chosen in torch.arange(len(owner), device=target.device).split(MOST_NUMBERS // numbers):
            if self.stop():
                parts.append(torch.full_like(target[chosen], -torch.inf, dtype=torch.float64))
                continue
            regions, own = owner[chosen].unique(return_inverse=True)
            part = LinearRows(rows.C[chosen], own, None if rows.D is None else rows.D[chosen],
                              None if rows.offset is None else rows.offset[chosen])
            here = {i: x.map(lambda t, r=regions: t[r]) for i, x in given.items()}
            climb = _Climb(self, layer, graph, double, sets.index(regions), part, here)
            parts.append(climb.run(target[chosen].double()))
        return torch.cat(parts)


@dataclass(frozen=True, eq=False)
class FirstLayer:
    """A ReLU node over the input's first affine layer, the `neurons` "m" that some region leaves undecided, and what
    they see."""

    node: int
    neurons: Tensor
    windows: Windows


def first_layer(graph: Graph, given: Mapping[int, Interval]) -> FirstLayer | None:
    """The first ReLU node, if it reads a convolution or dense layer over the input and is all that reads it."""
    for i, node in enumerate(graph.nodes):
        if not isinstance(node.op, Relu):
            continue
        source = node.inputs[0]
        if source not in given or list(graph.consumers[source]) != [i]:
            return None
        x = given[source]
        neurons = ((x.lower < 0) & (x.upper > 0)).any(0).flatten().nonzero().squeeze(1)
        windows = Windows.of(graph, source, neurons) if len(neurons) else None
        return None if windows is None else FirstLayer(i, neurons, windows)
    return None


@dataclass(frozen=True, eq=False)
class Seen:
    """What the undecided neurons of the first layer see: their windows, and centre and radius "R m k" of the inputs in
    them, in each row's box."""

    windows: Windows
    centre: Tensor
    radius: Tensor


@dataclass(frozen=True, eq=False)
class Met:
    """How rows met the first layer: coefficients `through` "R *node, flat" behind the lower lines, `a` "R m" <= 0 on
    planes "R m k" with constants c "R m", and others "R n": what else was added up at the input."""

    owner: Owner
    through: Tensor
    a: Tensor
    planes: Tensor
    c: Tensor
    others: tuple[Tensor, ...]


class _Climb:
    """Some rows while they climb."""

    def __init__(self, settings: Leaning, layer: FirstLayer, graph: Graph, double: Graph, sets: InputSet,
                 rows: LinearRows, given: Mapping[int, Interval]) -> None:
        self.settings, self.layer, self.graph, self.double = settings, layer, graph, double
        self.sets, self.given, self.rows = sets, given, rows
        self._prepare(graph)
        with torch.no_grad():
            self.engine.pull(self.block)
            self.slopes, self.low, self.high = initial(self.engine, self.block)
        x = given[graph.nodes[layer.node].inputs[0]]
        low, high = (t.flatten(1)[self.owner][:, layer.neurons] for t in (x.lower, x.upper))
        chord = high.clamp(min=0) / (high.clamp(min=0) - low.clamp(max=0)).clamp(min=torch.finfo(high.dtype).tiny)
        self.planes = chord.to(graph.dtype).unsqueeze(2) * layer.windows.weight
        self.unit = layer.windows.weight.abs().amax(1).view(1, -1, 1)

    def _prepare(self, graph: Graph) -> None:
        """Everything that does not climb, in the dtype of `graph`."""
        sets, dtype = self.sets, graph.dtype
        self.engine = Backward(graph, InputSet(sets.lower.to(dtype), sets.upper.to(dtype)))
        for i, x in self.given.items():
            self.engine.enclose(i, x.map(lambda t: t.to(dtype)))
        self.C, self.owner = self.rows.C.to(dtype), self.rows.owner
        self.offset = self.C.new_zeros(len(self.C)) if self.rows.offset is None else self.rows.offset.to(dtype)
        self.D = None if self.rows.D is None else self.rows.D.to(dtype)
        low, high = (F.pad(t.flatten(1), (0, 1))[:, self.layer.windows.index] for t in (self.engine.sets.lower,
                                                                                   self.engine.sets.upper))
        self.seen = Seen(self.layer.windows.to(dtype), ((low + high) / 2)[self.owner], ((high - low) / 2)[self.owner])
        owner = Owner.of(self.sets.batch, self.owner)
        self.block = Block(self.graph.output, Rows.full(self.C.view(-1, *self.graph.output_shape), owner))

    def value(self, slopes: Params, planes: Tensor) -> tuple[Tensor, Met]:
        """(lower bounds of the rows at given parameters, but for rounding at the first layer; how they met it)."""
        engine, node = self.engine, self.layer.node
        source = self.graph.nodes[node].inputs[0]
        sweep = engine.pull_to(self.block, node, slopes)
        rows = sweep.pending.pop(node).as_full(self.graph.nodes[node].shape)
        assert rows.A is not None
        A = rows.A.flatten(1)
        x = engine.intervals[source].map(lambda t: t.flatten(1)[self.owner])
        open_ = (x.lower < 0) & (x.upper > 0)
        slope = (x.lower >= 0).to(A)
        if node in slopes:
            columns = self.block.gathered[node, "layout"].columns
            own = slopes[node][0].flatten(1)
            own = own if columns is None else torch.zeros_like(A).index_copy(1, columns, own)
            slope = torch.where(open_, own, slope)
        leans = open_ & (A < 0)
        through = torch.where(leans, torch.zeros_like(A), A * slope)
        a = torch.where(leans, A, torch.zeros_like(A))[:, self.layer.neurons]
        seen, w = self.seen, self.seen.windows
        free = -(planes * seen.centre).sum(2) + (planes.abs() * seen.radius).sum(2)
        rest = w.weight - planes
        above = (rest * seen.centre).sum(2) + (rest.abs() * seen.radius).sum(2) + w.bias
        c = torch.maximum(free, above)
        sweep.pending[source] = Rows.full(through.view_as(rows.A), rows.owner)
        pulled = engine.pull_on(sweep, slopes)
        behind = input_rows(pulled, self.graph).flatten(1)
        n = behind.shape[1]
        at_input = F.pad(behind, (0, 1)).scatter_add(1, w.index.reshape(1, -1).expand(len(A), -1),
                                                     (a.unsqueeze(2) * planes).flatten(1))[:, :n]
        others: tuple[Tensor, ...] = (behind,)
        if self.D is not None:
            at_input, others = at_input + self.D, (behind, self.D)
        least = engine.minimise(at_input.view(-1, *self.graph.input_shape), self.block.rows.owner)
        value = engine.prices.sum(least, (a * c).sum(1), pulled.constant, self.offset)
        return value, Met(self.block.rows.owner, through, a, planes, c, others)

    def run(self, target: Tensor) -> Tensor:
        """Climb until every row is above its target, or no row will get there; the bounds in float64."""
        settings = self.settings
        best = torch.full_like(target, -torch.inf)
        kept = [*self.slopes.values(), self.planes]
        moments = [Moments.of(p) for p in kept]
        now = [p.clone() for p in kept]
        nearest = target.new_full(target.shape, torch.inf)
        for k in range(settings.iterations):
            value, gradients = self._evaluate(now)
            better = value > best
            best = torch.where(better, value, best)
            kept = [*(torch.where(better.view(1, -1, *(1,) * (p.dim() - 2)), p, old)
                      for p, old in zip(now[:-1], kept[:-1], strict=True)),
                    torch.where(better.view(-1, 1, 1), now[-1], kept[-1])]
            short = (target - best).clamp(min=0)
            if settings.stop() or not bool((short > 0).any()):
                break
            if k % settings.patience == 0:
                gain = nearest - short
                left = (settings.iterations - k) / settings.patience
                if not bool(((gain > LEAST_GAIN * nearest) & (short <= left * gain)).any()) and k:
                    break
                nearest = short
            now = self._stepped(now, gradients, moments, k)
        return self._in_float64(kept)

    def _evaluate(self, parameters: list[Tensor]) -> tuple[Tensor, list[Tensor | None]]:
        leaves = [p.detach().requires_grad_(True) for p in parameters]
        with torch.enable_grad():
            value, _ = self.value(dict(zip(self.slopes, leaves[:-1], strict=True)), leaves[-1])
            gradients = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
        return value.detach().double(), list(gradients)

    def _stepped(self, parameters: list[Tensor], gradients: list[Tensor | None],
                 moments: list[Moments], k: int) -> list[Tensor]:
        settings, out = self.settings, []
        size = settings.last ** (k / settings.iterations)
        for i, p, g, m in zip([*self.slopes, None], parameters, gradients, moments, strict=True):
            if g is None:
                out.append(p)
                continue
            along = size * m.direction(g, k)
            if i is None:
                out.append(p + settings.plane_step * self.unit * along)
            else:
                moved = p + settings.slope_step * (self.high[i] - self.low[i]) * along
                out.append(torch.minimum(torch.maximum(moved, self.low[i]), self.high[i]))
        return out

    @torch.no_grad()
    def _in_float64(self, parameters: list[Tensor]) -> Tensor:
        self._prepare(self.double)
        self.engine.pull(self.block)
        start, low, high = initial(self.engine, self.block)
        if any(p.shape != start[i].shape for i, p in zip(self.slopes, parameters[:-1], strict=True)):
            # In float64 other neurons count as dead, where numbers vanished.
            return torch.full_like(self.offset, -torch.inf)
        slopes = {i: torch.minimum(torch.maximum(p.double(), low[i]), high[i])
                  for i, p in zip(self.slopes, parameters[:-1], strict=True)}
        value, met = self.value(slopes, parameters[-1].double())
        prices = self.engine.prices
        return sum_down(value, -price(prices, self.layer, self.seen, met)) if isinstance(prices, Prices) else value
