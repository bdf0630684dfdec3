"""Minibatches of an epoch: which examples come when is a pure function of the seed and the epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from certify.data.augment import Augmentation, augmentation_named
from certify.data.dataset import Examples


@dataclass(frozen=True, eq=False)
class Batches:
    """Every epoch in another order, which seed and epoch alone determine. augmentation: one, or the name of one.

    Several processes (`rank` of `world`) split the same global minibatches of batch_size examples evenly among them, so
    batch_size is a multiple of world. With `drop_last` every minibatch is full: the examples that are left when an
    epoch's order is used up (fewer than batch_size) wait for another epoch; where there are fewer than batch_size in
    all, they are one minibatch. Without it they are a last, smaller minibatch, but for those that do not divide among
    the processes.
    """

    examples: Examples
    batch_size: int
    seed: int
    augmentation: Augmentation | str = "none"
    rank: int = 0
    world: int = 1
    drop_last: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank must be from 0 to {self.world - 1}, got {self.rank}")
        if self.batch_size < 1 or self.batch_size % self.world:
            raise ValueError(f"batch_size must be a positive multiple of the {self.world} processes, got "
                             f"{self.batch_size}")
        if self.seed < 0:
            raise ValueError(f"seed must be >= 0, got {self.seed}")
        if len(self.examples) < self.world:
            raise ValueError(f"{len(self.examples)} examples for {self.world} processes: expected one for each")

        if isinstance(self.augmentation, str):  # an unknown name is refused here, not in the first epoch
            augmentation_named(self.augmentation)

    @cached_property
    def _vary(self) -> Augmentation:
        return augmentation_named(self.augmentation) if isinstance(self.augmentation, str) else self.augmentation

    @property
    def _full(self) -> int:
        """The size of a global minibatch."""
        return min(self.batch_size, len(self.examples) // self.world * self.world)

    @property
    def _used(self) -> int:
        """How many examples an epoch shows, all processes together."""
        return len(self.examples) // (self._full if self.drop_last else self.world) \
            * (self._full if self.drop_last else self.world)

    def __len__(self) -> int:
        """Minibatches of an epoch."""
        return -(-self._used // self._full)

    @property
    def smallest(self) -> int:
        """The fewest examples of a minibatch in this process."""
        return (self._used % self._full or self._full) // self.world

    def order(self, epoch: int) -> Tensor:
        """The places in the training set in the order of an epoch, on the CPU."""
        return torch.from_numpy(np.random.default_rng((self.seed, epoch)).permutation(len(self.examples)))

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(x "b *shape", y "b", number "b": places in the training set) of each minibatch but the first `skip`: this
        process's share, on the device of the examples."""
        order = self.order(epoch)[: self._used].to(self.examples.x.device)
        for minibatch in order.split(self._full)[skip:]:
            number = minibatch[self.rank :: self.world]
            part = self.examples.take(number)
            yield self._vary(part.x, number, self.seed, epoch), part.y, number
