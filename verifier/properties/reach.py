"""Output reachability: which values do the outputs take over an input set, and is a given output region reached?

Where few features of a box move, a search that halves boxes brings both ends of every range together
(`verifier.lipschitz.range`); elsewhere bounds and ascent enclose them from both sides.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bounds.graph import Graph
from bounds.sets import InputSet
from verifier.deadline import Deadline
from verifier.lipschitz.bounded import bounded_range
from verifier.lipschitz.functions import Linear, Logit, OutputFunction
from verifier.lipschitz.range import Range, output_range
from verifier.properties.region import Polytope, checked
from verifier.strategy import Result, verify
from verifier.verdict import Evidence
from verifier.witness import Replayer

FEW = 8         # features that move: where more do, halving the box hardly helps
LEAST_S = 1e-3  # for a range whose time has passed: it gets bounds at any price


@dataclass(frozen=True, eq=False)
class Reach:
    """`ranges[k]` encloses what `functions[k]` takes over the set, proved from outside and seen from inside."""

    functions: tuple[OutputFunction, ...]
    ranges: tuple[Range, ...]
    method: str
    time_s: float

    @property
    def lower(self) -> Tensor:
        """"K" float64: proved, at most the least value of each function."""
        return torch.tensor([r.lower_proved for r in self.ranges], dtype=torch.float64)

    @property
    def upper(self) -> Tensor:
        """"K" float64: proved, at least the largest value."""
        return torch.tensor([r.upper_proved for r in self.ranges], dtype=torch.float64)

    @property
    def exact(self) -> bool:
        """Whether proved and seen ends meet everywhere, within the error asked for."""
        return all(r.complete for r in self.ranges)

    @property
    def evidence(self) -> Evidence:
        """Of the weakest range."""
        return min(r.evidence for r in self.ranges)


def reach(graph: Graph, input_set: InputSet, functions: Sequence[OutputFunction] | Tensor | None = None, *,
          error: float = 1e-3, method: str = "crown", time_limit_s: float = 60.0, seed: int = 0) -> Reach:
    """The range of every output (functions None), of rows "K m" of outputs, or of functions of them, over one set.

    error: how near proved and seen ends are to come where a search runs; method: of the bounds.
    """
    begin = time.monotonic()
    graph, input_set = checked(graph, input_set)
    asked = as_functions(functions, math.prod(graph.output_shape))
    deadline = Deadline.starting_now(time_limit_s)
    searched = searches(input_set)
    ranges = []
    for k, function in enumerate(asked):
        share = Deadline.starting_now(max(LEAST_S, deadline.left() / (len(asked) - k)))
        ranges.append(one_range(graph, input_set, function, error=error, method=method, deadline=share, seed=seed))
    return Reach(asked, tuple(ranges), f"search with {method}" if searched else method, time.monotonic() - begin)


def searches(input_set: InputSet) -> bool:
    """Whether so few features of a box move that a search is worth its time."""
    return input_set.is_box and int((input_set.lower < input_set.upper).sum()) <= FEW


def one_range(graph: Graph, input_set: InputSet, function: OutputFunction, *, error: float, method: str,
              deadline: Deadline, seed: int) -> Range:
    """The range of one function, by a search where few features move."""
    generator = torch.Generator(input_set.device).manual_seed(seed)
    if searches(input_set):
        return output_range(graph, input_set, function, error=error, method=method, deadline=deadline,
                            generator=generator)
    return bounded_range(graph, input_set, function, error=error, method=method, generator=generator)


def as_functions(asked: Sequence[OutputFunction] | Tensor | None, outputs: int) -> tuple[OutputFunction, ...]:
    """Functions as asked, rows "K m" as such, or every output. Raises ValueError for rows of another length."""
    if asked is None:
        return tuple(Logit(index=k) for k in range(outputs))
    if isinstance(asked, Tensor):
        if asked.dim() != 2 or asked.shape[1] != outputs:
            raise ValueError(f"expected rows of shape (K, {outputs}), got {tuple(asked.shape)}")
        asked = [Linear(tuple(row)) for row in asked.double().tolist()]
    if not len(asked):
        raise ValueError("expected at least one function")
    return tuple(asked)


def reaches(graph: Graph, input_set: InputSet, region: Polytope, *, replayer: Replayer | nn.Module | str | Path,
            method: str = "auto", time_limit_s: float = 60.0, seed: int = 0) -> Result:
    """Is some output in the region? Falsified: yes, and the witness is an input whose output lies there; verified: no
    output of the set does."""
    checked(graph, input_set)
    return verify(graph, region.met_over(input_set), replayer=replayer, method=method, time_limit_s=time_limit_s,
                  seed=seed)
