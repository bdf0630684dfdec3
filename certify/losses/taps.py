"""TAPS: intervals through the first layers, an attack behind them (Mao et al., arXiv:2305.04574).

Intervals bound the outputs of the feature extractor; in that box, one attack for every other class looks for the point
where the margin to it is least (the paper's multi-estimator). The margins found there, m_j, lie above those that
intervals bound, so that their cross-entropy L_TAPS lies below that of IBP, and

    L = L_TAPS * L_IBP,    grad L = 2 a grad L_TAPS * L_IBP + (2 - 2 a) grad L_IBP * L_TAPS,

where `gradient_scale` s gives a = s / (1 + s). The points have no gradient of their own; the gradient connector passes
theirs on to the box [l, u]: with w = u - l and a soft threshold c, in each coordinate

    dz/du = max(0, 1 - (u - z) / (c w)),    dz/dl = max(0, 1 - (z - l) / (c w)),

one half each where the box has no width. c = 1 is a linear interpolation, c to 0 the ends alone.

STAPS does the same over SABR's small box. Neither is a bound; `margins` are those of IBP where IBP bounds the whole set
(TAPS), and None otherwise. While the radius grows the loss is that of IBP (SABR for STAPS), as in the authors' runs;
`estimate_in_ramp` changes that. The attack takes steps of one length, theirs become shorter towards the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bounds.graph import Graph
from bounds.ibp import propagate
from bounds.interval import Interval
from bounds.ops.base import Affine, Input
from bounds.sets import InputSet
from certify.losses.inner_attack import InnerAttack
from certify.losses.sabr import SmallBox
from certify.margins import interval_margins, least, others, robust_cross_entropy
from certify.terms import LossTerms, Step

COMBINATIONS = ("product", "estimate")
TOLERANCE = 1e-5  # narrower than this, a box has no inside over which a gradient could be shared out


@dataclass(frozen=True)
class Taps(InnerAttack):
    """split: how many activation layers lie behind the box that is attacked. steps, restarts, step_size: of that
    attack, step_size as a share of the box's half width. gradient_scale: the weight of the estimate's gradient for 1 of
    IBP's. soft_threshold: c above. combination: product, or the estimate alone."""

    name: ClassVar[str] = "taps"
    paper: ClassVar[str] = "arXiv:2305.04574"

    split: int = 1
    gradient_scale: float = 5.0
    soft_threshold: float = 0.5
    combination: str = "product"
    estimate_in_ramp: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split < 1:
            raise ValueError(f"split must be >= 1, got {self.split}")
        if not self.gradient_scale > 0:
            raise ValueError(f"gradient_scale must be > 0, got {self.gradient_scale}")
        if not 0 < self.soft_threshold <= 1:
            raise ValueError(f"soft_threshold must be in (0, 1], got {self.soft_threshold}")
        if self.combination not in COMBINATIONS:
            raise ValueError(f"combination must be one of {', '.join(COMBINATIONS)}, got {self.combination!r}")

    def sets(self, step: Step) -> InputSet:
        """What intervals run over."""
        return step.sets()

    def read(self, graph: Graph) -> Graph:
        """The graph on which they run."""
        return graph

    @property
    def is_bound(self) -> bool:
        """Whether the intervals hold over the whole set."""
        return True

    def loss(self, step: Step) -> LossTerms:
        sets = self.sets(step)
        logits, clean = step.model.clean(step.x)
        graph = self.read(clean)
        cut = split_node(graph, self.split)
        intervals = propagate(graph, sets, rounded=False)
        bounded = interval_margins(graph, sets, step.y, intervals)
        robust = ibp = robust_cross_entropy(bounded, step.y)
        parts = {"ibp": ibp}
        if self.estimate_in_ramp or step.eps >= step.target_eps:
            estimate = robust_cross_entropy(self.estimated(step, graph, cut, intervals[cut]), step.y)
            robust = self.combined(estimate, ibp)
            parts["estimate"] = estimate
        return self.terms(step, logits, robust, graph, intervals, **parts,
                          margins=least(bounded.detach(), step.y) if self.is_bound else None)

    def estimated(self, step: Step, graph: Graph, cut: int, box: Interval) -> Tensor:
        """Margins "B m" (0 at the label) at the worst points that an attack finds in the box of a node."""
        points = self._worst(step, graph, cut, box)
        values = margins_at(graph, cut, connect(points, box, self.soft_threshold), step.y)
        return values.new_zeros(len(step.y), values.shape[1] + 1).scatter(
            1, others(step.y, values.shape[1] + 1), values)

    def combined(self, estimate: Tensor, ibp: Tensor) -> Tensor:
        """The loss of a minibatch from its two factors."""
        if self.combination == "estimate":
            return estimate
        share = self.gradient_scale / (1 + self.gradient_scale)
        return scale_gradient(estimate, 2 * share) * scale_gradient(ibp, 2 - 2 * share)

    @torch.no_grad()
    def _worst(self, step: Step, graph: Graph, cut: int, box: Interval) -> Tensor:
        """Points "B m-1 *latent" of the box with small margins to the other classes, each the best of its run."""
        lower, upper = box.lower.detach().unsqueeze(1), box.upper.detach().unsqueeze(1)
        width = upper - lower
        size = (step.model.classes - 1, *box.lower.shape[1:])
        best, least_so_far = lower, lower.new_full((len(lower), size[0]), torch.inf)
        with step.model.attacked():
            for _ in range(self.restarts):
                z = lower + width * step.draws.uniform(step.everyone, size, lower.dtype)
                for k in range(self.steps + 1):
                    with torch.enable_grad():
                        z.requires_grad_(True)
                        value = margins_at(graph, cut, z, step.y)
                        slope = torch.autograd.grad(value.sum(), z)[0] if k < self.steps else torch.zeros_like(z)
                    better = (value < least_so_far).view(*value.shape, *(1,) * (z.dim() - 2))
                    best = torch.where(better, z, best).detach()
                    least_so_far = torch.minimum(value, least_so_far).detach()
                    moved = z - self.step_size * width / 2 * slope.sign()
                    z = torch.minimum(torch.maximum(moved, lower), upper).detach()
        return best


