"""Fast-Lin: backward bounds with parallel lines (Weng et al., arXiv:1804.09699); for ReLU networks the
same bounds as Wong and Kolter's dual (arXiv:1711.00851)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bounds.backward import Backward, parallel
from bounds.bounds import Bounds, LinearRows
from bounds.final import final_bounds
from bounds.graph.graph import Graph
from bounds.intermediate import refine
from bounds.interval import Interval
from bounds.sets import InputSet


def bound(graph: Graph, sets: InputSet, rows: LinearRows, *, given: Mapping[int, Interval] | None = None,
          params: Any = None) -> Bounds:
    """Lower bounds of the rows; `given` nodes are not bounded again."""
    engine = Backward(graph, sets, parallel)
    intervals = refine(engine, given=given, row_bound=engine.lower)
    return final_bounds(engine, rows, intervals)
