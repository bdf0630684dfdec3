"""One door to all enclosures of gradients."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from bounds.bounds import LinearRows
from bounds.graph.graph import Graph
from bounds.interval import Interval
from bounds.jacobian.enclosure import Jacobian
from bounds.sets import InputSet

_FILES = {"fastlip": "interval", "recurjac": "recurjac", "jacobian": "linear"}
METHODS = tuple(_FILES)


def jacobian_bounds(graph: Graph, sets: InputSet, rows: LinearRows, method: str = "jacobian", *,
                    given: Mapping[int, Interval] | None = None) -> Jacobian:
    """`lower <= g <= upper` "N *input" for all generalised gradients g of `C f(x)`, row n, over its set.

    method: "fastlip" (interval arithmetic), "recurjac" or "jacobian" (linear bounds), from the fastest to the tightest
    as a rule. given: proved enclosures of nodes, in float64 with rounding included."""
    if method not in _FILES:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    answer: Jacobian = importlib.import_module(f"bounds.jacobian.{_FILES[method]}").bound(
        graph, sets, rows, given=given)
    return answer
