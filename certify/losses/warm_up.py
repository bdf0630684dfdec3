"""What the methods on interval bounds share: how they start, and what they penalise while the radius grows.

All comparisons of CTBench (Mao et al., arXiv:2406.04848) start every method as fast IBP does, with its initialisation
and its regularisers at weight 0.5: much of what newer methods seemed to gain was owed to that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional

from bounds.graph import Graph
from bounds.interval import Interval
from certify.classifier import Classifier
from certify.initialise import initialise
from certify.method import Method
from certify.regularisers import balance, strength, tightness
from certify.terms import LossTerms, Step


@dataclass(frozen=True)
class WarmUp(Method):
    """warmup_regulariser: lambda_0 of `certify.regularisers`. ibp_initialisation: new weights before the first step
    (off where given weights are trained further)."""

    bounds_sets: ClassVar[bool] = True

    warmup_regulariser: float = 0.5
    ibp_initialisation: bool = True

    def __post_init__(self) -> None:
        if not self.warmup_regulariser >= 0:
            raise ValueError(f"warmup_regulariser must be >= 0, got {self.warmup_regulariser}")

    def prepare(self, model: Classifier, x: Tensor, y: Tensor, memory: dict[str, Any], seed: int) -> None:
        if self.ibp_initialisation:
            initialise(model)

    def terms(self, step: Step, logits: Tensor, robust: Tensor, graph: Graph, intervals: Sequence[Interval], *,
              margins: Tensor | None = None, **parts: Tensor) -> LossTerms:
        """`natural * CE(x) + (1 - natural) * robust`, and the penalties on `intervals` while the radius grows."""
        natural = functional.cross_entropy(logits, step.y)
        total = step.natural * natural + (1 - step.natural) * robust
        parts = {"natural": natural, "robust": robust, **parts}
        if weight := strength(self.warmup_regulariser, step):
            parts |= {"tightness": tightness(graph, intervals), "balance": balance(graph, intervals)}
            total = total + weight * (parts["tightness"] + parts["balance"])
        return LossTerms(total, {name: part.detach() for name, part in parts.items()}, logits.detach(), margins)
