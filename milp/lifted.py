"""A network over a set as quadratic rows, lifted to symmetric matrices (Raghunathan, Steinhardt and Liang,
arXiv:1811.01057).

The variables are the inputs that can move and the outputs of neurons that their proved intervals leave undecided, each
shifted and scaled to w in [-1, 1]; every value of the network that is read is an affine form of v = (1, w). Decided
neurons are affine and cost nothing. With P = v v^T a quadratic function of w is a linear one of P, `<G, P>`, and

    y has slope a left of zero and 1 right of it   <=>   (y - z)(y - a z) = 0,   y >= z,   y >= a z

(ReLU: a = 0; both are `<=` where a > 1). Added are w^2 <= 1, the chord of every undecided neuron and proved ends of
decided ones: P = v v^T implies them, its relaxation "P is positive semidefinite, P_00 = 1" does not. With them it is
never looser than the linear programme over the same intervals (`milp.planet`).

Every matrix is scaled to entries of at most one. Coefficients carry the rounding of float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from bounds.graph import Graph, UnsupportedOperator
from bounds.graph.graph import Node
from bounds.interval import Interval
from bounds.ops.base import Affine, Elementwise
from bounds.ops.one_kink import OneKink
from bounds.ops.relu import Relu
from bounds.sets import InputSet
from milp.affine_matrix import affine_matrices
from milp.encoders.form import flat
from milp.loosened import loosened
from milp.problem import Floats

IMPLIED = 1e-9         # relative: a proved end that the box of the variables all but implies is no row
STANDS_STILL = 1e-9    # relative: what moves no more than this has no rows, for they would hold its rounding, scaled up
LEAST_RADIUS = 1e-5    # relative: of a variable that stands still; what follows from it holds its rounding, scaled up
BALL_LOOSENED = 1e-12  # relative: of a squared radius, for the rounding of its own row


@dataclass(frozen=True, eq=False)
class QuadraticRows:
    """K rows `<G_k, P> <= 0`, or `= 0` where `equal` "K": column k of `matrix` "n*n K" is the symmetric G_k, flat.

    On the set `P = v v^T`, v = (1, w), satisfies all of them, and its trace is at most n.
    """

    size: int
    matrix: sparse.csc_matrix
    equal: NDArray[np.bool_]


class Lifted:
    """The rows of a graph over one set, and the affine forms "size n" over v of its input and output.

    `intervals` "1 *shape" are proved enclosures of the nodes that non-affine operators read. With `both_parts` the rows
    hold, too, that y - z and y - a z lie in ranges (`_add_range`); the paper has this for y alone.
    """

    def __init__(self, graph: Graph, sets: InputSet, intervals: Mapping[int, Interval], *, both_parts: bool = False
                 ) -> None:
        if sets.batch != 1:
            raise ValueError("one set is lifted at a time")
        self.graph = graph = graph.to(dtype=torch.float64, device="cpu")
        self.sets = sets.to(dtype=torch.float64, device=torch.device("cpu"))
        self.intervals, self.both_parts = intervals, both_parts
        self.size = variables_of(graph, sets, intervals)
        self.used = 1
        self._entries: list[tuple[NDArray[np.int64], Floats]] = []
        self._equal: list[bool] = []
        needed = graph.ancestors
        forms = {0: self._input()}
        for i, node in enumerate(graph.nodes):
            if i in needed and i:
                forms[i] = self._affine(node, forms) if isinstance(node.op, Affine) else self._bent(node, forms)
        assert self.used == self.size, "every variable has its place"
        self.input, self.output = forms[0], forms[graph.output]

    def rows(self) -> QuadraticRows:
        """All rows."""
        counts = [len(places) for places, _ in self._entries]
        places = np.concatenate([np.zeros(0, dtype=np.int64), *(p for p, _ in self._entries)])
        values = np.concatenate([np.zeros(0), *(v for _, v in self._entries)])
        column = np.repeat(np.arange(len(counts)), counts)
        matrix = sparse.csc_matrix((values, (places, column)), shape=(self.size * self.size, len(counts)))
        return QuadraticRows(self.size, matrix, np.array(self._equal, dtype=bool))

    # ------------------------------------------------------------------ rows

    def _add(self, matrix: Floats, *, equal: bool = False) -> None:
        """`<matrix, P> <= 0` (or = 0), made symmetric."""
        matrix = (matrix + matrix.T) / 2
        places = matrix.ravel().nonzero()[0]
        if len(places):
            values = matrix.ravel()[places]
            self._entries.append((places, values / np.abs(values).max()))
            self._equal.append(equal)

    def _add_linear(self, form: Floats) -> None:
        """`form v >= 0`."""
        matrix = np.zeros((self.size, self.size))
        matrix[0] = -form
        self._add(matrix)

    def _add_range(self, form: Floats, most: float) -> None:
        """`form v (form v - most) <= 0`: the form lies in [0, most]."""
        matrix = np.outer(form, form)
        matrix[0] -= most * form
        self._add(matrix)

    def _variables(self, lower: Floats, upper: Floats) -> Floats:
        """New variables between these ends (lower < upper): their forms "m n". Each has |w| <= 1."""
        where = np.arange(self.used, self.used + len(lower))
        self.used += len(lower)
        forms = np.zeros((len(lower), self.size))
        forms[:, 0] = centre = 0.5 * lower + 0.5 * upper
        radius = np.nextafter(np.maximum(upper - centre, centre - lower), np.inf)
        still = radius <= STANDS_STILL * (1 + np.abs(centre))
        forms[np.arange(len(lower)), where] = np.where(still, LEAST_RADIUS * (1 + np.abs(centre)), radius)
        for k in where:
            square = np.zeros((self.size, self.size))
            square[k, k], square[0, 0] = 1, -1
            self._add(square)
        return forms

    # ------------------------------------------------------------------ nodes

    def _input(self) -> Floats:
        lower, upper = flat(self.sets.lower), flat(self.sets.upper)
        moves = lower < upper
        forms = np.zeros((len(lower), self.size))
        forms[:, 0] = lower
        forms[moves] = self._variables(lower[moves], upper[moves])
        if self.sets.centre is not None and self.sets.radius is not None:
            # An l_1 ball lies in the l_2 ball of its radius.
            z = forms.copy()
            z[:, 0] -= flat(self.sets.centre)
            if self.sets.scale is not None:
                z /= flat(self.sets.scale)[:, None]
            ball = z.T @ z
            ball[0, 0] -= float(self.sets.radius) ** 2 * (1 + BALL_LOOSENED)
            self._add(ball)
        return forms

    def _affine(self, node: Node, forms: Mapping[int, Floats]) -> Floats:
        assert isinstance(node.op, Affine)
        matrices, constant = affine_matrices(node.op, [self.graph.nodes[j].shape for j in node.inputs])
        total = np.zeros((len(constant), self.size))
        total[:, 0] = constant
        for j, matrix in zip(node.inputs, matrices, strict=True):
            total += matrix @ forms[j]
        return total

    def _bent(self, node: Node, forms: Mapping[int, Floats]) -> Floats:
        """An operator with slope a on the left of zero and 1 on its right."""
        i = node.inputs[0]
        assert isinstance(node.op, Elementwise)
        z, proved = forms[i], self.intervals[i]
        open_ = (~node.op.is_linear_on(proved)).flatten().numpy()
        a = np.zeros(len(z))
        if isinstance(node.op, OneKink):
            a = flat(node.op.left_slope(proved.lower).expand(1, *node.shape))
        x = loosened(proved)
        lower, upper = flat(x.lower), np.maximum(flat(x.lower), flat(x.upper))
        self._keep_ends(z[~open_], lower[~open_], upper[~open_])
        out = np.where((flat(proved.lower) >= 0) | (a == 1), 1.0, a)[:, None] * z
        out[open_] = self._kinks(z[open_], a[open_], lower[open_], upper[open_])
        return out

    def _keep_ends(self, z: Floats, lower: Floats, upper: Floats) -> None:
        """`lower <= z <= upper`, where the box of the variables does not imply it."""
        reach = np.abs(z[:, 1:]).sum(1) * (1 - IMPLIED)
        moves = reach > STANDS_STILL * (1 + np.abs(z[:, 0]))
        first = np.eye(1, self.size)
        for form in (*(z - lower[:, None] * first)[moves & (z[:, 0] - reach < lower)],
                     *(upper[:, None] * first - z)[moves & (z[:, 0] + reach > upper)]):
            self._add_linear(form)

    def _kinks(self, z: Floats, a: Floats, lower: Floats, upper: Floats) -> Floats:
        """Forms of `y = z` where z >= 0, else `a z`, of neurons whose ends lie on both sides of zero."""
        left = a * lower
        y = self._variables(np.minimum(np.minimum(left, upper), 0), np.maximum(np.maximum(left, upper), 0))
        slope = (upper - left) / (upper - lower)
        chord = slope[:, None] * z
        chord[:, 0] += upper - slope * upper
        above = np.where(a < 1, 1.0, -1.0)[:, None]  # the function lies above both of its lines
        first, second, third = above * (y - z), above * (y - a[:, None] * z), above * (chord - y)
        for k in (upper - lower > STANDS_STILL * (1 + np.abs(z[:, 0]))).nonzero()[0]:
            self._add(np.outer(first[k], second[k]), equal=True)
            for form in (first[k], second[k], third[k]):
                self._add_linear(form)
            if self.both_parts:
                self._add_range(first[k], -abs(1 - a[k]) * lower[k])
                self._add_range(second[k], abs(1 - a[k]) * upper[k])
        return y


def check_operators(graph: Graph) -> None:
    """Raises UnsupportedOperator, by name, for what is neither affine nor two lines that meet at zero."""
    for node in graph.nodes[1:]:
        if not isinstance(node.op, Affine | Relu | OneKink):
            raise UnsupportedOperator(f"{graph.source}: {node.op.kind} ({node.name}) is neither affine nor piecewise "
                                      "linear with its only kink at zero, and has no semidefinite relaxation here")


def variables_of(graph: Graph, sets: InputSet, intervals: Mapping[int, Interval]) -> int:
    """The size n of v: one, the inputs that can move, and the undecided neurons on which the output depends."""
    needed = graph.ancestors
    count = 1 + int((sets.lower < sets.upper).sum())
    for i, node in enumerate(graph.nodes):
        if i in needed and isinstance(node.op, Elementwise):
            count += int((~node.op.is_linear_on(intervals[node.inputs[0]])).sum())
    return count
