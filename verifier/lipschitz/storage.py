"""What multipliers prove of a network's l_2 constant: the LipSDP condition, evaluated layer by layer from the end.

A neuron whose slopes lie in [a, 1] satisfies (x - a z)(z - x) >= 0 between any two inputs, where z is the difference it
reads and x the one it gives. With multipliers T_i >= 0, one a neuron, and symmetric matrices N_i, N_l = W_{l+1}^T
W_{l+1}, suppose that for each layer i, over all differences w of its input and x of its output, z = W_i w,

    w^T N_{i-1} w  -  x^T N_i x  -  (x - a z)^T T_i (z - x)  >=  0.

Then |f(x) - f(y)|_2^2 <= lambda_max(N_0) |x - y|_2^2: the forms N_i are storage functions, and their sum is the matrix
inequality of LipSDP-Neuron (Fazlyab et al., arXiv:1906.04893) cut into layers (as in Xu and Sivaranjani,
arXiv:2404.04375). For given multipliers the least N_{i-1} is a Schur complement; here it is computed, raised a little,
and the inequality of the layer proved of what was computed (`definite`). So any multipliers, whoever proposes them,
give a valid constant, or infinity; multipliers that are too small for their layer are raised.

Diagonal multipliers only: the full ones of the variant "Network" are invalid (Pauli et al., arXiv:2005.02929).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from milp.problem import Floats
from milp.safe_bound import UNIT, gamma
from verifier.lipschitz.definite import TINY, UP, eigenvalue_above, is_positive_definite
from verifier.lipschitz.layers import Layers

POWER_STEPS = 30
MOST_ROWS = 8192      # of the matrix that is proved of a layer, its inputs and outputs: half a gigabyte, half a minute
MARGIN = 1e-11        # relative: how far forms and multipliers are raised at first, and eight times further each time
RAISES = 14


@dataclass(frozen=True, eq=False)
class UnitLayers:
    """The same network with slopes in [a, 1] and weights of norm about one: f = scale * W_{l+1} phi_l W_l .. phi_1 W_1.

    `weights` W_1 .. W_{l+1}, with the `radii` in which the exact ones lie, `flattest` a_1 .. a_l in [-1, 1)."""

    weights: tuple[Floats, ...]
    radii: tuple[Floats, ...]
    flattest: tuple[Floats, ...]
    scale: float


def unit_layers(layers: Layers) -> UnitLayers:
    """Steepest slopes go into the next weights, and powers of two out of all. Raises ValueError where a layer is too
    large."""
    weights, radii, flattest, scale = [], [], [], 1.0
    steepest: Floats | None = None
    for k, m in enumerate(layers.maps):
        if k + 1 < len(layers.maps) and sum(m.shape) > MOST_ROWS:
            raise ValueError(f"layer {k + 1} has {m.shape[1]} inputs and {m.shape[0]} neurons, more than {MOST_ROWS} "
                             "together; operator norms have no such limit")
        W, R = m.dense()
        if steepest is not None:
            exact = bool((np.frexp(steepest)[0] == 0.5).all())
            W, R = W * steepest, R * steepest * UP
            if not exact:
                R = R + 2 * UNIT * np.abs(W) + TINY
        unit = _power_of_two(W)
        weights.append(W / unit)
        radii.append(R / unit)
        scale *= unit
        if k < len(layers.slopes):
            known = layers.slopes[k]
            steepest = np.where(known.steepest > 0, known.steepest, 1.0)
            low = known.lower / steepest
            flattest.append(np.where(low * steepest == known.lower, low, np.nextafter(low, -np.inf)).clip(-1.0, 1.0))
    return UnitLayers(tuple(weights), tuple(radii), tuple(flattest), scale)


def _power_of_two(W: Floats) -> float:
    """About the spectral norm of W."""
    size = float(np.abs(W).max(initial=0.0))
    if not TINY < size < 1 / TINY:
        return 1.0
    v = np.abs(W).sum(0) / size
    for _ in range(POWER_STEPS):
        v = W.T @ (W @ v)
        length = float(np.linalg.norm(v))
        if not TINY < length < 1 / TINY:
            return float(np.exp2(np.round(np.log2(size))))
        v /= length
    return float(np.exp2(np.round(np.log2(max(size, float(np.linalg.norm(W @ v)))))))


def proved_constant(layers: UnitLayers, multipliers: Sequence[Floats]) -> float:
    """An upper bound of the l_2 constant that any multipliers T_1 .. T_l ("n_i" each) prove; inf where they prove none.
    Those that are negative or no numbers count as zero."""
    if len(multipliers) != len(layers.flattest) or any(len(T) != len(a) for T, a in zip(multipliers, layers.flattest,
                                                                                        strict=False)):
        raise ValueError(f"expected a multiplier for each of {[len(a) for a in layers.flattest]} neurons, got "
                         f"{[len(T) for T in multipliers]}")
    with np.errstate(all="ignore"):
        N: Floats | None = _last(layers.weights[-1], layers.radii[-1])
        for W, R, a, T in reversed(list(zip(layers.weights, layers.radii, layers.flattest, multipliers, strict=False))):
            N = None if N is None else _below(N, np.where(np.isfinite(T), T, 0.0).clip(min=0.0), W, R, a)
        if N is None:
            return math.inf
        value = layers.scale * math.sqrt(max(0.0, eigenvalue_above(N))) * UP
    return value if math.isfinite(value) else math.inf


def _last(W: Floats, R: Floats) -> Floats:
    """A matrix that is at least W^T W for all W within the radius."""
    gram = W.T @ W
    size = np.abs(W)
    share = float(gamma(W.shape[0] + 8))
    wrong = size.T @ R.sum(1) + R.T @ (size.sum(1) + R.sum(1)) + share * (size.T @ size.sum(1))
    at = np.arange(len(gram))
    # Row sums of the sizes of an error dominate it.
    gram[at, at] += (wrong + UNIT * gram[at, at]) * (1 + 2 * float(gamma(2 * sum(W.shape) + 8))) + len(gram) * TINY
    return np.asarray((gram + gram.T) / 2)


def _below(N: Floats, T: Floats, W: Floats, R: Floats, a: Floats) -> Floats | None:
    """N_{i-1} for N_i; None where nothing can be proved."""
    room = eigenvalue_above(N)
    if not math.isfinite(room):
        return None
    flat = np.diag_indices(len(T))
    margin = MARGIN
    for _ in range(RAISES):
        raised = T + margin * max(room, float(T.max(initial=0.0)), TINY)
        S = -N
        S[flat] += raised
        lacking = -float(np.linalg.eigvalsh(S)[0]) if len(S) else 0.0
        if lacking > -margin * room:  # the multipliers have to exceed the form
            raised = raised + max(0.0, lacking) + margin * room
            S = -N
            S[flat] += raised
        found = _proved(N, S, raised, W, R, a, margin)
        if found is not None:
            return found
        margin *= 8
    return None


def _proved(N: Floats, S: Floats, T: Floats, W: Floats, R: Floats, a: Floats, margin: float) -> Floats | None:
    """The Schur complement, raised by `margin`, if the layer's inequality can be proved of it."""
    n, m = len(T), W.shape[1]
    half = (0.5 * (1 + a) * T)[:, None]
    cross = half * W
    try:
        pulled = cross.T @ np.linalg.solve(S, cross)
    except np.linalg.LinAlgError:
        return None
    bent = (a * T)[:, None]
    curved = bool(a.any())
    quadratic = W.T @ (bent * W) if curved else np.zeros((m, m))
    form = pulled - quadratic
    form = (form + form.T) / 2
    if not np.isfinite(form).all():
        return None
    at = np.arange(m)
    form[at, at] += margin * max(float(form.diagonal().max(initial=0.0)), TINY)
    block, error = np.empty((m + n, m + n)), np.empty((m + n, m + n))
    block[:m, :m], block[m:, :m], block[:m, m:], block[m:, m:] = form + quadratic, -cross, -cross.T, S
    reach = 8 * UNIT * np.abs(cross) + np.abs(half) * R * (1 + 8 * UNIT) + TINY
    error[m:, :m], error[:m, m:] = reach, reach.T
    error[m:, m:] = np.diag(2 * UNIT * (T + np.abs(N.diagonal())) + TINY)
    error[:m, :m] = 2 * UNIT * np.abs(block[:m, :m]) + TINY
    if curved:
        size, weight = np.abs(W), np.abs(bent)
        share = float(gamma(n + 8))
        spread = (weight * size).T @ R
        error[:m, :m] += (spread + spread.T + (weight * R).T @ R + share * ((weight * size).T @ size)) * (
            1 + 2 * float(gamma(n + 8))) + n * TINY
    return form if is_positive_definite(block, error) else None
