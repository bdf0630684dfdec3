"""The first-order stationary condition (FOSC): how far a point is from a constrained local maximum of a loss.

`c(x) = max over z in the set of <z - x, g>`, g the gradient at x; zero at stationary points. Over an l_inf ball without
other limits it is `eps ||g||_1 - <x - x0, g>` (Wang et al., ICML 2019, arXiv:2112.08304). It is the Frank-Wolfe gap
(Jaggi, ICML 2013), and the maximum is taken exactly over ball, clip range and mask together.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from verifier.attacks.threat import Room


def stationarity_gap(slope: Tensor, x: Tensor, room: Room, owner: Tensor) -> Tensor:
    """c(x) of points "P *shape" with gradients "P *shape": "P", never below zero.

    Raises ValueError for l_0 and for sets without a bound, over which no linear function has a maximum.
    """
    if room.norm == 0.0 or not (room.bounded or (room.eps < math.inf)):
        raise ValueError("FOSC needs a bounded set of norm inf, 2 or 1: give eps or a clip range")
    if room.norm == math.inf:
        lower, upper = room.lower[owner], room.upper[owner]
        # Term by term: what is left to gain up to the end that the gradient points to.
        gain = torch.where(slope > 0, upper - x, lower - x) * slope
        return gain.flatten(1).sum(1)
    reached = (slope * x).flatten(1).sum(1)
    return (-room.sets.minimise(-slope, owner) - reached).clamp(min=0)
