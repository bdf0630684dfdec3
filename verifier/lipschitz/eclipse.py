"""ECLipsE and ECLipsE-Fast: LipSDP's multipliers layer by layer (Xu and Sivaranjani, NeurIPS 2024, arXiv:2404.04375).

From the input on, M_0 = I, and with L_i L_i^T = W_i M_{i-1}^{-1} W_i^T, each layer chooses multipliers T_i and leaves

    M_i = T_i - 1/4 (1 + a) T_i ((L_i L_i^T)^{-1} + a T_i)^{-1} T_i (1 + a),

what x_i^T M_i x_i keeps of the squared length of the input; at the end ||L_{l+1}||^2 bounds the squared constant.

- Fast: T_i = 2 / ((1 - a) ||L_i||^2) I with the least a of the layer for all its neurons, for which
  M_i >= I / ||L_i||^2 (with a = 0 the paper's closed form). So by induction the constant is never above the product of
  norms.
- ECLipsE: the T_i that lose least if the network ended after the next weights, min ||W_{i+1} M_i^{-1/2}||: LipSDP of
  two layers, L_i and W_{i+1}, as large as these. Greedy, so the closed form may be better; the better one counts.

As everywhere, multipliers are all that is used of this: what they prove `storage.proved_constant` says.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
from torch import Tensor

from bounds.graph import Graph
from milp.problem import Floats
from verifier.lipschitz.constant import Constant
from verifier.lipschitz.layers import read_layers
from verifier.lipschitz.lipsdp import at_most_product, propose
from verifier.lipschitz.storage import UnitLayers, proved_constant, unit_layers

MOST_NEURONS = 300      # of one layer where a programme is solved for each
FLATTEST = 1 - 1e-6     # of a layer whose neurons are all linear the multiplier would be infinite
SPARE = 1e-9            # relative: by which multipliers exceed what the last layer needs


def eclipse(graph: Graph, *, fast: bool = False, row: Tensor | None = None, time_limit_s: float = math.inf) -> Constant:
    """`|f(x) - f(y)|_2 <= value |x - y|_2`, or of rows "m" or "R m" of f's outputs.

    Raises UnsupportedOperator for networks that are not sequential, and ValueError for layers that are too large.
    Layers that the time does not reach get the closed form.
    """
    begin = time.monotonic()
    if not time_limit_s > 0:
        raise ValueError(f"time_limit_s must be > 0, got {time_limit_s}")
    layers = read_layers(graph, row)
    widest = max(layers.widths[1:-1], default=0)
    if not fast and widest > MOST_NEURONS:
        raise ValueError(f"ECLipsE takes at most {MOST_NEURONS} neurons a layer, got {widest}: ECLipsE-Fast scales "
                         "further")
    unit = unit_layers(layers)
    even = replace(unit, flattest=tuple(np.full(len(a), a.min(initial=1.0)) for a in unit.flattest))
    value = proved_constant(even, multipliers(even, fast=True))
    if not fast:
        value = min(value, proved_constant(unit, multipliers(unit, fast=False, time_limit_s=time_limit_s)))
    return at_most_product(graph, layers, row, value, "ECLipsE-Fast" if fast else "ECLipsE", begin)


def multipliers(layers: UnitLayers, *, fast: bool, time_limit_s: float = math.inf) -> list[Floats]:
    """T_1 .. T_l, scaled so that they fit the squared constant that they were found for."""
    end = time.monotonic() + time_limit_s
    found = []
    L = layers.weights[0]
    for W, a in zip(layers.weights[1:], layers.flattest, strict=True):
        T = _closed_form(L, a)
        left = end - time.monotonic()
        if not fast and left > 0:
            T = _better(L, W, a, T, left)
        found.append(T)
        L = _next(L, W, a, T)
    square = float(np.linalg.norm(L, 2)) ** 2 * (1 + SPARE)
    return [square * T for T in found]


def _closed_form(L: Floats, a: Floats) -> Floats:
    size = float(np.linalg.norm(L, 2)) ** 2
    flattest = min(float(a.min(initial=1.0)), FLATTEST)
    return np.full(len(a), 2 / ((1 - flattest) * size) if size > 0 else 1.0)


def _better(L: Floats, W: Floats, a: Floats, closed: Floats, left: float) -> Floats:
    """The multipliers of a solver, where they lose less than the closed form."""
    scale_in, scale_out = (max(float(np.linalg.norm(m, 2)), 1e-300) for m in (L, W))
    proposal = propose([L / scale_in, W / scale_out], [a], time_limit_s=left)
    if proposal is None or not proposal.claimed > 0 or not np.isfinite(proposal.multipliers[0]).all():
        return closed
    T = proposal.multipliers[0] / (proposal.claimed * scale_in ** 2)
    value, plain = (float(np.linalg.norm(_next(L, W, a, t), 2)) for t in (T, closed))
    return T if value < plain else closed


def _next(L: Floats, W: Floats, a: Floats, T: Floats) -> Floats:
    """W M^{-1/2} of the M that multipliers leave."""
    G = L @ L.T
    half = (0.5 * (1 + a) * T)[:, None]
    # (G^{-1} + D)^{-1} = G (I + D G)^{-1}, which needs no inverse of G.
    lost = G if not a.any() else np.linalg.solve(np.eye(len(G)) + G * (a * T), G)
    M = np.diag(T) - half * lost * half.T
    values, vectors = np.linalg.eigh((M + M.T) / 2)
    values = values.clip(min=1e-12 * max(float(values.max(initial=0.0)), 1e-300))
    return np.asarray((W @ vectors) / np.sqrt(values))
