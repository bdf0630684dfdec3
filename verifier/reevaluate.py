"""A proof file evaluated again, plainly: dense rows in float64, the operators of the search graph, no search.

It shows that a recording is complete. It shares the operators (and the reading of files) with the search; rounding is
not accounted for. `reevaluate` goes through the file in order and refuses with the node that does not hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bounds.files import read_bytes
from bounds.graph import Graph
from bounds.intermediate import EMPTY_RTOL
from bounds.interval import Interval
from bounds.journal import DECIDED_BY_ROWS, HIGH_LINE, LOW_LINE, slope_places
from bounds.lines import pull_back_lines
from bounds.ops.base import Affine, Elementwise, Relaxed
from bounds.ops.scale import Scale
from bounds.sets import InputSet
from bounds.window import Owner
from verifier.branch_and_bound.cut import AffineNeurons
from verifier.branch_and_bound.domains import NO_CHOICE, Domains, Layout
from verifier.branch_and_bound.recorder import unnamed_neurons
from verifier.certificate import (
    CLIPPED_AWAY,
    CLOSED,
    CONTRADICTED,
    EMPTY,
    OPEN,
    Array,
    ProofError,
    ProofReader,
    sha256,
    unpack_codes,
)
from verifier.problem import without_final_softmax
from verifier.proof import named_twin
from verifier.property import Property

ROWS = 1024           # pulled back together
CLIP_PASSES = 2
CLIP_RTOL = 1e-12     # of the box's width: rounding of a clip against the stored box
Slopes = tuple[Tensor, Tensor, int]  # (given bool "N P", multiples "N P", grid)
Narrow = tuple[Tensor, Tensor, Tensor, Tensor]  # (domain, neuron, low, high) "N"


@dataclass(frozen=True)
class Evaluated:
    """What was evaluated: nodes, closed leaves (with a certificate of a branch), and the least of their bounds."""

    nodes: int
    closings: int
    least: float


@dataclass(eq=False)
class _Node:
    """A node after its visit, or as its parent left it."""

    region: int
    open: frozenset[int]
    low: Tensor
    high: Tensor
    z_low: Tensor
    z_high: Tensor
    choice: int = NO_CHOICE
    point: float = 0.0
    upper: bool = False
    plane: Tensor | None = None
    codes: Tensor | None = None


@dataclass(eq=False)
class _Rows:
    """What a batch of domains knows: intervals of all nodes "B *shape", codes of neurons by node."""

    intervals: dict[int, Interval]
    codes: dict[int, Tensor] = field(default_factory=dict)


class Evaluator:
    """The network and the property in float64."""

    def __init__(self, graph: Graph, property: Property) -> None:
        search = without_final_softmax(named_twin(graph, property), property)
        self.graph = search.to(dtype=torch.float64)
        self.tensors = property.tensors(search.input_shape, dtype=torch.float64)
        self.layout = Layout.of(self.graph)
        self.kinds = self.graph.parameter_kinds
        self.places, self.parameters = slope_places(self.graph, self.kinds)
        self.neurons = self.layout.total - self.layout.inputs
        self.rows = [(self.tensors.branch == k).nonzero().squeeze(1) for k in range(self.tensors.branches)]

    # ------------------------------------------------------------------ rows, densely

    def pull(self, known: _Rows, owner: Tensor, start: int, A: Tensor, slopes: Slopes | None = None,
             multipliers: Mapping[int, Tensor] | None = None, *, watch: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Rows A "N *shape" of node `start` over domains `owner` "N" -> (A at the input "N n", constant "N", the best
        lower bound "N" that the intervals met on the way give, if `watch` asks for it)."""
        graph, count = self.graph, len(owner)
        pending = {start: A}
        constant, best = A.new_zeros(count), A.new_full((count,), -torch.inf)
        rows_owner = Owner.of(count, torch.arange(count))

        def at(i: int) -> Interval:
            return known.intervals[i].map(lambda t: t[owner])
        for i in range(start, 0, -1):
            s = (multipliers or {}).get(i)
            if s is not None:
                x = at(i)
                constant = constant + (s.clamp(min=0) * x.lower + s.clamp(max=0) * x.upper).flatten(1).sum(1)
                pending[i] = pending[i] - s if i in pending else -s
            if i not in pending:
                continue
            A, node = pending.pop(i), graph.nodes[i]
            if isinstance(node.op, Affine):
                added = node.op.constant(A)
                results = node.op.pull_back(A, tuple(graph.nodes[j].shape for j in node.inputs))
            elif isinstance(node.op, Elementwise):
                result, added = self._through(known, owner, i, at(node.inputs[0]), A, slopes)
                results = (result,)
            else:
                assert isinstance(node.op, Relaxed), f"{node.op.kind} has a relaxation"
                results, added = node.op.pull_back_relaxed(A, rows_owner, tuple(at(j) for j in node.inputs))
            constant = constant if added is None else constant + added
            for j, result in zip(node.inputs, results, strict=True):
                pending[j] = pending[j] + result if j in pending else result
            if watch and isinstance(node.op, Elementwise):
                value = constant
                for j, a in pending.items():
                    x = at(j)
                    value = value + (a.clamp(min=0) * x.lower + a.clamp(max=0) * x.upper).flatten(1).sum(1)
                best = torch.maximum(best, value)
        A = pending.get(0, A.new_zeros(count, *graph.input_shape))
        return A.reshape(count, -1), constant, best

    def _through(self, known: _Rows, owner: Tensor, i: int, x: Interval, A: Tensor, slopes: Slopes | None
                 ) -> tuple[Tensor, Tensor]:
        op = self.graph.nodes[i].op
        assert isinstance(op, Elementwise)
        box = op.parameters(x)
        if box is None:
            return pull_back_lines(A, op.relax(x))
        p, low, high = (t.expand(box[0].shape) for t in box)
        codes = known.codes.get(self.graph.nodes[i].inputs[0])
        if codes is not None and op.only_kink is not None:
            code = codes[owner]
            p = torch.where(code == LOW_LINE, low, torch.where(code == HIGH_LINE, high, p))
        if slopes is not None:
            given, q, grid = slopes
            place, size = self.places[i], p[:, 0].numel()
            here = (t[:, place:place + size].view(len(owner), *p[:, 0].shape).transpose(0, 1) for t in (given, q))
            mask, multiple = here
            p = torch.where(mask, low + (high - low) * (multiple.to(p) / grid), p)
        return pull_back_lines(A, op.relax_with(x, torch.minimum(torch.maximum(p, low), high)))

    # ------------------------------------------------------------------ bounds of neurons

    def refine(self, sets: InputSet, given: dict[int, Interval], codes: dict[int, Tensor] | None,
               polish: dict[int, list[tuple[Tensor, Tensor, Tensor, Slopes]]], narrow: Narrow
               ) -> tuple[_Rows, Tensor]:
        """Intervals of all nodes over the sets, and bool "B": they contradict each other."""
        graph = self.graph
        known = _Rows({0: Interval(sets.lower, sets.upper)}, codes or {})
        empty = torch.zeros(sets.batch, dtype=torch.bool)
        boxes = {0} if sets.is_box else set()
        for i, node in enumerate(graph.nodes[:graph.output + 1]):
            exact = sets.is_box and i == 0
            if i:
                known.intervals[i] = node.op.interval(*(known.intervals[j] for j in node.inputs))
                if isinstance(node.op, Affine):
                    exact = len(node.inputs) == 1 and node.inputs[0] in boxes
                    if exact and (isinstance(node.op, Scale) or node.op.passes_rows(
                            (graph.nodes[node.inputs[0]].shape,), node.shape) is not None):
                        boxes.add(i)
            if i not in given:
                continue
            x = known.intervals[i].meet(given[i])
            if codes is not None and not exact:
                known.intervals[i] = x
                x = self._by_rows(sets, known, i, x, codes[i], polish.get(i, []))
            crossed = x.lower > x.upper
            if bool(crossed.any()):
                ends = torch.maximum(x.lower.abs(), x.upper.abs()).flatten(1).amax(1)
                slack = EMPTY_RTOL[torch.float64] / 2 * (1 + ends).view(-1, *(1,) * (x.lower.dim() - 1))
                empty |= (x.lower > x.upper + slack).flatten(1).any(1)
                x = Interval(torch.minimum(x.lower, x.upper), torch.maximum(x.lower, x.upper))
            x = self._widened(i, x, narrow, empty)
            known.intervals[i] = x
        return known, empty

    def _widened(self, i: int, x: Interval, narrow: Narrow, empty: Tensor) -> Interval:
        """The intervals that the file names instead, where they hold what is known."""
        domain, neuron, low, high = narrow
        first = self.layout.offsets[self.layout.nodes.index(i)] - self.layout.inputs
        here = (neuron >= first) & (neuron < first + x.lower[0].numel()) & ~empty[domain]
        if not bool(here.any()):
            return x
        at = domain[here], neuron[here] - first
        lower, upper = x.lower.flatten(1).clone(), x.upper.flatten(1).clone()
        if bool(((lower[at] < low[here]) | (upper[at] > high[here])).any()):
            raise ProofError(f"a neuron of {self.graph.nodes[i].name} is not within its stored interval")
        lower[at], upper[at] = low[here], high[here]
        return Interval(lower.view_as(x.lower), upper.view_as(x.upper))

    def _by_rows(self, sets: InputSet, known: _Rows, i: int, x: Interval, code: Tensor,
                 polish: list[tuple[Tensor, Tensor, Tensor, Slopes]]) -> Interval:
        shape, graph = self.graph.nodes[i].shape, self.graph
        kinks = {op.only_kink if isinstance(op := graph.nodes[j].op, Elementwise) else None for j in graph.consumers[i]}
        domain, neuron = code.flatten(1).nonzero(as_tuple=True)
        lower, upper = x.lower.flatten(1).clone(), x.upper.flatten(1).clone()
        first = lower.clone(), upper.clone()
        best = lower.new_full((2, *lower.shape), -torch.inf)

        def run(domain: Tensor, neuron: Tensor, sign: Tensor, slopes: Slopes | None) -> None:
            for part in torch.arange(len(domain)).split(ROWS) if len(domain) else ():
                d, m, s = domain[part], neuron[part], sign[part]
                A = lower.new_zeros(len(part), lower.shape[1])
                A[torch.arange(len(part)), m] = s
                chosen = None if slopes is None else (slopes[0][part], slopes[1][part], slopes[2])
                A, constant, way = self.pull(known, d, i, A.view(-1, *shape), chosen, watch=True)
                value = constant + sets.index(d).minimise(A.view(-1, *graph.input_shape))
                best[(s < 0).long(), d, m] = torch.maximum(best[(s < 0).long(), d, m], torch.maximum(value, way))
                low, high = torch.where(s > 0, value, -torch.inf), torch.where(s < 0, -value, torch.inf)
                lower[d, m] = torch.maximum(lower[d, m], low)
                upper[d, m] = torch.minimum(upper[d, m], high)
        ones = torch.ones(len(domain), dtype=torch.float64)
        run(domain, neuron, ones, None)
        run(domain, neuron, -ones, None)
        for d, m, s, slopes in polish:
            for side in (s > 0, s < 0):
                run(d[side], m[side], s[side].double(), (slopes[0][side], slopes[1][side], slopes[2]))
        if kinks == {0.0} and i != graph.output:
            decided = (code.flatten(1) == DECIDED_BY_ROWS) & (best >= 0).any(0)
            up = best[0] >= 0
            lower = torch.where(decided, torch.where(up, first[0].clamp(min=0), first[0]), lower)
            upper = torch.where(decided, torch.where(up, first[1], first[1].clamp(max=0)), upper)
        return Interval(lower.view_as(x.lower), upper.view_as(x.upper))

    # ------------------------------------------------------------------ rows of the property

    def planes(self, known: _Rows, owner: Tensor, C: Tensor, D: Tensor | None, bound: Tensor, slopes: Slopes | None,
               multipliers: Tensor | None) -> tuple[Tensor, Tensor]:
        """(A "N n", b "N") below `C f(x) + D x - bound`: C "N m", D "N n"."""
        parts = []
        for part in torch.arange(len(owner)).split(ROWS):
            chosen = None if slopes is None else (slopes[0][part], slopes[1][part], slopes[2])
            s = None if multipliers is None else self.layout.split(multipliers[part])
            A, constant, _ = self.pull(known, owner[part], self.graph.output,
                                       C[part].view(-1, *self.graph.output_shape), chosen, s)
            parts.append((A if D is None else A + D[part], constant - bound[part]))
        if not parts:
            return C.new_zeros(0, self.layout.inputs), bound
        A, b = (torch.cat(group) for group in zip(*parts, strict=True))
        return A, b


