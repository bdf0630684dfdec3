"""The product of operator norms: the oldest Lipschitz constant (Szegedy et al., arXiv:1312.6199), for any network.

Every node has three constants, of the map from the input in the norm asked about to the node in l_1, l_2 and l_inf;
each step takes the least over the norms that its inputs may be measured in, so mixed norms (2 -> inf: the longest row)
come in wherever they help. Branches of a residual block add up; what is put side by side in l_2 adds up in squares.

Norms of a matrix W from l_r to l_q: exact for r = 1 (the largest column in l_q) and q = inf (the largest row in the
dual of l_r); 2 -> 2 by a proved eigenvalue bound where W has a short side, and else by Gram iteration (Delattre et al.,
arXiv:2305.16173) with Collatz-Wielandt quotients: for positive v and G = W W^T, ||W||_2^2 <= max_i (|G| v)_i / v_i, and
as well with powers of G. Power iteration alone approaches the norm from below, and proves nothing. The rest (inf -> 2,
2 -> 1, inf -> 1) by the norms that lie between.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from bounds.graph import Graph, UnsupportedOperator
from bounds.jacobian.enclosure import dual
from bounds.ops.base import Affine, Elementwise
from bounds.ops.max_pool import MaxPool
from bounds.ops.softmax import Softmax
from milp.problem import Floats
from milp.safe_bound import gamma
from verifier.lipschitz.constant import Constant
from verifier.lipschitz.definite import TINY, UP, eigenvalue_above, norm_above
from verifier.lipschitz.layers import AffineMap, affine_maps, identity, row_map, summed
from verifier.lipschitz.slopes import slopes
from verifier.verdict import Evidence

NORMS = (1.0, 2.0, math.inf)
SHORT_SIDE = 2048           # of a matrix whose Gram matrix is made dense: some seconds
MOST_PRODUCTS = 300_000_000  # for a power of a Gram matrix: some seconds
GAIN = 1e-3                  # by which a further power must have lowered the bound
QUOTIENT_STEPS = 100        # of power iteration for the vector of the quotients: any positive vector is sound
SOFTMAX = 0.5               # its Jacobian's rows and columns have l_1 norms 2 p (1 - p) <= 1/2, and it is symmetric

Reach = Mapping[float, float]  # of a node: the constant from the input to it in each of NORMS


def operator_norm_constant(graph: Graph, *, norm_in: float = 2.0, norm_out: float = 2.0, row: Tensor | None = None
                           ) -> Constant:
    """`|f(x) - f(y)|_out <= value |x - y|_in` for all x and y, or of rows "m" or "R m" of f's outputs.

    Raises UnsupportedOperator by name for an operator without a known constant.
    """
    begin = time.monotonic()
    if norm_in not in NORMS or norm_out not in NORMS:
        raise ValueError(f"norms must be 1, 2 or inf, got {norm_in} and {norm_out}")
    found, exact = _forms(graph, norm_in, row)
    form, reach = found
    value = _through(form, reach)[norm_out]
    note = "" if exact else "softplus without its drop at the threshold"
    return Constant(value, Evidence.ROUNDED if exact and value < math.inf else Evidence.FLOAT, "operator norms",
                    time.monotonic() - begin, note)


def matrix_norms(map: AffineMap) -> dict[tuple[float, float], float]:
    """Upper bounds of the operator norm from l_r to l_q, {(r, q): norm}, of every matrix within the map's radius."""
    if 0 in map.shape:
        return {(r, q): 0.0 for r in NORMS for q in NORMS}
    size = abs(map.matrix) + map.radius
    up = 1 + 2 * float(gamma(sum(map.shape) + 8))
    found = {(1.0, q): float(_lengths(size, q, 0).max()) * up for q in NORMS}
    found |= {(r, math.inf): float(_lengths(size, dual(r), 1).max()) * up for r in NORMS}
    spectral = found[2.0, 2.0] = spectral_norm(map)
    rows, columns = _lengths(size, 1.0, 1), _lengths(size, 1.0, 0)
    found[math.inf, 1.0] = float(rows.sum()) * up
    # Entries of W x are at most row sums, and |x|_2 <= sqrt(n) |x|_inf; from 2 to 1 the same of the transpose.
    for pair, sums, side in (((math.inf, 2.0), rows, map.shape[1]), ((2.0, 1.0), columns, map.shape[0])):
        found[pair] = min(_length(sums), math.sqrt(side) * spectral) * up
    return found


def _length(v: Floats) -> float:
    """The l_2 length of a vector >= 0, up to rounding; its squares neither overflow nor vanish."""
    top = float(v.max(initial=0.0))
    return top * float(np.sqrt(((v / top) ** 2).sum())) if 0 < top < math.inf else top


