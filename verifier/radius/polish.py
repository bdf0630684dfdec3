"""A point that a search came across, moved to the nearest unsafe point of its linear piece, and confirmed."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bounds.graph import Graph
from verifier.deadline import Deadline
from verifier.radius.balls import Balls
from verifier.radius.upper import NOTHING, Asked, Nearest
from verifier.witness import Replayer, Witness


def polished(network: tuple[Graph, Graph, Replayer], ball: Balls, point: Tensor, by: str, deadline: Deadline
             ) -> Nearest:
    """What projections onto the linearised boundary make of a point "*input" near to unsafe ones (`NOTHING` where they
    reach none that the gate accepts). network: as read, simplified, and what replays the original."""
    asked = Asked.of(*network, ball, None)
    only = torch.zeros(1, dtype=torch.long, device=asked.x.device)
    start = point.to(asked.x).view_as(asked.x).clamp(asked.low, asked.high)
    moved, far = asked.polished(start, only, deadline)
    return asked.confirmed(0, moved[0], by) if torch.isfinite(far[0]) else NOTHING


def nearer(network: tuple[Graph, Graph, Replayer], ball: Balls, witness: Witness, by: str, deadline: Deadline
           ) -> Nearest:
    """The nearer of a witness of the only input and what polishing makes of it.

    A witness may lie where rounding put the ends of its set: outside the clip range it is none over the reals."""
    point = torch.from_numpy(witness.x).view_as(ball.x)
    if not bool(ball.inside(point)):
        witness = replace(witness, real_agrees=None)
    found = Nearest(witness, float(ball.distance(point)), by)
    moved = polished(network, ball, point, by, deadline)
    return moved if moved.distance < found.distance else found
