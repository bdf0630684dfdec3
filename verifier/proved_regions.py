"""What is proved about some regions, for stages that bound rows in float64 by means of their own.

Where the search is in float64 that is what earlier stages found; where it is in float32, what its twin in float64
proved beside it (`Problem.double`). Both account for their rounding, and so then may the stage.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bounds.interval import Interval
from bounds.rounding import is_covered
from verifier.problem import Problem, State
from verifier.property import PropertyTensors


def accounts_for_rounding(problem: Problem) -> bool:
    """Whether `proved_regions` are proved with all rounding accounted for."""
    return problem.rounded and is_covered(problem.graph) and (
        problem.graph.dtype == torch.float64 or problem.double is not None)


def proved_regions(problem: Problem, state: State, regions: Tensor) -> tuple[PropertyTensors, dict[int, Interval]]:
    """(the question as it is to be bounded, enclosures of what relaxations read over `regions`, "U *shape"); both in
    ordinary floating point where rounding is not accounted for."""
    if problem.double is not None:
        return problem.double.tensors, problem.double.intervals(regions)
    return problem.tensors, {i: state.intervals[i].map(lambda t: t[regions]) for i in problem.graph.relaxed_inputs}