def _product(a: float, b: float) -> float:
    """a b of numbers >= 0, rounded up, also where it underflows."""
    return max(a * b * UP, TINY) if a > 0 and b > 0 else 0.0


def _lengths(size: sparse.csr_matrix, norm: float, axis: int) -> Floats:
    """l_p lengths of the columns (axis 0) or rows (axis 1) of a matrix >= 0, up to rounding."""
    if norm == math.inf:
        return np.asarray(size.max(axis).toarray(), dtype=np.float64).ravel()
    if norm == 1.0:
        return np.asarray(size.sum(axis), dtype=np.float64).ravel()
    top = size.max()
    unit = float(top) if top > 0 else 1.0
    scaled = size / unit
    return unit * np.sqrt(np.asarray(scaled.multiply(scaled).sum(axis), dtype=np.float64).ravel()) * UP ** 2


def spectral_norm(map: AffineMap) -> float:
    """An upper bound of ||W||_2 for every W within the radius of the map's matrix, all rounding accounted for."""
    largest = float(abs(map.matrix).max()) if map.matrix.nnz else 0.0
    if not TINY < largest < 1 / TINY:
        return norm_above(*map.dense())
    unit = float(np.exp2(np.floor(np.log2(largest))))  # a power of two: squares stay in range
    matrix, radius = map.matrix / unit, map.radius / unit
    if map.shape[0] > map.shape[1]:
        matrix, radius = matrix.T, radius.T
    gram, error = _gram(sparse.csr_matrix(matrix), sparse.csr_matrix(radius))
    if gram.shape[0] <= SHORT_SIDE:
        return unit * math.sqrt(max(0.0, eigenvalue_above(gram.toarray(), error.toarray()))) * UP
    return unit * _gram_iteration(gram, error) * UP


def _gram(matrix: sparse.csr_matrix, radius: sparse.csr_matrix) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """(W W^T, how far entries are off) over all W within the radius."""
    share = float(gamma(matrix.shape[1] + 8))
    size = abs(matrix)
    cross = size @ radius.T
    error = sparse.csr_matrix((cross + cross.T + radius @ radius.T + share * (size @ size.T)) * (1 + 2 * share))
    error.data += matrix.shape[1] * TINY
    return sparse.csr_matrix(matrix @ matrix.T), error


def _gram_iteration(gram: sparse.csr_matrix, error: sparse.csr_matrix) -> float:
    """A bound of sqrt(||G||_2) of a large sparse G: the best over those of its powers that stay sparse."""
    unit = 4.0 ** round(math.log(_quotient(gram, error), 4))
    power, error, exponent, best = gram / unit, error / unit, 2.0, math.inf
    while True:
        found = _quotient(power, error) ** (1 / exponent) * UP ** 4
        if not found < best * (1 - GAIN) or power.nnz * (power.nnz / power.shape[0]) > MOST_PRODUCTS:
            return min(best, found) * math.sqrt(unit)
        best = found
        power, error = _gram(power, error)
        exponent *= 2


def _quotient(power: sparse.csr_matrix, error: sparse.csr_matrix) -> float:
    """max_i (|G| v)_i / v_i: at least the largest eigenvalue of every matrix within the error, for any v > 0."""
    size = abs(power) + error
    v = np.ones(size.shape[0])
    for _ in range(QUOTIENT_STEPS):
        w = size @ v
        v = w / max(float(w.max()), TINY) + 1e-9
    return float(((size @ v) / v).max()) * (1 + 2 * float(gamma(size.shape[0] + 4)))


def _forms(graph: Graph, norm_in: float, row: Tensor | None
           ) -> tuple[tuple[dict[int, AffineMap], dict[int, Reach]], bool]:
    """((the output as a sum of affine maps of nodes, what is known of these), whether slopes are exact)."""
    size = math.prod(graph.input_shape)
    forms: dict[int, dict[int, AffineMap]] = {0: {0: identity(size)}}
    reach: dict[int, Reach] = {0: _embedded({norm_in: 1.0}, size)}
    exact = True
    for i in sorted(graph.ancestors - {0}):
        node = graph.nodes[i]
        if isinstance(node.op, Affine):
            forms[i] = _affine(graph, i, forms)
            continue
        below = _through(forms[node.inputs[0]], reach)
        if isinstance(node.op, Elementwise):
            known = slopes(graph, node)
            exact = exact and known.exact
            steepest = float(known.steepest.max(initial=0.0))
            own = {r: _product(value, steepest) for r, value in below.items()}
        elif isinstance(node.op, MaxPool):
            times = _overlap(graph, i)  # each input is the largest of at most so many windows
            own = {r: value * (1.0 if r == math.inf else times ** (1 / r) * UP) for r, value in below.items()}
        elif isinstance(node.op, Softmax):
            own = {r: _product(value, SOFTMAX) for r, value in below.items()}
        else:
            raise UnsupportedOperator(f"{graph.source}: {node.op.kind} ({node.name}) has no known Lipschitz constant")
        reach[i] = _embedded(own, math.prod(node.shape))
        forms[i] = {i: identity(math.prod(node.shape))}
    last = forms[graph.output]
    if row is not None:
        rows = row_map(graph, row)
        last = {s: rows.after(m) for s, m in last.items()}
    return (last, reach), exact


