"""How far attacks converge over a data set: FOSC and loss where PGD stands after each step, and what studies store of
them as plain numbers.

FOSC (Wang et al., ICML 2019, arXiv:2112.08304) is the stationarity gap of `verifier.attacks.fosc`: zero at constrained
local maxima of the loss, in units of the loss, and taken over ball and range of inputs together. Points are those of
training: `certify.inner` moves them, batch normalisation has its running statistics.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from benchmarks.studies.study import Settings, required
from certify.classifier import Classifier
from certify.data.dataset import Examples
from certify.inner import cross_entropy_of, input_gradient, moved
from certify.measure import Threatened, step_for
from certify.terms import Step
from verifier.attacks.fosc import stationarity_gap
from verifier.attacks.steps import random_start

AT_ONCE = 500  # examples
LEVELS = tuple(k / 40 for k in range(41))  # of the quantiles that are stored
GRID_POINTS = 61
GRID_END = 0.97  # the quantile of all samples together at which a grid ends: one outlier must not flatten the rest
DIGITS = 5  # significant ones, of stored numbers


@dataclass(frozen=True, eq=False)
class Reached:
    """Where an attack stands on N examples, after its last step ("N") or after each ("K+1 N", the start first).

    fosc; loss: the cross-entropy; slope: the l_1 norm of its gradient by the input; correct: bool. On the CPU, float64.
    """

    fosc: Tensor
    loss: Tensor
    slope: Tensor
    correct: Tensor

    def after(self, step: int) -> Reached:
        """Of all steps one: 0 is the start, -1 the end."""
        return Reached(self.fosc[step], self.loss[step], self.slope[step], self.correct[step])

    @property
    def accuracy(self) -> float:
        """The share of examples that keep their label at these points."""
        return float(self.correct.double().mean())


def trajectory(model: Classifier, examples: Examples, *, eps: float, clip: tuple[float, float] | None, steps: int,
               step_size: float, seed: int, random: bool = True) -> Reached:
    """PGD on the cross-entropy in l_inf, watched: "K+1 N". step_size: as a share of eps. random: start anywhere in the
    set, else at the input, from which one step of size 1 is FGSM. An example's start depends on the seed and on its
    place among the examples alone."""
    device = next(model.module.parameters()).device
    parts = []
    for first in range(0, len(examples), AT_ONCE):
        part = examples.take(slice(first, first + AT_ONCE))
        step = step_for(model, part.x.to(device), part.y.to(device), first, Threatened(eps, math.inf, clip))
        parts.append(_climb(replace(step, seed=seed), steps, step_size, random))
    return Reached(*(torch.cat([getattr(part, f.name) for part in parts], 1) for f in fields(Reached)))


def distribution(model: Classifier, examples: Examples, *, eps: float, clip: tuple[float, float] | None, steps: int,
                 step_size: float, seed: int, random: bool = True) -> Reached:
    """The end of the same: "N"."""
    return trajectory(model, examples, eps=eps, clip=clip, steps=steps, step_size=step_size, seed=seed,
                      random=random).after(-1)


def _climb(step: Step, steps: int, step_size: float, random: bool) -> Reached:
    room, everyone, loss_of = step.room(), step.everyone, cross_entropy_of(step)
    rows: list[list[Tensor]] = []

    def watched(logits: Tensor, owner: Tensor) -> Tensor:
        rows.append([logits.detach().argmax(1) == step.y[owner]])
        return loss_of(logits, owner)

    x = random_start(room, step.draws, everyone) if random else step.x
    with step.model.attacked():
        for k in range(steps + 1):
            loss, slope = input_gradient(step, x, everyone, watched)
            rows[-1] += [stationarity_gap(slope, x, room, everyone), loss, slope.abs().flatten(1).sum(1)]
            if k < steps:
                x = moved(room, x, slope, step_size * room.eps, everyone)
    correct, fosc, loss, length = (torch.stack(column).cpu() for column in zip(*rows, strict=True))
    return Reached(fosc.double(), loss.double(), length.double(), correct)


# ---------------------------------------------------------------------- what is stored


def short(value: float) -> float:
    """With as many digits as a record needs."""
    return float(f"{value:.{DIGITS}g}")


def grid(samples: Iterable[Tensor]) -> list[float]:
    """One grid for densities that are to be compared: from zero to where all but the largest values have come."""
    end = float(torch.cat([sample.flatten() for sample in samples]).quantile(GRID_END))
    return [short(float(v)) for v in np.linspace(0.0, end if end > 0 else 1.0, GRID_POINTS)]


def density(values: Tensor, places: Sequence[float]) -> list[float]:
    """A Gaussian kernel estimate for values >= 0, per unit, at evenly spaced places. Kernels are mirrored at zero, so
    that nothing lies below; widths by Silverman's rule of thumb, and no narrower than the grid can show."""
    v, at = values.double().numpy(), np.asarray(places)
    low, high = np.quantile(v, [0.25, 0.75])
    scale = min(s for s in (float(v.std()), float(high - low) / 1.34, math.inf) if s > 0)
    width = 0.0 if math.isinf(scale) else 0.9 * scale * len(v) ** -0.2
    width = max(width, float(at[1] - at[0]))
    kernels = [np.exp(-0.5 * ((at[:, None] - sign * v[None]) / width) ** 2).sum(1) for sign in (1, -1)]
    return [short(float(d)) for d in (kernels[0] + kernels[1]) / (len(v) * width * math.sqrt(2 * math.pi))]


def summary(values: Tensor, places: Sequence[float]) -> dict[str, Any]:
    """A sample as plain numbers: quantiles at LEVELS, the density at the places of a grid."""
    levels = torch.tensor(LEVELS, dtype=torch.float64)
    return {"count": values.numel(), "mean": short(float(values.mean())),
            "quantiles": [short(float(q)) for q in values.double().quantile(levels)],
            "density": density(values, places)}


def median(stored: dict[str, Any]) -> float:
    """Of a sample that `summary` stored."""
    return float(stored["quantiles"][LEVELS.index(0.5)])


def distances(samples: Sequence[Tensor]) -> list[float]:
    """Of each pair of samples the largest difference of their cumulative distributions (Kolmogorov and Smirnov): in
    [0, 1]."""
    return [float(stats.ks_2samp(a.numpy(), b.numpy()).statistic) for a, b in combinations(samples, 2)]


# ---------------------------------------------------------------------- settings


def required_epochs(settings: Settings, name: str) -> None:
    """Early, middle and late epochs of a training."""
    looks = settings[name]
    rising = len(looks) == 3 and sorted(set(looks)) == list(looks)
    required(rising and looks[0] >= 1 and looks[-1] <= settings["epochs"], settings, name,
             f"three epochs that rise, of 1 to {settings['epochs']}")