def reevaluate(proof: str | Path, network: str | Path | bytes, property: Property, *,
               property_identity: Mapping[str, Any]) -> Evaluated:
    """Evaluate a proof file about an ONNX network and a property with that identity (a hash of its file, or its flags).
    Raises ProofError where something does not hold."""
    with ProofReader(proof) as reader:
        if reader.header["network"] != {"sha256": sha256(read_bytes(network))}:
            raise ProofError(f"{proof}: is about another network")
        if reader.header["property"] != dict(property_identity):
            raise ProofError(f"{proof}: is about another property")
        with torch.no_grad():
            return _Run(reader, Graph.from_onnx(network), property).evaluate()


class _Run:
    """One pass over a file."""

    def __init__(self, reader: ProofReader, graph: Graph, property: Property) -> None:
        self.reader = reader
        self.on = on = Evaluator(graph, property)
        nodes = on.graph.nodes
        names = [{"name": nodes[i].name, "size": torch.Size(nodes[i].shape).numel()} for i in on.layout.nodes]
        activations = [{"output": nodes[i].name, "input": nodes[nodes[i].inputs[0]].name, "kind": nodes[i].op.kind,
                        "parameters": k} for i, k in sorted(on.kinds.items())]
        if reader.header["neurons"] != names or reader.header["activations"] != activations:
            raise ProofError(f"{reader.path}: names neurons or activations that the network does not have")
        wrong = unnamed_neurons(on.graph, graph, on.tensors.sets.centre_point[:1])
        if wrong:
            raise ProofError(f"{reader.path}: {wrong}")
        self.free = torch.tensor(reader.header["free_inputs"], dtype=torch.long)
        self.trees = reader.end["trees"]
        self.pending: dict[int, tuple[int, int, float, bool]] = {}   # child -> (parent, variable, point, upper)
        self.done: dict[int, _Node] = {}
        self.uncovered: set[int] = set()
        self.roots: dict[int, _Node] = {}
        self.fences: dict[int, tuple[Tensor, Tensor]] = {}
        self.passes: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self.affine: AffineNeurons | None = None
        self.children: dict[int, int] = {}
        self.nodes = self.closings = 0
        self.least = float("inf")

    def refused(self, node: int, why: str) -> ProofError:
        return ProofError(f"{self.reader.path}: node {node}: {why}")

    def evaluate(self) -> Evaluated:
        for chunk in self.reader.chunks():
            self._regions(chunk)
            self._roots(chunk)
            self._branchings(chunk)
            self._visits(chunk)
        for node in (*self.pending, *self.roots):
            raise self.refused(node, "is never closed")
        for node in self.uncovered:
            raise self.refused(node, "open, and not split")
        proved = {branch for tree in self.trees for branch in tree["branches"]}
        if proved != set(range(self.on.tensors.branches)):
            raise ProofError(f"{self.reader.path}: not all branches of the property are proved")
        return Evaluated(self.nodes, self.closings, self.least)

    def tree(self, node: int) -> dict[str, Any] | None:
        """The finished tree of a node."""
        found: dict[str, Any] | None = next((t for t in self.trees if t["first"] <= node < t["first"] + t["nodes"]),
                                            None)
        return found

    # ------------------------------------------------------------------ regions and roots

    def _regions(self, chunk: dict[str, dict[str, Array]]) -> None:
        table = chunk.get("passes")
        if table is None:
            return
        number, region = table["number"], table["region"]
        codes = unpack_codes(table["codes"], self.on.neurons)
        polish = chunk.get("polish")
        slopes = None if polish is None else self._slopes(polish, self.reader.header["grid"])
        for k in np.unique(number):
            rows = number == k
            place = {int(u): j for j, u in enumerate(region[rows])}
            lines: dict[int, list[Any]] = {}
            if polish is not None and slopes is not None:
                for node, offset, shape in zip(self.on.layout.nodes, self.on.layout.offsets, self.on.layout.shapes,
                                               strict=True):
                    first = offset - self.on.layout.inputs
                    here = (polish["pass"] == k) & (polish["neuron"] >= first) \
                        & (polish["neuron"] < first + torch.Size(shape).numel())
                    at = torch.from_numpy(here.nonzero()[0])
                    domain = torch.tensor([place[int(u)] for u in polish["region"][here]], dtype=torch.long)
                    lines[node] = [(domain, torch.from_numpy(polish["neuron"][here] - first).long(),
                                    torch.from_numpy(polish["sign"][here]),
                                    (slopes[0][at], slopes[1][at], slopes[2]))]
            sets = self.on.tensors.sets.index(torch.from_numpy(region[rows]).long())
            code = self.on.layout.split(torch.from_numpy(codes[rows]))
            unbounded = {i: Interval(torch.full_like(c, -torch.inf, dtype=torch.float64),
                                     torch.full_like(c, torch.inf, dtype=torch.float64)) for i, c in code.items()}
            known, _ = self.on.refine(sets, unbounded, code, lines,
                                      _narrow(chunk.get("widened"), "region", place, ("pass", int(k))))
            low, high = (self.on.layout.flat({i: getattr(known.intervals[i], end) for i in self.on.layout.nodes})
                         for end in ("lower", "upper"))
            for u, j in place.items():
                self.passes.setdefault(u, []).append((low[j], high[j]))

    def _roots(self, chunk: dict[str, dict[str, Array]]) -> None:
        table = chunk.get("roots")
        if table is None:
            return
        sets, first = self.on.tensors.sets, 0
        asked: dict[int, set[int]] = {}
        for node, region, count in zip(table["node"].tolist(), table["region"].tolist(), table["count"].tolist(),
                                       strict=True):
            branches = frozenset(table["branch"][first:first + count].tolist())
            first += count
            tree = self.tree(node)
            if tree is None:
                continue
            if any(int(self.on.tensors.branch_region[k]) != region for k in branches):
                raise self.refused(node, "a branch is not one of its region")
            asked.setdefault(tree["first"], set()).update(branches)
            low = torch.full((self.on.neurons,), -torch.inf, dtype=torch.float64)
            high = -low
            for a, b in self.passes.get(region, []):
                low, high = torch.maximum(low, a), torch.minimum(high, b)
            self.roots[node] = _Node(region, branches, sets.lower[region].flatten(), sets.upper[region].flatten(),
                                     low, high)
        for tree in self.trees:
            if tree["first"] in asked and asked[tree["first"]] != set(tree["branches"]):
                raise self.refused(tree["first"], "the roots are not about the branches of their tree")

    def _branchings(self, chunk: dict[str, dict[str, Array]]) -> None:
        children: list[tuple[int, int, int, float, bool]] = []
        table = chunk.get("splits")
        if table is not None:
            for parent, variable, point, lower, upper in zip(*(table[c].tolist() for c in (
                    "parent", "variable", "point", "lower", "upper")), strict=True):
                children += [(lower, parent, variable, point, False), (upper, parent, variable, point, True)]
        table = chunk.get("fences")
        if table is not None:
            self.fences |= {node: (low, high) for node, low, high in zip(
                table["node"].tolist(), torch.from_numpy(table["low"]), torch.from_numpy(table["high"]), strict=True)}
        table = chunk.get("again")
        if table is not None:
            children += [(node, parent, NO_CHOICE, 0.0, False) for node, parent in zip(
                table["node"].tolist(), table["parent"].tolist(), strict=True)]
        for node, parent, variable, point, upper in children:
            if self.tree(parent) is None:
                continue
            if node in self.pending or node in self.done:
                raise self.refused(node, "is made twice")
            expected = 1 if variable == NO_CHOICE else 2
            left = self.children.setdefault(parent, expected)
            if left == 0:
                raise self.refused(parent, "is split twice")
            self.children[parent] -= 1
            self.pending[node] = (parent, variable, point, upper)

    # ------------------------------------------------------------------ visits

    def _visits(self, chunk: dict[str, dict[str, Array]]) -> None:
        table = chunk.get("visits")
        if table is None:
            return
        groups = [(g, self._slopes(g, self.reader.header[grid]), self._multipliers(g)) for name, grid in (
            ("groups", "grid"), ("fine", "fine_grid")) if (g := chunk.get(name)) is not None]
        first = 0
        for count in table["count"].tolist():
            rows = slice(first, first + count)
            first += count
            ids = table["node"][rows]
            if self.tree(int(ids[0])) is not None:
                codes = table["codes"][self._code_rows(table, rows)] if "codes" in table else None
                self._visit(chunk, groups, ids, table["flags"][rows], codes)

    def _code_rows(self, table: dict[str, Array], rows: slice) -> slice:
        """Only visits of trees that refresh have codes; a chunk may hold the end of one tree and the start of
        another."""
        refreshed = np.array([bool(t and t["refresh"]) for t in map(self.tree, table["node"].tolist())])
        before = int(refreshed[:rows.start].sum())
        return slice(before, before + int(refreshed[rows].sum()))

    def _node(self, node: int) -> _Node:
        """A node as its parent left it."""
        if node in self.roots:
            return self.roots.pop(node)
        if node not in self.pending:
            raise self.refused(node, "has no parent")
        parent, variable, point, upper = self.pending.pop(node)
        if parent not in self.done:
            raise self.refused(node, f"its parent {parent} was not visited before")
        at = self.done[parent]
        self.uncovered.discard(parent)
        low, high, z_low, z_high = at.low, at.high, at.z_low, at.z_high
        n = self.on.layout.inputs
        if variable != NO_CHOICE:
            ends, j = ((low, high), variable) if variable < n else ((z_low, z_high), variable - n)
            if not 0 <= j < len(ends[0]):
                raise self.refused(node, f"variable {variable} does not exist")
            one = ends[0].clone() if upper else ends[1].clone()
            one[j] = max(float(one[j]), point) if upper else min(float(one[j]), point)
            ends = (one, ends[1]) if upper else (ends[0], one)
            low, high, z_low, z_high = (*ends, z_low, z_high) if variable < n else (low, high, *ends)
        return _Node(at.region, at.open, low, high, z_low, z_high, variable, point, upper, at.plane, at.codes)

    def _visit(self, chunk: dict[str, dict[str, Array]], groups: list[Any], ids: Array, flags: Array,
               codes: Array | None) -> None:
        on, layout = self.on, self.on.layout
        tree = self.tree(int(ids[0]))
        assert tree is not None
        nodes = [self._node(int(i)) for i in ids]
        self._fenced(nodes, ids)
        place = {int(i): k for k, i in enumerate(ids)}
        low, high, z_low, z_high = (torch.stack([getattr(v, name) for v in nodes])
                                    for name in ("low", "high", "z_low", "z_high"))
        region = torch.tensor([v.region for v in nodes])
        shape = on.graph.input_shape
        sets = InputSet(low.view(-1, *shape), high.view(-1, *shape)) if on.tensors.sets.is_box \
            else on.tensors.sets.index(region)
        if tree["cuts"]:
            z_low, z_high = self._cut(nodes, low, high, z_low, z_high)
        ends = layout.split(z_low), layout.split(z_high)
        code, code_rows = None, None
        if tree["refresh"]:
            if codes is None or len(codes) != len(ids):
                raise self.refused(int(ids[0]), "has no codes")
            code_rows = torch.from_numpy(unpack_codes(codes, on.neurons))
            code = layout.split(code_rows)
        known, empty = on.refine(sets, {i: Interval(ends[0][i], ends[1][i]) for i in layout.nodes}, code, {},
                                  _narrow(chunk.get("narrow"), "node", place))
        z_low, z_high = (layout.flat({i: getattr(known.intervals[i], end) for i in layout.nodes})
                         for end in ("lower", "upper"))
        still = [set(v.open) for v in nodes]
        planes: list[dict[int, list[tuple[Tensor, Tensor]]]] = [{} for _ in nodes]
        self._close(chunk, groups, place, known, sets, still, planes)
        boxes = self._clipped(chunk, place, known, still, planes, low, high, flags)
        for k, v in enumerate(nodes):
            node = int(ids[k])
            if flags[k] & CONTRADICTED:
                if not bool(empty[k]):
                    raise self.refused(node, "its intervals do not contradict each other")
                still[k] = set()
            if flags[k] & CLIPPED_AWAY:
                still[k] = set()
            plane = None
            if len(still[k]) == 1 and (found := planes[k].get(next(iter(still[k])))):
                plane = torch.cat([found[0][0], found[0][1].view(1)])
            a, b = boxes.get(k, (v.low, v.high))
            self.done[node] = _Node(v.region, frozenset(still[k]), a, b, z_low[k], z_high[k], plane=plane,
                                    codes=None if code_rows is None else code_rows[k])
            if still[k]:
                self.uncovered.add(node)
            self.nodes += 1

    def _fenced(self, nodes: list[_Node], ids: Array) -> None:
        """Put the stored boxes of children of neuron splits in place, after a look at the neurons' planes."""
        on, layout = self.on, self.on.layout
        for i, shape, offset in zip(layout.nodes, layout.shapes, layout.offsets, strict=True):
            size = torch.Size(shape).numel()
            members = [k for k, v in enumerate(nodes)
                       if int(ids[k]) in self.fences and offset <= v.choice < offset + size]
            if not members:
                continue
            z_low, z_high = (layout.split(torch.stack([getattr(nodes[k], end) for k in members]))
                             for end in ("z_low", "z_high"))
            codes = [c for k in members if (c := nodes[k].codes) is not None]
            known = _Rows({j: Interval(z_low[j], z_high[j]) for j in layout.nodes},
                          layout.split(torch.stack(codes)) if codes else {})
            sign = torch.tensor([-1.0 if nodes[k].upper else 1.0 for k in members], dtype=torch.float64)
            each = torch.arange(len(members))
            unit = torch.zeros(len(members), size, dtype=torch.float64)
            unit[each, torch.tensor([nodes[k].choice - offset for k in members])] = sign
            A, b, _ = on.pull(known, each, i, unit.view(-1, *shape))
            b = b - sign * torch.tensor([nodes[k].point for k in members], dtype=torch.float64)
            for row, k in enumerate(members):
                v = nodes[k]
                hull = clip(v.low, v.high, A[row:row + 1], b[row:row + 1])
                v.low, v.high = self._stored(int(ids[k]), v.low, v.high, *self.fences.pop(int(ids[k])), *hull)

    def _stored(self, node: int, low: Tensor, high: Tensor, stored_low: Tensor, stored_high: Tensor, hull_low: Tensor,
                hull_high: Tensor) -> tuple[Tensor, Tensor]:
        """The stored box, which must hold what is left of [low, high]."""
        new_low, new_high = low.clone(), high.clone()
        new_low[self.free], new_high[self.free] = stored_low, stored_high
        slack = CLIP_RTOL * (high - low)
        if not bool(((new_low <= hull_low + slack) & (new_high >= hull_high - slack)).all()):
            raise self.refused(node, "the planes do not cut its box as far as stored")
        return torch.maximum(new_low, low), torch.minimum(new_high, high)

    def _cut(self, nodes: list[_Node], low: Tensor, high: Tensor, z_low: Tensor, z_high: Tensor) -> tuple[Tensor,
                                                                                                          Tensor]:
        on, layout = self.on, self.on.layout
        if self.affine is None:
            found = AffineNeurons.of(on.graph, layout, on.tensors.sets)
            self.affine = None if found is None else replace(found, exact=True)
        if self.affine is None:
            raise ProofError(f"{self.reader.path}: no neuron is affine in the input")
        count = len(nodes)
        choice = torch.tensor([v.choice for v in nodes])
        sides = torch.zeros(count, on.neurons, dtype=torch.int8)
        for k, v in enumerate(nodes):
            if v.choice >= layout.inputs:
                sides[k, v.choice - layout.inputs] = 1 if v.upper else -1
        zero, longs = low.new_zeros(count), torch.zeros(count, dtype=torch.long)
        nothing = low.new_zeros(layout.inputs + 1)
        domains = Domains(
            region=longs, open=torch.ones(count, 1, dtype=torch.bool), lower=zero, depth=longs, node=longs, low=low,
            high=high,
            z_low=z_low, z_high=z_high, sides=sides, fences=low.new_zeros(count, 2, 0), slopes=low.new_zeros(count, 0),
            multipliers=torch.zeros_like(z_low),
            choice=choice, point=low.new_tensor([v.point for v in nodes]),
            plane=torch.stack([nothing if v.plane is None else v.plane for v in nodes]))
        mask = {}
        for i, x in domains.intervals(layout).items():
            m = torch.zeros_like(x.lower, dtype=torch.bool)
            for reader in on.graph.consumers[i]:
                op = on.graph.nodes[reader].op
                if isinstance(op, Elementwise):
                    m |= ~op.is_linear_on(x)
            mask[i] = m
        return self.affine.cut(domains, layout, layout.flat(mask))

    # ------------------------------------------------------------------ certificates

    def _slopes(self, table: dict[str, Array], grid: int) -> Slopes:
        given = np.unpackbits(table["mask"], axis=1, count=self.on.parameters).astype(bool)
        q = np.zeros(given.shape, np.int32)
        if int(given.sum()) != len(table["slopes"]):
            raise ProofError(f"{self.reader.path}: masks and slopes do not match")
        q[given] = table["slopes"]
        return torch.from_numpy(given), torch.from_numpy(q), grid

    def _multipliers(self, table: dict[str, Array]) -> Tensor:
        out = torch.zeros(len(table["node"]), self.on.neurons, dtype=torch.float64)
        row = np.repeat(np.arange(len(table["node"])), table["m_count"])
        out[torch.from_numpy(row), torch.from_numpy(table["m_neuron"]).long()] = torch.from_numpy(table["m_value"])
        return out

    def _rows_of(self, branches: list[int]) -> Iterator[tuple[int, Tensor]]:
        return ((k, self.on.rows[max(b, 0)]) for k, b in enumerate(branches))

    def _close(self, chunk: dict[str, dict[str, Array]], groups: list[Any], place: dict[int, int], known: _Rows,
               sets: InputSet,
               still: list[set[int]], planes: list[dict[int, list[tuple[Tensor, Tensor]]]]) -> None:
        """Evaluate the certificates of a batch; closed branches go, planes are noted."""
        t = self.on.tensors
        for table, slopes, multipliers in groups:
            at = np.flatnonzero(np.isin(table["node"], list(place)))
            if not len(at):
                continue
            rows = torch.from_numpy(at)
            branches = table["branch"][at].tolist()
            owner = torch.tensor([place[i] for i in table["node"][at].tolist()])
            C, bound = t.C.new_zeros(len(at), t.C.shape[1]), t.C.new_zeros(len(at))
            D = None if t.D is None else t.D.new_zeros(len(at), t.D.shape[1])
            zero = torch.zeros(len(at), dtype=torch.bool)
            for k, own in self._rows_of(branches):
                if table["kind"][at[k]] == EMPTY:
                    continue
                w = torch.from_numpy(table["weights"][at[k]])[:len(own)] if "weights" in table else t.C.new_ones(1)
                if len(w) != len(own) or bool((w < 0).any()) or not bool(torch.isfinite(w).all()):
                    raise self.refused(int(table["node"][at[k]]), "row weights are not as the branch needs them")
                zero[k] = not bool(w.any())
                C[k], bound[k] = w @ t.C[own], w @ t.bound[own]
                if D is not None and t.D is not None:
                    D[k] = w @ t.D[own]
            A, b = self.on.planes(known, owner, C, D, bound, (slopes[0][rows], slopes[1][rows], slopes[2]),
                                  multipliers[rows])
            value = b + sets.index(owner).minimise(A.view(-1, *self.on.graph.input_shape))
            for k, (branch, kind) in enumerate(zip(branches, table["kind"][at].tolist(), strict=True)):
                if kind == OPEN:
                    planes[int(owner[k])].setdefault(branch, []).append((A[k], b[k]))
                elif kind == EMPTY:
                    self._closed(int(table["node"][at[k]]), 0, float(value[k]), True)
                    still[int(owner[k])].clear()
                elif kind == CLOSED:
                    self._closed(int(table["node"][at[k]]), branch, float(value[k]), bool(zero[k]))
                    still[int(owner[k])].discard(branch)
        table = chunk.get("single")
        if table is not None:
            for node, branch, row in zip(*(table[c].tolist() for c in ("node", "branch", "row")), strict=True):
                if node in place:
                    own = self.on.rows[branch][row:row + 1]
                    owner = torch.tensor([place[node]])
                    A, b = self.on.planes(known, owner, t.C[own], None if t.D is None else t.D[own], t.bound[own],
                                          None, None)
                    value = b + sets.index(owner).minimise(A.view(-1, *self.on.graph.input_shape))
                    self._closed(node, branch, float(value[0]), False)
                    still[place[node]].discard(branch)

    def _closed(self, node: int, branch: int, value: float, ray: bool) -> None:
        strict = bool(self.on.tensors.strict[self.on.rows[branch]].all()) and not ray
        if not (value > 0 or (strict and value >= 0)):
            raise self.refused(node, f"branch {branch}: the certificate proves {value:.6g} only")
        self.closings += 1
        self.least = min(self.least, value)

    def _clipped(self, chunk: dict[str, dict[str, Array]], place: dict[int, int], known: _Rows, still: list[set[int]],
                 planes: list[dict[int, list[tuple[Tensor, Tensor]]]], low: Tensor, high: Tensor, flags: Array
                 ) -> dict[int, tuple[Tensor, Tensor]]:
        """The stored boxes, after a look at what the planes leave."""
        table = chunk.get("clips")
        stored = {} if table is None else {place[i]: k for k, i in enumerate(table["node"].tolist()) if i in place}
        out: dict[int, tuple[Tensor, Tensor]] = {}
        ids = {k: i for i, k in place.items()}
        t = self.on.tensors
        for k in sorted({*stored, *np.flatnonzero(flags & CLIPPED_AWAY).tolist()}):
            hull_low, hull_high = torch.full_like(low[k], torch.inf), torch.full_like(low[k], -torch.inf)
            for branch in still[k]:
                own = self.on.rows[branch]
                A = [a for a, _ in planes[k].get(branch, [])]
                b = [c for _, c in planes[k].get(branch, [])]
                if len(own) > 1:
                    owner = torch.full((len(own),), k)
                    more = self.on.planes(known, owner, t.C[own], None if t.D is None else t.D[own], t.bound[own],
                                          None, None)
                    A += list(more[0])
                    b += list(more[1])
                if not A:
                    raise self.refused(ids[k], f"branch {branch}: clipped without a plane")
                a, c = clip(low[k], high[k], torch.stack(A), torch.stack(b))
                if not bool((a > c).any()):
                    hull_low, hull_high = torch.minimum(hull_low, a), torch.maximum(hull_high, c)
            if k not in stored:
                if not bool((hull_low > hull_high).any()):
                    raise self.refused(ids[k], "clipping leaves something of its box")
                continue
            assert table is not None
            out[k] = self._stored(ids[k], low[k], high[k], torch.from_numpy(table["low"][stored[k]]),
                                  torch.from_numpy(table["high"][stored[k]]), hull_low, hull_high)
        return out


