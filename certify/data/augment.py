"""Augmentation on tensors: a pure function of the seed, the epoch and an example's number.

What happens to an example depends neither on its batch nor on the device, so that a run can be resumed at any step
and spread over processes without a change.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from verifier.attacks.draws import Draws

APART = 1 << 61  # attacks draw from lower seeds


class Augmentation(ABC):
    """How the inputs of a minibatch are varied."""

    name: ClassVar[str]

    def __call__(self, x: Tensor, number: Tensor, seed: int, epoch: int) -> Tensor:
        """x "B *shape", number "B" (places in the training set, on the same device) -> "B *shape"."""
        return self.vary(x, Draws(APART | (seed * 1_000_003 + epoch), number))

    @abstractmethod
    def vary(self, x: Tensor, draws: Draws) -> Tensor:
        """The inputs as one epoch shows them."""


@dataclass(frozen=True)
class Unchanged(Augmentation):
    """Inputs as they are."""

    name: ClassVar[str] = "none"

    def vary(self, x: Tensor, draws: Draws) -> Tensor:
        return x


@dataclass(frozen=True)
class FlipCrop(Augmentation):
    """Every other image mirrored left to right; then a window of the image's own size at a random place of the image
    padded by `padding` pixels a side, which repeat its edge."""

    name: ClassVar[str] = "flip-crop"
    padding: int = 2

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise ValueError(f"padding must be >= 0, got {self.padding}")

    def vary(self, x: Tensor, draws: Draws) -> Tensor:
        if x.dim() != 4:
            raise ValueError(f"augmentation {self.name} needs images (channels, height, width), got inputs of shape "
                             f"{tuple(x.shape[1:])}")
        everyone = torch.arange(len(x), device=x.device)
        flip = draws.integers(everyone, (), 2).bool()
        moved = draws.integers(everyone, (2,), 2 * self.padding + 1) - self.padding
        height, width = x.shape[2:]
        rows = _window(height, moved[:, 0])
        columns = _window(width, moved[:, 1])
        columns = torch.where(flip.unsqueeze(1), width - 1 - columns, columns)
        channels = torch.arange(x.shape[1], device=x.device).view(1, -1, 1, 1)
        return x[everyone.view(-1, 1, 1, 1), channels, rows[:, None, :, None], columns[:, None, None, :]]


def _window(size: int, moved: Tensor) -> Tensor:
    """"B size": the pixels that each place of a window shows, moved "B" from its image's place."""
    return (torch.arange(size, device=moved.device) + moved.unsqueeze(1)).clamp(0, size - 1)


AUGMENTATIONS: dict[str, type[Augmentation]] = {kind.name: kind for kind in (Unchanged, FlipCrop)}


def augmentation_named(name: str, **settings: Any) -> Augmentation:
    """Raises ValueError for an unknown name or setting."""
    if name not in AUGMENTATIONS:
        raise ValueError(f"augmentation must be one of {', '.join(AUGMENTATIONS)}, got {name!r}")
    try:
        return AUGMENTATIONS[name](**settings)
    except TypeError:
        raise ValueError(f"augmentation {name} has no setting {', '.join(sorted(settings))}") from None
