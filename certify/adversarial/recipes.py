"""Settings that are known to work, by data set and method: where the defaults of a run come from.

Rows for digits were tried with the dense network at eps 0.1 in l_inf. Rows for MNIST are those of the papers, for a
small convolutional network at eps 0.3, and not tried here where the source says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

TRIED = "tried: dense network, eps 0.1"
FOSC_PAPER = "arXiv:2112.08304: SGD, weight decay 1e-4, learning rate / 10 at epochs 20 and 40; not tried here"


@dataclass(frozen=True)
class Recipe:
    """optimizer: adam, or sgd with momentum 0.9. milestones: shares of the epochs at which the learning rate is
    multiplied by `decay`. settings: of the method."""

    epochs: int
    lr: float
    optimizer: str = "adam"
    batch: int = 64
    milestones: tuple[float, ...] = (0.7, 0.9)
    decay: float = 0.2
    weight_decay: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)
    source: str = TRIED


def _digits(epochs: int = 60, lr: float = 2e-3, **settings: Any) -> Recipe:
    return Recipe(epochs, lr, settings=settings)


def _mnist(epochs: int, lr: float, source: str, *, optimizer: str = "sgd", batch: int = 128,
           milestones: tuple[float, ...] = (0.4, 0.8), weight_decay: float = 1e-4, **settings: Any) -> Recipe:
    return Recipe(epochs, lr, optimizer, batch, milestones, 0.1, weight_decay, settings, source)


RECIPES: dict[str, dict[str, Recipe]] = {
    "digits": {
        "standard": _digits(),
        "pgd": _digits(),
        "fgsm": _digits(),
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
        "standard": _mnist(50, 0.01, FOSC_PAPER),
        "pgd": _mnist(50, 0.01, FOSC_PAPER),
        "curriculum": _mnist(50, 0.01, FOSC_PAPER, last=10),
        "dynamic": _mnist(50, 0.01, FOSC_PAPER, c_max=0.5, control=0.8),
        "fgsm-rs": _mnist(10, 5e-3, "arXiv:2001.03994; not tried here", optimizer="adam", batch=100, weight_decay=0.0),
        "trades": _mnist(100, 0.01, "arXiv:1901.08573: 40 steps of 0.01, beta 1; not tried here", milestones=(0.55, 0.75),
                         weight_decay=0.0, beta=1.0, steps=40, step_size=1 / 30),
    },
}
