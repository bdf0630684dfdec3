"""N inputs with their labels, and the balls of any radius around them: what a safe radius is asked about.

An input is unsafe when another class (or the `target`) is at least as high as the label: ties are unsafe, as in
`verifier.property.robustness`. The maximal safe radius is the distance from the input, in the norm, to the nearest
unsafe point inside the clip range that differs from it on free features only; infinite where there is none. The balls
here are outward hulls: what holds over them holds for every real point within the radius.

Axis legend: N inputs, K other classes, m classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from bounds.bounds import LinearRows
from bounds.sets import InputSet, add_rounded
from verifier.exact import fraction, round_down, round_up
from verifier.property import Property, robustness

NORMS = (math.inf, 2.0, 1.0)


@dataclass(frozen=True, eq=False)
class Balls:
    """x "N *shape" (floats, taken exactly; kept in float64); label "N" long. norm: inf, 2 or 1. clip = (low, high): the
    valid range of inputs, as the decimals they print as. mask bool "*shape": features that may move (None: all).
    target: the only class that counts as unsafe (None: any other)."""

    x: Tensor
    label: Tensor
    norm: float = math.inf
    clip: tuple[float, float] | None = None
    mask: Tensor | None = None
    target: int | None = None

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"norm must be inf, 2 or 1, got {self.norm}")
        if self.label.shape != self.x.shape[:1]:
            raise ValueError(f"expected one label an input, got {tuple(self.label.shape)} for {self.x.shape[0]} inputs")
        if self.mask is not None and self.mask.shape != self.x.shape[1:]:
            raise ValueError(f"the mask has shape {tuple(self.mask.shape)}, an input {tuple(self.x.shape[1:])}")
        if self.target is not None and bool((self.label == self.target).any()):
            raise ValueError(f"target {self.target} is the label of input "
                             f"{int((self.label == self.target).nonzero()[0])}")
        if not bool(torch.isfinite(self.x).all()):
            raise ValueError("the inputs have entries that are not finite")
        object.__setattr__(self, "x", self.x.double())
        if self.clip is not None:
            if not -math.inf < self.clip[0] <= self.clip[1] < math.inf:
                raise ValueError(f"clip must be two numbers LO <= HI, got {self.clip}")
            outside = (self.free & ((self.x < self.clip[0]) | (self.x > self.clip[1]))).flatten(1).any(1)
            if bool(outside.any()):
                i = int(outside.nonzero()[0])
                raise ValueError(f"input {i} has entries from {float(self.x[i].min()):.6g} to "
                                 f"{float(self.x[i].max()):.6g}, outside the clip range "
                                 f"[{self.clip[0]}, {self.clip[1]}]; are the inputs normalised?")

    def __len__(self) -> int:
        return self.x.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape[1:])

    @property
    def free(self) -> Tensor:
        """bool "*shape": features that may move."""
        return torch.ones(self.shape, dtype=torch.bool, device=self.x.device) if self.mask is None else self.mask

    def take(self, chosen: Tensor) -> Balls:
        """Some of the inputs (indices or bool)."""
        return Balls(self.x[chosen], self.label[chosen], self.norm, self.clip, self.mask, self.target)

    def sets(self, radius: Tensor) -> InputSet:
        """Outward hulls, in float64, of the balls of `radius` "N" (float64, finite): a ball holds every real point
        of the clip range within the decimal that its radius prints as."""
        if radius.shape != self.label.shape or not bool((torch.isfinite(radius) & (radius >= 0)).all()):
            raise ValueError("expected one finite radius >= 0 an input")
        # A decimal is less than one unit in the last place from the float that prints as it.
        above = torch.nextafter(radius.double(), torch.full_like(radius, math.inf, dtype=torch.float64))
        reach = above.view(-1, *(1,) * len(self.shape)).expand(self.x.shape)
        lower, upper = add_rounded(self.x, -reach, down=True), add_rounded(self.x, reach, down=False)
        if self.clip is not None:
            low, high = (fraction(float(end)) for end in self.clip)
            lower, upper = lower.clamp(min=round_down(low)), upper.clamp(max=round_up(high))
        lower, upper = torch.where(self.free, lower, self.x), torch.where(self.free, upper, self.x)
        if self.norm == math.inf:
            return InputSet(lower, upper)
        return InputSet(lower, upper, self.x, above, self.norm)

    def question(self, i: int, radius: float, classes: int) -> Property:
        """That nothing within the radius (the decimal that it prints as) of input i is unsafe."""
        mask = None if self.mask is None else self.mask.cpu().numpy()
        return robustness(self.x[i].cpu().numpy(), int(self.label[i]), radius, classes=classes, norm=self.norm,
                          clip=self.clip, mask=mask, target=self.target)

    @property
    def largest(self) -> Tensor:
        """"N" float64: a radius from which on the ball holds the whole clip range (inf where nothing limits it)."""
        if self.clip is None:
            nothing = 0.0 if not bool(self.free.any()) else math.inf
            return torch.full((len(self),), nothing, dtype=torch.float64, device=self.x.device)
        low, high = (Fraction(fraction(float(end))) for end in self.clip)
        away = torch.maximum((self.x - round_down(low)).abs(), (round_up(high) - self.x).abs())
        flat = torch.where(self.free, away, torch.zeros_like(away)).flatten(1)
        length = torch.linalg.vector_norm(flat, ord=self.norm, dim=1)
        return length * (1 + (flat.shape[1] + 8) * 2.0**-52)

    def inside(self, points: Tensor) -> Tensor:
        """bool "N": which of the points "N *shape" lie in the clip range, exactly, and differ on free features only."""
        here = points.to(self.x)
        held = self.free | (here == self.x)
        if self.clip is not None:
            low, high = (fraction(float(end)) for end in self.clip)
            held &= ~self.free | ((here >= round_up(low)) & (here <= round_down(high)))
        return held.flatten(1).all(1)

    def rows(self, classes: int, dtype: torch.dtype = torch.float64) -> LinearRows:
        """`y_label - y_j` for every other class (or the target) of every input, one input's rows after the other: C
        "N*K m", owner "N*K". An input is safe where all its rows are > 0."""
        device = self.x.device
        others = torch.arange(classes, device=device).expand(len(self), -1)
        if self.target is not None:
            others = torch.full((len(self), 1), self.target, device=device)
        keep = others != self.label.unsqueeze(1)
        owner = torch.arange(len(self), device=device).unsqueeze(1).expand_as(others)[keep]
        C = torch.zeros(len(owner), classes, dtype=dtype, device=device)
        at = torch.arange(len(owner), device=device)
        C[at, self.label[owner]] = 1
        C[at, others[keep]] = -1
        return LinearRows(C, owner)

    def distance(self, points: Tensor) -> Tensor:
        """How far points "N *shape" are from their inputs: float64 "N", rounded up (exact for l_inf where differences
        are floats)."""
        here = points.to(self.x)
        moved = torch.maximum(add_rounded(here, -self.x, down=False), -add_rounded(here, -self.x, down=True)).flatten(1)
        moved = moved.clamp(min=0)
        length = torch.linalg.vector_norm(moved, ord=self.norm, dim=1)
        return length if self.norm == math.inf else length * (1 + (moved.shape[1] + 4) * 2.0**-52)
