"""An interval enclosure of the gradient of rows of outputs over boxes, from the intervals of the neurons.

Interval arithmetic on the chain rule (as in Fast-Lip, Weng et al., arXiv:1804.09699, without its merging of layers):
`d (C f) / dx = C W_k D_{k-1} .. D_1 W_1` with diagonal matrices D of enclosed derivatives. Piecewise linear
activations, sigmoid and tanh; Clarke's derivative at kinks. Rounding is paid layer by layer.

Axis legend: B boxes, K rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from bounds.graph import Graph
from bounds.graph.graph import UnsupportedOperator
from bounds.interval import Interval
from bounds.ops import enclose
from bounds.ops.base import Affine, Elementwise, Operator
from bounds.ops.leaky_relu import LeakyRelu
from bounds.ops.relu import Relu
from bounds.ops.round_off import MORE, SPARE, gamma, underflow, unit
from bounds.ops.sigmoid import Sigmoid
from bounds.ops.tanh import Tanh
from bounds.sets import InputSet


class GradientEnclosure(Protocol):
    """Encloses the gradient of every row of `C f` over every box."""

    def __call__(self, graph: Graph, sets: InputSet, C: Tensor, intervals: Mapping[int, Interval]) -> Interval:
        """C "K m", intervals of the nodes "B *shape" -> "B K *input"."""
        ...


def gradient_enclosure(graph: Graph, sets: InputSet, C: Tensor, intervals: Mapping[int, Interval]) -> Interval:
    """Raises UnsupportedOperator where a derivative is not known."""
    batch, count = sets.batch, C.shape[0]
    start = C.to(sets.lower).repeat(batch, 1).view(batch * count, *graph.output_shape)
    found: dict[int, tuple[Tensor, Tensor]] = {graph.output: (start, torch.zeros_like(start))}
    for i in range(graph.output, 0, -1):
        if i not in found:
            continue
        centre, radius = found.pop(i)
        node = graph.nodes[i]
        shapes = tuple(graph.nodes[j].shape for j in node.inputs)
        if isinstance(node.op, Affine):
            pulled = _through_affine(node.op, centre, radius, shapes, node.shape)
        elif isinstance(node.op, Elementwise) and len(node.inputs) == 1:
            slope = derivative(node.op, intervals[node.inputs[0]]).map(
                lambda t: t.expand(batch, *t.shape[1:]).repeat_interleave(count, 0))
            pulled = (_times(centre, radius, slope),)
        else:
            raise UnsupportedOperator(f"{node.op.kind} ({node.name}): no enclosure of its derivative")
        for j, part in zip(node.inputs, pulled, strict=True):
            found[j] = part if j not in found else _sum(found[j], part)
    if 0 not in found:
        zero = sets.lower.new_zeros(batch, count, *sets.shape)
        return Interval(zero, zero)
    centre, radius = (t.view(batch, count, *sets.shape) for t in found[0])
    share = SPARE * unit(centre.dtype)
    radius = radius + share * (centre.abs() + radius)
    return Interval(centre - radius, centre + radius)


def largest_slopes(steep: Interval, gradient: Interval) -> Tensor:
    """`|dF / dx_i| <= sum_k |dG / dz_k| |dz_k / dx_i|`: "B K", "B K *input" -> "B *input", rounded up."""
    sizes = [torch.maximum(t.lower.abs(), t.upper.abs()) for t in (steep, gradient)]
    total = torch.einsum("bk,bkn->bn", sizes[0], sizes[1].flatten(2))
    return (total * (1 + MORE * gamma(sizes[0].shape[1], total.dtype))).view(-1, *gradient.lower.shape[2:])


def derivative(op: Operator, x: Interval) -> Interval:
    """An enclosure "B *shape" of the derivative over intervals."""
    if isinstance(op, Relu | LeakyRelu):
        low = op.slope if isinstance(op, LeakyRelu) else 0.0
        one = torch.ones_like(x.lower)
        left, right = torch.where(x.lower < 0, low * one, one), torch.where(x.upper > 0, one, low * one)
        return Interval(torch.minimum(left, right), torch.maximum(left, right))
    if isinstance(op, Tanh | Sigmoid):
        # tanh' falls away from zero; sigmoid(z) = 1/2 + tanh(z / 2) / 2.
        scale = 1.0 if isinstance(op, Tanh) else 0.5
        nearest = x.lower.clamp(min=0) + x.upper.clamp(max=0)
        farthest = torch.maximum(x.lower.abs(), x.upper.abs())
        _, most = enclose.tanh_and_slope(nearest * scale)
        _, least = enclose.tanh_and_slope(farthest * scale)
        share = 1.0 if isinstance(op, Tanh) else 0.25
        return Interval(least.lower * share, most.upper * share)
    raise UnsupportedOperator(f"{op.kind}: no enclosure of its derivative")


def _through_affine(op: Affine, centre: Tensor, radius: Tensor, shapes: tuple[tuple[int, ...], ...],
                    shape: tuple[int, ...]) -> tuple[tuple[Tensor, Tensor], ...]:
    """Rows "N *out" as centre and radius, pulled back: |W|^T of the radius and of what rounding may add."""
    pulled = op.pull_back(centre, shapes)
    terms = op.terms(shapes, shape)
    share = MORE * gamma(terms, centre.dtype) if terms else 0.0
    outer = radius + share * (centre.abs() + radius)
    widths = _transposed_magnitude(op, outer, shapes)
    lost = underflow(terms, centre.dtype) if terms else 0.0
    return tuple((c, w * (1 + share) + lost) for c, w in zip(pulled, widths, strict=True))


def _transposed_magnitude(op: Affine, A: Tensor, shapes: tuple[tuple[int, ...], ...]) -> tuple[Tensor, ...]:
    """|W|^T A, as the derivative of |W| r: "N *out" -> one "N *in" an input."""
    with torch.enable_grad():
        leaves = [A.new_zeros(A.shape[0], *s).requires_grad_() for s in shapes]
        return torch.autograd.grad(op.magnitude(*leaves), leaves, A)


def _times(centre: Tensor, radius: Tensor, slope: Interval) -> tuple[Tensor, Tensor]:
    """[centre +- radius] times a slope interval: with middle s and radius r of the slope, centre s and
    |centre| r + radius (|s| + r), and what rounding may add."""
    middle, spread = slope.centre, slope.radius
    spare = 2 * SPARE * unit(centre.dtype)
    size = middle.abs() + spread
    out = centre.abs() * spread + radius * size
    return centre * middle, out + spare * ((centre.abs() + radius) * size) + torch.finfo(centre.dtype).tiny


def _sum(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    centre, radius = a[0] + b[0], a[1] + b[1]
    return centre, radius + SPARE * unit(centre.dtype) * (a[0].abs() + b[0].abs() + radius)
