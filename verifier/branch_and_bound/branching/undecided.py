"""Which neurons a rule may split, and where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.graph import Graph
from bounds.interval import Interval
from bounds.ops.base import Elementwise, Relaxed
from verifier.branch_and_bound.clip import SLACK
from verifier.branch_and_bound.domains import Domains, Layout, is_free


def at_group(values: Mapping[int, Tensor], layout: Layout, domains: Domains, group: Tensor) -> dict[int, Tensor]:
    """What `Reached` knows of every neuron for each domain's group, "B *shape" by node; zero where no row came by."""
    zeros = domains.lower.new_zeros
    return {i: values[i][group] if i in values else zeros(len(domains), *s)
            for i, s in zip(layout.nodes, layout.shapes, strict=True)}


def has_loose_pools(graph: Graph, layout: Layout, domains: Domains) -> Tensor:
    """bool "B": domains with an operator of several inputs (a max-pool) that is not linear on their intervals. No split
    of a neuron makes it so; smaller boxes do."""
    intervals = domains.intervals(layout)
    out = torch.zeros(len(domains), dtype=torch.bool, device=domains.low.device)
    for node in graph.nodes:
        if isinstance(node.op, Relaxed):
            out |= (~node.op.is_linear_on(*(intervals[j] for j in node.inputs))).flatten(1).any(1)
    return out


def undecided_by_node(graph: Graph, layout: Layout, domains: Domains) -> dict[int, Tensor]:
    """bool "B *shape" by node: neurons with an elementwise reader that is not linear on their interval,
    which is wider than rounding."""
    out = {}
    for i, x in domains.intervals(layout).items():
        mask = torch.zeros_like(x.lower, dtype=torch.bool)
        for reader in graph.consumers[i]:
            op = graph.nodes[reader].op
            if isinstance(op, Elementwise):
                mask |= ~op.is_linear_on(x) & is_free(x.lower, x.upper)
        out[i] = mask
    return out


def worth_a_split(undecided: Tensor, points: Tensor, domains: Domains) -> Tensor:
    """bool "B neurons": the undecided ones, less those that a cut has decided but for the slack that it leaves to
    rounding; where no others are left, these."""
    width = domains.z_high - domains.z_low
    inside = torch.minimum(domains.z_high - points, points - domains.z_low)
    rest = undecided & (inside > 100 * SLACK[width.dtype] * width)
    return torch.where(rest.any(1, keepdim=True), rest, undecided)


def kinks_by_node(graph: Graph, layout: Layout, domains: Domains) -> dict[int, Tensor]:
    """The only kink of each neuron, or the middle of its interval, "B *shape" by node."""
    out = {}
    for i, x in domains.intervals(layout).items():
        kinks = {op.only_kink for j in graph.consumers[i] if isinstance(op := graph.nodes[j].op, Elementwise)}
        kink = kinks.pop() if len(kinks) == 1 else None
        out[i] = x.centre if kink is None else torch.full_like(x.lower, kink)
    return out


def split_points(graph: Graph, layout: Layout, domains: Domains, at: Tensor, met: Tensor) -> Tensor:
    """Where each domain's neuron `at` "B" (flat over all nodes) would be split, "B": as an operator that reads it and
    is not linear there says. met "B": the coefficient that the rows have at it, whose sign tells which line counts."""
    rows = torch.arange(len(domains), device=at.device)
    x, side = Interval(domains.z_low[rows, at], domains.z_high[rows, at]), met.sign()
    out = x.centre
    for node, shape, offset in zip(layout.nodes, layout.shapes, layout.offsets, strict=True):
        first, size = offset - layout.inputs, torch.Size(shape).numel()
        here = ((at >= first) & (at < first + size)).nonzero().squeeze(1)
        if not len(here):
            continue
        part = Interval(x.lower[here], x.upper[here])
        for reader in graph.consumers[node]:
            op = graph.nodes[reader].op
            if isinstance(op, Elementwise):
                op = op.select(_Read(at[here] - first), (1, *shape))
                out[here] = torch.where(op.is_linear_on(part), out[here], op.split_points(part, side[here]))
    return out


@dataclass(frozen=True, eq=False)
class _Read:
    """Values of all neurons of a node, "1 *shape", at flat places "B"."""

    index: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        return values.flatten()[self.index]
