"""A witness that a search came across, moved to the nearest unsafe point of its linear piece."""

from __future__ import annotations

import torch

from bounds.graph import Graph
from verifier.deadline import Deadline
from verifier.radius.balls import Balls
from verifier.radius.upper import Asked, Nearest
from verifier.witness import Replayer, Witness


def polished(network: tuple[Graph, Graph, Replayer], ball: Balls, witness: Witness, by: str, deadline: Deadline
             ) -> Nearest:
    """The nearer of a witness of the only input and what projections onto the linearised boundary make of it."""
    asked = Asked.of(*network, ball, None)
    point = torch.from_numpy(witness.x).to(asked.x).view_as(asked.x)
    found = Nearest(witness, float(ball.distance(torch.from_numpy(witness.x).view_as(ball.x))), by)
    moved, far = asked.polished(point, torch.zeros(1, dtype=torch.long, device=point.device), deadline)
    if not float(far[0]) < found.distance:
        return found
    nearer = asked.confirmed(0, moved[0], by)
    return nearer if nearer.distance < found.distance else found
