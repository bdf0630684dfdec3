"""Proofs that symmetric matrices are positive definite, and upper bounds of eigenvalues that rest on them.

The factor R of a Cholesky decomposition that floating point carries through satisfies R^T R = S + E with
|E| <= gamma_{n+1} |R|^T |R| (Higham, Accuracy and Stability of Numerical Algorithms, 2002, theorem 10.3), whose norm is
at most gamma_{n+1} / (1 - gamma_{n+1}) times the trace of S. So S lowered by that much on its diagonal shows, where it
has a factor, that S is positive definite (Rump, Verification of positive definiteness, BIT 46, 2006). Nothing is
believed of an eigenvalue solver: its values are candidates.
"""

from __future__ import annotations

import numpy as np

from milp.problem import Floats
from milp.safe_bound import UNIT, gamma

TINY = float(np.finfo(np.float64).tiny)
ATTEMPTS = 60    # each raises a candidate twice as far: the last by more than any matrix of floats is worth
UP = 1 + 4 * UNIT


def is_positive_definite(S: Floats, error: Floats | float = 0.0) -> bool:
    """Proved: every symmetric matrix that differs from S "n n" (its lower half counts) by at most `error`, elementwise,
    is positive definite. False proves nothing."""
    n = len(S)
    if n == 0:
        return True
    diagonal = S.diagonal()
    if not (np.isfinite(S).all() and np.isfinite(error).all() and (diagonal > TINY).all()):
        return False
    # A congruence with powers of two is exact, and makes the proof blind to units.
    scale = np.exp2(-np.round(np.log2(diagonal) / 2))
    scaled = S * scale[:, None] * scale
    # A symmetric matrix is at least minus its row sums of sizes.
    wrong = (np.broadcast_to(error, S.shape) * scale[:, None] * scale).sum(1) * (1 + 2 * float(gamma(n + 4)))
    share = float(gamma(n + 3))
    if share >= 0.1:
        return False
    lost = 1.5 * share / (1 - share) * float(scaled.trace()) + 8 * (n + 4) ** 2 * TINY
    at = np.arange(n)
    scaled[at, at] -= (wrong + lost) * (1 + 8 * UNIT) + 4 * UNIT * scaled[at, at]
    try:
        factor = np.linalg.cholesky(scaled)
    except np.linalg.LinAlgError:  # which shows nothing but that there is no proof
        return False
    return bool(np.isfinite(factor).all())


def eigenvalue_above(S: Floats, error: Floats | float = 0.0) -> float:
    """A proved upper bound of the largest eigenvalue of every symmetric matrix within `error` of S "n n", elementwise;
    within rounding of the best such bound. inf where S is not finite."""
    n = len(S)
    if not (np.isfinite(S).all() and np.isfinite(error).all()):
        return np.inf
    sizes = np.abs(S) + error
    simple = float(sizes.sum(1).max(initial=0.0)) * (1 + 2 * float(gamma(n + 2)))  # a norm bounds every eigenvalue
    try:
        top = float(np.linalg.eigvalsh(S)[-1])
    except np.linalg.LinAlgError:
        return simple
    at = np.arange(n)
    slack = 4 * n * UNIT * simple
    for _ in range(ATTEMPTS):
        bound = top + slack
        if bound >= simple:
            break
        rest = -S
        rest[at, at] += bound
        wrong = np.array(np.broadcast_to(error, S.shape))
        wrong[at, at] += 2 * UNIT * (abs(bound) + np.abs(S[at, at]))
        if is_positive_definite(rest, wrong):
            return bound
        slack *= 2
    return simple


def norm_above(W: Floats, radius: Floats | float = 0.0) -> float:
    """A proved upper bound of the spectral norm of every matrix within `radius` of W "m n", elementwise."""
    if W.size == 0:
        return 0.0
    largest = float(np.abs(W).max())
    if not np.isfinite(largest):
        return np.inf
    if largest > 0:  # by a power of two, so that squares neither overflow nor vanish
        unit = float(np.exp2(np.floor(np.log2(largest))))
        if not 0 < unit < np.inf:
            return np.inf
        return unit * _norm_above(W / unit, radius / unit)
    return _norm_above(W, radius)


def _norm_above(W: Floats, radius: Floats | float) -> float:
    short = W if W.shape[0] <= W.shape[1] else W.T
    R = np.broadcast_to(radius, W.shape)
    R = R if W.shape[0] <= W.shape[1] else R.T
    size = np.abs(short)
    error = (float(gamma(short.shape[1])) * (size @ size.T) + R @ size.T + size @ R.T + R @ R.T) * (
        1 + 4 * float(gamma(short.shape[1] + 4))) + short.shape[1] * TINY
    return float(np.sqrt(max(0.0, eigenvalue_above(short @ short.T, error)))) * UP
