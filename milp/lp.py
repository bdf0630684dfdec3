"""Linear programmes as a bound method: the Planet relaxation (Ehlers, arXiv:1705.01320) of the whole network, with
intermediate bounds by linear programmes as well ("LP-all") or by CROWN ("LP-last"; the names: Salman et al.,
arXiv:1902.08722).

No relaxation that treats neurons one by one is tighter. A bound is what the multipliers of its programme are worth on
the network (`certificate`), never the solver's word, and never less than CROWN's with the same intermediate bounds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from bounds.backward import Backward, adaptive
from bounds.bounds import Bounds, LinearRows
from bounds.final import final_bounds, owner_of
from bounds.graph import Graph
from bounds.intermediate import refine
from bounds.interval import Interval
from bounds.journal import Journal
from bounds.precision import rounded_down
from bounds.sets import InputSet
from milp.certificate import UnsafeRows
from milp.tighten import Tightening, lp_minima, polishing

LAYERS_SHARE = 0.8   # of the time; what is left is the asked rows'


@dataclass(frozen=True)
class LpBounds:
    """layers: bound the undecided neurons of every layer by linear programmes too; time_limit_s: of all sets together,
    after which CROWN's bounds stand; jobs: processes for the layers."""

    layers: bool = True
    time_limit_s: float = math.inf
    jobs: int = 1

    def bound(self, graph: Graph, sets: InputSet, rows: LinearRows, *, given: Mapping[int, Interval] | None = None,
              params: Any = None, journal: Journal | None = None) -> Bounds:
        """Lower bounds of the rows; `given` nodes are not bounded again."""
        end = time.monotonic() + self.time_limit_s
        engine = Backward(graph, sets, adaptive)
        with polishing(Tightening(time_limit_s=LAYERS_SHARE * self.time_limit_s, jobs=self.jobs), engine) as polish:
            intervals = refine(engine, given=given, row_bound=engine.lower, polish=polish if self.layers else None)
        found = final_bounds(engine, rows, intervals)
        lower = found.lower.clone()
        owner = owner_of(rows, sets.batch).domains(len(lower), lower)
        for d in range(sets.batch):
            mine = (owner == d).nonzero().flatten()
            left = end - time.monotonic()
            if not len(mine) or left <= 0:
                continue
            bound = torch.zeros_like(lower[mine]) if rows.offset is None else -rows.offset[mine]
            asked = UnsafeRows(rows.C[mine].unsqueeze(1), bound.unsqueeze(1),
                               None if rows.D is None else rows.D[mine].unsqueeze(1))
            here = {i: intervals[i].map(lambda t, d=d: t[d:d + 1]) for i in graph.relaxed_inputs}
            value = lp_minima(graph, sets.index(torch.tensor([d], device=sets.device)), here, asked, left)
            lower[mine] = torch.maximum(lower[mine], rounded_down(value, lower.dtype).to(lower.device))
        return replace(found, lower=lower, A=None, b=None)