@dataclass(frozen=True)
class Staps(SmallBox, Taps):
    """Settings: those of TAPS and of the small box; steps, restarts and step_size serve both attacks."""

    name: ClassVar[str] = "staps"


def split_node(graph: Graph, layers: int) -> int:
    """The first node behind which `layers` activation layers lie and through which all paths to the output run.

    Raises ValueError, with the numbers that are possible, where there is none.
    """
    needed = sorted(graph.ancestors)
    found: dict[int, int] = {}
    for node in needed[:-1]:
        later = [graph.nodes[i] for i in needed if i > node]
        if all(j >= node for n in later for j in n.inputs):
            found.setdefault(sum(not isinstance(n.op, Affine | Input) for n in later), node)
    if layers not in found:
        possible = ", ".join(str(k) for k in sorted(found) if k)
        raise ValueError(f"no node of this network has {layers} activation layers behind it and all paths through it; "
                         f"split may be {possible or 'nothing: there are no activations'}")
    return found[layers]


def margins_at(graph: Graph, cut: int, z: Tensor, y: Tensor) -> Tensor:
    """At point k of z "B m-1 *latent", a value of the node `cut`: the margin to the k-th other class. "B m-1"."""
    logits = behind(graph, cut, z.flatten(0, 1)).flatten(1).view(*z.shape[:2], -1)
    label = logits.gather(2, y.view(-1, 1, 1).expand(-1, z.shape[1], 1)).squeeze(2)
    return label - logits.gather(2, others(y, logits.shape[2]).unsqueeze(2)).squeeze(2)


def behind(graph: Graph, cut: int, z: Tensor) -> Tensor:
    """The output where the node `cut` has the values z "P *latent"."""
    values = {cut: z}
    for i in sorted(graph.ancestors):
        if i > cut:
            values[i] = graph.nodes[i].op.forward(*(values[j] for j in graph.nodes[i].inputs))
    return values[graph.output]


def connect(points: Tensor, box: Interval, threshold: float) -> Tensor:
    """The points "B K *latent" themselves, with the gradient connector to the box "B *latent" behind them."""
    lower, upper = box.lower.unsqueeze(1), box.upper.unsqueeze(1)
    with torch.no_grad():
        width = threshold * (upper - lower)
        wide = width > threshold * TOLERANCE
        safe = torch.where(wide, width, torch.ones_like(width))
        to_upper = torch.where(wide, (1 - (upper - points) / safe).clamp(0, 1), 0.5)
        to_lower = torch.where(wide, (1 - (points - lower) / safe).clamp(0, 1), 0.5)
    return points + to_upper * (upper - upper.detach()) + to_lower * (lower - lower.detach())


def scale_gradient(value: Tensor, factor: float) -> Tensor:
    """The value, with its gradient multiplied."""
    return value.detach() + factor * (value - value.detach())
