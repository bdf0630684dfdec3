"""BaBSR: split the ReLU whose decision is estimated to move the bound most (Bunel et al., JMLR 21(42), 2020,
arXiv:1909.06588, score `s` there; the form used here, with its backup, is that of De Palma et al., arXiv:2104.06718).

A row meets a neuron z in [l, u] with coefficient -v. If z depended on its bias b alone, deciding the neuron would move
the bound by |max(0, v b) - v b u / (u - l) + max(0, v) u l / (u - l)|. Where all these estimates vanish, the backup
-max(0, v) u l / (u - l) decides: what the upper line may lose. Operators other than ReLU have only a backup: the
coefficient times the distance of the two lines in the middle of the interval.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.graph import Graph
from bounds.interval import Interval
from bounds.ops.base import Affine, Elementwise
from bounds.ops.relu import Relu
from verifier.branch_and_bound.bounding import Bounded, Bounder
from verifier.branch_and_bound.branching.undecided import at_group, split_points, undecided_by_node
from verifier.branch_and_bound.domains import NO_CHOICE, Domains

LEAST_SCORE = 1e-4  # of the largest backup: below, estimates are rounding


@dataclass(frozen=True)
class Babsr:
    """Neuron splits only: a domain without undecided neurons is a leaf."""

    def choose(self, bounder: Bounder, bounded: Bounded, domains: Domains, group: Tensor) -> tuple[Tensor, Tensor]:
        """As `Rule.choose`."""
        found = Scores.of(bounder, bounded, domains, group)
        if not found.estimate.shape[1]:
            return torch.full_like(group, NO_CHOICE), torch.zeros_like(domains.lower)
        best, at = found.estimate.max(1)
        backup, instead = found.backup.max(1)
        at = torch.where(best > LEAST_SCORE * backup, at, instead)
        return found.split(bounder, bounded, domains, group, at)


@dataclass(frozen=True, eq=False)
class Scores:
    """"B neurons", -1 where a neuron is decided."""

    estimate: Tensor
    backup: Tensor

    @staticmethod
    def of(bounder: Bounder, bounded: Bounded, domains: Domains, group: Tensor) -> Scores:
        """Of open domains; `group` "B" as for a rule."""
        graph, layout = bounder.graph, bounder.layout
        undecided = undecided_by_node(graph, layout, domains)
        met = at_group(bounded.reached.met, layout, domains, group)
        rest, intervals = at_rest(graph), domains.intervals(layout)
        estimates, backups = {}, {}
        for i in layout.nodes:
            estimate, backup = torch.zeros_like(met[i]), torch.zeros_like(met[i])
            for reader in graph.consumers[i]:
                op = graph.nodes[reader].op
                if isinstance(op, Relu):
                    estimate, backup = _relu(intervals[i], -met[i], rest[i])
                elif isinstance(op, Elementwise):
                    backup = backup + met[i].abs() * _distance(op, intervals[i])
            estimates[i] = torch.where(undecided[i], estimate, -torch.ones_like(estimate))
            backups[i] = torch.where(undecided[i], backup, -torch.ones_like(backup))
        return Scores(layout.flat(estimates, domains.z_low), layout.flat(backups, domains.z_low))

    def split(self, bounder: Bounder, bounded: Bounded, domains: Domains, group: Tensor, at: Tensor
              ) -> tuple[Tensor, Tensor]:
        """(choice, point) of splits at the neurons `at` "B"; no choice where these are decided."""
        graph, layout = bounder.graph, bounder.layout
        rows = torch.arange(len(at), device=at.device)
        met = layout.flat(at_group(bounded.reached.met, layout, domains, group), domains.z_low)[rows, at]
        choice = torch.where(self.backup[rows, at] >= 0, at + layout.inputs, torch.full_like(at, NO_CHOICE))
        return choice, split_points(graph, layout, domains, at, met)


def _relu(x: Interval, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """(estimate, backup) of undecided ReLUs."""
    slope = x.upper / (x.upper - x.lower).clamp(min=torch.finfo(v.dtype).tiny)
    intercept = -slope * x.lower * v.clamp(min=0)
    return ((v * bias).clamp(min=0) - slope * v * bias - intercept).abs(), intercept


def _distance(op: Elementwise, x: Interval) -> Tensor:
    """Between the two lines in the middle of the interval."""
    lines = op.relax(x)
    out = (lines.upper_slope - lines.lower_slope) * x.centre
    if lines.upper_intercept is not None:
        out = out + lines.upper_intercept
    if lines.lower_intercept is not None:
        out = out - lines.lower_intercept
    return torch.nan_to_num(out.clamp(min=0))


def at_rest(graph: Graph) -> list[Tensor]:
    """What each node is, "1 *shape", where the input and everything that is not linear give zero: neurons' biases."""
    out: list[Tensor] = []
    for node in graph.nodes:
        if isinstance(node.op, Affine):
            out.append(node.op.forward(*(out[j] for j in node.inputs)))
        else:
            out.append(torch.zeros(1, *node.shape, dtype=graph.dtype, device=graph.device))
    return out
