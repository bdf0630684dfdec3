"""Input sets: a batch of boxes, or of l_p balls cut by boxes, and exact linear optimisation over them.

One struct serves all: the set is `box ∩ ball`. An l_inf ball is folded into its box, so the pure
box (centre is None) is the common fast case. The same exact linear optimisation serves
concretisation, Frank-Wolfe steps and stationarity gaps.

Over a ball the work is done on the displacement `z = (x - centre) / scale`, with the box moved
along: `low <= z <= high`, `||z||_p <= radius`.

* p = 2: the Lagrangian dual has one variable. With the step `s` (one over the multiplier) its
  inner minimum is `z(s) = clamp(-s a, low, high)`, and `||z(s)||` grows with s: Newton's method
  guarded by bisection finds the step at which it meets the radius. The value returned is the dual
  value at the step reached, which bounds the minimum from below whether or not it has converged.
* p = 1: spend the radius on the features in order of |a|, each up to its room in the box.

Minima carry the rounding of their dtype and no more; nothing here is rounded outward except
`LpBall` and `InputSet.to`, which never lose a point of the set.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bounds.ops.round_off import MORE, SPARE, gamma

NEWTON_STEPS = 40        # guarded by bisection; seen to need 3 to 8
BISECTION_STEPS = 50     # for the l_1 projection; halves an interval, so 2^-50 of it remains
SPENDERS = 32            # features that mostly spend a radius of l_1; where they do not, all are sorted
CHUNK_ENTRIES = 1 << 18  # rows are taken in chunks that stay in the cache (1 MiB of float32)
GPU_CHUNK_ENTRIES = 1 << 26  # there only the memory of a temporary counts
FEW_SETS = 4             # up to here one matrix product against all sets beats gathering them


@dataclass(frozen=True, eq=False)
class InputSet:
    """B sets: {x : lower <= x <= upper} and, with a centre, ||(x - centre) / scale||_p <= radius.

    lower, upper "B *shape"; centre "B *shape" or None; radius "B"; p 1.0 or 2.0 (inf is a box);
    scale "B *shape" > 0 or None (all one). The centre of a ball need not lie in the box, but
    box ∩ ball must not be empty.
    """

    lower: Tensor
    upper: Tensor
    centre: Tensor | None = None
    radius: Tensor | None = None
    p: float = math.inf
    scale: Tensor | None = None

    def __post_init__(self) -> None:
        if self.lower.shape != self.upper.shape:
            raise ValueError(f"lower and upper must have one shape, got {tuple(self.lower.shape)} "
                             f"and {tuple(self.upper.shape)}")
        if self.lower.dim() < 1 or not self.lower.is_floating_point() or self.lower.dtype != self.upper.dtype:
            raise ValueError("lower and upper must be floating-point tensors of one dtype with a batch axis")
        if not bool((self.lower <= self.upper).all()):  # false for NaN too
            raise ValueError("lower must not exceed upper, and neither may be NaN")
        if not (bool(torch.isfinite(self.lower).all()) and bool(torch.isfinite(self.upper).all())):
            raise ValueError("the input set must be bounded")
        if self.centre is not None:
            self._check_ball()
        elif self.p != math.inf or self.radius is not None or self.scale is not None:
            raise ValueError("a radius, a scale or a finite p needs a centre")

    def _check_ball(self) -> None:
        if self.p not in (1.0, 2.0):
            raise ValueError(f"a ball needs p 1 or 2 (an l_inf ball is a box), got {self.p}")
        if self.radius is None:
            raise ValueError("a ball needs one radius a set")
        centre, radius = self._ball
        if centre.shape != self.lower.shape or radius.shape != (self.batch,):
            raise ValueError(f"a ball needs a centre of shape {tuple(self.lower.shape)} and one radius a set")
        if not bool(torch.isfinite(centre).all()) or not bool((radius >= 0).all()):
            raise ValueError("the centre must be finite and the radius must be >= 0")
        if self.scale is not None and not bool((self.scale > 0).all()):
            raise ValueError("scale must be > 0")
        nearest = self._low.clamp(min=0) + self._high.clamp(max=0)
        # The slack forgives the rounding of a set that touches its box in one point only.
        slack = 8 * torch.finfo(self.lower.dtype).eps * centre.abs().flatten(1).sum(1)
        if bool((_norm(nearest, self.p) > radius * (1 + 1e-6) + slack).any()):
            raise ValueError("the ball does not meet its box: the input set is empty")

    # ------------------------------------------------------------------ facts

    @property
    def batch(self) -> int:
        return self.lower.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.lower.shape[1:])

    @property
    def is_box(self) -> bool:
        return self.centre is None

    @property
    def dtype(self) -> torch.dtype:
        return self.lower.dtype

    @property
    def device(self) -> torch.device:
        return self.lower.device

    @property
    def _ball(self) -> tuple[Tensor, Tensor]:
        """(centre, radius) of a ball."""
        if self.centre is None or self.radius is None:
            raise ValueError("a box has no centre and no radius")
        return self.centre, self.radius

    @cached_property
    def centre_point(self) -> Tensor:
        """Some point inside: the middle of a box, the box point nearest to the centre of a ball. "B *shape"."""
        if self.centre is not None:
            return torch.minimum(torch.maximum(self.centre, self.lower), self.upper)
        return torch.minimum(torch.maximum(0.5 * self.lower + 0.5 * self.upper, self.lower), self.upper)

    @cached_property
    def _middle(self) -> tuple[Tensor, Tensor]:
        """(c, r) "B F": the box as c +- r; r covers both ends even where c was rounded."""
        centre = (0.5 * self.lower + 0.5 * self.upper).reshape(self.batch, -1)
        return centre, torch.maximum(centre - self.lower.reshape(self.batch, -1),
                                     self.upper.reshape(self.batch, -1) - centre)

    @cached_property
    def _low(self) -> Tensor:
        """The box as displacements from the centre, "B *shape"."""
        low = self.lower - self._ball[0]
        return low if self.scale is None else low / self.scale

    @cached_property
    def _high(self) -> Tensor:
        high = self.upper - self._ball[0]
        return high if self.scale is None else high / self.scale

    # ------------------------------------------------------------------ linear optimisation

    def minimise(self, A: Tensor, owner: Tensor | None = None) -> Tensor:
        """min over x in the row's set of <A_n, x>: "N *shape" -> "N". Differentiable in A.

        owner "N" says which set a row runs over; None means row n over set n, or all rows over the
        only set. Exact up to rounding for boxes and p = 1; for p = 2 a dual value, never above the
        minimum (up to rounding) and equal to it at convergence.
        """
        owner = self._check_rows(A, owner)
        rows = A.flatten(1)
        if self.is_box:
            return self._minimise_box(rows, owner)
        with torch.no_grad():
            x, slack = self._solve_ball(rows.detach(), owner)
        # Envelope theorem: at the optimum the value moves with A as if x stood still.
        return _dot(rows, x) + slack

    def minimise_down(self, A: Tensor, owner: Tensor | None = None) -> Tensor:
        """As `minimise`, lowered by all that rounding may have added.

        The multiplier of a ball's dual is taken as computed, and any is valid; displacements that are off by their own
        rounding change the dual value in second order (p = 2), or by at most the steepest coefficient times the
        rounding of the radius that is spent (p = 1).
        """
        owner = self._check_rows(A, owner)
        rows = A.flatten(1)
        share = 2 * MORE * gamma(rows.shape[1] + SPARE, rows.dtype)
        if self.is_box:
            value = self._minimise_box(rows, owner)
            with torch.no_grad():
                reach = self._rows(torch.maximum(self.lower.abs(), self.upper.abs()), owner).flatten(1)
                size = _dot(rows.abs(), reach)
            return value - share * size
        with torch.no_grad():
            x, slack = self._solve_ball(rows.detach(), owner)
            centre, radius = (self._rows(t, owner) for t in self._ball)
            centre = centre.flatten(1)
            size = _dot(rows.abs(), centre.abs() + (x - centre).abs()) + slack.abs()
            if self.p == 1.0:
                scale = 1.0 if self.scale is None else self._rows(self.scale, owner).flatten(1)
                size = size + radius * (rows.abs() * scale).amax(1)
            lowered = slack - share * size
        return _dot(rows, x) + lowered

    def minimiser(self, A: Tensor, owner: Tensor | None = None) -> Tensor:
        """A point of the set where `minimise` is attained (up to rounding): "N *shape" -> "N *shape"."""
        owner = self._check_rows(A, owner)
        if self.is_box:
            return torch.where(A > 0, self._rows(self.lower, owner), self._rows(self.upper, owner))
        with torch.no_grad():
            x, _ = self._solve_ball(A.detach().flatten(1), owner)
        return self.project(x.reshape(A.shape), owner)

    def _check_rows(self, A: Tensor, owner: Tensor | None) -> Tensor | None:
        if tuple(A.shape[1:]) != self.shape:
            raise ValueError(f"rows must have shape (N, {', '.join(map(str, self.shape))}), got {tuple(A.shape)}")
        if self.batch == 1:
            return None
        if owner is None:
            if A.shape[0] != self.batch:
                raise ValueError(f"{A.shape[0]} rows for {self.batch} sets need an owner each")
            return None
        if owner.shape != (A.shape[0],):
            raise ValueError(f"owner must have shape ({A.shape[0]},), got {tuple(owner.shape)}")
        return owner

    def _rows(self, t: Tensor, owner: Tensor | None) -> Tensor:
        """A tensor of the sets, one entry a row (or broadcastable): "B ..." -> "N ..." or "1 ..."."""
        return t if owner is None else t[owner]

    def _minimise_box(self, A: Tensor, owner: Tensor | None) -> Tensor:
        """A c - |A| r in as few passes over A as there are: A "N F"."""
        c, r = self._middle
        count, features = A.shape
        if owner is not None and self.batch <= FEW_SETS:
            index = owner.unsqueeze(1)
            return _concatenated([(A[i] @ c.T - A[i].abs() @ r.T).gather(1, index[i])
                                  for i in _chunks(count, features, A.device)], A)
        if owner is not None and count % self.batch == 0 and _is_regular(owner, self.batch):
            A = A.reshape(self.batch, count // self.batch, features)
            c, r = c.unsqueeze(1), r.unsqueeze(1)
            return _concatenated([_dot(A[i], c[i]) - _dot(A[i].abs(), r[i])
                                  for i in _chunks(self.batch, A.shape[1] * features, A.device)], A)
        if owner is not None:
            return _concatenated([_dot(A[i], c[owner[i]]) - _dot(A[i].abs(), r[owner[i]])
                                  for i in _chunks(count, features, A.device)], A)
        if self.batch == 1:
            c, r = c[0], r[0]
            return _concatenated([A[i] @ c - A[i].abs() @ r for i in _chunks(count, features, A.device)], A)
        return _concatenated([_dot(A[i], c[i]) - _dot(A[i].abs(), r[i]) for i in _chunks(count, features, A.device)], A)

    def _solve_ball(self, a: Tensor, owner: Tensor | None) -> tuple[Tensor, Tensor]:
        """(x "N F", slack "N"): `<a, x> + slack` is the bound. a "N F"."""
        centre, radii = self._ball
        low, high = self._rows(self._low, owner).flatten(1), self._rows(self._high, owner).flatten(1)
        radius = self._rows(radii, owner).expand(a.shape[0])
        scaled = a if self.scale is None else a * self._rows(self.scale, owner).flatten(1)
        if self.p == 1.0:
            z, slack = _greedy(scaled, low, high, radius), a.new_zeros(a.shape[0])
        else:
            step = _meet_radius(scaled, low, high, radius)
            z = _ray(scaled, step, low, high)
            # At step infinity the multiplier is zero. A NaN could only come from 0 * inf there.
            excess = (z.square().sum(1) - radius.square()) / (2 * step)
            slack = torch.where(torch.isinf(step), torch.zeros_like(excess), excess)
        shift = z if self.scale is None else z * self._rows(self.scale, owner).flatten(1)
        return self._rows(centre, owner).flatten(1) + shift, slack

    # ------------------------------------------------------------------ points

    def project(self, x: Tensor, owner: Tensor | None = None) -> Tensor:
        """The nearest point of the set in the (scaled) l_2 norm, in the dtype of x, and inside: "N *shape".

        Inside means what `contains` says; a point that rounding left outside is drawn towards the
        centre. Features with lower == upper come back exactly there.
        """
        owner = self._check_rows(x, owner)
        lower, upper = self._rows(self.lower, owner), self._rows(self.upper, owner)
        if x.dtype != self.dtype:
            lower, upper = _inward(lower, upper, x.dtype)
        clipped = torch.minimum(torch.maximum(x, lower), upper)
        if self.is_box:
            return clipped
        with torch.no_grad():
            return self._project_ball(x, clipped, lower, upper, owner)

    def _project_ball(self, x: Tensor, clipped: Tensor, lower: Tensor, upper: Tensor, owner: Tensor | None) -> Tensor:
        wide, shape = torch.float64, x.shape
        centres, radii = self._ball
        centre = self._rows(centres, owner).to(wide).flatten(1).expand(shape[0], -1)
        scale = 1.0 if self.scale is None else self._rows(self.scale, owner).to(wide).flatten(1)
        radius = self._rows(radii, owner).to(wide).expand(shape[0])
        low = (self._rows(self.lower, owner).to(wide).flatten(1) - centre) / scale
        high = (self._rows(self.upper, owner).to(wide).flatten(1) - centre) / scale
        wanted = (x.to(wide).flatten(1) - centre) / scale
        if self.p == 2.0:
            z = _ray(-wanted, _meet_radius(-wanted, low, high, radius).clamp(max=1.0), low, high)
        else:
            z = _shrink(wanted, low, high, radius)
        inside = (self._distance(clipped, owner) <= radius).view(-1, *(1,) * (x.dim() - 1))
        best = torch.where(inside, clipped, clipped.new_tensor(math.nan))
        eps = torch.finfo(x.dtype).eps
        for k in range(-1, 30):  # k = -1: the projection itself, then shrunk by eps, 2 eps, 4 eps, ...
            if bool(inside.all()):
                return best
            shrunk = z * (1.0 - (0.0 if k < 0 else min(1.0, eps * 2.0**k)))
            y = (centre + torch.minimum(torch.maximum(shrunk, low), high) * scale).reshape(shape).to(x.dtype)
            y = torch.minimum(torch.maximum(y, lower), upper)
            good = (self._distance(y, owner) <= radius).view_as(inside)
            best = torch.where(good & ~inside, y, best)
            inside = inside | good
        nearest = torch.minimum(torch.maximum(centre.reshape(shape).to(x.dtype), lower), upper)
        return torch.where(inside, best, nearest)

    def _distance(self, x: Tensor, owner: Tensor | None) -> Tensor:
        """||(x - centre) / scale||_p in float64: "N *shape" -> "N"."""
        z = x.double() - self._rows(self._ball[0], owner).double()
        return _norm(z if self.scale is None else z / self._rows(self.scale, owner).double(), self.p)

    def contains(self, x: Tensor, owner: Tensor | None = None) -> Tensor:
        """bool "N": is x in its set? The box is compared exactly, the ball's norm is taken in float64."""
        owner = self._check_rows(x, owner)
        inside = ((x >= self._rows(self.lower, owner)) & (x <= self._rows(self.upper, owner))).flatten(1).all(1)
        if self.is_box:
            return inside
        return inside & (self._distance(x, owner) <= self._rows(self._ball[1], owner).double())

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n points of every set: "B n *shape". Uniform over a box; over a ball uniform among the
        features that may move, then projected into the box."""
        size = (self.batch, n, *self.shape)
        where = {"dtype": self.dtype, "device": self.device}
        lower, upper = self.lower.unsqueeze(1), self.upper.unsqueeze(1)
        if self.centre is None or self.radius is None:
            x = lower + (upper - lower) * torch.rand(size, generator=generator, **where)  # type: ignore[call-overload]
            return torch.minimum(torch.maximum(x, lower), upper)
        free = (self.lower < self.upper).unsqueeze(1)
        if self.p == 2.0:
            z = torch.randn(size, generator=generator, **where)  # type: ignore[call-overload]
        else:
            u = torch.rand(size, generator=generator, **where)  # type: ignore[call-overload]
            z = (1 - u).log() * torch.where(torch.rand(size, generator=generator, **where) < 0.5, -1.0, 1.0)  # type: ignore[call-overload]
        z = (z * free).flatten(2)
        count = free.flatten(1).sum(1).clamp(min=1).to(self.dtype).view(-1, 1, 1)
        share = torch.rand(self.batch, n, 1, generator=generator, **where) ** (1 / count)  # type: ignore[call-overload]
        length = torch.linalg.vector_norm(z, ord=self.p, dim=2, keepdim=True).clamp(min=torch.finfo(self.dtype).tiny)
        z = (z / length * share * self.radius.view(-1, 1, 1)).reshape(size)
        if self.scale is not None:
            z = z * self.scale.unsqueeze(1)
        x = (self.centre.unsqueeze(1) + z).reshape(-1, *self.shape)
        owner = torch.arange(self.batch, device=self.device).repeat_interleave(n)
        return self.project(x, owner).reshape(size)

    # ------------------------------------------------------------------ new sets from old

    def index(self, chosen: Tensor) -> InputSet:
        """The chosen sets, in that order; repeats are allowed. chosen LongTensor "K"."""
        return InputSet(self.lower[chosen], self.upper[chosen],
                        None if self.centre is None else self.centre[chosen],
                        None if self.radius is None else self.radius[chosen], self.p,
                        None if self.scale is None else self.scale[chosen])

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> InputSet:
        """Converted; where precision drops, rounded outward: no point of the set is lost.

        A centre that had to be rounded enlarges the radius by the distance it moved.
        """
        dtype = dtype or self.dtype
        lower, upper = round_down(self.lower, dtype).to(device), round_up(self.upper, dtype).to(device)
        if self.centre is None or self.radius is None:
            return InputSet(lower, upper)
        centre, scale = self.centre.to(dtype), None if self.scale is None else round_up(self.scale, dtype)
        radius = self.radius.double()
        moved = centre.double() - self.centre.double()
        if bool(moved.ne(0).any()):
            distance = _norm(moved if self.scale is None else moved / self.scale.double(), self.p)
            radius = radius + distance * (1 + 1e-12) + radius * 1e-15  # pays for the norm's own rounding
        return InputSet(lower, upper, centre.to(device), round_up(radius, dtype).to(device), self.p,
                        None if scale is None else scale.to(device))


# ---------------------------------------------------------------------- constructors


def Box(lower: Tensor, upper: Tensor) -> InputSet:
    """B boxes {lower <= x <= upper}; both "B *shape"."""
    return InputSet(lower, upper)


def LpBall(centre: Tensor, radius: float | Tensor, p: float = math.inf, *, clip: tuple[float, float] | None = None,
           mask: Tensor | None = None, scale: Tensor | None = None) -> InputSet:
    """B balls {||(x - centre) / scale||_p <= radius}, p in {1, 2, inf}; centre "B *shape", radius a number or "B".

    clip cuts the range of every feature that may move; mask ("*shape" or "B *shape", true = may
    move) pins the others to the centre; scale ("*shape" or "B *shape", > 0) weights the features.
    The box around the ball is rounded outward; an l_inf ball is that box.
    """
    if p not in (1, 2, math.inf):
        raise ValueError(f"p must be 1, 2 or inf, got {p}")
    if centre.dim() < 1 or not centre.is_floating_point():
        raise ValueError("the centre must be a floating-point tensor with a batch axis")
    if not bool(torch.isfinite(centre).all()):
        raise ValueError("the centre must be finite")
    radii = torch.as_tensor(radius, dtype=torch.float64, device=centre.device).expand(centre.shape[0])
    if not bool((radii >= 0).all()) or bool(torch.isinf(radii).any()):
        raise ValueError(f"the radius must be finite and >= 0, got {radius}")
    reach = radii.view(-1, *(1,) * (centre.dim() - 1)).expand(centre.shape)
    weights = None
    if scale is not None:
        weights = scale.to(centre).expand(centre.shape)
        if not bool((weights > 0).all()):
            raise ValueError("scale must be > 0")
        reach = torch.nextafter(reach * weights.double(), reach.new_tensor(math.inf))
    free = torch.ones_like(centre, dtype=torch.bool) if mask is None else mask.to(centre.device, torch.bool).expand(
        centre.shape)
    lower, upper = add_rounded(centre.double(), -reach, down=True), add_rounded(centre.double(), reach, down=False)
    if clip is not None:
        if not clip[0] <= clip[1]:
            raise ValueError(f"clip must be (low, high) with low <= high, got {clip}")
        lower, upper = lower.clamp(min=clip[0]), upper.clamp(max=clip[1])
        if bool((lower > upper)[free].any()):
            raise ValueError(f"the ball does not meet the clip range [{clip[0]}, {clip[1]}]")
    lower = torch.where(free, round_down(lower, centre.dtype), centre)
    upper = torch.where(free, round_up(upper, centre.dtype), centre)
    if p == math.inf:
        return InputSet(lower, upper)
    return InputSet(lower, upper, centre, round_up(radii, centre.dtype), float(p), weights)


# ---------------------------------------------------------------------- kernels


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products over the last axis without a product tensor: "... F", "... F" (broadcast) -> "..."."""
    return torch.linalg.vecdot(a, b)  # seen four times as fast as a batched product on the CPU