def _affine(graph: Graph, i: int, forms: dict[int, dict[int, AffineMap]]) -> dict[int, AffineMap]:
    """Affine node i as a sum of maps of the nodes before it that are not affine."""
    found: dict[int, list[AffineMap]] = {}
    for j, step in zip(graph.nodes[i].inputs, affine_maps(graph, i), strict=True):
        for source, first in forms[j].items():
            found.setdefault(source, []).append(step.after(first))
    return {source: summed(parts) for source, parts in found.items()}


def _embedded(reach: Reach, size: int) -> Reach:
    """What one norm says of the others, of vectors of `size`: |x|_inf <= |x|_2 <= |x|_1, and back by sqrt(size)."""
    root = math.sqrt(size) * UP
    least = {r: reach.get(r, math.inf) for r in NORMS}
    return {1.0: min(least[1.0], root * least[2.0] * UP, size * least[math.inf] * UP),
            2.0: min(least[2.0], least[1.0], root * least[math.inf] * UP),
            math.inf: min(least.values())}


def _through(form: Mapping[int, AffineMap], reach: Mapping[int, Reach]) -> Reach:
    """The constants of a sum of maps of nodes."""
    size = next(iter(form.values())).shape[0]
    norms = {s: matrix_norms(m) for s, m in form.items()}
    each = {q: [min(_product(reach[s][r], norms[s][r, q]) for r in NORMS if reach[s][r] < math.inf) for s in form]
            for q in NORMS}
    sums = {q: sum(values) * (1 + 4 * len(values) * 2.0 ** -53) for q, values in each.items()}
    if len(form) > 1:
        sums[2.0] = min(sums[2.0], _side_by_side(form, reach, each[2.0]))
        sums[math.inf] = min(sums[math.inf], _longest_row(form, reach))
    return _embedded(sums, size)


def _side_by_side(form: Mapping[int, AffineMap], reach: Mapping[int, Reach], parts: list[float]) -> float:
    """|sum_s M_s x_s|_2 where |x_s|_2 <= K_s: for weights t that sum to one it is at most ||[K_s M_s / sqrt(t_s)]||_2,
    with t_s proportional to (K_s ||M_s||)^2; for parts that do not meet, the root of the sum of squares."""
    total = sum(a * a for a in parts)
    if not 0 < total < math.inf:
        return math.inf if total else 0.0
    scales = [0.0 if a == 0 else reach[s][2.0] * math.sqrt(total) / a for s, a in zip(form, parts, strict=True)]
    if not all(math.isfinite(k) for k in scales):
        return math.inf
    up = 1 + 2 * float(gamma(len(parts) + 16))  # of the scales, and of weights that sum to one but for rounding
    zero = np.zeros(next(iter(form.values())).shape[0])
    matrices = [m.matrix * k for m, k in zip(form.values(), scales, strict=True)]
    radii = [(m.radius * k + abs(m.matrix) * (k * 4 * 2.0 ** -53)) * up
             for m, k in zip(form.values(), scales, strict=True)]
    return spectral_norm(AffineMap(sparse.csr_matrix(sparse.hstack(matrices)), sparse.csr_matrix(sparse.hstack(radii)),
                                   zero, zero)) * up


def _longest_row(form: Mapping[int, AffineMap], reach: Mapping[int, Reach]) -> float:
    """|sum_s M_s x_s|_inf, row by row, each with the norm of x_s that is best for it."""
    total = 0.0
    for s, m in form.items():
        size = abs(m.matrix) + m.radius
        rows = np.min([_lengths(size, dual(r), 1) * reach[s][r] for r in NORMS if reach[s][r] < math.inf], axis=0)
        total = total + rows
    most = max(m.shape[1] for m in form.values()) + len(form)
    return float(np.max(total, initial=0.0)) * (1 + 2 * float(gamma(most + 8)))


def _overlap(graph: Graph, i: int) -> int:
    """In how many windows of a max-pool an input may lie."""
    node = graph.nodes[i]
    op = node.op
    assert isinstance(op, MaxPool)
    read = op.windows(torch.zeros(1, *graph.nodes[node.inputs[0]].shape))
    return int(torch.bincount(read[read >= 0]).max())
