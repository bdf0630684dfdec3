"""A piecewise-linear network over an input set as rows with binaries (Lomuscio and Maganti, arXiv:1706.07351; Tjeng,
Xiao and Tedrake, arXiv:1711.07356).

A column for each input; two for each neuron that its proved bounds (the big M) leave undecided, what it reads and what
it is worth, with its binaries. Decided neurons are affine forms of these columns, unless columns of their own make the
rows after them shorter.
Every encoding is an equality: at an integer point the columns are the values of the network, up to the tolerance of
whoever solves it. (A sign is the exception: at zero it may be anything.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from bounds.graph import Graph, UnsupportedOperator
from bounds.graph.graph import Node
from bounds.interval import Interval
from bounds.ops.base import Affine, Operator
from bounds.ops.clip import Clip
from bounds.ops.max_pool import MaxPool
from bounds.ops.one_kink import OneKink
from bounds.ops.relu import Relu
from bounds.ops.sign import Sign
from bounds.sets import InputSet
from milp.affine_matrix import affine_matrices
from milp.encoders import clip, max_pool, one_kink, sign
from milp.encoders.form import Columns, Form, flat
from milp.loosened import loosened
from milp.mixed import Builder, SquaredNorm
from milp.problem import Floats

ENCODERS: dict[type[Operator], Callable[[Encoding, Node], Form]] = {
    Relu: one_kink.encode, OneKink: one_kink.encode, Clip: clip.encode, MaxPool: max_pool.encode, Sign: sign.encode}
OUTWARD = 1 + 1e-12  # of a squared radius: what its rounding may lose


class Encoding:
    """A graph over one input set, with `intervals` "1 *shape" of the nodes that non-affine operators read.

    An l_1 ball becomes rows, an l_2 ball one convex quadratic row (`MixedProgram.squares`). Raises UnsupportedOperator
    by name for what is not piecewise linear, and ValueError where an interval is missing. `fills`: what each block of
    columns is worth where those before it are given, in order.
    """

    def __init__(self, graph: Graph, sets: InputSet, intervals: Mapping[int, Interval]) -> None:
        if sets.batch != 1:
            raise ValueError("one input set is encoded at a time")
        encoders = [_encoder(graph, node) for node in graph.nodes[1:]]
        self.graph = graph = graph.to(dtype=torch.float64, device="cpu")
        self.rows = Builder()
        self.intervals = intervals
        self.fills: list[Callable[[Floats], None]] = []
        self.inputs = self.rows.add_columns(flat(sets.lower), flat(sets.upper))
        if not sets.is_box:
            self._ball(sets)
        self.forms: list[Form | None] = [None] * len(graph.nodes)
        self.forms[0] = Form(sparse.identity(len(self.inputs), format="csr"), np.zeros(len(self.inputs)))
        for i, (node, encode) in enumerate(zip(graph.nodes[1:], encoders, strict=True), 1):
            self.forms[i] = self._affine(node) if encode is None else encode(self, node)

    def form(self, i: int) -> Form:
        """The values of node i."""
        form = self.forms[i]
        assert form is not None
        return form

    @property
    def output(self) -> Form:
        return self.form(self.graph.output)

    def start(self, x: Tensor) -> Floats:
        """All columns where the input is x "*input": a first point for a solver."""
        v = np.zeros(self.rows.columns)
        v[self.inputs] = flat(x)
        for fill in self.fills:
            fill(v)
        return np.clip(v, np.concatenate(self.rows.lower), np.concatenate(self.rows.upper))

    # ------------------------------------------------------------------ columns

    def read(self, i: int) -> tuple[Form, Floats, Floats]:
        """The values of node i, with their proved ends."""
        if i == 0:
            return self.form(0), self.rows.lower[0], self.rows.upper[0]
        if i not in self.intervals:
            raise ValueError(f"proved bounds of node {i} ({self.graph.nodes[i].name}) are missing")
        x = loosened(self.intervals[i])
        if bool(x.lower.isnan().any() or x.upper.isnan().any()):
            raise ValueError(f"bounds of node {i} ({self.graph.nodes[i].name}) are not numbers")
        return self.form(i), flat(x.lower), np.maximum(flat(x.lower), flat(x.upper))

    def sparser(self, form: Form, lower: Floats, upper: Floats) -> Form:
        """The same values; those with more entries than there are values that vary become columns, for all that reads
        them would have these entries too."""
        entries = np.diff(form.matrix.indptr)
        dense = (entries > max(1, int((entries > 0).sum()))).nonzero()[0]
        if not len(dense):
            return form
        return form.replaced(dense, self.hold(form.take(dense), lower[dense], upper[dense]), self.rows.columns)

    def hold(self, form: Form, lower: Floats, upper: Floats) -> Columns:
        """New columns that equal a form."""
        z = self.rows.add_columns(lower, upper)
        unit = Form.of_columns(z, np.ones(len(z)), form.constant, self.rows.columns)
        self.rows.add_matrix(unit.matrix - form.over(self.rows.columns), form.constant, form.constant)

        def fill(v: Floats) -> None:
            v[z] = form.at(v)
        self.fills.append(fill)
        return z

    def largest(self, form: Form, lower: float, upper: float) -> int:
        """One more column, at least as large as each of a form's values."""
        top = int(self.rows.add_columns(np.array([lower]), np.array([upper]))[0])
        count = len(form.constant)
        unit = Form.of_columns(np.full(count, top), np.ones(count), form.constant, self.rows.columns)
        self.rows.add_matrix(form.over(self.rows.columns) - unit.matrix, -np.inf, -form.constant)

        def fill(v: Floats) -> None:
            v[top] = form.at(v).max()
        self.fills.append(fill)
        return top

    def distances(self, centre: Floats, scale: Floats, reach: Floats) -> Columns:
        """New columns, at most `reach`, at least as large as `|x - centre| / scale` of each input."""
        d = self.rows.add_columns(np.zeros(len(centre)), reach)
        self.rows.add_rows([(d, scale), (self.inputs, -1.0)], -centre, np.inf)
        self.rows.add_rows([(d, scale), (self.inputs, 1.0)], centre, np.inf)

        def fill(v: Floats) -> None:
            v[d] = np.abs(v[self.inputs] - centre) / scale
        self.fills.append(fill)
        return d

    def _ball(self, sets: InputSet) -> None:
        assert sets.centre is not None and sets.radius is not None
        centre, radius = flat(sets.centre), float(sets.radius)
        scale = np.ones(len(centre)) if sets.scale is None else flat(sets.scale)
        if sets.p == 2:
            self.rows.squares.append(SquaredNorm(self.inputs, centre, scale, OUTWARD * radius ** 2))
            return
        d = self.distances(centre, scale, np.full(len(centre), radius))
        self.rows.add_matrix(sparse.csr_matrix((np.ones(len(d)), (np.zeros(len(d), dtype=np.int64), d)),
                                               shape=(1, self.rows.columns)), -np.inf, radius)

    # ------------------------------------------------------------------ nodes

    def _affine(self, node: Node) -> Form:
        assert isinstance(node.op, Affine)
        matrices, constant = affine_matrices(node.op, [self.graph.nodes[j].shape for j in node.inputs])
        total = sparse.csr_matrix((len(constant), self.rows.columns))
        for j, matrix in zip(node.inputs, matrices, strict=True):
            form = self.form(j)
            total = total + matrix @ form.over(self.rows.columns)
            constant = constant + matrix @ form.constant
        return Form(sparse.csr_matrix(total), constant)


def _encoder(graph: Graph, node: Node) -> Callable[[Encoding, Node], Form] | None:
    """The function that encodes a node; None for affine ones."""
    if isinstance(node.op, Affine):
        return None
    for kind, encode in ENCODERS.items():
        if isinstance(node.op, kind):
            return encode
    raise UnsupportedOperator(f"{graph.source}: {node.op.kind} ({node.name}) is not piecewise linear "
                              "and cannot be encoded with binaries")