def _concatenated(parts: list[Tensor], like: Tensor) -> Tensor:
    """The parts in one vector "N"."""
    return parts[0].flatten() if len(parts) == 1 else torch.cat([p.flatten() for p in parts] or [like.new_zeros(0)])


def _norm(z: Tensor, p: float) -> Tensor:
    """||z||_p of every row: "N *shape" -> "N"."""
    return torch.linalg.vector_norm(z.flatten(1), ord=p, dim=1)


def _is_regular(owner: Tensor, batch: int) -> bool:
    """Are the rows grouped by set, the same number each, in the sets' order?"""
    return torch.equal(owner, torch.arange(batch, device=owner.device).repeat_interleave(owner.numel() // batch))


def _chunks(rows: int, features: int, device: torch.device) -> Iterator[slice]:
    entries = CHUNK_ENTRIES if device.type == "cpu" else GPU_CHUNK_ENTRIES
    step = max(1, entries // max(1, features))
    return (slice(i, min(rows, i + step)) for i in range(0, rows, step))


def _ray(a: Tensor, step: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """z(s) = clamp(-s a, low, high); at step infinity a feature with a = 0 stays nearest to zero."""
    move = torch.where(a == 0, torch.zeros_like(a), -a * step.unsqueeze(1))
    return torch.minimum(torch.maximum(move, low), high)


def _meet_radius(a: Tensor, low: Tensor, high: Tensor, radius: Tensor) -> Tensor:
    """The step s at which ||clamp(-s a, low, high)||_2 = radius, infinity where it never gets there.

    The square of the norm is non-decreasing in s and, piece by piece, linear in s^2: Newton on the
    pieces, bisection where it leaves the bracket. a "N F", low, high "N F" or "1 F", radius "N".
    """
    tiny = torch.finfo(a.dtype).tiny
    size = a.abs().amax(1).clamp(min=tiny) if a.shape[1] else torch.ones_like(radius)
    a = a / size.unsqueeze(1)  # squares of very small or large rows would leave the range
    target = radius.square()
    infinite = torch.full_like(radius, math.inf)
    open_end = _ray(a, infinite, low, high).square().sum(1) > target
    below, above = torch.zeros_like(radius), infinite.clone()
    step = radius / _norm(a, 2.0).clamp(min=tiny)
    for _ in range(NEWTON_STEPS):
        move = -a * step.unsqueeze(1)
        z = torch.minimum(torch.maximum(move, low), high)
        reached = z.square().sum(1)
        free = torch.where(z == move, a, torch.zeros_like(a)).square().sum(1)  # d reached / d s^2
        short = reached <= target
        below, above = torch.where(short, step, below), torch.where(short, above, step)
        newton = ((target - reached) / free.clamp(min=tiny) + step.square()).clamp(min=0).sqrt()
        middle = torch.where(torch.isinf(above), 2 * step.clamp(min=tiny), (below + above) / 2)
        inside = (newton > below) & (newton < above) & (free > 0)
        following = torch.where(inside, newton, middle)
        done = (reached - target).abs() <= 4 * torch.finfo(a.dtype).eps * target
        if bool((done | ~open_end | (following == step)).all()):
            break
        step = torch.where(done, step, following)
    return torch.where(open_end, (step / size).clamp(min=tiny), infinite)


def _greedy(a: Tensor, low: Tensor, high: Tensor, radius: Tensor) -> Tensor:
    """argmin <a, z> over low <= z <= high, ||z||_1 <= radius: largest |a| first. "N F" -> "N F".

    From the box point nearest to zero every useful move leads away from zero, at one unit of the
    radius a unit of length, so the linear programme is a fractional knapsack and greedy is exact.
    """
    start = (low.clamp(min=0) + high.clamp(max=0)).expand_as(a)
    room = torch.where(a < 0, high - start, start - low) * (a != 0)
    left = (radius.double() - start.double().abs().sum(1)).clamp(min=0).unsqueeze(1)
    worth = torch.where(room > 0, a.abs(), torch.zeros_like(a))
    features = a.shape[1]
    for few in (min(SPENDERS, features), features):
        size, order = worth.topk(few, dim=1)
        wide = room.gather(1, order).double()  # float64: the running sum is over thousands of features
        spent = wide.cumsum(1)
        if few == features or bool(((spent[:, -1:] >= left) | (size[:, -1:] == 0)).all()):
            break
    taken = torch.minimum((left - (spent - wide)).clamp(min=0), wide).to(a.dtype)
    return start - torch.sign(a) * torch.zeros_like(a).scatter(1, order, taken)


def _shrink(z: Tensor, low: Tensor, high: Tensor, radius: Tensor) -> Tensor:
    """l_2 projection of z onto {low <= y <= high, ||y||_1 <= radius}: soft-thresholding by bisection."""

    def at(threshold: Tensor) -> Tensor:
        soft = torch.sign(z) * (z.abs() - threshold.unsqueeze(1)).clamp(min=0)
        return torch.minimum(torch.maximum(soft, low), high)

    small, large = torch.zeros_like(radius), z.abs().amax(1)
    for _ in range(BISECTION_STEPS):
        middle = (small + large) / 2
        outside = at(middle).abs().sum(1) > radius
        small, large = torch.where(outside, middle, small), torch.where(outside, large, middle)
    return at(large)


def add_rounded(a: Tensor, b: Tensor, *, down: bool) -> Tensor:
    """a + b in float64, rounded down or up: exact where the sum is a float (Knuth's TwoSum)."""
    total = a + b
    other = total - a
    error = (a - (total - other)) + (b - other)
    if down:
        return torch.where(error < 0, torch.nextafter(total, total.new_tensor(-math.inf)), total)
    return torch.where(error > 0, torch.nextafter(total, total.new_tensor(math.inf)), total)


def round_down(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The largest number of `dtype` not above x."""
    y = x.to(dtype)
    return torch.where(y.double() > x.double(), torch.nextafter(y, y.new_tensor(-math.inf)), y)


def round_up(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The smallest number of `dtype` not below x."""
    y = x.to(dtype)
    return torch.where(y.double() < x.double(), torch.nextafter(y, y.new_tensor(math.inf)), y)


def _inward(lower: Tensor, upper: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The box in another dtype, rounded inward; where no number of that dtype lies inside, to nearest."""
    low, high = round_up(lower, dtype), round_down(upper, dtype)
    empty = low > high
    middle = (0.5 * lower + 0.5 * upper).to(dtype)
    return torch.where(empty, middle, low), torch.where(empty, middle, high)
