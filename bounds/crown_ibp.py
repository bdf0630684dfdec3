"""CROWN-IBP: interval bounds for the neurons, one backward pass for the asked rows (arXiv:1906.06316)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bounds.backward import Backward, adaptive
from bounds.bounds import Bounds, LinearRows
from bounds.final import final_bounds
from bounds.graph.graph import Graph
from bounds.intermediate import refine
from bounds.interval import Interval
from bounds.sets import InputSet


def bound(graph: Graph, sets: InputSet, rows: LinearRows, *, given: Mapping[int, Interval] | None = None,
          params: Any = None) -> Bounds:
    """Lower bounds of the rows; `given` nodes are not bounded again."""
    engine = Backward(graph, sets, adaptive)
    intervals = refine(engine, given=given)
    return final_bounds(engine, rows, intervals)
