"""Local robustness: does the label stay strictly on top over an input set? (Verified, falsified or unknown.)

`verify(graph, robustness(x, label, eps, ...))` asks the same of the decimal that eps prints as; here the set is given,
as for the other questions, and its floats are taken exactly.
"""

from __future__ import annotations

import math
from pathlib import Path

from torch import nn

from bounds.graph import Graph
from bounds.sets import InputSet
from verifier.properties.region import checked, region_of
from verifier.property import label_on_top
from verifier.strategy import Result, verify
from verifier.witness import Replayer


def robust(graph: Graph, input_set: InputSet, label: int, *, replayer: Replayer | nn.Module | str | Path,
           target: int | None = None, method: str = "auto", time_limit_s: float = 60.0, seed: int = 0) -> Result:
    """Is `y_label > y_j` for all other classes j (or the `target` alone) at every point of the set?

    replayer: the original network, on which a counterexample must stand (see `verifier.strategy.verify`).
    """
    checked(graph, input_set)
    question = label_on_top(region_of(input_set), label, classes=math.prod(graph.output_shape), target=target,
                            source=f"robustness of label {label}")
    return verify(graph, question, replayer=replayer, method=method, time_limit_s=time_limit_s, seed=seed)
