"""What a data set is: inputs in the units in which eps is given, labels, and facts that a model is built from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

MOST_SHOWN = 4  # channels


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

    @cached_property
    def digest(self) -> str:
        """Of the inputs and labels themselves."""
        state = hashlib.sha256(str(tuple(self.x.shape)).encode())
        for part in (self.x, self.y):
            state.update(part.detach().cpu().contiguous().numpy().data)
        return state.hexdigest()

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

    def __post_init__(self) -> None:
        for part in (self.train, self.test):
            if part.x.shape[1:] != self.train.x.shape[1:]:
                raise ValueError(f"{self.name}: test inputs have shape {tuple(part.x.shape[1:])}, training inputs "
                                 f"{self.shape}")
            wrong = ((part.y < 0) | (part.y >= self.classes)).nonzero()
            if len(wrong):
                raise ValueError(f"{self.name}: label {int(part.y[wrong[0, 0]])} is out of range, expected 0 to "
                                 f"{self.classes - 1}")

            if self.clip is not None and bool(((part.x < self.clip[0]) | (part.x > self.clip[1])).any()):
                raise ValueError(f"{self.name}: inputs lie between {float(part.x.min()):g} and "
                                 f"{float(part.x.max()):g}, outside their range {self.clip}")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.train.x.shape[1:])

    @property
    def facts(self) -> dict[str, Any]:
        """All that a run takes from the data, for comparison: examples by their digests."""
        return {"training examples": self.train.digest, "test examples": self.test.digest, "classes": self.classes,
                "clip": self.clip, "mean": self.mean, "std": self.std, "augmentation": self.augmentation}

    def first(self, train: int | None, test: int | None) -> TrainingData:
        """With so many training and test examples at most; None: all of them."""
        return replace(self, train=self.train.take(slice(0, train)), test=self.test.take(slice(0, test)))


def describe(data: TrainingData) -> str:
    """One paragraph on a data set: sizes, range, normalisation, and what an eps means."""
    counts = torch.bincount(data.train.y, minlength=data.classes)
    shape = " x ".join(map(str, data.shape))
    text = (f"{data.name}: {len(data.train)} training and {len(data.test)} test inputs of shape {shape}, "
            f"{data.classes} classes with {int(counts.min())} to {int(counts.max())} training inputs each. ")
    low, high = float(data.train.x.min()), float(data.train.x.max())
    text += f"Values lie between {low:g} and {high:g}; "
    if data.clip is None:
        text += "no range is known, and perturbed inputs may lie anywhere. "
    else:
        text += f"perturbed inputs stay in [{data.clip[0]:g}, {data.clip[1]:g}]. "
    if data.mean:
        text += (f"The network normalises in its first layer: it subtracts {_listed(data.mean)} and divides by "
                 f"{_listed(data.std)}, channel by channel. ")
    else:
        text += "The network takes them as they are, without normalisation. "
    return text + (f"eps is in units of the inputs, before any normalisation. Augmentation in training: "
                   f"{data.augmentation}.")


def _listed(numbers: tuple[float, ...]) -> str:
    if len(set(numbers)) == 1:
        return f"{numbers[0]:g}"
    shown = [f"{v:g}" for v in numbers[:MOST_SHOWN]]
    return f"({', '.join([*shown, '...'] if len(numbers) > MOST_SHOWN else shown)})"
