"""Expressive losses: from the adversarial loss to IBP by one number (De Palma et al., arXiv:2305.13991).

With an adversarial point x', interval bounds m of the margins, and a coefficient a in [0, 1], example by example:

    CC-IBP     CE of the worst logits (1 - a) m(x') + a m
    MTL-IBP    (1 - a) CE(x') + a CE(m)
    Exp-IBP    CE(x')^(1 - a) * CE(m)^a

At 0 each is adversarial training, at 1 each is IBP; between, each grows with a wherever x' lies in the set, because m
bounds the margins there. The adversarial loss bounds nothing, so none of them certifies anything; `margins` are those
of IBP, which the loss has computed anyway. Logits at x' are computed with the batch statistics of the clean inputs, as
the bounds are.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from bounds.ibp import propagate
from certify.losses.inner_attack import InnerAttack
from certify.margins import interval_margins, least, worst_logits
from certify.terms import LossTerms, Step


@dataclass(frozen=True)
class Expressive(InnerAttack):
    """coefficient: a above. attack_eps: the radius of the attack, as a multiple of that of the bounds; above 1 the
    point may lie outside the set (the paper takes 2.1 on CIFAR-10 at 2/255)."""

    paper: ClassVar[str] = "arXiv:2305.13991"

    coefficient: float = 0.1
    attack_eps: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.coefficient <= 1:
            raise ValueError(f"coefficient must be in [0, 1], got {self.coefficient}")
        if not self.attack_eps > 0:
            raise ValueError(f"attack_eps must be > 0, got {self.attack_eps}")

    @abstractmethod
    def combined(self, attacked: Tensor, bounded: Tensor, y: Tensor) -> Tensor:
        """The losses "B" from margins "B m" (0 at the label): at adversarial points, and bounds of them."""

    def loss(self, step: Step) -> LossTerms:
        x = self.adversarial(step, self.attack_eps * step.eps)
        logits, graph = step.model.clean(step.x)
        at_points = graph(x)
        attacked = at_points.gather(1, step.y.unsqueeze(1)) - at_points
        sets = step.sets()
        intervals = propagate(graph, sets, rounded=False)
        bounded = interval_margins(graph, sets, step.y, intervals)
        return self.terms(step, logits, self.combined(attacked, bounded, step.y).mean(), graph, intervals,
                          margins=least(bounded.detach(), step.y), adversarial=losses(attacked, step.y).mean(),
                          ibp=losses(bounded, step.y).mean())


@dataclass(frozen=True)
class CcIbp(Expressive):
    """Convex combinations of margins."""

    name: ClassVar[str] = "cc-ibp"

    def combined(self, attacked: Tensor, bounded: Tensor, y: Tensor) -> Tensor:
        return losses((1 - self.coefficient) * attacked + self.coefficient * bounded, y)


@dataclass(frozen=True)
class MtlIbp(Expressive):
    """Convex combinations of losses (multi-task learning)."""

    name: ClassVar[str] = "mtl-ibp"

    def combined(self, attacked: Tensor, bounded: Tensor, y: Tensor) -> Tensor:
        return (1 - self.coefficient) * losses(attacked, y) + self.coefficient * losses(bounded, y)


@dataclass(frozen=True)
class ExpIbp(Expressive):
    """Convex combinations of the logarithms of losses."""

    name: ClassVar[str] = "exp-ibp"

    def combined(self, attacked: Tensor, bounded: Tensor, y: Tensor) -> Tensor:
        # A cross-entropy below the unit of its dtype is rounding, and a power of 0 has no slope.
        smallest = torch.finfo(attacked.dtype).eps
        low, high = losses(attacked, y).clamp(min=smallest), losses(bounded, y).clamp(min=smallest)
        return low ** (1 - self.coefficient) * high**self.coefficient


def losses(margins: Tensor, y: Tensor) -> Tensor:
    """The cross-entropies "B" of margins "B m"."""
    return functional.cross_entropy(worst_logits(margins), y, reduction="none")
