"""Settings of runs that are known to work, by data set and method: what `certify.recipes` knows of these methods.

Rows for digits were tried with the dense network at eps 0.1 in l_inf. Rows for MNIST are those of papers and of their
authors' programs, for small convolutional networks at eps 0.3, those for CIFAR-10 for eight layers at 8/255; they were
not tried here.
"""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]
"""Fields of `certify.settings.TrainSettings`."""


def _digits(epochs: int = 60, lr: float = 2e-3, **settings: Any) -> Row:
    return {"epochs": epochs, "batch_size": 64, "lr": lr, "milestones": [round(0.7 * epochs), round(0.9 * epochs)],
            "method_settings": settings}


def _sgd(epochs: int, lr: float, milestones: list[int], batch_size: int = 128, weight_decay: float = 0.0,
         **settings: Any) -> Row:
    return {"epochs": epochs, "batch_size": batch_size, "optimiser": "sgd", "lr": lr, "milestones": milestones,
            "momentum": 0.9, "lr_factor": 0.1, "weight_decay": weight_decay, "method_settings": settings}


def _fosc(epochs: int, milestones: list[int], **settings: Any) -> dict[str, Row]:
    """Of the paper on stationarity (arXiv:2112.08304), one schedule for all that it compares. settings: of dynamic."""
    return {method: _sgd(epochs, 0.01, milestones, weight_decay=1e-4, **(settings if method == "dynamic" else {}))
            for method in ("standard", "pgd", "curriculum", "dynamic")}


RECIPES: dict[str, dict[str, Row]] = {
    "digits": {
        "standard": _digits(),
        "pgd": _digits(),
        "fgsm": _digits(),
        "fgsm-pgd": _digits(),
        "fgsm-rs": _digits(),
        "n-fgsm": _digits(noise=1.0),
        "free": _digits(epochs=30, replays=4),
        "yopo": _digits(),
        "trades": _digits(),
        "mart": _digits(),
        "curriculum": _digits(last=5, threshold=0.8),
        "dynamic": _digits(c_max=0.1),
        "guided": _digits(),
        "distillation": _digits(lr=1e-2, teacher_epochs=60, teacher_lr=1e-2),
    },
    "mnist": {
        **_fosc(50, [20, 40], c_max=0.5, control=0.8),
        # The authors' programs; in that of YOPO gradients of the outer steps are summed, not averaged.
        "fgsm-rs": {"epochs": 10, "batch_size": 100, "lr": 5e-3, "lr_schedule": "one-cycle", "lr_warmup": 4.0,
                    "method_settings": {}},
        "yopo": _sgd(40, 0.1, [30, 35, 39], 256, 5e-4, outer=5, inner=10, step_size=1 / 30),
        "trades": _sgd(100, 0.01, [55], beta=1.0, steps=40, step_size=1 / 30),
    },
    "cifar10": _fosc(120, [60, 100], c_max=0.5, control=5 / 6),
}
