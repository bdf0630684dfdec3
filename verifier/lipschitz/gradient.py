"""What searches ask of enclosures of gradients (`bounds.jacobian`), and what follows for functions of the outputs.

Axis legend: B boxes, N rows, K linear parts of a function.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from bounds.bounds import LinearRows
from bounds.graph import Graph
from bounds.interval import Interval
from bounds.jacobian.enclosure import Jacobian
from bounds.ops.round_off import MORE, gamma
from bounds.sets import InputSet


class GradientEnclosure(Protocol):
    """Encloses the gradient of every row over its set: the `bound` of each method in `bounds.jacobian`."""

    def __call__(self, graph: Graph, sets: InputSet, rows: LinearRows, *,
                 given: Mapping[int, Interval] | None = None) -> Jacobian:
        """given: proved enclosures of nodes, "B *shape"."""
        ...


def largest_slopes(steep: Interval, gradient: Jacobian) -> Tensor:
    """`|dF / dx_i| <= sum_k |dG / dz_k| |dz_k / dx_i|`: "B K", rows "B*K *input" -> "B *input", rounded up."""
    size = torch.maximum(steep.lower.abs(), steep.upper.abs())
    parts = gradient.magnitude.reshape(*size.shape, -1)
    total = torch.einsum("bk,bkn->bn", size, parts) * (1 + MORE * gamma(size.shape[1], size.dtype))
    total = total.nan_to_num(nan=torch.inf, posinf=torch.inf)  # zero times infinity: nothing is known
    return total.view(-1, *gradient.lower.shape[1:])
