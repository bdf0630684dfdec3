"""Certified losses from bounds of margins.

The margin of class j is `y_label - y_j`; a lower bound of it over a set, negated, is the worst logit difference
that a cross-entropy may see (Wong and Kolter, arXiv:1711.00851; Gowal et al., arXiv:1810.12715): for every x in the set

    cross_entropy(logits(x), label) <= cross_entropy(worst_logits(margins), label).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from bounds.backward import Backward, Block
from bounds.bounds import LinearRows
from bounds.final import output_rows
from bounds.graph import Graph
from bounds.ibp import margin_bounds, propagate
from bounds.interval import Interval
from bounds.sets import InputSet


def others(y: Tensor, classes: int) -> Tensor:
    """The classes that are not the label, in order: "B m-1"."""
    all_of_them = torch.arange(classes, device=y.device).expand(len(y), classes)
    return all_of_them[all_of_them != y.unsqueeze(1)].view(len(y), classes - 1)


def margin_rows(y: Tensor, classes: int, like: Tensor) -> LinearRows:
    """The margins `y_label - y_j` to all other classes, B (m - 1) rows, example by example."""
    eye = torch.eye(classes, dtype=like.dtype, device=y.device)
    C = eye[y].unsqueeze(1) - eye[others(y, classes)]
    owner = torch.arange(len(y), device=y.device).repeat_interleave(classes - 1)
    return LinearRows(C.flatten(0, 1), owner)


def by_class(bounds: Tensor, y: Tensor, classes: int) -> Tensor:
    """Bounds of `margin_rows` as "B m", 0 at the label."""
    rows = bounds.view(len(y), classes - 1)
    return rows.new_zeros(len(y), classes).scatter(1, others(y, classes), rows)


def worst_logits(margins: Tensor) -> Tensor:
    """Of margins "B m" (0 at the label): logits that no point of the set exceeds, relative to that of the label."""
    return -margins


def robust_cross_entropy(margins: Tensor, y: Tensor) -> Tensor:
    """The mean over the batch of an upper bound of the cross-entropy over each set."""
    return functional.cross_entropy(worst_logits(margins), y)


def least(margins: Tensor, y: Tensor) -> Tensor:
    """"B": the least of margins "B m" to other classes."""
    return margins.scatter(1, y.unsqueeze(1), torch.inf).amin(1)


def ibp_margins(graph: Graph, sets: InputSet, y: Tensor) -> Tensor:
    """Interval bounds "B m" of the margins, the last affine layers joined with the differences (arXiv:1810.12715)."""
    return interval_margins(graph, sets, y, propagate(graph, sets, rounded=False))


def interval_margins(graph: Graph, sets: InputSet, y: Tensor, intervals: Sequence[Interval]) -> Tensor:
    """As `ibp_margins`, given an interval of every node."""
    classes = int(torch.Size(graph.output_shape).numel())
    rows = margin_rows(y, classes, sets.lower)
    return by_class(margin_bounds(graph, sets, rows, intervals), y, classes)


def linear_margins(engine: Backward, y: Tensor) -> Tensor:
    """Lower bounds "B m" of the margins with the lines of an engine that knows its neurons' bounds."""
    classes = int(torch.Size(engine.graph.output_shape).numel())
    return by_class(lower_bounds(engine, margin_rows(y, classes, engine.sets.lower)), y, classes)


def lower_bounds(engine: Backward, rows: LinearRows) -> Tensor:
    """Lower bounds "N" of rows of outputs. Blocks are cut for a processor's cache; elsewhere there is but one."""
    start = output_rows(engine, rows)
    if engine.sets.device.type == "cpu":
        return engine.lower(engine.graph.output, start)
    return engine.value(Block(engine.graph.output, start))
