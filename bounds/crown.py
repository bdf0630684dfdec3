"""CROWN: backward bounds with adaptive lines, intermediate ones included.

CROWN (arXiv:1811.00866), the same bounds as DeepPoly (Singh et al., POPL 2019). Intermediate rows run
for undecided neurons only and meet interval bounds from the tightened layers before (CROWN alone is
not always tighter).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bounds.backward import Backward, adaptive
from bounds.bounds import Bounds, LinearRows
from bounds.final import final_bounds
from bounds.graph.graph import Graph
from bounds.intermediate import refine
from bounds.interval import Interval
from bounds.journal import Journal
from bounds.sets import InputSet


def bound(graph: Graph, sets: InputSet, rows: LinearRows, *, given: Mapping[int, Interval] | None = None,
          params: Any = None, journal: Journal | None = None) -> Bounds:
    """Lower bounds of the rows; `given` nodes are not bounded again."""
    engine = Backward(graph, sets, adaptive)
    engine.journal = journal
    intervals = refine(engine, given=given, row_bound=engine.lower)
    return final_bounds(engine, rows, intervals)
