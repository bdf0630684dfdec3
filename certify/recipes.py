"""Sensible defaults for a method on a data set: what `TrainSettings` does not say, and anybody may override.

For MNIST the methods on interval bounds have the settings of CTBench (Mao et al., arXiv:2406.04848, its example scripts
for CNN7; schedules apart), with the splits of TAPS for networks of three activation layers; what was run of them with a
CNN5 stands in docs/training.md. For digits (dense layers 64-128-64-10, radius 0.05) settings are the best of a few
short runs, on 360 test images and one seed: a difference of one or two per cent there means nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SCHEDULES: dict[str, dict[str, Any]] = {
    "digits": {"epochs": 60, "batch_size": 100, "milestones": [45, 55]},
}
BOUNDED: dict[str, dict[str, Any]] = {
    "digits": {"ramp_begin": 2, "ramp_end": 30, "lr": 2e-3, "validate_with": "ibp"},
    "mnist": {"epochs": 70, "batch_size": 256, "milestones": [50, 60], "ramp_end": 20, "lr": 5e-4,
              "validate_with": "ibp"},
}
UNKNOWN = {"epochs": 30, "ramp_end": 15}
"""Of bounding methods on any other data: with no ramp CROWN-IBP is IBP throughout, and no warm-up is penalised."""
# Intervals alone say nothing of networks that were trained on tighter bounds.
TIGHTER = {"crown-ibp": "crown-ibp", "wong-kolter": "crown", "zonotope": "crown"}
DUAL = {"epochs": 60, "batch_size": 50, "lr": 1e-3, "milestones": (30.0, 40.0, 50.0), "lr_factor": 0.5,
        "ramp": "linear", "natural_first": 0.0, "natural_last": 0.0, "validation": 200}  # as the authors' programs


def _own(natural: float = 0.0, train_eps: float = 1.0, l1: float = 0.0, **settings: Any) -> dict[str, Any]:
    """natural: the weight of the natural loss, from first to last; settings: of the method."""
    return {"natural_first": natural, "natural_last": natural, "train_eps": train_eps, "l1": l1,
            **{f"method.{name}": value for name, value in settings.items()}}


def _digits(**settings: Any) -> dict[float, dict[str, Any]]:
    # So few images are held out that early epochs tie with the last, which is better on others.
    return {0.05: {"lr": 5e-3, "keep": "last", **_own(train_eps=1.2, **settings)}}


ONE_STEP = {"steps": 1, "step_size": 10.0}  # to a corner of the set, whatever the start (arXiv:2305.13991)
AVERAGED = {"average": "swa", "average_from": 65}  # of 70 epochs
EXPRESSIVE = {
    "digits": _digits(coefficient=0.5, steps=4),
    "mnist": {0.1: {**_own(0.3, 2.0, 1e-5, coefficient=0.02, steps=10, restarts=3), **AVERAGED},
              0.3: {**_own(l1=1e-6, coefficient=0.5, **ONE_STEP), **AVERAGED}},
}

RECIPES: dict[str, dict[str, dict[float, dict[str, Any]]]] = {
    "fast-ibp": {
        "digits": _digits(),
        "mnist": {0.1: _own(0.3, 2.0, 2e-6), 0.3: _own(0.3, l1=2e-6)},
    },
    "sabr": {
        "digits": _digits(shrink=0.8, steps=4),
        "mnist": {0.1: _own(0.3, 2.0, 1e-6, shrink=0.4, steps=10, restarts=3),
                  0.3: _own(l1=2e-6, shrink=0.9, steps=5, restarts=3)},
    },
    "taps": {
        "digits": _digits(split=1, steps=5),
        "mnist": {0.1: _own(0.3, 2.0, 2e-6, split=2, gradient_scale=4.0),
                  0.3: _own(train_eps=4 / 3, split=1, gradient_scale=4.0)},
    },
    "staps": {
        "digits": _digits(split=1, shrink=0.8, steps=4),
        "mnist": {0.1: _own(0.3, 2.0, 5e-6, split=1, shrink=0.4, gradient_scale=4.0),
                  0.3: _own(l1=1e-5, split=1, shrink=0.6, gradient_scale=4.0)},
    },
    "crown-ibp": {
        "mnist": {0.1: _own(0.3, 2.0, 5e-6, fusion=True), 0.3: _own(0.3, l1=2e-6, fusion=True)},
    },
    "wong-kolter": {
        "mnist": {0.1: {**DUAL, "eps_first": 0.1}, 0.3: {**DUAL, "eps_first": 1 / 30}},
    },
    "cc-ibp": EXPRESSIVE,
    "mtl-ibp": EXPRESSIVE,
    "exp-ibp": EXPRESSIVE,
}
"""By method, data set and the radius for which they were found."""


def recipe(method: str, data: str, eps: float) -> Mapping[str, Any]:
    """Settings by name, for the nearest radius that is known; empty where nothing is known."""
    from certify.adversarial.recipes import RECIPES as ADVERSARIAL
    from certify.registry import bounds_sets
    found = dict(SCHEDULES.get(data, {}))
    if bounds_sets(method):
        found |= {"ramp": "smooth", "clip_gradient": 10.0, **BOUNDED.get(data, UNKNOWN)}
        found |= {"validate_with": TIGHTER[method]} if method in TIGHTER else {}
    known = RECIPES.get(method, {}).get(data)
    if known is not None:
        found |= known[min(known, key=lambda radius: abs(radius - eps))]
    return found | ADVERSARIAL.get(data, {}).get(method, {})
