"""A piecewise-linear network over a box as rows with binaries (Lomuscio and Maganti, arXiv:1706.07351; Tjeng, Xiao and
Tedrake, arXiv:1711.07356).

A column for each input, each value that a non-affine operator reads (with its proved bounds, which are the big M), and
each output of a neuron that these leave undecided, with one binary a kink. Decided neurons are affine and cost nothing.
Every encoding is an equality: at an integer point the columns are the values of the network, up to the tolerance of
whoever solves it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from bounds.graph import Graph, UnsupportedOperator
from bounds.graph.graph import Node
from bounds.interval import Interval
from bounds.ops.base import Affine
from bounds.ops.clip import Clip
from bounds.ops.max_pool import MaxPool
from bounds.ops.one_kink import OneKink
from bounds.ops.relu import Relu
from bounds.sets import InputSet
from milp.affine_matrix import affine_matrices
from milp.loosened import loosened
from milp.mixed import Builder
from milp.problem import Floats

Columns = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Form:
    """The values of a node: `matrix "size V" v + constant "size"`."""

    matrix: sparse.csr_matrix
    constant: Floats

    def over(self, columns: int) -> sparse.csr_matrix:
        """The matrix over so many columns."""
        m = self.matrix
        return sparse.csr_matrix((m.data, m.indices, m.indptr), shape=(m.shape[0], columns))


class Encoding:
    """A graph over one box, with `intervals` "1 *shape" of the nodes that non-affine operators read.

    Raises UnsupportedOperator by name for what is not piecewise linear, and ValueError where an interval is missing.
    """

    def __init__(self, graph: Graph, sets: InputSet, intervals: Mapping[int, Interval]) -> None:
        if not sets.is_box or sets.batch != 1:
            raise ValueError("one box is encoded at a time")
        for node in graph.nodes[1:]:
            if not isinstance(node.op, Affine | Relu | OneKink | Clip | MaxPool):
                raise UnsupportedOperator(f"{graph.source}: {node.op.kind} ({node.name}) is not piecewise linear "
                                          "and cannot be encoded with binaries")
        self.graph = graph = graph.to(dtype=torch.float64, device="cpu")
        self.rows = Builder()
        self.intervals = intervals
        self.inputs = self.rows.add_columns(flat(sets.lower), flat(sets.upper))
        self.forms: list[Form | None] = [None] * len(graph.nodes)
        self.forms[0] = Form(sparse.identity(len(self.inputs), format="csr"), np.zeros(len(self.inputs)))
        self._columns: dict[int, tuple[Columns, Floats, Floats]] = {}
        for i, node in enumerate(graph.nodes[1:], 1):
            self.forms[i] = self._affine(node) if isinstance(node.op, Affine) else self._bent(node)

    def form(self, i: int) -> Form:
        form = self.forms[i]
        assert form is not None
        return form

    @property
    def output(self) -> Form:
        return self.form(self.graph.output)

    def free_column(self, lower: float, upper: float) -> int:
        """One more column."""
        return int(self.rows.add_columns(np.array([lower]), np.array([upper]))[0])

    # ------------------------------------------------------------------ affine nodes

    def _affine(self, node: Node) -> Form:
        assert isinstance(node.op, Affine)
        matrices, constant = affine_matrices(node.op, [self.graph.nodes[j].shape for j in node.inputs])
        total = sparse.csr_matrix((len(constant), self.rows.columns))
        for j, matrix in zip(node.inputs, matrices, strict=True):
            form = self.form(j)
            total = total + matrix @ form.over(self.rows.columns)
            constant = constant + matrix @ form.constant
        return Form(sparse.csr_matrix(total), constant)

    def _read(self, i: int) -> tuple[Columns, Floats, Floats]:
        """Columns that hold the values of node i, with their proved ends."""
        if i not in self._columns:
            if i not in self.intervals:
                raise ValueError(f"proved bounds of node {i} ({self.graph.nodes[i].name}) are missing")
            if i == 0:
                self._columns[i] = self.inputs, self.rows.lower[0], self.rows.upper[0]
                return self._columns[i]
            x = loosened(self.intervals[i])
            lower, upper = flat(x.lower), np.maximum(flat(x.lower), flat(x.upper))
            self._columns[i] = self._held(self.form(i), lower, upper), lower, upper
        return self._columns[i]

    def _held(self, form: Form, lower: Floats, upper: Floats) -> Columns:
        """New columns that equal a form."""
        z = self.rows.add_columns(lower, upper)
        unit = self._form(z, np.ones(len(z)), form.constant)
        self.rows.add_matrix(unit.matrix - form.over(self.rows.columns), form.constant, form.constant)
        return z

    # ------------------------------------------------------------------ bent nodes

    def _bent(self, node: Node) -> Form:
        z, lower, upper = self._read(node.inputs[0])
        if isinstance(node.op, MaxPool):
            return self._max_pool(node, z, lower, upper)
        if isinstance(node.op, Clip):
            return self._clip(node.op, z, lower, upper)
        left = np.zeros(len(z))
        if isinstance(node.op, OneKink):
            slope = node.op.left_slope(self.intervals[node.inputs[0]].lower)
            left = flat(slope.expand(1, *node.shape))
        return self._one_kink(z, lower, upper, left, np.ones(len(z)), np.zeros(len(z)))[0]

    def _one_kink(self, z: Columns, lower: Floats, upper: Floats, left: Floats, right: Floats, at: Floats
                  ) -> tuple[Form, Floats, Floats]:
        """(form, ends) of `at + left (z - at)` where z <= at, else `at + right (z - at)`: left, right, at "m"."""
        def value(x: Floats) -> Floats:
            return at + np.where(x >= at, right, left) * (x - at)
        crosses = (lower < at) & (at < upper)
        first, second = value(lower), value(upper)
        low = np.where(crosses, np.minimum(np.minimum(first, second), at), np.minimum(first, second))
        high = np.where(crosses, np.maximum(np.maximum(first, second), at), np.maximum(first, second))
        column, slope = z.copy(), np.where(upper <= at, left, right)
        constant = at - slope * at
        bent = (crosses & (left != right)).nonzero()[0]
        if len(bent):
            v, l, u, a, b, k = (t[bent] for t in (z, lower, upper, left, right, at))
            y = self.rows.add_columns(low[bent], high[bent])
            pick = self.rows.add_columns(np.zeros(len(y)), np.ones(len(y)), integer=True)  # 1: z is right of the kink
            # With s the sign of b - a, s y lies above both lines, and on the one that is picked.
            s, far_left, far_right = np.sign(b - a), np.abs(b - a) * (k - l), np.abs(b - a) * (u - k)
            on_left, on_right = s * (k - a * k), s * (k - b * k)
            self.rows.add_rows([(y, s), (v, -s * a)], on_left, np.inf)
            self.rows.add_rows([(y, s), (v, -s * b)], on_right, np.inf)
            self.rows.add_rows([(y, s), (v, -s * a), (pick, -far_right)], -np.inf, on_left)
            self.rows.add_rows([(y, s), (v, -s * b), (pick, far_left)], -np.inf, on_right + far_left)
            column[bent], slope[bent], constant[bent] = y, 1.0, 0.0
        return self._form(column, slope, constant), low, high

    def _form(self, column: Columns, slope: Floats, constant: Floats) -> Form:
        """Values that are each an affine function of one column."""
        index = np.arange(len(column))
        return Form(sparse.csr_matrix((slope, (index, column)), shape=(len(column), self.rows.columns)), constant)

    def _clip(self, op: Clip, z: Columns, lower: Floats, upper: Floats) -> Form:
        """The larger of z and the low end, and of that the smaller of it and the high end."""
        zero, one = np.zeros(len(z)), np.ones(len(z))
        form = self._form(z, one, zero)
        if np.isfinite(op.low):
            form, lower, upper = self._one_kink(z, lower, upper, zero, one, np.full(len(z), op.low))
        if np.isfinite(op.high):
            form, _, _ = self._one_kink(self._held(form, lower, upper), lower, upper, one, zero,
                                        np.full(len(z), op.high))
        return form

    def _max_pool(self, node: Node, z: Columns, lower: Floats, upper: Floats) -> Form:
        op = node.op
        assert isinstance(op, MaxPool)
        windows = _windows(op, self.graph.nodes[node.inputs[0]].shape)
        low = np.where(windows >= 0, lower[windows], -np.inf)
        high = np.where(windows >= 0, upper[windows], -np.inf)
        best = low.max(1, keepdims=True)
        out = np.arange(len(windows))
        runs = (windows >= 0) & (high >= best)
        leader = np.where(low == best, 0, 1).argmin(1)  # at least as large as everything that is out of the race
        runs[out, leader] = True
        alone = runs.sum(1) == 1
        column = np.where(alone, z[windows[out, leader]], 0)
        y_at = (~alone).nonzero()[0]
        if len(y_at):
            y = self.rows.add_columns(best[y_at, 0], high[y_at].max(1))
            column[y_at] = y
            row, slot = runs[y_at].nonzero()
            v = z[windows[y_at[row], slot]]
            pick = self.rows.add_columns(np.zeros(len(v)), np.ones(len(v)), integer=True)
            reach = high[y_at].max(1)[row] - lower[windows[y_at[row], slot]]
            self.rows.add_rows([(y[row], 1.0), (v, -1.0)], 0.0, np.inf)
            self.rows.add_rows([(y[row], 1.0), (v, -1.0), (pick, reach)], -np.inf, reach)
            one_of = sparse.csr_matrix((np.ones(len(pick)), (row, pick)), shape=(len(y), self.rows.columns))
            self.rows.add_matrix(one_of, 1.0, 1.0)
        return self._form(column, np.ones(len(out)), np.zeros(len(out)))


def flat(t: Tensor) -> Floats:
    """The numbers of a tensor, in float64."""
    return t.detach().to("cpu", torch.float64).flatten().numpy()


def _windows(op: MaxPool, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """The flat positions that each output reads, "out W" (-1: padding), over a map of `shape` "C *map"."""
    windows = op.windows(torch.empty(1, *shape, device="cpu")).numpy()
    size = int(np.prod(shape[1:]))
    every = windows[None] + size * np.arange(shape[0])[:, None, None]
    return np.where(windows[None] >= 0, every, -1).reshape(-1, windows.shape[1])
