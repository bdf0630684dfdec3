"""Two-layer softplus networks with Xavier weights under the quadratic loss on spheres around an input, many at once.

f(x) = sum_r a_r log(1 + exp(<w_r, x>)) with w_r ~ N(0, I / d), a_r = +-1 / sqrt(m), and L(delta) = (y - f(x + delta))^2
(Deng et al. 2020, Section 2). Slope and curvature are closed forms, so that critical points on the sphere are found by
Newton's method and named by the eigenvalues of the Riemannian Hessian, P L'' P - <L', n> / eps P with n = delta / eps.

Axis legend: N networks, each with one input and label; P points of each; m neurons; d inputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

EXACT = torch.float64
LINEAR = 40.0         # above it softplus is its argument, to float64's rounding
FIRST_GRID, LAST_GRID = 256, 1 << 15  # angles
AT_ONCE = 4096        # angles
BISECTIONS = 60
SETTLED = 1e-9        # of the slope on the sphere, relative to the whole slope: a critical point
SAME = 1e-4           # of eps: critical points as near as this are one


@dataclass(frozen=True, eq=False)
class TwoLayer:
    """w "N m d", a "N m", x "N d", y "N"."""

    w: Tensor
    a: Tensor
    x: Tensor
    y: Tensor

    @property
    def d(self) -> int:
        return self.x.shape[1]

    def __len__(self) -> int:
        return len(self.x)

    def take(self, chosen: Tensor) -> TwoLayer:
        """Some networks, or one several times."""
        return TwoLayer(self.w[chosen], self.a[chosen], self.x[chosen], self.y[chosen])

    def _reach(self, delta: Tensor) -> Tensor:
        """What enters the neurons: "N P m"."""
        return (self.x.unsqueeze(1) + delta) @ self.w.mT

    def output(self, delta: Tensor) -> Tensor:
        """f(x + delta), of delta "N P d": "N P"."""
        return torch.einsum("npm,nm->np", functional.softplus(self._reach(delta), threshold=LINEAR), self.a)

    def output_slope(self, delta: Tensor) -> Tensor:
        """By delta: "N P d"."""
        return (torch.sigmoid(self._reach(delta)) * self.a.unsqueeze(1)) @ self.w

    def loss(self, delta: Tensor) -> Tensor:
        return (self.y.unsqueeze(1) - self.output(delta)).square()

    def loss_and_slope(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """("N P", "N P d")."""
        reach = self._reach(delta)
        rest = torch.einsum("npm,nm->np", functional.softplus(reach, threshold=LINEAR), self.a) - self.y.unsqueeze(1)
        slope = (torch.sigmoid(reach) * self.a.unsqueeze(1)) @ self.w
        return rest.square(), 2 * rest.unsqueeze(2) * slope

    def curvature(self, delta: Tensor) -> Tensor:
        """The Hessian of the loss: "N P d d"."""
        reach = self._reach(delta)
        gate = torch.sigmoid(reach)
        rest = torch.einsum("npm,nm->np", functional.softplus(reach, threshold=LINEAR), self.a) - self.y.unsqueeze(1)
        slope = (gate * self.a.unsqueeze(1)) @ self.w
        weights = gate * (1 - gate) * self.a.unsqueeze(1)
        bend = torch.einsum("npm,nmd,nme->npde", weights, self.w, self.w)
        return 2 * slope.unsqueeze(3) * slope.unsqueeze(2) + 2 * rest[..., None, None] * bend


def drawn(seed: int, count: int, d: int, m: int, scale: float) -> TwoLayer:
    """Networks with inputs of length `scale`; the same seed gives the same weights and directions at every scale.

    The label is +1 or -1, whichever f(x) is further from: |y - f(x)| >= 1 keeps the paper's assumption that it is
    bounded away from zero, at the input.
    """
    random = torch.Generator().manual_seed(seed)
    w = torch.randn(count, m, d, generator=random, dtype=EXACT) / math.sqrt(d)
    a = (2.0 * torch.randint(0, 2, (count, m), generator=random) - 1).to(EXACT) / math.sqrt(m)
    x = functional.normalize(torch.randn(count, d, generator=random, dtype=EXACT), dim=1) * scale
    net = TwoLayer(w, a, x, torch.zeros(count, dtype=EXACT))
    out = net.output(torch.zeros(count, 1, d, dtype=EXACT)).squeeze(1)
    return TwoLayer(w, a, x, torch.where(out > 0, -1.0, 1.0).to(EXACT))


def in_ball(seed: int, count: int, points: int, d: int, eps: float) -> Tensor:
    """Uniform in the ball: "N P d"."""
    random = torch.Generator().manual_seed(seed)
    share = torch.rand(count, points, 1, generator=random, dtype=EXACT) ** (1 / d)
    return eps * share * functional.normalize(torch.randn(count, points, d, generator=random, dtype=EXACT), dim=2)


def projected(delta: Tensor, eps: float) -> Tensor:
    """Into the ball. (The rooms of attacks round strictly inward; here end points are compared with the sphere.)"""
    return delta * (eps / torch.linalg.vector_norm(delta, dim=2, keepdim=True).clamp(min=eps))


def tangent(vector: Tensor, delta: Tensor) -> Tensor:
    """The part of vectors "N P d" along the sphere through delta."""
    n = functional.normalize(delta, dim=2)
    return vector - (vector * n).sum(2, keepdim=True) * n


def is_on_sphere(delta: Tensor, eps: float) -> Tensor:
    return torch.linalg.vector_norm(delta, dim=2) >= eps * (1 - 1e-9)


# ---------------------------------------------------------------------- the circle, d = 2

class Extrema(NamedTuple):
    """Angles and losses of one network's local extrema of the loss on the circle."""

    maxima: list[float]
    minima: list[float]
    highs: list[float]
    lows: list[float]
    resolved: bool