def _narrow(table: dict[str, Array] | None, key: str, place: Mapping[int, int], only: tuple[str, int] | None = None
            ) -> Narrow:
    longs, reals = torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.float64)
    if table is None:
        return longs, longs, reals, reals
    here = np.isin(table[key], list(place))
    if only is not None:
        here &= table[only[0]] == only[1]
    domain = torch.tensor([place[i] for i in table[key][here].tolist()], dtype=torch.long)
    return (domain, torch.from_numpy(table["neuron"][here]).long(), torch.from_numpy(table["low"][here]),
            torch.from_numpy(table["high"][here]))


def clip(low: Tensor, high: Tensor, A: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The box hull "n" of {low <= x <= high, A x + b <= 0}: A "R n", b "R"; ends cross where nothing is left."""
    for _ in range(CLIP_PASSES):
        least = torch.where(A > 0, A * low, A * high)
        room = -(least.sum(1, keepdim=True) + b.unsqueeze(1)) / A.abs().clamp(min=torch.finfo(A.dtype).tiny)
        up = torch.where(A > 0, low + room, torch.inf).amin(0)
        down = torch.where(A < 0, high - room, -torch.inf).amax(0)
        low, high = torch.maximum(low, down), torch.minimum(high, up)
    return low, high


__all__ = ["Evaluated", "reevaluate"]
