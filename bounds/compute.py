"""One door to all bound methods."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any, Protocol

import torch

from bounds.bounds import Bounds, LinearRows
from bounds.graph.graph import Graph
from bounds.precision import full_precision
from bounds.sets import InputSet


class BoundMethod(Protocol):
    """What a bound method offers."""

    def bound(self, graph: Graph, sets: InputSet, rows: LinearRows) -> Bounds:
        """Lower bounds of rows over sets (methods have further keywords of their own)."""
        ...


PRICED_METHODS = ("ibp", "fastlin", "crown-ibp", "crown", "alpha-crown")  # in float64 they account for all rounding
METHODS = ("ibp", "zonotope", "fastlin", "crown-ibp", "crown", "alpha-crown", "meet")


def method_named(name: str, **settings: Any) -> Any:
    """The method object (or module) of a name in METHODS; settings are fields of alpha-crown."""
    if name not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {name!r}")
    if name == "alpha-crown":
        from bounds.alpha_crown import AlphaCrown
        return AlphaCrown(**settings)
    if settings:
        raise ValueError(f"{name} has no settings, got {', '.join(settings)}")
    return importlib.import_module("bounds." + name.replace("-", "_"))


@full_precision()
def compute_bounds(graph: Graph, sets: InputSet, rows: LinearRows | None = None, method: str | BoundMethod = "crown",
                   **settings: Any) -> Bounds:
    """Bounds over each set: of the asked rows from below, or (rows None) of every output from both sides.

    Without rows `lower` and `upper` are "B m" over the flat outputs; with rows `lower` is "N".
    `method` is a name or an object with `bound`; settings are for a name. Valid up to floating-point rounding of the
    sets' dtype.
    """
    chosen = method_named(method, **settings) if isinstance(method, str) else method
    if graph.arithmetic is not None and method not in PRICED_METHODS:
        raise ValueError(f"the rounding of {graph.arithmetic} is accounted for by {', '.join(PRICED_METHODS)} only, "
                         f"got {method!r}")
    if rows is not None:
        return chosen.bound(graph, sets, rows)
    outputs = 1
    for n in graph.output_shape:
        outputs *= n
    eye = torch.eye(outputs, dtype=sets.lower.dtype, device=sets.lower.device)
    both = torch.cat([eye, -eye]).repeat(sets.batch, 1)
    owner = torch.arange(sets.batch, device=eye.device).repeat_interleave(2 * outputs)
    answer = chosen.bound(graph, sets, LinearRows(both, owner))
    value = answer.lower.view(sets.batch, 2, outputs)
    return replace(answer, lower=value[:, 0], upper=-value[:, 1], A=None, b=None)
