"""What proves a bound over one domain, and what it is worth.

A certificate of the bound of a branch's rows `v_r = C_r f(x) + D_r x - bound_r` over a domain consists of

- weights of the rows, non-negative with sum one, or all zero (then a positive value says that the domain is empty);
- one relaxation parameter (alpha) for each elementwise neuron, inside its box;
- one signed multiplier s for each neuron whose values l <= z <= u are proved on the domain; a coefficient row A
  at these neurons then satisfies `A z >= (A - s) z + max(s, 0) l + min(s, 0) u`. The split constraints of beta-CROWN
  (arXiv:2103.06624) are the case of a bound that is zero; duals and Farkas rays of a linear programme are the same.

Any such numbers give a valid bound: who found them does not matter. `certified_value` is a plain float64 evaluation
(its own rounding is not accounted for).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.graph.graph import Graph
from bounds.interval import Interval
from bounds.lines import pull_back_lines
from bounds.ops.base import Affine, Elementwise, Relaxed
from bounds.sets import InputSet
from bounds.window import Owner


@dataclass(frozen=True, eq=False)
class UnsafeRows:
    """The rows of one branch for each of B domains: unsafe where `C f(x) + D x - bound <= 0` for all R rows.

    C "B R m" over the flat outputs, bound "B R", D "B R n" over the flat inputs or None; B may be 1: the same branch
    everywhere. `present` "B R" (None: all) marks the rows that exist where branches have different numbers.
    """

    C: Tensor
    bound: Tensor
    D: Tensor | None = None
    present: Tensor | None = None

    def __post_init__(self) -> None:
        if self.C.dim() != 3 or self.bound.shape != self.C.shape[:2]:
            raise ValueError(f"expected C 'B R m' and bound 'B R', got {tuple(self.C.shape)} and "
                             f"{tuple(self.bound.shape)}")
        if self.D is not None and self.D.shape[:2] != self.bound.shape:
            raise ValueError(f"expected D 'B R n' with B, R = {tuple(self.bound.shape)}, got {tuple(self.D.shape)}")
        if self.present is not None and self.present.shape != self.bound.shape:
            raise ValueError(f"expected present 'B R' = {tuple(self.bound.shape)}, got {tuple(self.present.shape)}")

    def take(self, chosen: slice) -> UnsafeRows:
        """The rows of some of the domains."""
        if self.C.shape[0] == 1:
            return self
        return UnsafeRows(*(None if t is None else t[chosen]  # type: ignore[arg-type]
                            for t in (self.C, self.bound, self.D, self.present)))

    def double(self) -> UnsafeRows:
        """On the CPU in float64."""
        C, bound, D = (None if t is None else t.to("cpu", torch.float64) for t in (self.C, self.bound, self.D))
        assert C is not None and bound is not None
        return UnsafeRows(C, bound, D, None if self.present is None else self.present.cpu())


@dataclass(frozen=True, eq=False)
class Certificate:
    """weights "B R"; `params` of elementwise nodes, "K B *shape"; `multipliers` of relaxed inputs, "B *shape"
    (a node left out has multipliers zero, or the default lines)."""

    weights: Tensor
    params: Mapping[int, Tensor]
    multipliers: Mapping[int, Tensor]

    def take(self, chosen: slice) -> Certificate:
        """Those of some of the domains."""
        return Certificate(self.weights[chosen], {i: p[:, chosen] for i, p in self.params.items()},
                           {i: s[chosen] for i, s in self.multipliers.items()})


def certified_value(graph: Graph, sets: InputSet, intervals: Mapping[int, Interval], rows: UnsafeRows,
                    certificate: Certificate) -> Tensor:
    """The bound "B" that a certificate proves: for all x of the domain `weights (C f(x) + D x - bound) >= value`.

    `intervals` hold proved bounds of every node in `graph.relaxed_inputs`, each "B *shape" or "1 *shape". Parameters
    are clipped to their boxes. Up to the rounding of float64.
    """
    graph, rows = graph.to(dtype=torch.float64, device="cpu"), rows.double()
    sets = sets.to(dtype=torch.float64, device=torch.device("cpu"))
    batch = sets.batch
    intervals = {i: x.map(lambda t: t.to("cpu", torch.float64).expand(batch, *t.shape[1:]))
                 for i, x in intervals.items()}
    weights = certificate.weights.clamp(min=0)
    if rows.present is not None:
        weights = weights * rows.present
    value = -(weights * rows.bound).sum(1)
    A = torch.einsum("br,brm->bm", weights, rows.C.expand(batch, -1, -1))
    pending: dict[int, Tensor] = {graph.output: A.reshape(batch, *graph.output_shape)}
    owner = Owner.of(batch, torch.arange(batch))
    for i in range(len(graph.nodes) - 1, -1, -1):
        s = certificate.multipliers.get(i)
        if s is not None:
            x = intervals[i]
            value = value + (s.clamp(min=0) * x.lower + s.clamp(max=0) * x.upper).flatten(1).sum(1)
            pending[i] = pending[i] - s if i in pending else -s
        if i not in pending or i == 0:
            continue
        A, node = pending.pop(i), graph.nodes[i]
        constant: Tensor | None
        if isinstance(node.op, Affine):
            constant = node.op.constant(A)
            results = node.op.pull_back(A, tuple(graph.nodes[j].shape for j in node.inputs))
        elif isinstance(node.op, Elementwise):
            x = intervals[node.inputs[0]]
            box = node.op.parameters(x)
            if box is None or i not in certificate.params:
                lines = node.op.relax(x)
            else:
                lines = node.op.relax_with(x, torch.minimum(torch.maximum(certificate.params[i], box[1]), box[2]))
            result, constant = pull_back_lines(A, lines)
            results = (result,)
        else:
            assert isinstance(node.op, Relaxed), f"{node.op.kind} has a relaxation"
            results, constant = node.op.pull_back_relaxed(A, owner, tuple(intervals[j] for j in node.inputs))
        if constant is not None:
            value = value + constant
        for j, result in zip(node.inputs, results, strict=True):
            pending[j] = pending[j] + result if j in pending else result
    A = pending.get(0, torch.zeros(batch, *graph.input_shape, dtype=torch.float64))
    if rows.D is not None:
        A = A + torch.einsum("br,brn->bn", weights, rows.D.expand(batch, -1, -1)).reshape(A.shape)
    return value + sets.minimise(A)
