"""Interval bounds with a short warm-up (Shi et al., arXiv:2103.17268).

The loss is that of `ibp`; weights start where intervals keep their size (`certify.initialise`), and while the radius
grows intervals are kept tight and ReLUs balanced (`certify.regularisers`). The paper's third part, batch normalisation
in every layer, is the network's; its statistics are those of the clean minibatch (`certify.classifier`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bounds.ibp import propagate
from certify.losses.warm_up import WarmUp
from certify.margins import interval_margins, least, robust_cross_entropy
from certify.terms import LossTerms, Step


@dataclass(frozen=True)
class FastIbp(WarmUp):
    """Settings: those of every warm-up."""

    name: ClassVar[str] = "fast-ibp"
    paper: ClassVar[str] = "arXiv:2103.17268"

    def loss(self, step: Step) -> LossTerms:
        logits, graph = step.model.clean(step.x)
        sets = step.sets()
        intervals = propagate(graph, sets, rounded=False)
        margins = interval_margins(graph, sets, step.y, intervals)
        return self.terms(step, logits, robust_cross_entropy(margins, step.y), graph, intervals,
                          margins=least(margins.detach(), step.y))
