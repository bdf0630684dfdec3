"""The grid checker: two lines against an exact function, in float64, at ends, kinks, and where they are worst.

Whole-network sampling hardly ever sees a relaxation that is a little wrong; a grid at the operator does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bounds.interval import Interval
from bounds.ops.base import Elementwise
from bounds.relaxation import Relaxation

_POINTS = 401
_REFINEMENTS = 3


def intervals(dtype: torch.dtype = torch.float32) -> Interval:
    """Some 400 intervals "B": random, one-sided, straddling, degenerate, huge, tiny, saturated, denormal."""
    generator = torch.Generator().manual_seed(7)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    scale = 10.0 ** (torch.rand(120, generator=generator, dtype=torch.float64) * 4 - 2)
    ends = random(120, 2).sort(-1).values * scale[:, None]                   # random, many scales
    positive = (random(60, 2).abs() * scale[:60, None]).sort(-1).values      # one-sided
    straddling = torch.stack((-random(80).abs() * scale[:80], random(80).abs() * scale[20:100]), -1)
    point = (random(30) * scale[:30])[:, None].expand(-1, 2)                 # zero width
    hand = torch.tensor([
        (0.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (-1.0, 1.0), (-3.0, 3.0), (1.0, 1.0), (-1.0, -1.0), (6.0, 6.0),
        (0.0, 6.0), (-1.0, 6.0), (5.0, 7.0), (6.0, 8.0), (-2.0, -1.0), (-1.0, -0.5), (0.5, 1.0), (1.0, 2.0),
        (-1e8, 1e8), (-1e8, 1.0), (-1.0, 1e8), (1e7, 1e8), (-1e8, -1e7), (-1e8, 0.0), (0.0, 1e8), (-1e8, 1e-8),
        (-1e-8, 1e8), (1e8, 1e8), (-1e8, -1e8),
        (-1e-12, 1e-12), (0.0, 1e-12), (-1e-12, 0.0), (1e-12, 2e-12), (-1e-12, 1.0), (-1.0, 1e-12), (1e-5, 1.00001e-5),
        (99.0, 101.0), (-101.0, -99.0), (-100.0, 100.0), (-100.0, 0.1), (-0.1, 100.0), (20.0, 1e4), (-1e4, -20.0),
        (15.0, 25.0), (-25.0, -15.0), (-50.0, -49.0), (-90.0, -80.0), (-20.0, 1.0), (-1.0, 20.0), (2.9, 3.1),
        (1e-40, 1e-39), (-1e-39, -1e-40), (-1e-40, 1e-40), (0.0, 1e-44), (-1e-44, 0.0), (-1e-40, 1.0), (1e-40, 1e-40),
        (3.0, 9.0),
    ], dtype=torch.float64)
    drawn = torch.cat([ends, positive, -positive.flip(-1), straddling, point, hand]).to(dtype)
    base = drawn[:60, 0].contiguous()
    few_ulp = base
    for _ in range(3):
        few_ulp = torch.nextafter(few_ulp, torch.full_like(few_ulp, torch.inf))
    drawn = torch.cat([drawn, torch.stack((base, few_ulp), -1)])
    return Interval(drawn[:, 0].contiguous(), drawn[:, 1].contiguous())


def grid(x: Interval, special: tuple[float, ...]) -> Tensor:
    """Points "B P", float64: ends, an even grid, points clustered at the ends, at 0 and at `special`."""
    lower, upper = x.lower.double().unsqueeze(-1), x.upper.double().unsqueeze(-1)
    even = torch.linspace(0, 1, _POINTS, dtype=torch.float64)
    near = torch.logspace(-12, -0.4, 60, dtype=torch.float64)
    weights = torch.cat([even, near, 1 - near])
    around = torch.cat([-torch.logspace(3, -10, 80, dtype=torch.float64), torch.zeros(1, dtype=torch.float64),
                        torch.logspace(-10, 3, 80, dtype=torch.float64)])
    centres = torch.tensor((0.0, *special), dtype=torch.float64)
    fixed = (centres[:, None] + around).reshape(-1)
    points = torch.cat([torch.lerp(lower, upper, weights), fixed.expand(lower.shape[0], -1), lower, upper], -1)
    return torch.minimum(torch.maximum(points, lower), upper)


def violation(op: Elementwise, x: Interval, lines: Relaxation, *, special: tuple[float, ...] = (),
              ulps: float = 0.0) -> Tensor:
    """By how much the lines cross the function, "B", in the worst point found; <= 0 where they are valid.

    Lines and ends are taken exactly as stored; everything is computed in float64. `ulps` allows for rounding: that many
    units of the lines' dtype, relative to max |f| + |slope| max |z|.
    """
    exact = op.to(dtype=torch.float64)
    lower = _line(x, lines.lower_slope, lines.lower_intercept)
    upper = _line(x, lines.upper_slope, lines.upper_intercept)
    size = torch.maximum(x.lower.double().abs(), x.upper.double().abs())
    points = grid(x, special)
    values = exact.forward(points.T).T
    height = values.abs().amax(-1)
    eps = torch.finfo(x.lower.dtype).eps
    smallest = torch.finfo(x.lower.dtype).tiny * eps  # what an underflowing product loses
    worst = torch.full_like(size, -torch.inf)
    for sign, (slope, intercept) in ((1.0, upper), (-1.0, lower)):
        allowed = ulps * (eps * (height + slope.abs() * size) + smallest)
        at, crossing = _worst(exact, points, sign, slope, intercept)
        step = (x.upper.double() - x.lower.double()) / (_POINTS - 1)
        for _ in range(_REFINEMENTS):
            finer = at[:, None] + step[:, None] * torch.linspace(-1.5, 1.5, 61, dtype=torch.float64)
            finer = torch.minimum(torch.maximum(finer, x.lower.double()[:, None]), x.upper.double()[:, None])
            at, again = _worst(exact, finer, sign, slope, intercept)
            crossing = torch.maximum(crossing, again)
            step = step / 20
        worst = torch.maximum(worst, torch.nan_to_num(crossing - allowed, nan=torch.inf))  # NaN is wrong
    return worst


def _line(x: Interval, slope: Tensor, intercept: Tensor | None) -> tuple[Tensor, Tensor]:
    slope = slope.expand_as(x.lower).double()
    return slope, torch.zeros_like(slope) if intercept is None else intercept.expand_as(x.lower).double()


def _worst(exact: Elementwise, points: Tensor, sign: float, slope: Tensor, intercept: Tensor) -> tuple[Tensor, Tensor]:
    """The point where `sign * (f(z) - slope z - intercept)` is largest, and that value."""
    gap = sign * (exact.forward(points.T).T - slope[:, None] * points - intercept[:, None])
    crossing, index = gap.max(-1)
    return points.gather(1, index[:, None])[:, 0], crossing
