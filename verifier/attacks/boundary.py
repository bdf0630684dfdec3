"""Originals that lie on the boundary itself: the least move in the right direction succeeds, and attacks that measure
their steps by the margin, which is zero there, would take none."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from verifier.attacks.run import Run, Scores

NEAR = 1e-5                 # of the largest output: margins below count as none
FIRST, GROWTH = 1e-6, 4.0   # of the step, in units of the features' range (one where it is endless)
STEPS = 8


def step_off(run: Run, scores: Scores) -> None:
    """Move examples whose margin vanishes at the original by growing small steps up the gradient, until they succeed.

    scores: of all originals. One gradient and at most `STEPS` evaluations for each such example, none for the others.
    """
    size = scores.y.abs().amax(1)
    i = (~scores.met & (scores.margin.abs() <= NEAR * size)).nonzero().flatten()
    if not i.numel():
        return
    slope = run.gradient(run.x0[i], i, lambda y, x, owner: -run.criterion.margin(y, x, owner)).slope
    direction = _direction(run.room.on_free(slope, i), run.room.norm)
    reach = (run.room.upper - run.room.lower)[i].flatten(1).amax(1)
    step = FIRST * torch.where(torch.isfinite(reach), reach, torch.ones_like(reach))
    for _ in range(STEPS):
        met = run.evaluate(run.x0[i] + direction * run.room.per_example(step), i).met
        i, direction, step = i[~met], direction[~met], step[~met] * GROWTH
        if not i.numel():
            return


def _direction(slope: Tensor, norm: float) -> Tensor:
    """Steepest, with entries up to one: signs (inf), the gradient (2), its largest entry alone (1, 0)."""
    flat = slope.flatten(1)
    largest = flat.abs().amax(1, keepdim=True)
    if norm == math.inf:
        return slope.sign()
    if norm == 2.0:
        return (flat / largest.clamp(min=torch.finfo(slope.dtype).tiny)).view_as(slope)
    first = torch.zeros_like(flat).scatter(1, flat.abs().argmax(1, keepdim=True), 1.0)
    return (first * flat.sign()).view_as(slope)
