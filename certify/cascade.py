"""Cascades of certified classifiers (Wong et al., arXiv:1805.12514, section 3.4).

The first network is trained on all examples; each next one on those that the one before does not certify: an example
leaves as soon as its own prediction is proved constant over its set, right or wrong. At test time a stage that
certifies its own prediction answers; an uncertified example passes on. The prediction of the whole is that of the
stage that answers, or of the last one; an example counts as certified if the stage that answers predicts its label.

What a cascade does not promise: near a certified example an earlier stage may certify another label of another point,
so that the prediction of the cascade itself may change inside the set (arXiv:2206.00278). The figure is the paper's.

Bounds run from cheap to tight on the examples that are still open, in floating point, without proofs of rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.compute import METHODS, compute_bounds
from bounds.graph import Graph
from bounds.sets import LpBall
from certify.margins import margin_rows

CHEAP_TO_TIGHT = ("ibp", "crown-ibp", "fastlin")


@dataclass(frozen=True)
class Certifier:
    """Over which sets predictions are certified, and by which bounds, tried in order. batch: examples at once."""

    eps: float
    norm: float = torch.inf
    clip: tuple[float, float] | None = (0.0, 1.0)
    methods: tuple[str, ...] = CHEAP_TO_TIGHT
    batch: int = 100

    def __post_init__(self) -> None:
        if self.eps < 0:
            raise ValueError(f"eps must be >= 0, got {self.eps}")
        if self.batch < 1:
            raise ValueError(f"batch must be >= 1, got {self.batch}")
        if not self.methods or (unknown := set(self.methods) - set(METHODS)):
            raise ValueError(f"methods must be some of {', '.join(METHODS)}, got "
                             f"{', '.join(sorted(unknown)) if self.methods else 'none'}")

    @torch.no_grad()
    def proves(self, graph: Graph, x: Tensor, labels: Tensor) -> Tensor:
        """bool "N": examples x "N *shape" whose labels "N" are proved to have the largest logit all over their set."""
        parts = [self._proves(graph, x[k:k + self.batch], labels[k:k + self.batch])
                 for k in range(0, len(x), self.batch)]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.bool, device=x.device)

    def _proves(self, graph: Graph, x: Tensor, labels: Tensor) -> Tensor:
        classes = int(torch.Size(graph.output_shape).numel())
        done = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for method in self.methods:
            rest = (~done).nonzero().squeeze(1)
            if not len(rest):
                break
            sets = LpBall(x[rest], self.eps, self.norm, clip=self.clip)
            lower = compute_bounds(graph, sets, margin_rows(labels[rest], classes, x), method).lower
            done[rest] = (lower.view(len(rest), classes - 1) > 0).all(1)
        return done

    @torch.no_grad()
    def predicts(self, graph: Graph, x: Tensor) -> tuple[Tensor, Tensor]:
        """(predictions "N", bool "N": whether each is proved to be constant over its set): what splits a training
        set, those not proved being the next stage's."""
        prediction = torch.cat([graph(part).flatten(1).argmax(1) for part in x.split(self.batch)]) if len(x) else \
            torch.zeros(0, dtype=torch.long, device=x.device)
        return prediction, self.proves(graph, x, prediction)


@dataclass(frozen=True, eq=False)
class CascadeAnswers:
    """Of N examples: the stage that answers "N" (-1: none certifies), the predictions and the labels "N"."""

    stage: Tensor
    prediction: Tensor
    label: Tensor

    @property
    def certified(self) -> Tensor:
        """bool "N": answered by a stage that certifies the label."""
        return (self.stage >= 0) & (self.prediction == self.label)

    @property
    def clean_error(self) -> float:
        """Share of examples of which the prediction is wrong."""
        return float((self.prediction != self.label).double().mean())

    @property
    def robust_error(self) -> float:
        """Share of examples that are not certified."""
        return float((~self.certified).double().mean())


def run_cascade(stages: Sequence[Graph], certifier: Certifier, x: Tensor, y: Tensor) -> CascadeAnswers:
    """What a cascade answers on x "N *shape" with labels "N"."""
    if not stages:
        raise ValueError("a cascade needs a stage, got none")
    stage = torch.full_like(y, -1)
    prediction = torch.full_like(y, -1)
    for k, graph in enumerate(stages):
        rest = (stage < 0).nonzero().squeeze(1)
        if not len(rest):
            break
        prediction[rest], proved = certifier.predicts(graph, x[rest])
        stage[rest[proved]] = k
    return CascadeAnswers(stage, prediction, y)


def uncertified(stages: Sequence[Graph], certifier: Certifier, x: Tensor) -> Tensor:
    """Places "M" of the examples that no stage certifies: what the next stage is trained on."""
    places = torch.arange(len(x), device=x.device)
    for graph in stages:
        places = places[~certifier.predicts(graph, x[places])[1]]
    return places
