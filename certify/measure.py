"""What a network under training is worth at a glance: shares of examples, in ordinary floating point.

For choosing between epochs and for curves; `rmax evaluate` gives answers with evidence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.compute import compute_bounds
from bounds.graph import Graph
from bounds.precision import full_precision
from bounds.rounding import priced
from bounds.sets import InputSet
from certify.classifier import Classifier
from certify.data.dataset import Examples
from certify.inner import ascend
from certify.margins import by_class, ibp_margins, least, margin_rows
from certify.terms import Progress, Step

BATCH = {"crown": 50}  # examples at once; others take more
USUAL_BATCH = 250
PGD = {"pgd": 10, "pgd-20": 20}
KINDS = ("clean", *PGD, "ibp", "crown-ibp", "crown")
ATTACK_SEED = 1  # of attacks that measure: the same in every epoch


@dataclass(frozen=True)
class Threatened:
    """The sets around examples: radius in input units, norm (inf or 2), range of inputs."""

    eps: float
    norm: float = math.inf
    clip: tuple[float, float] | None = None


def margins_by(graph: Graph, sets: InputSet, y: Tensor, method: str) -> Tensor:
    """Lower bounds "B m" of the margins by a bound method, in ordinary floating point."""
    if method == "ibp":
        return ibp_margins(graph, sets, y)
    classes = int(torch.Size(graph.output_shape).numel())
    with priced(False):
        found = compute_bounds(graph, sets, margin_rows(y, classes, sets.lower), method)
    return by_class(found.lower, y, classes)


def measure(model: Classifier, examples: Examples, threat: Threatened, kinds: Sequence[str],
            tell: Callable[[str], None] = lambda doing: None) -> dict[str, float]:
    """Shares of the examples, by kind: clean, pgd (10 steps), pgd-20, and what ibp, crown-ibp or crown certify."""
    training = model.module.training
    model.module.eval()
    device = next(model.module.parameters()).device
    counts = dict.fromkeys(kinds, 0)
    try:
        for kind in kinds:
            size = BATCH.get(kind, USUAL_BATCH)
            for first in range(0, len(examples), size):
                tell(f"measuring {kind}, {first} of {len(examples)}")
                part = examples.take(slice(first, first + size))
                step = step_for(model, part.x.to(device), part.y.to(device), first, threat)
                counts[kind] += int(_holds(step, kind).sum())
    finally:
        model.module.train(training)
    return {kind: count / max(1, len(examples)) for kind, count in counts.items()}


def step_for(model: Classifier, x: Tensor, y: Tensor, first: int, threat: Threatened) -> Step:
    """Examples as a minibatch that nothing is trained on; their numbers begin at `first`."""
    number = torch.arange(first, first + len(x), device=x.device)
    return Step(model, x, y, number, threat.eps, threat.eps, 0.0, threat.norm, threat.clip, Progress(0.0, 1.0, 0),
                ATTACK_SEED)


@torch.no_grad()
def _holds(step: Step, kind: str) -> Tensor:
    """bool "B"."""
    right = step.model(step.x).argmax(1) == step.y
    if kind == "clean":
        return right
    if kind in PGD:
        x = ascend(step, steps=PGD[kind], step_size=0.25 if kind == "pgd" else 0.1)
        return right & (step.model(x).argmax(1) == step.y)
    with full_precision():
        margins = margins_by(step.model.graph, step.sets(), step.y, kind)
    return right & (least(margins, step.y) > 0)
