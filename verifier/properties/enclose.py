"""The interval property: a convex set that holds all outputs over an input set, and whether a given one does.

Proved ends in any directions make a polytope around the reachable set: along the axes its box, along differences of a
label to the other classes the margins that robustness asks about.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bounds.compute import METHODS, PRICED_METHODS
from bounds.graph import Graph
from bounds.rounding import is_covered, is_priced
from bounds.sets import InputSet
from verifier.lipschitz.functions import Margin
from verifier.lipschitz.parts import linear_parts
from verifier.properties.region import Polytope, checked
from verifier.strategy import Result, verify
from verifier.verdict import Evidence
from verifier.witness import Replayer


@dataclass(frozen=True, eq=False)
class Enclosure:
    """`lower <= C y <= upper` for all outputs y over the set: C "R m", lower, upper "R" float64.

    inside: the answer to whether all outputs lie in the region that was asked about (None: none was).
    """

    C: Tensor
    lower: Tensor
    upper: Tensor
    method: str
    evidence: Evidence
    time_s: float
    inside: Result | None = None

    @property
    def polytope(self) -> Polytope:
        return Polytope(torch.cat([self.C, -self.C]), torch.cat([self.upper, -self.lower]))

    def contains(self, y: Tensor) -> Tensor:
        """bool "P": do points "P m" lie inside, as computed?"""
        z = y.double() @ self.C.T
        return ((self.lower <= z) & (z <= self.upper)).all(1)


@torch.no_grad()
def enclose(graph: Graph, input_set: InputSet, *, directions: Tensor | None = None, label: int | None = None,
            region: Polytope | None = None, replayer: Replayer | nn.Module | str | Path | None = None,
            method: str = "crown", time_limit_s: float = 60.0, seed: int = 0) -> Enclosure:
    """A convex over-approximation of the outputs over one set: their box, or a polytope along `directions` "R m" or
    along `y_label - y_j` of all other classes j.

    region: also ask whether all outputs lie in it; verified, falsified (a witness whose output lies outside, replayed
    on `replayer`, the original network) or unknown.
    """
    begin = time.monotonic()
    original = graph
    graph, input_set = checked(graph, input_set)
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if region is not None and replayer is None:
        raise ValueError("a region needs a replayer: the original network, on which a counterexample must stand")
    C = _directions(directions, label, math.prod(graph.output_shape)).to(graph.device)
    z, _ = linear_parts(graph, input_set, C, C.new_zeros(len(C)), method)
    rounded = method in PRICED_METHODS and is_priced(input_set.dtype) and is_covered(graph)
    inside = None
    if region is not None:
        assert replayer is not None
        inside = verify(original, region.left_over(input_set), replayer=replayer, seed=seed,
                        time_limit_s=max(1e-3, time_limit_s - (time.monotonic() - begin)))
    return Enclosure(C, z.lower[0], z.upper[0], method, Evidence.ROUNDED if rounded else Evidence.FLOAT,
                     time.monotonic() - begin, inside)


def _directions(directions: Tensor | None, label: int | None, outputs: int) -> Tensor:
    if directions is not None and label is not None:
        raise ValueError("directions and label exclude each other")
    if label is not None:
        return Margin(label).rows(outputs)[0]
    if directions is None:
        return torch.eye(outputs, dtype=torch.float64)
    if directions.dim() != 2 or directions.shape[1] != outputs or not bool(torch.isfinite(directions).all()):
        raise ValueError(f"expected finite directions of shape (R, {outputs}), got {tuple(directions.shape)}")
    return directions.double()
