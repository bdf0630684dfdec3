"""Local Lipschitz constants, from enclosures of the gradient over a convex set.

For x, x' in a convex set the mean value theorem for generalised gradients (Lebourg; Clarke, Optimization and Nonsmooth
Analysis, 1983, theorem 2.3.7) gives g with `C f(x) - C f(x') = <g, x - x'>`, g an element of the generalised gradient
between them: by Hölder's inequality the supremum of its dual norm over the set is a Lipschitz constant. Features that
cannot move do not count. (Fast-Lip, arXiv:1804.09699; RecurJac, arXiv:1810.11783; Shi et al., arXiv:2210.07394.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.bounds import LinearRows
from bounds.final import owner_of
from bounds.graph.graph import Graph
from bounds.interval import Interval
from bounds.jacobian.compute import METHODS, jacobian_bounds
from bounds.jacobian.enclosure import Jacobian, dual, sup_norm
from bounds.jacobian.linear import bound_with_norm
from bounds.jacobian.operator_norm import operator_norm_up
from bounds.sets import InputSet
from verifier.verdict import Evidence


@dataclass(frozen=True, eq=False)
class LocalConstants:
    """`constant` "N": `|C f(x) - C f(x')| <= constant * ||x - x'||` for all x, x' of a row's set; `jacobian`: the
    enclosure of the gradients that it rests on."""

    constant: Tensor
    evidence: Evidence
    jacobian: Jacobian


@dataclass(frozen=True, eq=False)
class MapConstants:
    """`constant` "B": `||f(x) - f(x')||_q <= constant * ||x - x'||_p` for all x, x' of a set; `jacobian`: of every
    output over every set, one set's rows after the other."""

    constant: Tensor
    evidence: Evidence
    jacobian: Jacobian


@torch.no_grad()
def local_lipschitz(graph: Graph, sets: InputSet, rows: LinearRows, *, norm: float, method: str = "jacobian",
                    given: Mapping[int, Interval] | None = None) -> LocalConstants:
    """Constants "N" of the rows `C f(x)` over their sets, for distances in l_1, l_2 or l_inf.

    method: "fastlip", "recurjac" or "jacobian"; given: proved enclosures of nodes (None: those of CROWN). In float64
    rounding is accounted for where every operator's is; infinite where the function jumps or bounds overflow."""
    q = dual(norm)
    if method == "jacobian" and q != math.inf:
        found, constant = bound_with_norm(graph, sets, rows, q, given=given)
    else:
        found = jacobian_bounds(graph, sets, rows, method, given=given)
        moves = owner_of(rows, sets.batch).rows(sets.lower < sets.upper)
        constant = sup_norm(found, q, moves)
    return LocalConstants(constant, _evidence(found), found)


@torch.no_grad()
def local_lipschitz_map(graph: Graph, sets: InputSet, *, p: float, q: float, method: str = "jacobian",
                        given: Mapping[int, Interval] | None = None) -> MapConstants:
    """Constants "B" of the whole function f from the norm p to the norm q, each 1, 2 or inf: the norm of the matrix of
    the largest sizes of its partial derivatives, `||J||_{p,q} <= || |J| ||_{p,q}`."""
    dual(p), dual(q)
    outputs = torch.Size(graph.output_shape).numel()
    eye = torch.eye(outputs, dtype=sets.dtype, device=sets.device)
    owner = torch.arange(sets.batch, device=sets.device).repeat_interleave(outputs)
    rows = LinearRows(eye.repeat(sets.batch, 1), owner)
    if q == math.inf:
        parts = local_lipschitz(graph, sets, rows, norm=p, method=method, given=given)
        return MapConstants(parts.constant.view(sets.batch, -1).amax(1), parts.evidence, parts.jacobian)
    found = jacobian_bounds(graph, sets, rows, method, given=given)
    size = found.magnitude.view(sets.batch, outputs, -1)
    size = torch.where((sets.lower < sets.upper).flatten(1).unsqueeze(1), size, torch.zeros_like(size))
    return MapConstants(operator_norm_up(size, p, q), _evidence(found), found)


def _evidence(found: Jacobian) -> Evidence:
    return Evidence.ROUNDED if found.rounded else Evidence.FLOAT


__all__ = ["METHODS", "LocalConstants", "MapConstants", "local_lipschitz", "local_lipschitz_map"]
