"""Random numbers that belong to an example, not to a batch.

Every example has a stream of its own, known by the seed and its number, so that an attack draws the same for it whether
it runs alone, in a batch, or on another device. The streams are counters sent through the finaliser of SplitMix64
(Steele, Lea and Flood, OOPSLA 2014), which works on whole tensors at once; 64-bit products wrap around as they should.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

GOLDEN = -7046029254386353131   # 0x9E3779B97F4A7C15 as a signed number
FIRST = -4658895280553007687    # 0xBF58476D1CE4E5B9
SECOND = -7723592293110705685   # 0x94D049BB133111EB
BLOCK = 1 << 14                 # words that are mixed at once


def _shifted(z: Tensor, bits: int) -> Tensor:
    """z >> bits without the sign: torch shifts arithmetically."""
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mixed(z: Tensor) -> Tensor:
    """The finaliser, in place, block by block: the passes over one block find it in the cache."""
    for part in z.view(-1).split(BLOCK if z.device.type == "cpu" else max(1, z.numel())):
        part.bitwise_xor_(_shifted(part, 30)).mul_(FIRST)
        part.bitwise_xor_(_shifted(part, 27)).mul_(SECOND)
        part.bitwise_xor_(_shifted(part, 31))
    return z


class Draws:
    """Streams of random numbers, one for each of `ids` (LongTensor "B", the examples' numbers)."""

    def __init__(self, seed: int, ids: Tensor) -> None:
        keys = _mixed(torch.tensor([seed & ((1 << 62) - 1)], device=ids.device) * GOLDEN)
        self._key = _mixed((ids.long() + 1) * GOLDEN ^ keys)
        self._count = torch.zeros_like(self._key)

    def index(self, chosen: Tensor) -> Draws:
        """Streams of some examples, which go on from here by themselves."""
        part = Draws.__new__(Draws)
        part._key, part._count = self._key[chosen], self._count[chosen].clone()
        return part

    def _words(self, owner: Tensor, size: Sequence[int]) -> Tensor:
        """The next 64-bit words of some distinct examples: "P" -> "P *size"."""
        count = math.prod(size)
        first = self._key[owner] + self._count[owner] * GOLDEN
        self._count[owner] += count
        later = torch.arange(1, count + 1, device=owner.device) * GOLDEN
        return _mixed(first.unsqueeze(1) + later).reshape(owner.numel(), *size)

    def uniform(self, owner: Tensor, size: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """In the open interval (0, 1): distinct examples "P" -> "P *size"."""
        bits = 23 if dtype == torch.float32 else 52
        return _shifted(self._words(owner, size), 64 - bits).to(dtype).add_(0.5).mul_(2.0**-bits)

    def normal(self, owner: Tensor, size: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal: "P" -> "P *size"."""
        u = self.uniform(owner, size, dtype)
        return torch.special.ndtri(u, out=u)

    def sign(self, owner: Tensor, size: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """-1 or 1, as likely: "P" -> "P *size"."""
        return self._words(owner, size).bitwise_and_(1).to(dtype).mul_(2).sub_(1)

    def integers(self, owner: Tensor, size: Sequence[int], below: int) -> Tensor:
        """From 0 to below - 1: "P" -> long "P *size"."""
        return (self.uniform(owner, size, torch.float64) * below).long().clamp(max=below - 1)
