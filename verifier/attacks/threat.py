"""Where an attack may go: an l_p ball of radius eps around each original, inside a clip range, on some features.

`Threat` is what a user states, `Room` the tensors of a batch. Everything is rounded inward in the network's dtype: no
point of a room is further from its original than eps, exactly, or outside the clip range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bounds.sets import InputSet, add_rounded, round_down, round_up

NORMS = (math.inf, 2.0, 1.0, 0.0)
SHRINKINGS = 40       # halving the remaining length each, after steps of doubling size from one ulp
BISECTIONS = 40       # of the l_1 projection's threshold


@dataclass(frozen=True, eq=False)
class Threat:
    """norm: inf, 2, 1 or 0 (features that differ). eps: the radius, in input units; inf for "as near as you can".
    clip: the valid range of inputs. mask "*shape" or "N *shape": which features may move (true = may move)."""

    norm: float = math.inf
    eps: float = math.inf
    clip: tuple[float, float] | None = None
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"norm must be inf, 2, 1 or 0, got {self.norm}")
        if not self.eps >= 0:
            raise ValueError(f"eps must be >= 0, got {self.eps}")
        if self.clip is not None and not -math.inf < self.clip[0] <= self.clip[1] < math.inf:
            raise ValueError(f"clip must be two numbers LO <= HI, got {self.clip}")

    def around(self, x: Tensor) -> Room:
        """The rooms of originals "B *shape". Raises ValueError where an original is not finite or leaves the range."""
        if not x.is_floating_point() or x.dim() < 1:
            raise ValueError(f"inputs must be floating-point numbers with a batch axis, got {x.dtype}")
        finite = torch.isfinite(x.flatten(1)).all(1)
        if not bool(finite.all()):
            raise ValueError(f"input {int((~finite).nonzero()[0])} has entries that are not finite")
        free = torch.ones_like(x, dtype=torch.bool)
        if self.mask is not None:
            mask = self.mask.to(x.device, torch.bool)
            try:
                free = mask.expand(x.shape)
            except RuntimeError as error:
                raise ValueError(f"the mask has shape {tuple(mask.shape)}, an input {tuple(x.shape[1:])}") from error
        if self.clip is not None:
            outside = (free & ((x < self.clip[0]) | (x > self.clip[1]))).flatten(1).any(1)
            if bool(outside.any()):
                i = int(outside.nonzero()[0])
                raise ValueError(f"input {i} has entries from {float(x[i].min()):.6g} to {float(x[i].max()):.6g}, "
                                 f"outside the clip range [{self.clip[0]}, {self.clip[1]}]; eps and clip are in the "
                                 "network's input units: are the inputs normalised?")
        low, high = self.clip if self.clip is not None else (-math.inf, math.inf)
        wide = x.double()
        reach = self.eps if self.norm in (math.inf, 1.0, 2.0) else math.inf
        ball = wide.new_full((), reach).expand(wide.shape)
        lower = round_up(add_rounded(wide, -ball, down=False).clamp(min=low), x.dtype)
        upper = round_down(add_rounded(wide, ball, down=True).clamp(max=high), x.dtype)
        lower, upper = torch.where(free, torch.minimum(lower, x), x), torch.where(free, torch.maximum(upper, x), x)
        return Room(x, lower, upper, self.norm, self.eps)


@dataclass(frozen=True, eq=False)
class Room:
    """The sets of B examples: box [lower, upper] "B *shape" (ends may be infinite) and the ball of `eps` about x0."""

    x0: Tensor
    lower: Tensor
    upper: Tensor
    norm: float
    eps: float

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.x0.shape[1:])

    @cached_property
    def bounded(self) -> bool:
        """Whether the box alone is finite."""
        return bool(torch.isfinite(self.lower).all() and torch.isfinite(self.upper).all())

    @cached_property
    def free(self) -> Tensor:
        """bool "B *shape": features that may move."""
        return self.lower < self.upper

    @cached_property
    def _everyone(self) -> Tensor:
        return torch.arange(self.x0.shape[0], device=self.x0.device)

    def of(self, t: Tensor, owner: Tensor) -> Tensor:
        """Rows of a tensor of examples that go with points: t itself, uncopied, where there is one point for each."""
        whole = owner.shape == self._everyone.shape and torch.equal(owner, self._everyone)
        return t if whole else t[owner]

    @cached_property
    def _all_free(self) -> bool:
        return bool(self.free.all())

    def on_free(self, t: Tensor, owner: Tensor) -> Tensor:
        """Values "P *shape" where features may move, zero elsewhere."""
        return t if self._all_free else t * self.free[owner]

    def per_example(self, t: Tensor) -> Tensor:
        """"P" as "P 1 .. 1", to go with points."""
        return t.view(-1, *(1,) * (self.x0.dim() - 1))

    def distance(self, x: Tensor, owner: Tensor) -> Tensor:
        """How far points "P *shape" are from their originals: float64 "P", rounded up."""
        here, origin = x.double(), self.of(self.x0, owner).double()
        if self.norm != math.inf:
            return distance(here - origin, self.norm)
        # Exact where the difference is a float: points at eps exactly are inside, and nothing else is.
        above, below = (add_rounded(here, -origin, down=down) for down in (False, True))
        return torch.maximum(distance(above, math.inf), distance(below, math.inf))

    def norm_of(self, x: Tensor, owner: Tensor) -> Tensor:
        """The distance in the dtype of x, as computed: "P"."""
        move = (x - self.of(self.x0, owner)).flatten(1)
        return torch.linalg.vector_norm(move, ord=self.norm, dim=1)

    def clamp(self, x: Tensor, owner: Tensor) -> Tensor:
        """Into the box."""
        return torch.clamp(x, self.of(self.lower, owner), self.of(self.upper, owner))

    def project(self, x: Tensor, owner: Tensor) -> Tensor:
        """A point of the set near x: into the ball, then into the box (which, holding x0, moves nothing outward)."""
        x = self.clamp(x, owner)
        if self.norm == math.inf or self.eps == math.inf:
            return x
        return self.within(x, owner, torch.full((x.shape[0],), self.eps, dtype=torch.float64, device=x.device))

    def within(self, x: Tensor, owner: Tensor, radius: Tensor) -> Tensor:
        """The nearest point of the ball of `radius` (float64 "P") about the original, strictly inside; x is in the box.

        Up to rounding, and for l_1 nearest in ball and box together.
        """
        x0 = self.of(self.x0, owner)
        if self.norm == math.inf:
            move = x.double() - x0.double()
            limit = self.per_example(radius)
            return _towards(x0, move.clamp(-limit, limit), x.dtype)
        if self.norm == 0.0:
            return _largest(x, x0, radius)
        far = self.distance(x, owner)
        out = far > radius
        if not bool(out.any()):
            return x
        i = out.nonzero().flatten()
        pulled = self._pulled(x[i], owner[i], far[i], radius[i])
        if i.numel() == x.shape[0]:
            return pulled
        x = x.clone()
        x[i] = pulled
        return x

    def _pulled(self, x: Tensor, owner: Tensor, far: Tensor, radius: Tensor) -> Tensor:
        x0 = self.of(self.x0, owner)
        move = x - x0
        if self.norm == 2.0:
            y = self.clamp(x0 + move * self.per_example(radius / far).to(x), owner)
        else:
            low, high = self.of(self.lower, owner) - x0, self.of(self.upper, owner) - x0
            y = self.clamp(x0 + soft_threshold(move, radius.to(x), low, high), owner)
        unit = torch.finfo(x.dtype).eps
        for k in range(SHRINKINGS):
            out = self.distance(y, owner) > radius
            if not bool(out.any()):
                return y
            # What rounding left outside is drawn in by an ulp, two, four, ...
            share = 1.0 - min(1.0, unit * 2.0**k)
            y = torch.where(self.per_example(out), x0 + (y - x0) * share, y)
        return torch.where(self.per_example(out), x0, y)

    def index(self, chosen: Tensor) -> Room:
        return Room(self.x0[chosen], self.lower[chosen], self.upper[chosen], self.norm, self.eps)

    @cached_property
    def sets(self) -> InputSet:
        """The same as an `InputSet`, for exact linear optimisation. Needs a bounded box and norm inf, 2 or 1."""
        if self.norm == math.inf:
            return InputSet(self.lower, self.upper)
        # Rounded up: bounds over these sets must hold for every point of the room.
        radius = round_up(torch.tensor(self.eps, dtype=torch.float64), self.x0.dtype).to(self.x0.device)
        radius = radius.expand(self.x0.shape[0])
        return InputSet(self.lower, self.upper, self.x0, radius, self.norm)


def distance(move: Tensor, norm: float) -> Tensor:
    """||move||_p of every row, float64, rounded up: "P *shape" -> "P"."""
    flat = move.flatten(1)
    if norm == 0.0:
        return (flat != 0).sum(1).double()
    length = torch.linalg.vector_norm(flat, ord=norm, dim=1)
    return length if norm == math.inf else length * (1 + (flat.shape[1] + 4) * 2.0**-52)


def soft_threshold(move: Tensor, radius: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The l_2 projection onto {||z||_1 <= radius, low <= z <= high}: shrink every entry by one threshold.

    move "P *shape", radius "P"; low <= 0 <= high. By bisection on the threshold, from outside.
    """
    shaped = (-1, *(1,) * (move.dim() - 1))
    size, room = move.abs(), torch.where(move > 0, high, -low)
    small, large = torch.zeros_like(radius), size.flatten(1).amax(1)

    def at(threshold: Tensor) -> Tensor:
        return torch.minimum((size - threshold.view(shaped)).clamp(min=0), room)

    for _ in range(BISECTIONS):
        middle = (small + large) / 2
        over = at(middle).flatten(1).sum(1) > radius
        small, large = torch.where(over, middle, small), torch.where(over, large, middle)
    return at(large) * move.sign()


def _largest(x: Tensor, x0: Tensor, radius: Tensor) -> Tensor:
    """Only the `radius` (float64 "P") features that moved most stay moved."""
    size = (x - x0).abs().flatten(1)
    rank = size.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    keep = rank < radius.floor().unsqueeze(1)
    return torch.where(keep.view_as(x), x, x0)


def _towards(x0: Tensor, move: Tensor, dtype: torch.dtype) -> Tensor:
    """x0 + move (float64) rounded to dtype towards x0, so that no entry moves further than asked."""
    y = (x0.double() + move).to(dtype)
    return torch.where((y.double() - x0.double()).abs() > move.abs(), torch.nextafter(y, x0), y)

