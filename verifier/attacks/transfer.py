"""Transfer (arXiv:1605.07277): adversarial examples of a surrogate, tried on the model under attack.

Any white-box attack of the registry works on the surrogate; of its calls none counts. What it ends with, and the worst
point it saw, go to the model: one query each, or several along the line from the original.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from verifier.attacks.base import Attack
from verifier.attacks.model import Gives, Model, as_model
from verifier.attacks.registry import attack_named
from verifier.attacks.run import Run


@dataclass(frozen=True, kw_only=True)
class Transfer(Attack):
    """surrogate: a model, see `as_model`. attack, settings: what finds its adversarial examples, inside eps. multiples:
    how far along the line from the original they are tried, 1 being the example itself."""

    name: ClassVar[str] = "transfer"
    norms: ClassVar[tuple[float, ...]] = (math.inf, 2.0, 1.0)
    needs: ClassVar[Gives] = Gives.LABELS

    surrogate: Any = None
    attack: str = "pgd"
    settings: Mapping[str, Any] = field(default_factory=dict)
    multiples: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if self.surrogate is None:
            raise ValueError("transfer needs a surrogate: a model whose adversarial examples are tried")
        if not self.multiples or not all(0 < m < math.inf for m in self.multiples):
            raise ValueError(f"multiples must be positive numbers, got {self.multiples}")
        if self._inner().minimum_norm or not self._inner().additive:
            raise ValueError(f"transfer needs an attack that looks inside eps, {self.attack} does not")

    def _inner(self) -> Attack:
        return attack_named(self.attack, **self.settings)

    def propose(self, run: Run) -> None:
        i = run.open_examples()
        if not i.numel():
            return
        model = Elsewhere(as_model(self.surrogate, shape=run.room.shape), run.x0)
        inner = self._inner()
        if model.gives < inner.needs:
            raise ValueError(f"{self.attack} needs {inner.needs.name.lower()} of the surrogate, which gives "
                             f"{model.gives.name.lower()} only")
        if run.room.norm not in inner.norms:
            raise ValueError(f"{self.attack} does not work in the norm {run.room.norm}")
        # It does not stop where the surrogate falls: the further it falls, the likelier the model falls too.
        own = Run(model, run.room, run.criterion, run.draws, deadline=run.deadline, early_stop=False)
        own.begin()
        own.closed |= run.closed
        inner.propose(own)
        for point in (own.last, own.x):
            for multiple in self.multiples:
                i = run.open_examples()
                if not i.numel():
                    return
                run.evaluate(run.x0[i] + multiple * (point[i] - run.x0[i]), i)


class Elsewhere(Model):
    """A model that takes points of another type, or on another device, than its own."""

    def __init__(self, model: Model, like: Tensor) -> None:
        self.model, self.like = model, like
        self.shape, self.gives, self.entries = model.shape, model.gives, model.entries
        self.dtype, self.device = like.dtype, like.device

    def __call__(self, x: Tensor) -> Tensor:
        return self.model(x.to(self.model.device, self.model.dtype)).to(self.like)
