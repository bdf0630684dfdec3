"""Backward linear bound propagation: rows are pulled back from any node to the input.

A row is bounded from below; an upper bound is the lower bound of its negative. At an affine operator
rows are pulled back exactly; at an elementwise one positive coefficients take the lower line and
negative ones the upper line (Fast-Lin arXiv:1804.09699, CROWN arXiv:1811.00866, DeepPoly POPL 2019).

`Backward` holds one graph, one batch of sets and the enclosures proved so far; the methods
(`fastlin`, `crown`, `crown_ibp`, `alpha_crown`) decide which rows run, with which lines.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from bounds.footprint import footprint
from bounds.graph.graph import Graph
from bounds.interval import Interval
from bounds.journal import Journal
from bounds.lines import dot, gather_lines, pull_back_band, pull_back_lines
from bounds.ops.base import Affine, Elementwise, Relaxed
from bounds.ops.linear import Linear
from bounds.ops.round_off import MORE
from bounds.relaxation import Relaxation
from bounds.rounding import Prices, Unpriced, is_priced
from bounds.rows import Rows
from bounds.sets import InputSet
from bounds.sweep import Block, Sweep, Trace
from bounds.window import Owner

Lines = Callable[[Elementwise, Interval], Relaxation]
Params = dict[int, Tensor]
"""Relaxation parameters of one block of rows: for each elementwise node "K N ...", laid out as its rows are."""
Multipliers = dict[int, Tensor]
"""Signed multipliers s of one block of rows, "N *shape" for each node, on its proved bounds l <= z <= u:
`A z >= (A - s) z + max(s, 0) l + min(s, 0) u`. With l or u set by a split they are the betas of beta-CROWN
(arXiv:2103.06624); the dual of a linear programme over the relaxation has the same form."""

# Coefficients a block of rows may hold at its widest node: a few MB, so that a block's passes over
# memory stay in cache (measured: convolutions on blocks of 100 MB ran 3 to 5 times slower).
BLOCK_COEFFICIENTS = 1 << 20
# Below this share of neurons that matter, columns of dead neurons are left out of dense products.
COLUMNS_SHARE = 0.9
# Rows that are decided on their way are dropped when they are this share of at least so many rows:
# dropping copies the others.
DECIDED_SHARE = 0.15
FEWEST_TO_DECIDE = 32
# Where a domain's rows have so many coefficients on their way, blocks hold rows of one domain only.
ONE_DOMAIN_COEFFICIENTS = 200_000


def adaptive(op: Elementwise, x: Interval) -> Relaxation:
    """CROWN's lines: the lower one is chosen to leave a small area."""
    return op.relax(x)


def parallel(op: Elementwise, x: Interval) -> Relaxation:
    """Fast-Lin's lines: equal slopes."""
    return op.relax_parallel(x)


@dataclass(frozen=True, eq=False)
class NodeLines:
    """The lines of one elementwise node over all domains, moved out for rounding; the flat positions that matter (or
    None: all); paid: how far the lines were moved out at most (None: not at all)."""

    relaxation: Relaxation
    columns: Tensor | None
    paid: Tensor | None


@dataclass(frozen=True, eq=False)
class Pulled:
    """Rows at the input: `rows` (None: they vanished) and a constant "N"."""

    rows: Rows | None
    constant: Tensor


