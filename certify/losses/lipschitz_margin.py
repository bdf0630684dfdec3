"""Lipschitz-margin training (Tsuzuku, Sato and Sugiyama, arXiv:1802.04034).

With L the network's Lipschitz constant in l_2, differences of two logits move by at most `sqrt(2) L c` over a ball of
radius c. The loss is the cross-entropy after `sqrt(2) c L` has been added to every logit but the label's; gradients
pass through L. Over an l_inf ball of radius eps in n features, c is `sqrt(n) eps`: valid, and loose.

L is the product of operator norms along a path and their sum where paths meet. The norm of an affine operator between
nodes comes from power iteration (`iterations` of them a step), whose vector is kept in `Step.memory` from step to step;
its gradient is that of `||W v||` at the vector reached. Power iteration approaches the norm from below, so L is
an estimate during training, and nothing is claimed certified; where an operator multiplies each number by a factor
(batch normalisation, scales) the norm is exact. An activation counts by its steepest slope; operators that are neither
affine nor elementwise are refused by name. Proved constants are those of `verifier.lipschitz`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from bounds.graph import Graph, UnsupportedOperator
from bounds.interval import Interval
from bounds.ops.base import Affine, Elementwise
from bounds.ops.batch_norm import BatchNorm
from bounds.ops.scale import Scale
from certify.method import Method
from certify.terms import LossTerms, Step

EVERYWHERE = 1e6  # slopes of activations are taken over [-1e6, 1e6]


@dataclass(frozen=True)
class LipschitzMargin(Method):
    """iterations: of power iteration a step and operator. scale: of the radius c that is added for."""

    iterations: int = 1
    scale: float = 1.0

    name: ClassVar[str] = "lipschitz-margin"
    paper: ClassVar[str] = "arXiv:1802.04034"
    bounds_sets: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations must be >= 1, got {self.iterations}")
        if not self.scale > 0:
            raise ValueError(f"scale must be > 0, got {self.scale}")

    def loss(self, step: Step) -> LossTerms:
        logits, graph = step.model.clean(step.x)
        natural = functional.cross_entropy(logits, step.y)
        constant = lipschitz_constant(graph, step.memory, self.iterations)
        reach = math.sqrt(2.0) * self.scale * l2_radius(step) * constant
        label = functional.one_hot(step.y, logits.shape[1]).to(logits)
        robust = functional.cross_entropy(logits + reach * (1 - label), step.y)
        total = step.natural * natural + (1 - step.natural) * robust
        return LossTerms(total, {"natural": natural.detach(), "robust": robust.detach(),
                                 "lipschitz": constant.detach()}, logits.detach())


def l2_radius(step: Step) -> float:
    """Of an l_2 ball that holds the step's."""
    if step.norm == math.inf:
        return step.eps * math.sqrt(step.x[0].numel())
    return step.eps  # ||x||_2 <= ||x||_1


def lipschitz_constant(graph: Graph, memory: dict[str, Any], iterations: int) -> Tensor:
    """An estimate from below, differentiable, of the product of operator norms in l_2; memory: the vectors "1 *in"."""
    like = next(p for p in graph.parameters() if p.is_floating_point())
    constants = [like.new_ones(())]
    for i, node in enumerate(graph.nodes[1:], 1):
        below = [constants[j] for j in node.inputs]
        if isinstance(node.op, Affine):
            norms = _norms(graph, i, memory, iterations)
            constants.append(torch.stack([n * c for n, c in zip(norms, below, strict=True)]).sum())
        elif isinstance(node.op, Elementwise):
            constants.append(below[0] * _steepest(node.op, node.shape, like))
        else:
            raise UnsupportedOperator(f"{node.op.kind} ({node.name}): Lipschitz-margin training has no constant of it")
    return constants[graph.output]


def _steepest(op: Elementwise, shape: tuple[int, ...], like: Tensor) -> Tensor:
    ends = like.new_full((1, *shape), EVERYWHERE)
    slopes = op.derivative(Interval(-ends, ends))
    return torch.maximum(slopes.lower.abs(), slopes.upper.abs()).amax()


def _norms(graph: Graph, i: int, memory: dict[str, Any], iterations: int) -> list[Tensor]:
    """The norms of affine node i by each of its inputs."""
    node = graph.nodes[i]
    op = node.op
    assert isinstance(op, Affine)
    shapes = tuple(graph.nodes[j].shape for j in node.inputs)
    like = next(p for p in graph.parameters() if p.is_floating_point())
    if op.passes_rows(shapes, node.shape) is not None:
        return [like.new_ones(()) for _ in shapes]
    if isinstance(op, BatchNorm | Scale):  # one factor a number
        return [op.magnitude(like.new_ones(1, *shapes[0])).amax()]
    found = []
    for k, shape in enumerate(shapes):
        zeros = [like.new_zeros(1, *s) for s in shapes]

        def apply(v: Tensor, k: int = k, zeros: list[Tensor] = zeros) -> Tensor:
            return op.linear(*zeros[:k], v, *zeros[k + 1:])
        key = f"power {i} {k}"
        with torch.no_grad():
            v = memory.get(key)
            if v is None:  # no symmetry that an operator might annihilate
                v = torch.linspace(1, 2, math.prod(shape), dtype=like.dtype, device=like.device).cos().view(1, *shape)
            for _ in range(iterations):
                v = op.pull_back(apply(v.to(like)), shapes)[k]
                v = v / torch.linalg.vector_norm(v).clamp(min=torch.finfo(v.dtype).tiny)
            memory[key] = v
        found.append(torch.linalg.vector_norm(apply(v)))
    return found
