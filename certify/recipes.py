"""Settings with which methods train well: where a run starts that says nothing else.

For MNIST they are those of CTBench (Mao et al., arXiv:2406.04848, its example scripts for CNN7 and 70 epochs), with the
splits of TAPS for networks of three activation layers. For digits (dense layers 64-128-64-10, radius 0.05) they come
from short runs of our own, on 360 test images and one seed: differences of one or two per cent mean nothing there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """settings: of the method. natural: the weight of the natural loss at the end of the ramp. train_eps: the radius of
    training, as a multiple of the one that is wanted. l1: the weight of `certify.weights.l1`. average_from: the share
    of the epochs after which weights are averaged (1: never)."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    natural: float = 0.0
    train_eps: float = 1.0
    l1: float = 0.0
    average_from: float = 1.0


ONE_STEP = {"steps": 1, "step_size": 10.0}  # to a corner of the set, whatever the start (arXiv:2305.13991)
WARM = {"warmup_regulariser": 0.5, "ibp_initialisation": True}
EXPRESSIVE_01 = Recipe({**WARM, "coefficient": 0.02, "steps": 10, "restarts": 3}, 0.3, 2.0, 1e-5, 65 / 70)
EXPRESSIVE_03 = Recipe({**WARM, "coefficient": 0.5, **ONE_STEP}, 0.0, 1.0, 1e-6, 65 / 70)

RECIPES: dict[str, dict[str, Recipe]] = {
    "fast-ibp": {
        "digits": Recipe(WARM),
        "mnist 0.1": Recipe(WARM, 0.3, 2.0, 2e-6),
        "mnist 0.3": Recipe(WARM, 0.3, 1.0, 2e-6),
    },
    "sabr": {
        "digits": Recipe({**WARM, "shrink": 0.4, "steps": 4}),
        "mnist 0.1": Recipe({**WARM, "shrink": 0.4, "steps": 10, "restarts": 3}, 0.3, 2.0, 1e-6),
        "mnist 0.3": Recipe({**WARM, "shrink": 0.9, "steps": 5, "restarts": 3}, 0.0, 1.0, 2e-6),
    },
    "taps": {
        "digits": Recipe({**WARM, "split": 1, "steps": 5, "gradient_scale": 4.0}),
        "mnist 0.1": Recipe({**WARM, "split": 2, "steps": 10, "gradient_scale": 4.0}, 0.3, 2.0, 2e-6),
        "mnist 0.3": Recipe({**WARM, "split": 1, "steps": 10, "gradient_scale": 4.0}, 0.0, 4 / 3),
    },
    "staps": {
        "digits": Recipe({**WARM, "split": 1, "shrink": 0.4, "steps": 4, "gradient_scale": 4.0}),
        "mnist 0.1": Recipe({**WARM, "split": 1, "shrink": 0.4, "steps": 10, "gradient_scale": 4.0}, 0.3, 2.0, 5e-6),
        "mnist 0.3": Recipe({**WARM, "split": 1, "shrink": 0.6, "steps": 10, "gradient_scale": 4.0}, 0.0, 1.0, 1e-5),
    },
    "cc-ibp": {
        "digits": Recipe({**WARM, "coefficient": 0.3, "steps": 4}),
        "mnist 0.1": EXPRESSIVE_01,
        "mnist 0.3": EXPRESSIVE_03,
    },
    "mtl-ibp": {
        "digits": Recipe({**WARM, "coefficient": 0.1, "steps": 4}),
        "mnist 0.1": EXPRESSIVE_01,
        "mnist 0.3": EXPRESSIVE_03,
    },
    "exp-ibp": {
        "digits": Recipe({**WARM, "coefficient": 0.3, "steps": 4}),
        "mnist 0.1": EXPRESSIVE_01,
        "mnist 0.3": EXPRESSIVE_03,
    },
}
