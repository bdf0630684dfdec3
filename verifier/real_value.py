"""Does a point that reaches the unsafe set in float32 reach it over the reals as well?

The network's value at one point is enclosed in float64, rounding included, and the property's rows are compared with
the enclosure in rationals. A threshold that is met exactly no enclosure decides: small ReLU networks are evaluated in
rationals then.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bounds.graph import Graph
from bounds.ibp import propagate
from bounds.interval import Interval
from bounds.ops.add import Add
from bounds.ops.base import Affine
from bounds.ops.conv import Conv
from bounds.ops.linear import Linear
from bounds.ops.matmul import MatMul
from bounds.ops.relu import Relu
from bounds.ops.scale import Scale
from bounds.rounding import is_covered
from bounds.sets import InputSet
from verifier.property import Property, Row

MOST_PRODUCTS = 1 << 18  # of rationals; a second or so
EXACT_PARTS = (Linear, Conv, MatMul, Scale, Add)  # whose matrices hold their parameters and nothing computed


def real_value(graph: Graph, x: NDArray[np.float32]) -> Interval:
    """An enclosure "m" (float64, flat) of what a graph in float64 gives at x over the reals."""
    point = torch.from_numpy(np.asarray(x, np.float64)).to(graph.device).reshape(1, *graph.input_shape)
    with torch.no_grad():
        return propagate(graph, InputSet(point, point))[graph.output].map(lambda t: t.flatten().cpu())


def real_agrees(graph: Graph, prop: Property, x: NDArray[np.float32], branch: int) -> bool | None:
    """Whether all rows of a branch hold at x over the reals: True and False are proved, None is neither. graph: in
    float64, the stored function up to its fold errors."""
    if not is_covered(graph):
        return None
    y = real_value(graph, x)
    rows = prop.branches[branch].rows
    answers = _hold(rows, x, [(Fraction(low), Fraction(high)) if np.isfinite(low) and np.isfinite(high) else None
                              for low, high in zip(y.lower.tolist(), y.upper.tolist(), strict=True)])
    if answers is None and (exact := exact_value(graph, x)) is not None:
        return _hold(rows, x, [(v, v) for v in exact])
    return answers


def exact_value(graph: Graph, x: NDArray[np.float32]) -> list[Fraction] | None:
    """The outputs of a small ReLU network at x, in rationals; None where it is not one, or was changed by folds."""
    values = {0: [Fraction(float(v)) for v in x.reshape(-1)]}
    products = 0
    for i in range(1, graph.output + 1):
        node = graph.nodes[i]
        if isinstance(node.op, Relu):
            values[i] = [max(v, Fraction(0)) for v in values[node.inputs[0]]]
            continue
        if i in graph.fold_errors or not isinstance(node.op, Affine) \
                or not (node.op.moves_only or isinstance(node.op, EXACT_PARTS)):
            return None
        sizes = [len(values[j]) for j in node.inputs]
        if sum(sizes) * torch.Size(node.shape).numel() > 16 * MOST_PRODUCTS:
            return None
        parts = _matrices(graph, i)
        products += sum(int((m != 0).sum()) for m in parts)
        if products > MOST_PRODUCTS:
            return None
        zeros = [torch.zeros(1, *graph.nodes[j].shape, dtype=torch.float64) for j in node.inputs]
        total = [Fraction(v) for v in node.op.forward(*zeros).flatten().tolist()]
        for matrix, j in zip(parts, node.inputs, strict=True):
            for column, row in matrix.nonzero().tolist():
                total[row] += Fraction(float(matrix[column, row])) * values[j][column]
        values[i] = total
    return values[graph.output]


def _matrices(graph: Graph, i: int) -> list[Tensor]:
    """For each input "k *in" of affine node i the matrix "k m" of its linear part."""
    node = graph.nodes[i]
    assert isinstance(node.op, Affine)
    found = []
    for chosen in range(len(node.inputs)):
        size = torch.Size(graph.nodes[node.inputs[chosen]].shape).numel()
        units = [torch.eye(size, dtype=torch.float64).view(size, *graph.nodes[j].shape) if k == chosen
                 else torch.zeros(size, *graph.nodes[j].shape, dtype=torch.float64) for k, j in enumerate(node.inputs)]
        found.append(node.op.linear(*units).flatten(1))
    return found


def _hold(rows: Sequence[Row], x: NDArray[np.float32], ends: list[tuple[Fraction, Fraction] | None]) -> bool | None:
    answers = [_holds(row, x.reshape(-1), ends) for row in rows]
    return False if False in answers else None if None in answers else True


def _holds(row: Row, x: NDArray[np.float32], ends: list[tuple[Fraction, Fraction] | None]) -> bool | None:
    least = most = sum((c * Fraction(float(x[j])) for j, c in row.x), -row.bound)
    for i, c in row.y:
        if (pair := ends[i]) is None:
            return None
        low, high = pair if c > 0 else pair[::-1]
        least, most = least + c * low, most + c * high
    if most < 0 or (most == 0 and not row.strict):
        return True
    return False if least > 0 or (least == 0 and row.strict) else None
