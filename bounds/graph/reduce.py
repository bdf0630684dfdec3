"""The network over one region, with every neuron that is linear there folded away.

Over a region of which bounds are proved most neurons are often stable: their operator is one line there. Between the
neurons that are not, everything is affine, skip connections included. The reduced graph keeps these neurons alone,

    s = E x + e,    for each layer k of the original:  r = f_k(head of s),    s <- tail of s + M_k r,    output = s,

with dense E and M_k: the same function on the region, at a cost that follows the number of undecided neurons instead of
the sizes of the maps. Everything is computed in float64, with the error that this makes, and the graph rounded once.
(Folding stable neurons is the reduction by which MIPVerify encodes them, arXiv:1711.07356, section 4.2.)
Left out: networks with max-pools, products and the like.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from bounds.graph.graph import Graph, Node
from bounds.interval import Interval
from bounds.ops.add import Add
from bounds.ops.base import Affine, Elementwise, Input, Operator, Shape
from bounds.ops.linear import Linear
from bounds.ops.reshape import Reshape
from bounds.ops.round_off import MORE, gamma, underflow
from bounds.ops.slice import Slice
from bounds.relaxation import Relaxation
from bounds.rounding import affine_step, magnitude, value_noise

CHUNK_ENTRIES = 1 << 23  # numbers of the widest node that one pass may hold


@dataclass(frozen=True, eq=False)
class Layer:
    """The kept neurons of one elementwise node: `node` and `source` (the node that it reads) in the original graph,
    flat positions `index` there, and `reduced`, the node of the reduced graph that holds their inputs."""

    node: int
    source: int
    index: Tensor
    reduced: int = -1


@dataclass(frozen=True, eq=False)
class Reduced:
    """graph: equal to the original on the region; layers: what it kept, in order; and its parameters in
    float64, weights (E "T n", then for each layer M_k "rows after the layer, u_k") and bias "T".

    error "T": anywhere in the region the kept neurons' inputs and the output, as the original has them over the reals,
    differ from E x + e + M_1 r_1 + .. (evaluated exactly, r the original's kept neurons) by at most this. Not finite
    where it is not known how an operator rounds."""

    graph: Graph
    layers: tuple[Layer, ...]
    weights: tuple[Tensor, ...]
    bias: Tensor
    error: Tensor

    def intervals(self, known: Mapping[int, Interval]) -> dict[int, Interval]:
        """Bounds "B *shape" of the original's nodes as bounds of the kept neurons."""
        return {k.reduced: known[k.source].map(lambda t, at=k.index: t.flatten(1)[:, at]) for k in self.layers}


def can_reduce(graph: Graph) -> bool:
    """Whether only affine and elementwise operators occur."""
    return all(isinstance(n.op, (Affine, Elementwise, Input)) for n in graph.nodes)


def undecided(graph: Graph, intervals: Mapping[int, Interval]) -> tuple[Layer, ...]:
    """The neurons that are not linear on their bounds "1 *shape", by elementwise node."""
    found = []
    for i, node in enumerate(graph.nodes[:graph.output + 1]):
        if isinstance(node.op, Elementwise):
            index = (~node.op.is_linear_on(intervals[node.inputs[0]])).flatten().nonzero().squeeze(1)
            if len(index):
                found.append(Layer(i, node.inputs[0], index))
    return tuple(found)


def reduce_to(graph: Graph, intervals: Mapping[int, Interval], region: Interval) -> Reduced:
    """The graph that equals `graph` wherever all `intervals` "1 *shape" hold (one for each node that an elementwise one
    reads), up to rounding. Exact in exact arithmetic; float64 inside, then rounded to the graph's dtype. region
    "1 *shape": encloses the inputs that are asked about, for the error."""
    if not can_reduce(graph):
        raise ValueError(f"{graph.source}: only affine and elementwise operators can be reduced")
    layers = undecided(graph, intervals)
    folding = _Folding(graph, intervals, layers)
    layers, weights, bias, error = _without_idle(layers, *folding.matrices(), folding.errors(region))
    return _built(graph, layers, weights, bias, error)


class _Folding:
    """The affine maps between the kept neurons, column by column: each input and each kept neuron is moved by one."""

    def __init__(self, graph: Graph, intervals: Mapping[int, Interval], layers: tuple[Layer, ...]) -> None:
        self.layers = layers
        self.graph = graph.to(dtype=torch.float64)
        self.slopes: dict[int, Tensor] = {}
        self.intercepts: dict[int, Tensor] = {}
        self.lines: dict[int, tuple[Interval, Relaxation]] = {}
        self.kept = kept = {layer.node: layer.index for layer in layers}
        for i, node in enumerate(self.graph.nodes[:graph.output + 1]):
            if not isinstance(node.op, Elementwise):
                continue
            x = intervals[node.inputs[0]].map(lambda t: t.double())
            lines = node.op.relax(x)
            self.lines[i] = x, lines
            slope = lines.lower_slope.expand_as(x.lower).clone()
            intercept = lines.lower_intercept
            intercept = torch.zeros_like(slope) if intercept is None else intercept.expand_as(slope).clone()
            if i in kept:
                slope.flatten(1)[:, kept[i]] = 0
                intercept.flatten(1)[:, kept[i]] = 0
            self.slopes[i], self.intercepts[i] = slope, intercept

    def matrices(self) -> tuple[list[Tensor], Tensor]:
        """([E "T n", M_1 "T u_1", ...], e "T"): how the kept neurons' inputs and the output, T rows in all, depend on
        the input and on each layer's kept neurons (zero for rows up to that layer)."""
        shape = self.graph.input_shape
        like = self.slopes[self.layers[0].node] if self.layers else torch.zeros(0, dtype=torch.float64)
        zero = like.new_zeros(1, *shape)
        columns = [self._columns(0, torch.arange(math.prod(shape), device=like.device))]
        columns += [self._columns(layer.node, layer.index) for layer in self.layers]
        return columns, self._rows(self._walk(0, zero, constants=True), 1)[0]

    def errors(self, region: Interval) -> Tensor:
        """"T": how far the rows of `matrices` may be off over a region of inputs "1 *shape" (see `Reduced`): what every
        node loses by itself, from layer to layer through absolute weights. Kept neurons are variables of their own, of
        which only the size counts."""
        graph = self.graph
        x = region.map(lambda t: t.double())
        size: dict[int, Tensor] = {0: magnitude(x)}
        error: dict[int, Tensor] = {0: torch.zeros_like(x.lower)}
        reach = 1 + size[0].sum()  # of the variables behind a row: what vanishes in a coefficient is multiplied by one
        for i, node in enumerate(graph.nodes[:graph.output + 1]):
            if isinstance(node.op, Elementwise):
                size[i], error[i] = self._elementwise_step(i, size[node.inputs[0]], error[node.inputs[0]])
                if i in self.kept:
                    reach = reach + size[i].flatten(1)[:, self.kept[i]].sum()
            elif i:
                assert isinstance(node.op, Affine)
                size[i], found = affine_step(graph, i, [(size[j], error[j]) for j in node.inputs])
                assert found is not None, "errors of zero are handed on"
                terms = node.op.terms(tuple(graph.nodes[j].shape for j in node.inputs), node.shape)
                error[i] = found + reach * underflow(terms, torch.float64) if terms else found
            size[i] = size[i] + error[i]
        return self._rows(error, 1)[0]

    def _elementwise_step(self, i: int, size: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        """(sizes, errors) "1 *shape" of elementwise node i over those of its input: neurons that are linear on their
        interval are their lower line, within the distance of both lines."""
        op = self.graph.nodes[i].op
        assert isinstance(op, Elementwise)
        x, lines = self.lines[i]
        slope, intercept = self.slopes[i].abs(), self.intercepts[i].abs()
        apart = (lines.upper_slope - lines.lower_slope).abs() * size
        low, high = (torch.zeros_like(size) if t is None else t for t in (lines.lower_intercept, lines.upper_intercept))
        apart = apart + (high - low).abs()
        out = slope * size + intercept
        computed = ((slope != 0) & (slope != 1)) | (intercept != 0)
        lost = slope * error + MORE * (apart + computed * out * gamma(1, torch.float64))
        noise = value_noise(self.graph, i, op.enclosed(x))
        lost = lost if noise is None else lost + noise
        if not op.rounding_known or op.needs_proof:
            lost = torch.full_like(lost, torch.inf)
        if i in self.kept:
            kept = torch.zeros(slope.numel(), dtype=torch.bool, device=slope.device)
            kept = kept.index_fill(0, self.kept[i], True).view_as(slope)
            out, lost = torch.where(kept, magnitude(op.enclosed(x)), out), lost.masked_fill(kept, 0.0)
        return out, lost

    def _columns(self, start: int, index: Tensor) -> Tensor:
        shape = self.graph.nodes[start].shape
        widest = max(math.prod(n.shape) for n in self.graph.nodes)
        parts = []
        for chosen in index.split(max(1, CHUNK_ENTRIES // widest)):
            units = torch.zeros(len(chosen), math.prod(shape), dtype=torch.float64, device=index.device)
            units[torch.arange(len(chosen), device=index.device), chosen] = 1
            parts.append(self._rows(self._walk(start, units.view(-1, *shape), constants=False), len(chosen)))
        return torch.cat(parts).T

    def _walk(self, start: int, x: Tensor, *, constants: bool) -> dict[int, Tensor]:
        """What later nodes become when node `start` is x "V *shape" and all kept neurons are 0; without `constants` the
        linear part."""
        graph = self.graph
        wanted = {layer.source for layer in self.layers} | {graph.output}
        last_use = {j: i for i, n in enumerate(graph.nodes) for j in n.inputs}
        values = {start: x}
        found: dict[int, Tensor] = {start: x} if start in wanted else {}
        for i in range(start + 1, graph.output + 1):
            node = graph.nodes[i]
            if not any(j in values for j in node.inputs):
                continue
            inputs = [values[j] if j in values else x.new_zeros(len(x), *graph.nodes[j].shape) for j in node.inputs]
            if isinstance(node.op, Elementwise):
                y = inputs[0] * self.slopes[i]
                y = y + self.intercepts[i] if constants else y
            else:
                assert isinstance(node.op, Affine)
                y = node.op.forward(*inputs) if constants else node.op.linear(*inputs)
            values[i] = y
            if i in wanted:
                found[i] = y
            for j in node.inputs:
                if last_use[j] == i:
                    values.pop(j, None)
        return found

    def _rows(self, found: dict[int, Tensor], count: int) -> Tensor:
        """"V T": the walk's values at the kept neurons' inputs and at the output."""
        parts = []
        for layer in (*self.layers, None):
            source, index = (self.graph.output, None) if layer is None else (layer.source, layer.index)
            size = math.prod(self.graph.nodes[source].shape) if index is None else len(index)
            if source not in found:
                parts.append(torch.zeros(count, size, dtype=torch.float64, device=self.graph.device))
            else:
                flat = found[source].flatten(1)
                parts.append(flat if index is None else flat[:, index])
        return torch.cat(parts, 1)


def _without_idle(layers: tuple[Layer, ...], weights: list[Tensor], bias: Tensor, error: Tensor
                  ) -> tuple[tuple[Layer, ...], list[Tensor], Tensor, Tensor]:
    """Leave out kept neurons on which nothing depends (say, those that only stably dead neurons read). A coefficient
    that only rounding made zero is part of the error of its row."""
    first, *inner = weights
    starts = [0]
    for layer in layers:
        starts.append(starts[-1] + len(layer.index))
    alive = torch.ones(len(bias), dtype=torch.bool, device=bias.device)
    for k in reversed(range(len(layers))):
        alive[starts[k]:starts[k + 1]] = (inner[k][alive] != 0).any(0)
    out, columns = [], [first[alive]]
    for k, layer in enumerate(layers):
        here = alive[starts[k]:starts[k + 1]]
        if bool(here.any()):
            out.append(replace(layer, index=layer.index[here]))
            columns.append(inner[k][alive][:, here])
    return tuple(out), columns, bias[alive], error[alive]


def _built(graph: Graph, layers: tuple[Layer, ...], weights: list[Tensor], bias: Tensor, error: Tensor) -> Reduced:
    nodes = [graph.nodes[0]]

    def add(name: str, op: Operator, inputs: tuple[int, ...], shape: Shape) -> int:
        nodes.append(Node(name, op, inputs, shape))
        return len(nodes) - 1

    flat = 0
    if len(graph.input_shape) != 1:
        size = math.prod(graph.input_shape)
        flat = add("flat", Reshape((size,)), (0,), (size,))
    state = add("inputs", Linear(weights[0].to(graph.dtype), bias.to(graph.dtype)), (flat,), (len(bias),))
    placed, start, parameters = [], 0, [weights[0]]
    for layer, weight in zip(layers, weights[1:], strict=True):
        size, total = len(layer.index), len(bias) - start
        name = graph.nodes[layer.node].name
        z = add(graph.nodes[layer.source].name, Slice(0, 0, size), (state,), (size,))
        shape = graph.nodes[layer.source].shape
        op = graph.nodes[layer.node].op
        assert isinstance(op, Elementwise)
        op = op.select(partial(_at, shape, layer.index), shape)
        r = add(name, op, (z,), (size,))
        tail = add(f"{name} (others)", Slice(0, size, total), (state,), (total - size,))
        parameters.append(weight[start + size:].contiguous())
        moved = add(f"{name} (effect)", Linear(parameters[-1].to(graph.dtype)), (r,), (total - size,))
        state = add(f"after {name}", Add(), (tail, moved), (total - size,))
        placed.append(replace(layer, reduced=z))
        start += size
    if graph.output_shape != nodes[state].shape:
        state = add("output", Reshape(graph.output_shape), (state,), graph.output_shape)
    reduced = Graph(tuple(nodes), state, graph.onnx_input_shape, f"{graph.source} (reduced)")
    return Reduced(reduced, tuple(placed), tuple(parameters), bias, error)


def _at(shape: Shape, index: Tensor, t: Tensor) -> Tensor:
    """Entries "len(index)" of a tensor "*shape"."""
    return t.reshape(math.prod(shape))[index]
