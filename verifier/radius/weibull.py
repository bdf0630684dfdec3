"""The largest value that maxima point to: a reverse Weibull fitted by maximum likelihood, many samples at once.

By the extreme value theorem the maxima of batches of a bounded quantity follow, as batches grow, a reverse Weibull
distribution, `P(v <= x) = exp(-((location - x) / scale)^shape)` below its location, which is the quantity's supremum
(Weng et al., arXiv:1801.10578). For a given location the maximum over the scale is closed and that over the shape the
root of a monotone function; what is left, one dimension, is searched on a grid which is then refined. The likelihood
may have no maximum: it may grow for ever as the location goes to infinity (light tails) or to the largest value seen
(shapes below 1, which are left out); then there is no estimate, and `converged` says so.

Axis legend: G samples, n maxima each, L locations tried.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NEAREST, FURTHEST = 1e-4, 1e4  # of the location beyond the largest value, in spreads of the sample
GRID, REFINED = 16, 4          # locations tried, and how often anew around the best
BLOCK_ENTRIES = 1 << 18        # of samples, locations and maxima: stays in the cache
SHAPES = (1.0, 1e5)            # a shape below 1 has no likelihood
BISECTIONS = 25                # of the logarithm of the shape
CONSTANT_RTOL = 1e-9           # values that are all this near to each other are one


@dataclass(frozen=True, eq=False)
class ReverseWeibull:
    """location, scale, shape, p_value "G" float64; constant bool "G": all values are one, which is the location;
    converged bool "G": a maximum of the likelihood was found (else the location is the largest value)."""

    location: Tensor
    scale: Tensor
    shape: Tensor
    p_value: Tensor
    constant: Tensor
    converged: Tensor


def fit(values: Tensor, *, p_values: bool = True) -> ReverseWeibull:
    """The distribution of each row of maxima "G n" (float64), with the p-value of a Kolmogorov-Smirnov test (NaN where
    none is asked for; it is too large, since the distribution was fitted to the same values)."""
    if values.dim() != 2 or values.shape[1] < 2:
        raise ValueError(f"expected samples of at least two maxima each, got shape {tuple(values.shape)}")
    top = values.amax(1)
    spread = values.std(1)
    constant = top - values.amin(1) <= CONSTANT_RTOL * top.abs()
    unit = torch.where(constant, torch.ones_like(spread), spread).unsqueeze(1)
    below = (top.unsqueeze(1) - values) / unit
    edges = below.new_tensor([NEAREST, FURTHEST]).log()
    blocks = below.split(max(1, BLOCK_ENTRIES // (GRID * below.shape[1])))
    beyond, shape, scale = (torch.cat(parts) for parts in zip(*(_best(block, edges) for block in blocks), strict=True))
    at = beyond.log()
    ends = (at - edges[0] < 1e-3) | (edges[1] - at < 1e-3)
    converged = ~ends & ~constant & torch.isfinite(shape * scale)
    location = torch.where(converged, top + beyond * unit.squeeze(1), top)
    scale = scale * unit.squeeze(1)
    p_value = torch.full_like(top, torch.nan)
    if p_values:
        p_value = torch.where(converged, _goodness(values, location, scale, shape), 0.0)
        p_value = torch.where(constant, 1.0, p_value)
    return ReverseWeibull(location, scale, shape, p_value, constant, converged)


def _best(below: Tensor, edges: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(how far beyond the largest value the best location lies, its shape, its scale) "G"; below "G n"."""
    low, high = (edge.expand(len(below)) for edge in edges)
    for _ in range(1 + REFINED):
        share = torch.linspace(0, 1, GRID, dtype=below.dtype, device=below.device)
        beyond = (low.unsqueeze(1) + (high - low).unsqueeze(1) * share).exp()
        likelihood, shape, scale = _profile(below, beyond)
        best = likelihood.argmax(1, keepdim=True)
        at, step = beyond.gather(1, best).squeeze(1).log(), (high - low) / (GRID - 1)
        low, high = torch.maximum(at - step, edges[0]), torch.minimum(at + step, edges[1])
    found = (t.gather(1, best).squeeze(1) for t in (beyond, shape, scale))
    return next(found), next(found), next(found)


def _profile(below: Tensor, beyond: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(mean log-likelihood, shape, scale) "G L" at their best for locations `beyond` "G L" the largest value; below
    "G n": how far the values lie below it."""
    w = beyond.unsqueeze(2) + below.unsqueeze(1)
    logs = w.log()
    mean = logs.mean(2)
    centred = logs - mean.unsqueeze(2)
    low = torch.full_like(mean, SHAPES[0]).log()
    high = torch.full_like(mean, SHAPES[1]).log()
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        weight = torch.softmax(middle.exp().unsqueeze(2) * centred, 2)
        small = (weight * centred).sum(2) < 1 / middle.exp()  # the left side grows with the shape, the right falls
        low, high = torch.where(small, middle, low), torch.where(small, high, middle)
    shape = ((low + high) / 2).exp()
    n = below.shape[1]
    log_scale = mean + (torch.logsumexp(shape.unsqueeze(2) * centred, 2) - torch.tensor(float(n)).log()) / shape
    likelihood = shape.log() - shape * log_scale + (shape - 1) * mean - 1
    return likelihood, shape, log_scale.exp()


def _goodness(values: Tensor, location: Tensor, scale: Tensor, shape: Tensor) -> Tensor:
    """"G": how likely a sample is to lie as far from its distribution (two-sided Kolmogorov-Smirnov test)."""
    from scipy.stats import kstwo

    n = values.shape[1]
    away = (location.unsqueeze(1) - values.sort(1).values).clamp(min=0) / scale.unsqueeze(1)
    expected = torch.exp(-away ** shape.unsqueeze(1))
    seen = torch.arange(n + 1, dtype=values.dtype, device=values.device) / n
    distance = torch.maximum((seen[1:] - expected).amax(1), (expected - seen[:-1]).amax(1))
    return torch.from_numpy(kstwo.sf(distance.cpu().numpy(), n)).to(values)
