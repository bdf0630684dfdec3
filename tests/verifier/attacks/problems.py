"""Problems whose nearest adversarial point is known: linear classifiers in every norm, and a ball-shaped boundary."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from verifier.attacks.criterion import Misclassified
from verifier.attacks.threat import Threat


class Linear(nn.Module):
    """y = W x + b on flattened inputs."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight, requires_grad=False), nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias


class Bowl(nn.Module):
    """y = (radius^2 - ||x - centre||^2, 0): class 0 inside a ball."""

    def __init__(self, centre: Tensor, radius: float) -> None:
        super().__init__()
        self.register_buffer("centre", centre)
        self.radius = radius

    def forward(self, x: Tensor) -> Tensor:
        inside = self.radius**2 - (x - self.centre).flatten(1).square().sum(1)
        return torch.stack([inside, torch.zeros_like(inside)], 1)


@dataclass(frozen=True, eq=False)
class Known:
    """Originals, their labels, and the exact distance to the nearest point that gets another label."""

    model: nn.Module
    x: Tensor
    label: Tensor
    threat: Threat
    distance: np.ndarray

    @property
    def criterion(self) -> Misclassified:
        return Misclassified(self.label)


def linear(norm: float, *, classes: int = 4, shape: tuple[int, ...] = (3, 4), count: int = 6, seed: int = 0,
           clip: bool = False, dtype: torch.dtype = torch.float32) -> Known:
    """A linear classifier and points near 0.5, each with the label that it gets. clip: to [0, 1], which then cuts off
    some of the nearest points; exact distances come from linear search over the features (l_0, l_1), else from
    bisection over the radius (`reach`)."""
    g = torch.Generator().manual_seed(seed)
    features = math.prod(shape)
    weight = torch.randn(classes, features, generator=g, dtype=torch.float64)
    x = (0.5 + 0.2 * torch.randn(count, *shape, generator=g, dtype=torch.float64)).clamp(0.05, 0.95).to(dtype)
    bias = 0.1 * torch.randn(classes, generator=g, dtype=torch.float64)
    model = Linear(weight.to(dtype), bias.to(dtype))
    label = model(x).argmax(1)
    threat = Threat(norm, math.inf, (0.0, 1.0) if clip else None)
    exact = np.array([nearest(weight.numpy(), bias.numpy(), x[i].double().flatten().numpy(), int(label[i]), norm,
                               (0.0, 1.0) if clip else (-math.inf, math.inf)) for i in range(count)])
    return Known(model, x, label, threat, exact)


def bowl(*, features: int = 5, count: int = 4, seed: int = 0, dtype: torch.dtype = torch.float32) -> Known:
    """Points inside a ball around zero: the nearest boundary point in l_2 lies radially outward."""
    g = torch.Generator().manual_seed(seed)
    x = 0.3 * torch.randn(count, features, generator=g, dtype=dtype)
    exact = 2.0 - x.double().norm(dim=1).numpy()
    return Known(Bowl(torch.zeros(features, dtype=dtype), 2.0), x, torch.zeros(count, dtype=torch.long),
                 Threat(2.0, math.inf), exact)


def nearest(weight: np.ndarray, bias: np.ndarray, x: np.ndarray, label: int, norm: float,
             clip: tuple[float, float]) -> float:
    """min over other classes of the distance to their half-space, inside the clip range."""
    return min(reach(weight[j] - weight[label], bias[j] - bias[label], x, norm, clip)
               for j in range(len(weight)) if j != label)


def reach(w: np.ndarray, b: float, x: np.ndarray, norm: float, clip: tuple[float, float]) -> float:
    """The least r such that w z + b >= 0 for some z in the range with ||z - x||_norm <= r."""
    need = -(w @ x + b)
    if need <= 0:
        return 0.0
    room = np.where(w > 0, clip[1] - x, x - clip[0])  # how far each feature can go in the useful direction
    gain = np.abs(w)
    if norm in (0.0, 1.0):
        order = np.argsort(-gain if norm == 1.0 else -gain * room)
        used = 0.0
        for i in order:
            most = gain[i] * room[i] if gain[i] > 0 else 0.0
            if most >= need:
                return used + (need / gain[i] if norm == 1.0 else 1.0)
            need, used = need - most, used + (room[i] if norm == 1.0 else 1.0)
        return math.inf

    def reached(t: float) -> float:  # along the path of optimal moves: uniform in l_inf, along w in l_2
        return float(gain @ np.minimum(t if norm == math.inf else t * gain, room))

    if math.isfinite(room.max()) and gain @ room < need:
        return math.inf
    low, high = 0.0, 1.0
    while reached(high) < need:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if reached(middle) < need else (low, middle)
    if norm == math.inf:
        return high
    return float(np.linalg.norm(np.minimum(high * gain, room)))
