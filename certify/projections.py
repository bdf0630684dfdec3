"""Bounds of neurons estimated from random projections (Wong et al., arXiv:1805.12514, section 3.2).

Through parallel lines a network is affine but for a band around each neuron, so the value of any neuron lies within
`centre +- sum_k |g_k|`: g_k is what one unit of the k-th input's radius, or of the k-th band's half width, moves it by.
The rows g would take a backward pass a neuron. A random vector takes one pass forward for all neurons at once: with
independent Cauchy variables c_k, `sum_k c_k g_k` is Cauchy with scale `sum_k |g_k|`, and the median of its absolute
value is that scale. Of k projections the sample median has

    relative standard deviation  pi / (2 sqrt(k))  for large k         (k = 50: 22 %),

and its relative error is at most e with probability 1 - d for k of the order of log(1 / d) / e^2. Over an l_2 ball the
inputs' part is `radius * ||g||_2`, estimated as the root of the mean square of k normal projections (relative standard
deviation 1 / sqrt(2 k)). The mean of the two middle values stands for the median of an even number of projections.

What is done differently: the inputs and all bands share one Cauchy projection (the paper estimates layer by layer and
adds), so a pass costs k vectors whatever the depth; all examples of a minibatch see the same random numbers, as in the
authors' code; and neurons of which interval arithmetic over a box knows the range are taken as they are. The
range of inputs cuts an l_inf ball exactly, and an l_2 ball only in the rows of the margins, not here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bounds.backward import Backward
from bounds.ibp import bounding_box, exact_over_boxes
from bounds.interval import Interval
from bounds.ops.base import Affine
from bounds.sets import InputSet
from bounds.zonotope import Zonotope, through_affine, through_parallel
from certify.terms import Step
from verifier.attacks.draws import Draws

SHARED = -1  # the number of the stream that belongs to no example


def shared_draws(step: Step) -> Draws:
    """Random numbers of a step that all examples share, on all devices."""
    return Draws(step.seed * 1_000_003 + step.progress.update, torch.full((1,), SHARED, device=step.x.device))


def estimate_neurons(engine: Backward, projections: int, draws: Draws) -> None:
    """Enclose every node that a relaxation reads by estimated bounds, differentiable; nothing proved is left."""
    graph, sets = engine.graph, engine.sets
    sketch = Sketch(sets, projections, draws)
    exact = exact_over_boxes(graph) if sets.is_box else frozenset()
    found: dict[int, Zonotope] = {0: sketch.of_set()}
    intervals = {0: bounding_box(sets)}
    last = max(graph.relaxed_inputs, default=0)
    for i, node in enumerate(graph.nodes[:last + 1]):
        if i:
            sources = tuple(found[j] for j in node.inputs)
            if isinstance(node.op, Affine):
                found[i] = through_affine(node.op, sources)
                if i in exact:
                    intervals[i] = node.op.interval(*(intervals[j] for j in node.inputs))
            else:
                found[i] = sketch.with_noise(*through_parallel(node, tuple(intervals[j] for j in node.inputs), sources))
        if i in graph.relaxed_inputs:
            if i and i not in exact:
                intervals[i] = sketch.interval(found[i])
            engine.enclose(i, intervals[i])


class Sketch:
    """Zonotopes whose generators are random combinations: "B S *shape", the last k of S Cauchy, and over an l_2 ball k
    normal ones before them."""

    def __init__(self, sets: InputSet, projections: int, draws: Draws) -> None:
        if not sets.is_box and sets.p != 2.0:
            raise ValueError(f"random projections estimate l_inf and l_2 norms, got a ball of p = {sets.p:g}")
        self.sets = sets
        self.count = projections
        self._draws = draws
        self._stream = torch.zeros(1, dtype=torch.long, device=sets.device)

    def of_set(self) -> Zonotope:
        """The input: its centre, and its radius projected."""
        sets = self.sets
        if sets.centre is None or sets.radius is None:
            box = Interval(sets.lower, sets.upper)
            return Zonotope(box.centre, self._cauchy(sets.shape) * box.radius.unsqueeze(1))
        normal = self._draws.normal(self._stream, (self.count, *sets.shape), sets.dtype)
        ball = normal * sets.radius.view(-1, 1, *(1,) * len(sets.shape))
        return Zonotope(sets.centre, torch.cat([ball, torch.zeros_like(ball)], 1))

    def with_noise(self, z: Zonotope, noise: Tensor) -> Zonotope:
        """The zonotope with symbols of its own for every neuron, projected; noise "B *shape" >= 0."""
        symbols = self.count if self.sets.is_box else 2 * self.count
        added = self._cauchy(noise.shape[1:]) * noise.unsqueeze(1)
        ball = z.padded(symbols)
        parts = [ball[:, :-self.count], ball[:, -self.count:] + added]
        return Zonotope(z.centre, parts[1] if self.sets.is_box else torch.cat(parts, 1))

    def interval(self, z: Zonotope) -> Interval:
        """Estimated bounds."""
        radius = median(z.generators[:, -self.count:].abs())
        if not self.sets.is_box:
            radius = radius + torch.linalg.vector_norm(z.generators[:, :self.count], 2, dim=1) / math.sqrt(self.count)
        return Interval(z.centre - radius, z.centre + radius)

    def _cauchy(self, shape: tuple[int, ...]) -> Tensor:
        u = self._draws.uniform(self._stream, (self.count, *shape), self.sets.dtype)
        return torch.tan(math.pi * (u - 0.5))


def median(x: Tensor) -> Tensor:
    """The median over axis 1, of an even number the mean of the two middle ones."""
    count = x.shape[1]
    high = x.kthvalue(count // 2 + 1, 1).values
    return high if count % 2 else (x.kthvalue(count // 2, 1).values + high) / 2
