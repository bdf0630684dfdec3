"""Points that meet the criterion, wherever they lie: where attacks that see decisions only begin.

Other inputs come first, nearer ones before farther ones: of a pool sorted by distance those at growing ranks, since the
nearest mostly share the label, then some at random; then random points of the box, or around the original where the box
is unbounded. All within some 70 queries an example.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from verifier.attacks.run import Run
from verifier.data import POOL

GROWTH = 1.6      # of the ranks
TRIES = 24        # inputs at random, and points at random
RADII = (-4, 10)  # of points around the original, as powers of two
ROWS = 64         # examples whose distances to the pool are taken at once


def adversarial_starts(run: Run, i: Tensor) -> tuple[Tensor, Tensor]:
    """(points "P *shape", found bool "P") of distinct open examples "P"; the original where none is found."""
    x, found = run.x0[i].clone(), torch.zeros_like(i, dtype=torch.bool)
    pool = run.x0[:0] if run.pool is None else run.pool[:POOL]
    order = _by_distance(run, i, pool) if pool.shape[0] else i.new_zeros(i.numel(), 0)
    for candidates in (_near_inputs, _some_inputs, _points):
        left = (~found & ~run.closed[i]).nonzero().flatten()
        if not left.numel() or run.deadline.passed():
            break
        tried = candidates(run, i[left], pool, order[left])
        if not tried.shape[1]:
            continue
        who = i[left].repeat_interleave(tried.shape[1])
        seen = run.evaluate(tried.flatten(0, 1), who)
        far = torch.where(seen.met, run.room.distance(seen.x, who), math.inf).view(tried.shape[:2])
        nearest, which = far.min(1)
        good = torch.isfinite(nearest)
        x[left[good]] = seen.x.view_as(tried)[good, which[good]]
        found[left[good]] = True
    return x, found


def _by_distance(run: Run, i: Tensor, pool: Tensor) -> Tensor:
    """The pool's numbers, nearest first: long "P N"."""
    flat, exact = pool.flatten(1), "donot_use_mm_for_euclid_dist"  # a product's rounding depends on the batch
    far = [torch.cdist(run.x0[part].flatten(1), flat, compute_mode=exact) for part in i.split(ROWS)]
    return torch.cat(far).argsort(dim=1, stable=True)


def _near_inputs(run: Run, i: Tensor, pool: Tensor, order: Tensor) -> Tensor:
    ranks: list[int] = []
    rank = 0.0
    while rank < order.shape[1]:
        ranks.append(int(rank))
        rank = max(rank + 1, rank * GROWTH)
    return pool[order[:, ranks]]


def _some_inputs(run: Run, i: Tensor, pool: Tensor, order: Tensor) -> Tensor:
    if not order.shape[1]:
        return pool.expand(i.numel(), *pool.shape)
    return pool[run.draws.integers(i, (TRIES,), order.shape[1])]


def _points(run: Run, i: Tensor, pool: Tensor, order: Tensor) -> Tensor:
    """Random points: uniform in the box, or normal around the original with radii that grow."""
    size, dtype = (TRIES, *run.room.shape), run.x0.dtype
    if run.room.bounded:
        low, high = run.room.lower[i].unsqueeze(1), run.room.upper[i].unsqueeze(1)
        return low + (high - low) * run.draws.uniform(i, size, dtype)
    radii = 2.0 ** torch.linspace(*RADII, TRIES, dtype=dtype, device=i.device)
    return run.x0[i].unsqueeze(1) + run.draws.normal(i, size, dtype) * radii.view(-1, *(1,) * len(run.room.shape))
