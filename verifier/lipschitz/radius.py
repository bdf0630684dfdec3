"""A certified radius from local Lipschitz constants (Fast-Lip, arXiv:1804.09699; RecurJac, arXiv:1810.11783).

Where the row `y_label - y_j` is m_j at the input and has the constant L_j(R) over the ball of radius R, it stays
positive up to any distance r <= R with `m_j > r L_j(R)`: so every R tried proves min(R, min_j m_j / L_j(R)), and the
best of them is the answer. Constants grow with the ball, so that the best R is where both are equal, which bisection
finds; what is proved does not rest on that. A tie is unsafe: quotients are rounded down, so that rows stay above zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.bounds import LinearRows
from bounds.compute import compute_bounds
from bounds.graph.graph import Graph
from verifier.deadline import Deadline
from verifier.lipschitz.local import METHODS, local_lipschitz
from verifier.radius.balls import Balls
from verifier.verdict import Evidence

STEPS = 40
DOWN = 1 - 2.0**-50  # quotient and product round, by half a unit each


@dataclass(frozen=True, eq=False)
class CertifiedRadii:
    """`radius` "N" float64: no point of the clip range as near as that to its input is unsafe (0 where the input itself
    may be). evidence: of all of them."""

    radius: Tensor
    evidence: Evidence


@torch.no_grad()
def lipschitz_radius(graph: Graph, balls: Balls, *, method: str = "jacobian", tolerance: float = 1e-3,
                     steps: int = STEPS, deadline: Deadline | None = None) -> CertifiedRadii:
    """Certified radii "N" in the balls' norm, to within a share `tolerance` of what the method can prove.

    method: "fastlip", "recurjac" or "jacobian". Bisection over all inputs at once, at most `steps` steps; stops with
    what it has when the deadline passes. A radius does not exceed `balls.largest`."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must lie between 0 and 1, got {tolerance}")
    if balls.shape != graph.input_shape:
        raise ValueError(f"inputs must have shape {graph.input_shape}, got {balls.shape}")
    graph = graph.to(dtype=torch.float64)
    classes = torch.Size(graph.output_shape).numel()
    search = _Search(graph, balls, balls.rows(classes), method)
    for _ in range(steps):
        if not bool(search.open(tolerance).any()) or (deadline is not None and deadline.passed()):
            break
        search.step(tolerance)
    return CertifiedRadii(search.best, min(search.evidence, default=Evidence.FLOAT))


class _Search:
    """best "N": proved; low, high "N": between which the best radius to try lies, as far as constants grow."""

    def __init__(self, graph: Graph, balls: Balls, rows: LinearRows, method: str) -> None:
        self.graph, self.balls, self.rows, self.method = graph, balls, rows, method
        assert rows.owner is not None
        self.owner = rows.owner
        self.evidence: set[Evidence] = set()
        nothing = torch.zeros(len(balls), dtype=torch.float64, device=balls.x.device)
        self.best, self.high = nothing, balls.largest
        everyone = torch.arange(len(balls), device=nothing.device)
        self.margin = compute_bounds(graph, balls.sets(nothing), rows).lower
        self.high = torch.minimum(self.high, self._quotient(nothing, everyone))

    def open(self, tolerance: float) -> Tensor:
        """bool "N": inputs whose radius may still grow by more than the tolerance."""
        return self.high > self.best * (1 + tolerance)

    def step(self, tolerance: float) -> None:
        """Try one radius for every open input."""
        chosen = self.open(tolerance).nonzero()[:, 0]
        low, high = self.best[chosen], self.high[chosen]
        R = torch.where(high.isfinite(), (low + high) / 2, torch.maximum(2 * low, torch.ones_like(low)))
        quotient = self._quotient(R, chosen)
        self.best = self.best.index_put((chosen,), torch.maximum(low, torch.minimum(R, quotient)))
        # Beyond R constants only grow, and so no radius above R and its quotient can be proved.
        self.high = self.high.index_put((chosen,), torch.where(quotient < R, torch.minimum(high, R), torch.minimum(
            high, quotient)))

    def _quotient(self, R: Tensor, chosen: Tensor) -> Tensor:
        """min_j m_j / L_j(R) of the chosen inputs, rounded down; 0 where a margin is not positive."""
        some = self.balls.take(chosen)
        place = torch.full((len(self.balls),), -1, dtype=torch.long, device=chosen.device)
        place[chosen] = torch.arange(len(chosen), device=chosen.device)
        mine = place[self.owner] >= 0
        owner, margin = place[self.owner[mine]], self.margin[mine]
        found = local_lipschitz(self.graph, some.sets(R), LinearRows(self.rows.C[mine], owner), norm=some.norm,
                                method=self.method)
        self.evidence.add(found.evidence)
        ratio = torch.where(margin > 0, margin / found.constant * DOWN, torch.zeros_like(margin))
        least = torch.full_like(R, torch.inf).scatter_reduce(0, owner, ratio.nan_to_num(nan=0.0, posinf=torch.inf),
                                                             "amin")
        return least


__all__ = ["CertifiedRadii", "lipschitz_radius"]
