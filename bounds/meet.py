"""Meet: several methods, each starting from the enclosures of the one before; the tightest bound of each row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from bounds import crown, ibp
from bounds.bounds import Bounds, LinearRows
from bounds.graph.graph import Graph
from bounds.interval import Interval
from bounds.sets import InputSet


class Method(Protocol):
    """A bound method."""

    def bound(self, graph: Graph, sets: InputSet, rows: LinearRows, *,
              given: Mapping[int, Interval] | None = None, params: Any = None) -> Bounds: ...


@dataclass(frozen=True)
class Meet:
    """The tighter of several methods, row by row."""

    methods: tuple[Method, ...] = (ibp, crown)

    def bound(self, graph: Graph, sets: InputSet, rows: LinearRows, *,
              given: Mapping[int, Interval] | None = None, params: Any = None) -> Bounds:
        best: Bounds | None = None
        for method in self.methods:
            now = method.bound(graph, sets, rows, given=given, params=params)
            if best is None:
                best = now
                continue
            # The linear form stays that of the tighter row only where both have one.
            if now.A is not None and now.b is not None and best.A is not None and best.b is not None:
                better = now.lower > best.lower
                A = torch.where(better.view(-1, *(1,) * (now.A.dim() - 1)), now.A, best.A)
                b = torch.where(better, now.b, best.b)
                now = replace(now, A=A, b=b)
            intervals = {i: x.meet(best.intervals[i]) if i in best.intervals else x for i, x in now.intervals.items()}
            best = replace(now, lower=torch.maximum(now.lower, best.lower), intervals=intervals)
        assert best is not None, "at least one method"
        return best


def bound(graph: Graph, sets: InputSet, rows: LinearRows, *, given: Mapping[int, Interval] | None = None,
          params: Any = None) -> Bounds:
    """The tighter of IBP and CROWN."""
    return Meet().bound(graph, sets, rows, given=given, params=params)