class Backward:
    """Backward propagation on one graph over one batch of sets."""

    def __init__(self, graph: Graph, sets: InputSet, lines: Lines = adaptive, *, rounded: bool | None = None) -> None:
        """rounded: whether every bound accounts for its own rounding; by default in float64, where that costs next to
        nothing. (In float32 deep networks lose much of their tightness to it.)"""
        self.graph = graph
        self.sets = sets
        self.choose_lines = lines
        self.splits: dict[int, Tensor] = {}
        """Neurons "B *shape" (nonzero: split), by node: their columns stay even where they are dead in every domain."""
        self.empty = torch.zeros(sets.batch, dtype=torch.bool, device=sets.device)
        """bool "B": domains whose proved bounds contradict each other (see `refine`)."""
        self.journal: Journal | None = None
        """What refinements of this engine are noted in, if anybody asked for it."""
        self.prover: Backward | None = None
        """An engine in float64 that proves what refinements of this one find (see `bounds.proved`)."""
        self.proposals: list[tuple[Rows, Tensor]] = []
        """What the prover says of optimised rows of the node that is being refined: their lower bounds "N"."""
        self.intervals: dict[int, Interval] = {}
        self.enclosures: dict[int, Interval] = {0: Interval(sets.lower, sets.upper)}
        self.rounded = is_priced(sets.dtype) if rounded is None else rounded
        if graph.arithmetic is not None:
            self.rounded = True  # the graph's own rounding is part of every bound
        self.prices = (Prices if self.rounded else Unpriced)(graph, self.enclosures)
        self._lines: dict[int, NodeLines] = {}
        self._balls: dict[int, tuple[Interval, Tensor, Tensor]] = {}
        self._weights: dict[tuple[int, int, int], tuple[Tensor, Tensor | None]] = {}
        self._widest: dict[tuple[int, bool], tuple[int, int]] = {}
        self._idle: set[tuple[int, int]] = set()
        self._centre_values: list[Tensor] | None = None

    # ------------------------------------------------------------------ enclosures and lines

    def enclose(self, node: int, interval: Interval) -> None:
        """Record proved bounds of a node; the lines of the operators that read it follow from them."""
        self.intervals[node] = self.enclosures[node] = interval
        for reader in self.graph.consumers[node]:
            self._lines.pop(reader, None)
        self._weights.clear()

    def lines(self, node: int) -> NodeLines:
        """The lines of an elementwise node, from the enclosure of its input."""
        found = self._lines.get(node)
        if found is None:
            entry = self.graph.nodes[node]
            assert isinstance(entry.op, Elementwise)
            x = self.intervals[entry.inputs[0]]
            chosen = self.prices.proved(node, self.choose_lines(entry.op, x), x)
            relaxation, paid = self.prices.lines(node, chosen)
            found = self._lines[node] = NodeLines(relaxation, self._columns(node, chosen), paid)
        return found

    def _columns(self, node: int, relaxation: Relaxation) -> Tensor | None:
        """Flat positions of a dense layer's neurons that are not dead in every domain."""
        if len(self.graph.nodes[node].shape) != 1:
            return None
        matters = (relaxation.lower_slope != 0) | (relaxation.upper_slope != 0)
        for intercept in (relaxation.lower_intercept, relaxation.upper_intercept):
            if intercept is not None:
                matters = matters | (intercept != 0)
        split = self.splits.get(self.graph.nodes[node].inputs[0])
        if split is not None:
            matters = matters | split
        columns = matters.any(0).nonzero().squeeze(1)
        return columns if columns.numel() < COLUMNS_SHARE * matters.shape[1] else None

    # ------------------------------------------------------------------ pulling rows back

    def pull(self, block: Block, params: Params | None = None, multipliers: Multipliers | None = None,
             trace: Trace | None = None) -> Pulled:
        """Pull a block of rows back to the input. `trace` takes what the rows meet at elementwise nodes."""
        return self.pull_on(self._sweep(block, multipliers, trace), params)

    def _sweep(self, block: Block, multipliers: Multipliers | None = None, trace: Trace | None = None) -> Sweep:
        """A sweep that has paid for the rounding of its way to the next operators that are not affine."""
        sweep = Sweep(block, self.prices.sum, multipliers, trace)
        price, lost = self.prices.start(block.start)
        if price is not None:
            sweep.constants.append(-self._paid(block, block.rows, price))
        if lost is not None:
            sweep.constants.append(-lost)
        return sweep

    @torch.no_grad()
    def _paid(self, block: Block, rows: Rows, price: Tensor) -> Tensor:
        """What rows cost at prices "B *shape" of their node: "N"."""
        if rows.index is not None:
            flat = price.flatten(1).expand(rows.owner.batch, -1)
            return flat[rows.owner.domains(rows.count, rows.index), rows.index]
        rows = rows.as_full(self.graph.nodes[block.start].shape) if rows.extent is not None else rows
        assert rows.A is not None
        return MORE * dot(rows.A.abs(), rows.gather(price))

    def pull_to(self, block: Block, node: int, params: Params | None = None) -> Sweep:
        """Pull a block of rows back until they wait at `node`, or before it."""
        sweep = self._sweep(block)
        while sweep.next_node > node:
            self._advance(sweep, params)
        return sweep

    def pull_on(self, sweep: Sweep, params: Params | None = None) -> Pulled:
        """Pull what waits in a sweep back to the input."""
        while sweep.next_node > 0:
            self._advance(sweep, params)
        return Pulled(sweep.pending.get(0), sweep.total())

    def value(self, block: Block, params: Params | None = None, multipliers: Multipliers | None = None) -> Tensor:
        """Lower bounds "N" of a block of rows."""
        sweep = self._sweep(block, multipliers)
        while sweep.next_node > self.first:
            self._advance(sweep, params)
        return self._concretise(sweep)

    def both_sides(self, start: int, rows: Rows) -> tuple[Tensor, Tensor]:
        """(lower, upper) bounds "N" of rows over node `start`, from one pass where all lines come in parallel pairs.
        For engines with such lines that do not account for rounding."""
        assert not self.rounded, "the rounding of both sides at once is not accounted for"
        if any(isinstance(node.op, Relaxed) for node in self.graph.nodes[1:start + 1]):
            return self.lower(start, rows), -self.lower(start, rows.negated())
        parts = [self._band(block) for block in self.blocks(start, rows)]
        lower, upper = zip(*parts, strict=True)
        return torch.cat(lower), torch.cat(upper)

    def _band(self, block: Block) -> tuple[Tensor, Tensor]:
        """`both_sides` of a block."""
        sweep = self._sweep(block)
        sweep.halves = []
        while sweep.next_node > self.first:
            self._advance(sweep, None)
        rows = sweep.pending.get(self.first)
        middle = sweep.total()
        half = self.prices.sum(torch.zeros_like(middle), *sweep.halves)
        if rows is None:
            return middle - half, middle + half
        if self.first == 0 and not self.sets.is_box:
            A = rows.as_full(self.graph.input_shape).A
            assert A is not None
            return (middle - half + self.minimise(A, rows.owner), middle + half - self.minimise(-A, rows.owner))
        if self.first == 0:
            rows = rows.as_full(self.graph.input_shape)
            assert rows.A is not None
            centre, radius = rows.gather(self._centre), rows.gather(self._radius)
            middle, half = middle + dot(rows.A, centre), half + dot(rows.A.abs(), radius)
        else:
            at_centre, spread = self._at_first(sweep, rows)
            middle, half = middle + at_centre, half + spread
        return middle - half, middle + half

    def decide(self, block: Block, threshold: float) -> Tensor:
        """Lower bounds "N" of a block; a row stops on its way as soon as the enclosures of the nodes
        reached show it to be at least `threshold`, with the bound that they give."""
        sweep = self._sweep(block)
        result = block.rows.A if block.rows.A is not None else block.rows.sign
        assert result is not None
        result = result.new_empty(block.rows.count)
        alive: Tensor | None = None
        while sweep.next_node > self.first:
            i = self._advance(sweep, None)
            worth = sweep.count >= FEWEST_TO_DECIDE and isinstance(self.graph.nodes[i].op, Elementwise)
            if not worth or sweep.next_node <= self.first or (block.start, i) in self._idle:
                continue
            value = self._at_frontier(sweep)
            done = value >= threshold
            number = int(done.sum())
            if number < DECIDED_SHARE * sweep.count:
                self._idle.add((block.start, i))  # the next blocks need not look here
                continue
            where = done.nonzero().squeeze(1)
            rest = (~done).nonzero().squeeze(1)
            result[where if alive is None else alive[where]] = value[where]
            alive = rest if alive is None else alive[rest]
            if not rest.numel():
                return result
            sweep.take(rest)
        value = self._concretise(sweep)
        if alive is None:
            return value
        result[alive] = value
        return result

    def at_once(self, block: Block) -> Tensor:
        """Lower bounds "N" of rows from the enclosure of the node they start at."""
        return self._at_frontier(self._sweep(block))

    def behind_affine(self, block: Block) -> Tensor:
        """Lower bounds "N" of rows pulled back through the affine operators they start with, from the
        enclosures of the nodes before those."""
        sweep = self._sweep(block)
        while sweep.next_node > 0 and isinstance(self.graph.nodes[sweep.next_node].op, Affine):
            self._advance(sweep, None)
        return self._at_frontier(sweep)

    def _at_frontier(self, sweep: Sweep) -> Tensor:
        """Lower bounds from the enclosures of the nodes that the rows have reached."""
        values = [sweep.total()]
        for j, rows in sweep.pending.items():
            centre, radius = self._ball(j)
            if rows.index is not None:
                rows = rows.as_window_or_full(self.graph.nodes[j].shape)
            assert rows.A is not None
            values += [dot(rows.A, rows.gather(centre)), -dot(rows.A.abs(), rows.gather(radius))]
        return self.prices.sum(*values)

    def _ball(self, node: int) -> tuple[Tensor, Tensor]:
        """`Prices.ball` of a node's enclosure."""
        found = self._balls.get(node)
        if found is None or found[0] is not self.enclosures[node]:
            x = self.enclosures[node]
            found = self._balls[node] = (x, *self.prices.ball(x))
        return found[1], found[2]

    def _advance(self, sweep: Sweep, params: Params | None) -> int:
        """Pull the rows at the last pending node back to its inputs; returns that node."""
        graph = self.graph
        i = sweep.next_node
        rows = self._with_multipliers(sweep, i, sweep.pending.pop(i))
        node = graph.nodes[i]
        constants = sweep.constants
        results: tuple[Rows, ...]
        if isinstance(node.op, Elementwise):
            results = (self._through_lines(sweep, i, rows, params),)
        elif isinstance(node.op, Linear) and len(node.shape) == 1:
            results = (self._through_linear(i, rows, constants),)
        elif isinstance(node.op, Affine):
            results = self._through_affine(i, rows, constants)
        elif isinstance(node.op, Relaxed):
            results = self._through_relaxed(i, rows, constants)
        else:
            raise NotImplementedError(f"{node.op.kind} ({node.name}) cannot be pulled back")
        for j, result in zip(node.inputs, results, strict=True):
            before = sweep.pending.get(j)
            sweep.pending[j] = result if before is None else before.plus(result, graph.nodes[j].shape)
        return i

    def _with_multipliers(self, sweep: Sweep, i: int, rows: Rows) -> Rows:
        """The rows at node i with what the multipliers on its bounds add."""
        s = sweep.multipliers.get(i)
        if s is None:
            return rows
        if rows.index is not None or rows.extent is not None:
            rows = rows.as_full(self.graph.nodes[i].shape)
        assert rows.A is not None
        block = sweep.block
        x = block.keep(i, "ends", lambda: self.intervals[i].map(rows.gather))
        if rows.columns is not None:
            s = s.flatten(1).index_select(1, rows.columns)
        sweep.constants += [dot(s.clamp(min=0), x.lower), dot(s.clamp(max=0), x.upper)]
        sweep.constants.append(-self._paid_multipliers(block, i, rows, s))
        return rows.with_values(rows.A - s)

    @torch.no_grad()
    def _paid_multipliers(self, block: Block, i: int, rows: Rows, s: Tensor) -> Tensor:
        """What multipliers s cost "N": the way on from node i, and their sums."""
        # A multiplier of zero stands on no bound, which may then be infinite.
        terms = torch.where(s == 0, torch.zeros_like(s), s.abs() * block.keep(
            i, "price", lambda: rows.gather(self.prices.multiplier(i))))
        return MORE * terms.flatten(1).sum(1)

    def _through_lines(self, sweep: Sweep, i: int, rows: Rows, params: Params | None) -> Rows:
        block, constants = sweep.block, sweep.constants
        node = self.graph.nodes[i]
        assert isinstance(node.op, Elementwise)
        lines = self.lines(i)
        if lines.columns is not None and rows.columns is None and rows.extent is None:
            rows = self._to_columns(rows, lines.columns, node.shape)
        rows = rows.as_window_or_full(node.shape) if rows.index is not None else rows
        if rows.covers(node.shape):
            rows = rows.as_full(node.shape)
        relaxation = block.keep(i, "lines", lambda: gather_lines(lines.relaxation, rows))
        block.keep(i, "layout", lambda: replace(rows, A=None))
        if params is not None and i in params:
            # Gathered lines are zero outside the map; parameters are not, so the rows must be.
            rows = rows.masked(node.shape, lambda make: block.keep(i, "inside", make))
            if node.op.reuses_lines:
                relaxation = replace(relaxation, lower_slope=params[i][0])
            else:
                x = block.keep(i, "x", lambda: self.intervals[node.inputs[0]].map(rows.gather))
                op = node.op.select(rows.gather, self.intervals[node.inputs[0]].lower.shape)
                chosen = self.prices.relax_with(i, op, x, params[i], block.keep)
                relaxation = self.prices.steeper(i, chosen, rows.gather, block.keep)
        assert rows.A is not None
        if sweep.trace is not None:
            sweep.trace[i] = (rows, relaxation)
        if sweep.halves is not None:
            A, constant, half = pull_back_band(rows.A, relaxation)
            sweep.halves.append(half)
        else:
            A, constant = pull_back_lines(rows.A, relaxation)
        constants.append(constant)
        return replace(rows, A=A, clean=True, fresh=not torch.is_grad_enabled())

    def _to_columns(self, rows: Rows, columns: Tensor, shape: tuple[int, ...]) -> Rows:
        full = rows.as_full(shape)
        assert full.A is not None
        return replace(full, A=full.A.flatten(1).index_select(1, columns), columns=columns)

    def _through_linear(self, i: int, rows: Rows, constants: list[Tensor]) -> Rows:
        """Dense layers, restricted on both sides to the neurons that matter."""
        node = self.graph.nodes[i]
        assert isinstance(node.op, Linear)
        source = self.graph.nodes[node.inputs[0]]
        known = isinstance(source.op, Elementwise) and source.inputs[0] in self.intervals
        wanted = self.lines(node.inputs[0]).columns if known else None
        weight, bias = self._weight(i, rows.columns, wanted)
        if rows.index is not None:
            assert rows.sign is not None
            A = weight.index_select(0, rows.index) * rows.sign.unsqueeze(1)
            if bias is not None:
                constants.append(bias.index_select(0, rows.index) * rows.sign)
        else:
            assert rows.A is not None
            A = rows.A @ weight
            if bias is not None:
                constants.append(rows.A @ bias)
        return Rows(rows.owner, rows.count, A=A, columns=wanted)

    def _weight(self, i: int, out: Tensor | None, wanted: Tensor | None) -> tuple[Tensor, Tensor | None]:
        op = self.graph.nodes[i].op
        assert isinstance(op, Linear)
        if out is None and wanted is None:
            return op.weight, op.bias
        key = (i, id(out), id(wanted))
        found = self._weights.get(key)
        if found is None:
            weight, bias = op.weight, op.bias
            if out is not None:
                weight = weight.index_select(0, out)
                bias = None if bias is None else bias.index_select(0, out)
            if wanted is not None:
                weight = weight.index_select(1, wanted)
            found = self._weights[key] = (weight, bias)
        return found

    def _through_affine(self, i: int, rows: Rows, constants: list[Tensor]) -> tuple[Rows, ...]:
        node = self.graph.nodes[i]
        op = node.op
        assert isinstance(op, Affine)
        shapes = tuple(self.graph.nodes[j].shape for j in node.inputs)
        passes_through = op.passes_rows(shapes, node.shape)
        if rows.index is not None and passes_through is not None:
            assert rows.sign is not None
            return tuple(rows if s > 0 else replace(rows, sign=-rows.sign) for s in passes_through)
        if rows.index is not None and len(node.shape) == 3:
            neurons = self._through_neurons(i, rows, constants)
            if neurons is not None:
                return (neurons,)
        rows = rows.as_window_or_full(node.shape)
        if rows.extent is not None:
            assert rows.A is not None
            if passes_through is not None and shapes[0] == node.shape:
                return tuple(replace(rows, fresh=False) if s > 0 else rows.with_values(-rows.A) for s in passes_through)
            if not rows.covers(node.shape):
                assert rows.extent is not None
                extent = op.window(rows.extent, shapes[0])
                if extent is not None:
                    rows = rows.masked(node.shape)
                    assert rows.A is not None
                    constant = op.constant(rows.A)
                    if constant is not None:
                        constants.append(constant)
                    A = op.pull_back_window(rows.A)
                    fresh = self._is_fresh(A, rows.A)
                    return (replace(rows, A=A, extent=extent, clean=False, fresh=fresh),)
        rows = rows.as_full(node.shape)
        assert rows.A is not None
        constant = op.constant(rows.A)
        if constant is not None:
            constants.append(constant)
        results = op.pull_back(rows.A, shapes)
        return tuple(replace(Rows.full(A, rows.owner), fresh=self._is_fresh(A, rows.A)) for A in results)

    @staticmethod
    def _is_fresh(A: Tensor, source: Tensor) -> bool:
        """Only what a pass without gradients made itself may be overwritten later; not where entries share memory."""
        return not torch.is_grad_enabled() and 0 not in A.stride() \
            and A.untyped_storage().data_ptr() != source.untyped_storage().data_ptr()

    def _through_neurons(self, i: int, rows: Rows, constants: list[Tensor]) -> Rows | None:
        """Single neurons of a map: their rows are the operator's own coefficients."""
        node = self.graph.nodes[i]
        op = node.op
        assert isinstance(op, Affine)
        assert rows.index is not None
        assert rows.sign is not None
        cells = rows.cells(node.shape)
        assert cells.extent is not None
        extent = op.window(cells.extent, self.graph.nodes[node.inputs[0]].shape)
        A = None if extent is None else op.pull_back_neuron(rows.index, rows.sign, node.shape)
        if A is None:
            return None
        offset = self._offset(i)
        if offset is not None:
            constants.append(offset.index_select(0, rows.index) * rows.sign)
        return replace(cells, A=A, extent=extent, clean=False, fresh=not torch.is_grad_enabled())

    def _offset(self, i: int) -> Tensor | None:
        """The constant of every output neuron of a convolution-like operator, flat."""
        bias = getattr(self.graph.nodes[i].op, "bias", None)
        if bias is None:
            return None
        shape = self.graph.nodes[i].shape
        offset: Tensor = bias.view(-1, 1, 1).expand(shape).reshape(-1)
        return offset

    def _through_relaxed(self, i: int, rows: Rows, constants: list[Tensor]) -> tuple[Rows, ...]:
        node = self.graph.nodes[i]
        assert isinstance(node.op, Relaxed)
        rows = rows.as_full(node.shape)
        assert rows.A is not None
        results, constant = node.op.pull_back_relaxed(
            rows.A, rows.owner, tuple(self.intervals[j] for j in node.inputs))
        constants.append(constant)
        return tuple(Rows.full(A, rows.owner) for A in results)

    # ------------------------------------------------------------------ values

    def _concretise(self, sweep: Sweep) -> Tensor:
        """The exact minimum over the sets of rows that wait at the first operator or at the input."""
        rows = sweep.pending.get(self.first)
        if rows is None:
            return sweep.total()
        if self.first == 0:
            return self.prices.sum(sweep.total(), *self._minimum(sweep.block, rows))
        middle, half = self._at_first(sweep, rows)
        return self.prices.sum(sweep.total(), middle, -half)

    def _at_first(self, sweep: Sweep, rows: Rows) -> tuple[Tensor, Tensor]:
        """(middle, half) "N" of the values over boxes of rows that wait at the first operator."""
        rows = self._with_multipliers(sweep, self.first, rows)
        shape = self.graph.nodes[self.first].shape
        if rows.index is not None:
            rows = rows.as_window_or_full(shape)
        rows = rows.masked(shape)
        assert rows.A is not None
        layout = replace(rows, A=None)
        centre = sweep.block.keep(self.first, "centre", lambda: layout.gather(self._first_centre))
        spread, radius = self._spread(sweep.block, rows)
        return dot(rows.A, centre), dot(spread.abs(), radius)

    def _spread(self, block: Block, rows: Rows) -> tuple[Tensor, Tensor]:
        """Rows over the first operator pulled back to the input, in whatever order is cheapest, and the sets'
        radius in the same order."""
        node = self.graph.nodes[self.first]
        op = node.op
        assert isinstance(op, Affine)
        assert rows.A is not None
        if isinstance(op, Linear) and len(node.shape) == 1:
            weight, _ = self._weight(self.first, rows.columns, None)
            return rows.A @ weight, block.keep(0, "radius", lambda: rows.owner.rows(self._radius))
        if len(node.shape) == 3 and rows.columns is None:
            windows = rows if rows.extent is not None else rows.as_whole_window(node.shape)
            assert windows.A is not None
            assert windows.extent is not None
            apart = op.pull_back_phases(windows.A, windows.extent)
            if apart is not None:
                A, extent, s = apart
                layout = replace(windows, A=None, extent=extent)
                return A, block.keep(0, "radius", lambda: layout.gather(self._radius, phases=s))
            reached = None if rows.extent is None else op.window(windows.extent, self.graph.input_shape)
            if reached is not None:
                layout = replace(rows, A=None, extent=reached)
                return op.pull_back_window(rows.A), block.keep(0, "radius", lambda: layout.gather(self._radius))
        rows = rows.as_full(node.shape)
        assert rows.A is not None
        (A,) = op.pull_back(rows.A, (self.graph.input_shape,))
        owner = rows.owner
        return A, block.keep(0, "radius", lambda: owner.rows(self._radius))

    def _minimum(self, block: Block, rows: Rows) -> tuple[Tensor, ...]:
        """Terms "N" whose sum is the minimum over their sets of rows at the input."""
        if self.sets.is_box and rows.index is None:
            centre, radius = block.keep(0, "box", lambda: (rows.gather(self._centre), rows.gather(self._radius)))
            assert rows.A is not None
            return dot(rows.A, centre), -dot(rows.A.abs(), radius)
        rows = rows.as_full(self.graph.input_shape)
        assert rows.A is not None
        return (self.minimise(rows.A, rows.owner),)

    @cached_property
    def first(self) -> int:
        """Over boxes: the affine operator that alone reads the input. Rows that reach it need not be pulled
        further for their value: <A, f(x)> >= <A, f(centre)> - <|pull(A)|, radius>. Else 0, the input."""
        readers = self.graph.consumers[0]
        if not self.sets.is_box or len(readers) != 1 or readers[0] == self.graph.output:
            return 0
        node = self.graph.nodes[readers[0]]
        return readers[0] if isinstance(node.op, Affine) and node.inputs == (0,) else 0

    @cached_property
    def _first_centre(self) -> Tensor:
        return self.graph.nodes[self.first].op.forward(self._centre)

    def minimise(self, A: Tensor, owner: Owner) -> Tensor:
        """The minimum of <A_n, x> over each row's set, rounding included: "N"."""
        if self.sets.is_box:
            return self.prices.sum(dot(A, owner.rows(self._centre)), -dot(A.abs(), owner.rows(self._radius)))
        index = owner.domains(A.shape[0], A)
        return self.sets.minimise_down(A, index) if self.rounded else self.sets.minimise(A, index)

    @cached_property
    def _box(self) -> tuple[Tensor, Tensor]:
        return self.prices.ball(Interval(self.sets.lower, self.sets.upper))

    @property
    def _centre(self) -> Tensor:
        return self._box[0]

    @property
    def _radius(self) -> Tensor:
        """Such that centre +- radius holds both ends."""
        return self._box[1]

    def lower(self, start: int, rows: Rows, threshold: float | None = None) -> Tensor:
        """Lower bounds "N" of rows over node `start`, in blocks that fit into cache and memory. With a
        threshold, rows shown to reach it stop early (see `decide`)."""
        parts = []
        for block in self.blocks(start, rows):
            if threshold is None:
                parts.append(self.value(block))
            else:
                parts.append(self.decide(block, threshold))
        return torch.cat(parts) if len(parts) != 1 else parts[0]

    def blocks(self, start: int, rows: Rows, coefficients: int = BLOCK_COEFFICIENTS) -> Iterator[Block]:
        """Cut rows into blocks; where they are sorted by domain and domains have many rows, blocks of one
        domain each, which read that domain's lines without gathering them."""
        size = self.block_size(start, rows, coefficients)
        index = rows.owner.index
        cuts = [0, rows.count]
        _, total = self.footprint(start, rows.index is not None)
        if index is not None and rows.count * total >= ONE_DOMAIN_COEFFICIENTS * rows.owner.batch \
                and bool((index[1:] >= index[:-1]).all()):
            counts = torch.bincount(index, minlength=rows.owner.batch)
            cuts = [0, *counts.cumsum(0).tolist()]
        for first, last in itertools.pairwise(cuts):
            for begin in range(first, last, size):
                part = rows.take(slice(begin, min(begin + size, last)))
                if len(cuts) > 2 and index is not None:
                    part = replace(part, owner=Owner(rows.owner.batch, None, int(index[begin])))
                yield Block(start, part)

    def centre_value(self, node: int) -> Tensor:
        """The network's values at a point of each set: a guess at signs, never a bound."""
        if self._centre_values is None:
            with torch.no_grad():
                self._centre_values = self.graph.values(self.sets.centre_point)
        return self._centre_values[node]

    def block_size(self, start: int, rows: Rows, coefficients: int = BLOCK_COEFFICIENTS) -> int:
        """Rows that may run together."""
        widest, _ = self.footprint(start, rows.index is not None)
        return max(16, coefficients // widest // 2 * 2)  # even: neurons' rows come in pairs

    def footprint(self, start: int, unit: bool) -> tuple[int, int]:
        """(at the widest node, over all nodes): coefficients that one row holds on its way to the input."""
        key = (start, unit)
        if key not in self._widest:
            self._widest[key] = footprint(self.graph, start, unit)
        return self._widest[key]


def input_rows(pulled: Pulled, graph: Graph) -> Tensor:
    """Pulled rows as a dense tensor "N *input"."""
    if pulled.rows is None:
        return pulled.constant.new_zeros(pulled.constant.shape[0], *graph.input_shape)
    A = pulled.rows.as_full(graph.input_shape).A
    assert A is not None
    return A


__all__ = ["Backward", "Block", "Lines", "Multipliers", "Params", "Pulled", "adaptive", "input_rows", "parallel"]
