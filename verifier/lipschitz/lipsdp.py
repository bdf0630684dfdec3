"""LipSDP: the l_2 constant of a network by semidefinite programming (Fazlyab et al., arXiv:1906.04893).

For multipliers T >= 0 of the inequalities (x - a z)(z - x) >= 0 that slopes in [a, 1] imply of every neuron,

    min rho   subject to   diag(rho I, 0, .., 0) - diag(0, .., 0, W_{l+1}^T W_{l+1}) - sum_i Q_i(T_i)  >=  0

bounds the squared constant. Variants: "neuron", one multiplier a neuron, and "layer", one a layer. (The third of the
paper, "network", couples neurons by full multipliers and is not valid: Pauli et al., arXiv:2005.02929.)

The solver's word is no proof: of its answer the multipliers alone are used, and `storage.proved_constant` says what
they prove. A value is never above the product of operator norms.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from torch import Tensor

from bounds.graph import Graph
from milp.problem import Floats
from verifier.lipschitz.constant import Constant
from verifier.lipschitz.layers import Layers, read_layers
from verifier.lipschitz.operator_norms import operator_norm_constant
from verifier.lipschitz.storage import proved_constant, unit_layers
from verifier.verdict import Evidence

VARIANTS = ("neuron", "layer")
MOST_NEURONS = {"neuron": 500, "layer": 1500}
CLARABEL_ROWS = 60      # of the matrix; above it the first-order solver is faster
SCS_TOLERANCE = 1e-5


@dataclass(frozen=True, eq=False)
class Proposal:
    """Multipliers T_1 .. T_l ("n_i" each) and the squared constant that the solver claims; nothing of it is proved."""

    multipliers: tuple[Floats, ...]
    claimed: float


def lipsdp(graph: Graph, *, variant: str = "neuron", row: Tensor | None = None, time_limit_s: float = math.inf
           ) -> Constant:
    """`|f(x) - f(y)|_2 <= value |x - y|_2`, or of rows "m" or "R m" of f's outputs.

    Raises UnsupportedOperator for networks that are not sequential, and ValueError above MOST_NEURONS hidden neurons.
    """
    begin = time.monotonic()
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)} (\"network\" is not valid), got {variant!r}")
    if not time_limit_s > 0:
        raise ValueError(f"time_limit_s must be > 0, got {time_limit_s}")
    layers = read_layers(graph, row)
    hidden = sum(layers.widths[1:-1])
    if hidden > MOST_NEURONS[variant]:
        raise ValueError(f"LipSDP-{variant} takes at most {MOST_NEURONS[variant]} hidden neurons, got {hidden}: "
                         "eclipse scales further")
    unit = unit_layers(layers)
    proposal = propose(unit.weights, unit.flattest, variant=variant, time_limit_s=time_limit_s)
    value = math.inf if proposal is None else proved_constant(unit, proposal.multipliers)
    return at_most_product(graph, layers, row, value, f"LipSDP-{variant}", begin)


def at_most_product(graph: Graph, layers: Layers, row: Tensor | None, value: float, method: str, begin: float
                    ) -> Constant:
    """The proved value, or the product of operator norms where that is less."""
    plain = operator_norm_constant(graph, row=row)
    note = [] if layers.exact_slopes else [plain.note]
    if not value <= plain.value:
        note.append(f"{method} proved no less than the operator norms")
        value = plain.value
    evidence = Evidence.ROUNDED if layers.exact_slopes and value < math.inf else Evidence.FLOAT
    return Constant(value, evidence, method, time.monotonic() - begin, "; ".join(note))


def propose(weights: Sequence[Floats], flattest: Sequence[Floats], *, variant: str = "neuron",
            time_limit_s: float = math.inf) -> Proposal | None:
    """Multipliers from a solver, for weights W_1 .. W_{l+1} of norm about one and slopes in [a_i, 1]; None where it has
    none."""
    import cvxpy as cp

    if not flattest:
        return Proposal((), float(np.linalg.norm(weights[0], 2)) ** 2)
    constant, columns = condition([_few_inputs(weights[0]), *weights[1:]], flattest)
    size = constant.shape[0]
    widths = [len(a) for a in flattest]
    share = sparse.identity(sum(widths), format="csr") if variant == "neuron" else sparse.csr_matrix(
        (np.ones(sum(widths)), (np.arange(sum(widths)), np.repeat(np.arange(len(widths)), widths))))
    T = cp.Variable(share.shape[1], nonneg=True)
    rho = cp.Variable()
    corner, inputs = np.zeros(size), min(weights[0].shape)
    corner[:inputs] = 1.0
    flat = sparse.csr_matrix(sparse.diags(corner)).reshape(size * size, 1)
    expression: Any = constant.ravel() + flat @ cp.reshape(rho, (1,), order="C") + (columns @ share) @ T
    problem = cp.Problem(cp.Minimize(rho), [cp.reshape(expression, (size, size), order="C") >> 0])
    solver, options = _solver(size, time_limit_s)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an inaccurate answer is as good as any other multipliers
        try:
            problem.solve(solver=solver, **options)
        except cp.error.SolverError:  # the caller has the product of norms
            return None
    if T.value is None or rho.value is None or not np.isfinite(T.value).all():
        return None
    found = np.split(share @ T.value, np.cumsum(widths)[:-1])
    return Proposal(tuple(found), float(rho.value))


def _solver(size: int, time_limit_s: float) -> tuple[str, dict[str, Any]]:
    limited = time_limit_s < math.inf
    if size <= CLARABEL_ROWS:
        return "CLARABEL", {"accept_unknown": True, **({"time_limit": time_limit_s} if limited else {})}
    return "SCS", {"eps_abs": SCS_TOLERANCE, "eps_rel": SCS_TOLERANCE,
                   **({"time_limit_secs": time_limit_s} if limited else {})}


def _few_inputs(W: Floats) -> Floats:
    """A matrix with the same W W^T and no more columns than rows."""
    return W if W.shape[1] <= W.shape[0] else np.asarray(np.linalg.qr(W.T, mode="r")).T


def condition(weights: Sequence[Floats], flattest: Sequence[Floats]) -> tuple[Floats, sparse.csr_matrix]:
    """The matrix of LipSDP but for rho: (its constant part "n n", what a unit of each neuron's multiplier adds, flat,
    "n*n neurons"), over the differences of the input and of all activations."""
    widths = [weights[0].shape[1], *(len(a) for a in flattest)]
    starts = np.concatenate([[0], np.cumsum(widths)])
    size = int(starts[-1])
    constant = np.zeros((size, size))
    constant[starts[-2]:, starts[-2]:] = -weights[-1].T @ weights[-1]
    row, column, value, neuron = [], [], [], 0
    for k, (W, a) in enumerate(zip(weights, flattest, strict=False)):
        read = np.arange(starts[k], starts[k + 1])
        for j, w in enumerate(W):
            own = starts[k + 1] + j
            at = [own * size + own, *(read * size + own), *(own * size + read)]
            entries = [1.0, *(-0.5 * (1 + a[j]) * w), *(-0.5 * (1 + a[j]) * w)]
            if a[j]:
                at += list((read[:, None] * size + read).ravel())
                entries += list((a[j] * np.outer(w, w)).ravel())
            row += at
            value += entries
            column += [neuron] * len(at)
            neuron += 1
    return constant, sparse.csr_matrix((value, (row, column)), shape=(size * size, neuron))
