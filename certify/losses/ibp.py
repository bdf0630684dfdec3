"""Training on interval bounds (Gowal et al., arXiv:1810.12715).

`natural * CE(x) + (1 - natural) * CE(worst logits over the set)`, where intervals bound the margins and the weight of
the natural loss falls while the radius grows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch.nn import functional

from certify.margins import ibp_margins, least, robust_cross_entropy
from certify.method import Method
from certify.terms import LossTerms, Step


@dataclass(frozen=True)
class Ibp(Method):
    """No settings of its own: the schedules of the radius and of the natural loss are the run's."""

    name: ClassVar[str] = "ibp"
    paper: ClassVar[str] = "arXiv:1810.12715"
    bounds_sets: ClassVar[bool] = True

    def loss(self, step: Step) -> LossTerms:
        logits, graph = step.model.clean(step.x)
        natural = functional.cross_entropy(logits, step.y)
        margins = ibp_margins(graph, step.sets(), step.y)
        robust = robust_cross_entropy(margins, step.y)
        total = step.natural * natural + (1 - step.natural) * robust
        return LossTerms(total, {"natural": natural.detach(), "robust": robust.detach()}, logits.detach(),
                         least(margins.detach(), step.y))
