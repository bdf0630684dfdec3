"""PGD on few pixels: those where gradients smoothed over noise (SmoothGrad, Smilkov et al., arXiv:1706.03825) are
largest, gathered into patches by the half-neighbour rule of Zhang, Wang and Ruan (arXiv:2101.00989), whose attack on
object detectors this is for classifiers: a pixel stays in the mask when more than half of its window is in it.

There a threshold and windows are tried until the mask is small enough; here the number of pixels is given, and the
largest seed whose refinement has at most that many is found by bisection (the rule is monotone in the seed). What the
refinement leaves over goes to the most salient pixels that are not in the mask yet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from verifier.attacks.losses import Loss
from verifier.attacks.pgd import Pgd
from verifier.attacks.run import Run
from verifier.attacks.scout import charge, scout
from verifier.attacks.threat import Room


@dataclass(frozen=True, kw_only=True)
class SmoothMask(Pgd):
    """pixels: how many may differ, over all channels at once for images (C, H, W), else features. samples: noisy copies
    whose gradients are averaged: so many gradients beside those of the steps. noise: their standard deviation as a
    share of the example's range, 0.1 to 0.2 in the paper. window: width of the half-neighbour rule, odd; 1 takes the
    most salient pixels alone, which lie scattered and make more digits fall (130 against 48 of 200 MNIST digits at
    15 pixels and eps 0.5).

    The rest is `Pgd`, in a room where only the chosen pixels are free.
    """

    name: ClassVar[str] = "smooth-mask"
    norms: ClassVar[tuple[float, ...]] = (math.inf, 2.0, 1.0)

    pixels: int = 50
    samples: int = 20
    noise: float = 0.2
    window: int = 3
    loss: str = "ce"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pixels < 1 or self.samples < 1:
            raise ValueError(f"pixels and samples must be >= 1, got {self.pixels} and {self.samples}")
        if not 0 <= self.noise < math.inf or self.window < 1 or self.window % 2 == 0:
            raise ValueError(f"noise must be >= 0 and window odd, got {self.noise} and {self.window}")

    def propose(self, run: Run) -> None:
        i = run.open_examples()
        if not i.numel():
            return
        loss = run.loss(self.loss)
        mask = self.masks(run, i, loss)
        room = run.room
        lower, upper = room.x0.clone(), room.x0.clone()
        lower[i] = torch.where(mask, room.lower[i], room.x0[i])
        upper[i] = torch.where(mask, room.upper[i], room.x0[i])
        run.room = Room(room.x0, lower, upper, room.norm, room.eps)
        super().propose(run)

    def masks(self, run: Run, i: Tensor, loss: Loss) -> Tensor:
        """The features that may differ: bool "P *shape", at most `pixels` pixels each."""
        saliency = _over_pixels(self.saliency(run, i, loss))
        if self.window == 1 or saliency.dim() != 3 or run.x0.dim() != 4:
            chosen = _largest(saliency, torch.full_like(i, self.pixels))
        else:
            chosen = self._gathered(saliency)
        chosen &= saliency > 0
        return (chosen.unsqueeze(1) if run.x0.dim() == 4 else chosen).expand_as(run.x0[i])

    def saliency(self, run: Run, i: Tensor, loss: Loss) -> Tensor:
        """What each feature promises: its smoothed gradient times how far it may go that way. "P *shape", >= 0."""
        x = run.x0[i]
        scouted = scout(run, run.anywhere)  # noise needs no ball
        extent = x.flatten(1).amax(1) - x.flatten(1).amin(1)
        spread = run.room.per_example(self.noise * extent)
        total = torch.zeros_like(x)
        count = min(self.samples, max(1, int(run.queries_left(i).min()) - 1))
        for _ in range(count):
            if run.deadline.passed():
                break
            noisy = x + spread * run.draws.normal(i, run.room.shape, x.dtype)
            total += scouted.gradient(noisy, i, loss).slope
        charge(run, scouted)
        way = torch.where(total > 0, run.room.upper[i] - x, x - run.room.lower[i])
        return total.abs() * way

    def _gathered(self, saliency: Tensor) -> Tensor:
        """The half-neighbour rule on the largest seed that it does not make too many pixels of: "P H W" -> bool."""
        few = torch.zeros(saliency.shape[0], dtype=torch.long, device=saliency.device)
        many = torch.full_like(few, saliency[0].numel() + 1)
        while bool((many - few > 1).any()):
            middle = (few + many) // 2
            fits = _refined(_largest(saliency, middle), self.window).flatten(1).sum(1) <= self.pixels
            few, many = torch.where(fits, middle, few), torch.where(fits, many, middle)
        chosen = _refined(_largest(saliency, few), self.window)
        left = self.pixels - chosen.flatten(1).sum(1)
        return chosen | _largest(saliency.masked_fill(chosen, -1.0), left)


def _over_pixels(saliency: Tensor) -> Tensor:
    """Summed over the channels of images: "P C H W" -> "P H W"; other shapes stay."""
    return saliency.sum(1) if saliency.dim() == 4 else saliency


def _largest(saliency: Tensor, count: Tensor) -> Tensor:
    """bool: the `count` "P" largest entries of each row, of equals the first."""
    rank = saliency.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (rank < count.unsqueeze(1)).view_as(saliency)


def _refined(chosen: Tensor, window: int) -> Tensor:
    """Pixels more than half of whose window, themselves included, is chosen: bool "P H W"."""
    count = functional.avg_pool2d(chosen.float().unsqueeze(1), window, 1, window // 2, divisor_override=1).squeeze(1)
    return count > window * window / 2

