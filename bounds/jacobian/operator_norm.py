"""Operator norms of matrices without negative entries, from l_p to l_q, rounded up.

Such a matrix is largest on a vector without negative entries, so that most norms have a closed form: from l_1 the
largest column, to l_inf the largest row in the dual norm, from l_inf (whose largest vector is all ones) the norm of the
row sums, to l_1 the dual norm of the column sums. From l_2 to l_2 three bounds meet: Frobenius, sqrt(||M||_1 ||M||_inf)
and, for any v > 0, `||M||^2 <= max_k (M^T M v)_k / v_k` (Collatz and Wielandt; Horn and Johnson, Matrix Analysis, 2013,
section 8.1), where v follows the power method: it holds whatever v is, so that no eigenvalue has to be right.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bounds.jacobian.enclosure import dual, vector_norm_up

POWER_STEPS = 30
FLOOR = 1e-6  # entries of v, as a share of the largest: quotients by tiny entries would be huge


@torch.no_grad()
def operator_norm_up(M: Tensor, p: float, q: float) -> Tensor:
    """At least `sup ||M x||_q / ||x||_p`: M "B m F", all entries >= 0 -> "B"; p, q in {1, 2, inf}."""
    other, _ = dual(p), dual(q)
    if bool((M < 0).any()):
        raise ValueError("expected a matrix without negative entries")
    if p == 1:
        return vector_norm_up(M, q, 1).amax(1)
    if q == math.inf:
        return vector_norm_up(M, other, 2).amax(1)
    if p == math.inf:
        return vector_norm_up(vector_norm_up(M, 1, 2), q)
    if q == 1:
        return vector_norm_up(vector_norm_up(M, 1, 1), other)
    frobenius = vector_norm_up(M.flatten(1), 2)
    up = 1 + 4 * torch.finfo(M.dtype).eps
    schur = (vector_norm_up(M, 1, 1).amax(1) * vector_norm_up(M, 1, 2).amax(1)).sqrt() * up
    best = torch.minimum(torch.minimum(frobenius, schur), _power(M))
    return torch.where(frobenius.isinf(), schur, best)


def _power(M: Tensor) -> Tensor:
    """The least of the quotients' bounds on the way of the power method, "B"."""
    scale = M.flatten(1).amax(1).clamp(min=torch.finfo(M.dtype).tiny)
    A = M / scale.view(-1, 1, 1)  # entries up to 1: nothing overflows, and what underflows is paid below
    v = A.new_ones(A.shape[0], A.shape[2])
    best = A.new_full((A.shape[0],), torch.inf)
    for _ in range(POWER_STEPS):
        w = torch.einsum("bmf,bm->bf", A, torch.einsum("bmf,bf->bm", A, v))
        best = torch.minimum(best, (w / v).amax(1))
        v = w / w.amax(1, keepdim=True).clamp(min=torch.finfo(M.dtype).tiny)
        v = v.clamp(min=FLOOR)
    info = torch.finfo(M.dtype)
    m, n = A.shape[1:]
    lost = 4 * (m + 1) * (n + 1) * info.tiny / FLOOR
    return (best * (1 + 2 * (m + n + 16) * info.eps) + lost).sqrt() * (1 + 4 * info.eps) * scale
