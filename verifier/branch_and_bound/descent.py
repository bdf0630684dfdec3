"""From minimisers of relaxations to counterexamples: a few steps of projected descent from where a bound is lowest.

A minimiser of a domain's relaxation is mostly no counterexample, but lies in a region that attacks from random starts
may never reach: where gradients at the centre point elsewhere, searches found nearer counterexamples than attacks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bounds.graph import Graph
from verifier.branch_and_bound.bounding import Question

STEPS = 12
LONGEST, SHORTEST = 0.25, 0.01  # steps, in half widths of the box


def descended(graph: Graph, question: Question, x: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
    """(the best points "P *input" that were met, their margins "P") from points x of the sets of `branch` "P".

    The margin is the largest violation of the branch's rows: at most 0 where the point is unsafe.
    """
    t = question.tensors
    region = t.branch_region[branch]
    low, high = t.sets.lower[region], t.sets.upper[region]
    half = (high - low) / 2
    rows, mask = question.rows[branch], question.mask[branch]
    best, best_margin = x, x.new_full((len(x),), torch.inf)
    for step in torch.logspace(0, 1, STEPS + 1).tolist():
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            v = torch.einsum("prm,pm->pr", t.C[rows], graph(x).flatten(1)) - t.bound[rows]
            if t.D is not None:
                v = v + torch.einsum("prn,pn->pr", t.D[rows], x.flatten(1))
            margin = v.masked_fill(~mask, -torch.inf).amax(1)
            # Where no output depends on the input by a slope there is nowhere to go.
            (slope,) = torch.autograd.grad(margin.sum(), x, allow_unused=True) if margin.requires_grad else (None,)
        value = margin.detach()
        better = value < best_margin
        best = torch.where(better.view(-1, *(1,) * (x.dim() - 1)), x.detach(), best)
        best_margin = torch.where(better, value, best_margin)
        if slope is None:
            break
        share = LONGEST * (SHORTEST / LONGEST) ** ((step - 1) / 9)
        x = t.sets.project(x.detach() - share * half * slope.sign(), region)
    return best, best_margin