def at_angles(angles: Tensor, eps: float) -> Tensor:
    return eps * torch.stack([angles.cos(), angles.sin()], -1)


def along(net: TwoLayer, angles: Tensor, eps: float) -> Tensor:
    """d L / d angle, of angles "N P"."""
    slope = torch.cat([net.loss_and_slope(at_angles(part, eps))[1] for part in angles.split(AT_ONCE, 1)], 1)
    return eps * (slope[..., 1] * angles.cos() - slope[..., 0] * angles.sin())


def circle_extrema(net: TwoLayer, eps: float) -> Extrema:
    """All of one network's: the grid is refined until two refinements find no more, each bracket then bisected."""
    counts: list[int] = []
    grid = FIRST_GRID
    while True:
        # A grid that is turned a little: symmetric networks have extrema at round angles.
        angles = 0.1234 + torch.arange(grid, dtype=EXACT) * (2 * math.pi / grid)
        rising = along(net, angles.unsqueeze(0), eps)[0] > 0
        turns = rising != rising.roll(-1)
        counts.append(int(turns.sum()))
        resolved = len(counts) >= 3 and counts[-1] == counts[-2] == counts[-3]
        if resolved or grid >= LAST_GRID:
            break
        grid *= 2
    low = angles[turns]
    up = rising[turns]
    high = low + 2 * math.pi / grid
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        same = (along(net, middle.unsqueeze(0), eps)[0] > 0) == up
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    found = (low + high) / 2
    loss = net.loss(at_angles(found, eps).unsqueeze(0))[0]
    return Extrema(found[up].tolist(), found[~up].tolist(), loss[up].tolist(), loss[~up].tolist(), resolved)


# ---------------------------------------------------------------------- spheres of any dimension

def ascended(net: TwoLayer, delta: Tensor, eps: float, rate: Tensor, steps: int) -> Tensor:
    """Projected gradient ascent with step `rate` "N 1 1" (negative: descent)."""
    for _ in range(steps):
        _, slope = net.loss_and_slope(delta)
        delta = projected(delta + rate * slope, eps)
    return delta


def safe_rate(net: TwoLayer, delta: Tensor, eps: float) -> Tensor:
    """Half of one over the sphere's curvature bound, |L'| / eps + |L''|, as seen at points "N P d": "N 1 1"."""
    _, slope = net.loss_and_slope(delta)
    bound = torch.linalg.vector_norm(slope, dim=2) / eps + torch.linalg.matrix_norm(net.curvature(delta), ord=2)
    return 0.5 / bound.amax(1)[:, None, None]


def riemannian(net: TwoLayer, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of points on a sphere: (slope along it "N P d", its Hessian there "N P d d", zero along the normal n, and n)."""
    _, slope = net.loss_and_slope(delta)
    radius = torch.linalg.vector_norm(delta, dim=2, keepdim=True)
    n = delta / radius
    flat = torch.eye(net.d, dtype=EXACT) - n.unsqueeze(3) * n.unsqueeze(2)
    pull = ((slope * n).sum(2, keepdim=True) / radius).unsqueeze(3)
    return tangent(slope, delta), flat @ net.curvature(delta) @ flat - pull * flat, n


def settled(net: TwoLayer, delta: Tensor, eps: float, steps: int = 40) -> tuple[Tensor, Tensor]:
    """Newton's method on the sphere, to critical points of whatever kind: (points "N P d", whether they are, "N P")."""
    delta = eps * functional.normalize(delta, dim=2)
    for _ in range(steps):
        slope, hessian, n = riemannian(net, delta)
        # Along the normal nothing is asked for: any other number there makes the matrix regular.
        matrix = hessian + n.unsqueeze(3) * n.unsqueeze(2) * hessian.abs().amax((2, 3), keepdim=True)
        move = -torch.linalg.solve_ex(matrix, slope.unsqueeze(3)).result.squeeze(3)
        move = tangent(torch.nan_to_num(move, nan=0.0, posinf=0.0, neginf=0.0), delta)  # singular: stay
        length = torch.linalg.vector_norm(move, dim=2, keepdim=True)
        move = move * (0.3 * eps / length.clamp(min=0.3 * eps))
        delta = eps * functional.normalize(delta + move, dim=2)
    _, whole = net.loss_and_slope(delta)
    left = torch.linalg.vector_norm(tangent(whole, delta), dim=2)
    return delta, left <= SETTLED * torch.linalg.vector_norm(whole, dim=2)


def kinds(net: TwoLayer, delta: Tensor) -> Tensor:
    """Of critical points on the sphere: 1 for a local maximum of the loss, -1 for a minimum, 0 for a saddle: "N P"."""
    _, hessian, n = riemannian(net, delta)
    size = hessian.abs().amax((2, 3), keepdim=True)
    # The normal's own eigenvalue is moved out of the way, once to either end.
    normal = n.unsqueeze(3) * n.unsqueeze(2) * 2 * net.d * size
    highest = torch.linalg.eigvalsh(hessian - normal)[..., -1]
    lowest = torch.linalg.eigvalsh(hessian + normal)[..., 0]
    return (highest < 0).long() - (lowest > 0).long()


def first_of_each(delta: Tensor, eps: float, valid: Tensor) -> Tensor:
    """Which valid points "N P d" are the first at their place: bool "N P"."""
    near = torch.cdist(delta, delta, compute_mode="donot_use_mm_for_euclid_dist") < SAME * eps
    earlier = near & valid.unsqueeze(1) & torch.ones(near.shape[1:], dtype=torch.bool).tril(-1)
    return valid & ~earlier.any(2)
