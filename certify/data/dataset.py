"""What a data set is: inputs in the units in which eps is given, labels, and facts that a model is built from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Examples:
    """x "N *shape" float32, y "N" int64."""

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        if self.x.dtype != torch.float32 or self.y.dtype != torch.int64:
            raise ValueError(f"expected float32 inputs and int64 labels, got {self.x.dtype} and {self.y.dtype}")
        if self.y.shape != self.x.shape[:1]:
            raise ValueError(f"{len(self.x)} inputs and labels of shape {tuple(self.y.shape)}: expected one an input")

    def __len__(self) -> int:
        return len(self.y)

    def take(self, chosen: Tensor | slice) -> Examples:
        """Some of them, by their places."""
        return Examples(self.x[chosen], self.y[chosen])


@dataclass(frozen=True, eq=False)
class TrainingData:
    """name: as asked for. clip: the range of every input. mean, std: of each channel (the first axis of an input), by
    which a model normalises in its first layer; empty where inputs are used as they are. augmentation: the usual one
    of this data set, by name."""

    name: str
    train: Examples
    test: Examples
    classes: int
    clip: tuple[float, float] | None = (0.0, 1.0)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    augmentation: str = "none"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.train.x.shape[1:])
