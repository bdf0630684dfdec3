"""Settings with which methods train well: where a run starts that says nothing else.

For MNIST they are those of CTBench (Mao et al., arXiv:2406.04848, its example scripts for CNN7), with the splits of
TAPS for networks of three activation layers; with ours they have not been run. For digits (dense layers 64-128-64-10,
radius 0.05) they are the best of a few short runs, on 360 test images and one seed: a difference of one or two per cent
there means nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """settings: of the method. natural: the weight of the natural loss. train_eps: the radius of training, as a
    multiple of the one that is wanted. l1: the weight of `certify.weights.l1`. ramp: epochs, from the first on, in
    which the radius grows. average_from: the epoch from which weights are averaged (None: never)."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    natural: float = 0.0
    train_eps: float = 1.0
    l1: float = 0.0
    learning_rate: float = 5e-4
    epochs: int = 70
    ramp: int = 20
    average_from: int | None = None


WARM = {"warmup_regulariser": 0.5, "ibp_initialisation": True}
ONE_STEP = {"steps": 1, "step_size": 10.0}  # to a corner of the set, whatever the start (arXiv:2305.13991)


def _digits(**settings: Any) -> Recipe:
    return Recipe({**WARM, **settings}, train_eps=1.2, learning_rate=5e-3, epochs=60, ramp=30)


EXPRESSIVE = {
    "digits": _digits(coefficient=0.5, steps=4),
    "mnist 0.1": Recipe({**WARM, "coefficient": 0.02, "steps": 10, "restarts": 3}, natural=0.3, train_eps=2.0, l1=1e-5,
                        average_from=65),
    "mnist 0.3": Recipe({**WARM, "coefficient": 0.5, **ONE_STEP}, l1=1e-6, average_from=65),
}

RECIPES: dict[str, dict[str, Recipe]] = {
    "fast-ibp": {
        "digits": _digits(),
        "mnist 0.1": Recipe(WARM, natural=0.3, train_eps=2.0, l1=2e-6),
        "mnist 0.3": Recipe(WARM, natural=0.3, l1=2e-6),
    },
    "sabr": {
        "digits": _digits(shrink=0.8, steps=4),
        "mnist 0.1": Recipe({**WARM, "shrink": 0.4, "steps": 10, "restarts": 3}, natural=0.3, train_eps=2.0, l1=1e-6),
        "mnist 0.3": Recipe({**WARM, "shrink": 0.9, "steps": 5, "restarts": 3}, l1=2e-6),
    },
    "taps": {
        "digits": _digits(split=1, steps=5),
        "mnist 0.1": Recipe({**WARM, "split": 2, "gradient_scale": 4.0}, natural=0.3, train_eps=2.0, l1=2e-6),
        "mnist 0.3": Recipe({**WARM, "split": 1, "gradient_scale": 4.0}, train_eps=4 / 3),
    },
    "staps": {
        "digits": _digits(split=1, shrink=0.8, steps=4),
        "mnist 0.1": Recipe({**WARM, "split": 1, "shrink": 0.4, "gradient_scale": 4.0}, natural=0.3, train_eps=2.0,
                            l1=5e-6),
        "mnist 0.3": Recipe({**WARM, "split": 1, "shrink": 0.6, "gradient_scale": 4.0}, l1=1e-5),
    },
    "cc-ibp": EXPRESSIVE,
    "mtl-ibp": EXPRESSIVE,
    "exp-ibp": EXPRESSIVE,
}
