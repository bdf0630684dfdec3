"""What an attack wants of the outputs, as a margin: positive while the example stands, negative once it has fallen.

A criterion holds a batch of B examples; points say by `owner` "P" which example they belong to.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from verifier.property import PropertyTensors

# Units of rounding of the largest logit. With 8 the nearest points of walks that end very near to the boundary were
# passed over: median l_inf distance of FAB on a robust MNIST network 0.184, with 2 or 0 0.182.
TIE = 2


class Criterion(ABC):
    """The success criterion of B examples."""

    batch: int
    wording: ClassVar[str] = ""  # what success means, for people

    @abstractmethod
    def margin(self, y: Tensor, x: Tensor, owner: Tensor) -> Tensor:
        """y "P m", x "P *shape", owner "P" -> "P"; differentiable in y and x."""

    def met(self, y: Tensor, x: Tensor, owner: Tensor, margin: Tensor) -> Tensor:
        """bool "P": did the point succeed? A tie is none: another rule for ties may keep the label."""
        return margin < 0

    @abstractmethod
    def index(self, chosen: Tensor) -> Criterion:
        """The criterion of some examples, in that order."""

    def check_outputs(self, outputs: int) -> None:  # noqa: B027  (most criteria ask for nothing)
        """Raises ValueError where the criterion cannot be read off this many outputs."""


@dataclass(frozen=True, eq=False)
class Misclassified(Criterion):
    """Another class than `label` "B" is strictly on top; with `target` "B", that class."""

    label: Tensor
    target: Tensor | None = None
    wording: ClassVar[str] = "another class is on top"

    def __post_init__(self) -> None:
        if self.label.dim() != 1 or self.label.is_floating_point():
            raise ValueError(f"labels must be integers of shape (N,), got {self.label.dtype} "
                             f"{tuple(self.label.shape)}")
        if self.target is not None:
            if self.target.shape != self.label.shape:
                raise ValueError(f"one target a label: {tuple(self.target.shape)} for {tuple(self.label.shape)}")
            if bool((self.target == self.label).any()):
                raise ValueError(f"target must differ from the label; example "
                                 f"{int((self.target == self.label).nonzero()[0])} has both "
                                 f"{int(self.label[self.target == self.label][0])}")

    @property
    def batch(self) -> int:  # type: ignore[override]
        return self.label.shape[0]

    def margin(self, y: Tensor, x: Tensor, owner: Tensor) -> Tensor:
        index = (self.label if self.target is None else self.target)[owner].unsqueeze(1)
        value = y.gather(1, index).squeeze(1)
        others = y.scatter(1, index, -torch.inf).amax(1)
        return value - others if self.target is None else others - value

    def check_outputs(self, outputs: int) -> None:
        classes = self.label if self.target is None else torch.cat([self.label, self.target])
        if outputs < 2:
            raise ValueError(f"classes need at least 2 outputs, the model has {outputs}")
        if self.batch and (int(classes.min()) < 0 or int(classes.max()) >= outputs):
            raise ValueError(f"labels and targets must lie in 0 to {outputs - 1}, as the model has {outputs} outputs; "
                             f"got {int(classes.min())} to {int(classes.max())}")

    def met(self, y: Tensor, x: Tensor, owner: Tensor, margin: Tensor) -> Tensor:
        return _beyond_rounding(y, margin)

    def index(self, chosen: Tensor) -> Misclassified:
        return Misclassified(self.label[chosen], None if self.target is None else self.target[chosen])


@dataclass(frozen=True, eq=False)
class Outranked(Criterion):
    """The class `target` "B" is above `label` "B", whatever the others are."""

    label: Tensor
    target: Tensor
    wording: ClassVar[str] = "the target is above the label"

    def __post_init__(self) -> None:
        if self.label.shape != self.target.shape or self.label.dim() != 1:
            raise ValueError(f"one target a label: {tuple(self.target.shape)} for {tuple(self.label.shape)}")

    @property
    def batch(self) -> int:  # type: ignore[override]
        return self.label.shape[0]

    def margin(self, y: Tensor, x: Tensor, owner: Tensor) -> Tensor:
        pair = y.gather(1, torch.stack([self.label[owner], self.target[owner]], 1))
        return pair[:, 0] - pair[:, 1]

    def met(self, y: Tensor, x: Tensor, owner: Tensor, margin: Tensor) -> Tensor:
        return _beyond_rounding(y, margin)

    def index(self, chosen: Tensor) -> Outranked:
        return Outranked(self.label[chosen], self.target[chosen])


@dataclass(frozen=True, eq=False)
class Deviates(Criterion):
    """Some output leaves `reference` "B m" by more than `tolerance`: regression."""

    reference: Tensor
    tolerance: float
    wording: ClassVar[str] = "an output moved by more than the tolerance"

    def __post_init__(self) -> None:
        if not self.tolerance >= 0:
            raise ValueError(f"the tolerance must be >= 0, got {self.tolerance}")

    @property
    def batch(self) -> int:  # type: ignore[override]
        return self.reference.shape[0]

    def margin(self, y: Tensor, x: Tensor, owner: Tensor) -> Tensor:
        off = (y - self.reference[owner]).flatten(1)
        # Not abs(): its slope at the original, where nothing deviates yet, would be zero.
        return self.tolerance - torch.where(off >= 0, off, -off).amax(1)

    def check_outputs(self, outputs: int) -> None:
        if self.reference.flatten(1).shape[1] != outputs:
            raise ValueError(f"the reference has shape {tuple(self.reference.shape)}, the model {outputs} outputs")

    def index(self, chosen: Tensor) -> Deviates:
        return Deviates(self.reference[chosen], self.tolerance)


@dataclass(frozen=True, eq=False)
class Unsafe(Criterion):
    """The unsafe set of a property, whatever its regions say: for every example some branch whose rows all hold.

    Floats as computed: `verifier.witness.confirm` decides about a property exactly.
    """

    tensors: PropertyTensors
    batch: int
    wording: ClassVar[str] = "the unsafe set is reached"

    def _branches(self, y: Tensor, x: Tensor) -> Tensor:
        """The largest violation of each branch's rows: "P K"."""
        return self.tensors.branch_margin(self.tensors.violation(x, y))

    def margin(self, y: Tensor, x: Tensor, owner: Tensor) -> Tensor:
        return self._branches(y, x).amin(1)

    def met(self, y: Tensor, x: Tensor, owner: Tensor, margin: Tensor) -> Tensor:
        v = self.tensors.violation(x, y)
        fails = torch.where(self.tensors.strict, v >= 0, ~(v <= 0)).to(v)
        return (self.tensors.branch_margin(fails) <= 0).any(1)

    def index(self, chosen: Tensor) -> Unsafe:
        return Unsafe(self.tensors, chosen.numel())


def _beyond_rounding(y: Tensor, margin: Tensor) -> Tensor:
    """By more than rounding: a batch of another size, summed in another order, must not bring the label back."""
    return margin < -TIE * torch.finfo(y.dtype).eps * y.abs().amax(1)
