"""Randomised smoothing (Cohen, Rosenfeld and Kolter, arXiv:1902.02918): what a classifier says under Gaussian noise.

The smoothed classifier g answers with the class that f gives most often to `x + sigma N(0, I)`. Where the share of that
class is at least p > 1/2, g keeps it for every x' with `|x' - x|_2 < sigma Phi^-1(p)`. The share is known by sampling
alone: of `samples` answers a Clopper-Pearson bound holds with confidence 1 - alpha, for each example by itself. So
every answer is an ESTIMATE: it speaks about g over the reals, which no file holds; true normal numbers are assumed (for
what floating point may do to them see arXiv:2207.07209), and one example in 1/alpha may be wrong.

Asked only whether radii exceed a `target`, sampling ends early. Bounds are taken at LOOKS sizes, each with its part of
alpha, so that all of them hold together and the best may be used; and what will hardly ever come to exceed the target
is given up, which claims nothing. Without a target it is the paper's procedure. Noise comes from a stream of each
example, so that answers do not depend on the batch.

Axis legend: B examples, K those still open, R noises of one round, m classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special, stats
from torch import Tensor

from verifier.attacks.draws import Draws
from verifier.verdict import Evidence

ABSTAINED = -1
ROUND = 500            # noises between two looks at the counts: the same however examples are batched
LOOKS = (0.01, 0.1, 1.0)  # of all samples: where a bound may end the sampling
HARDLY = 1e-6          # the chance that an example is given up which all samples would have certified
BATCH_ENTRIES = 1 << 23  # of noisy inputs evaluated at once


def lower_share(count: NDArray[np.int64], samples: int, alpha: float) -> NDArray[np.float64]:
    """Clopper-Pearson: with probability 1 - alpha at most the true share, where `count` of `samples` hit."""
    count = np.asarray(count)
    return np.where(count > 0, stats.beta.ppf(alpha, np.maximum(count, 1), samples - count + 1), 0.0)


def radius_of(count: NDArray[np.int64], samples: int, alpha: float, sigma: float) -> NDArray[np.float64]:
    """`sigma Phi^-1(lower share)`, 0 where that share is not above one half."""
    share = lower_share(count, samples, alpha)
    return np.where(share > 0.5, sigma * special.ndtri(np.maximum(share, 0.5)), 0.0)


@dataclass(frozen=True, eq=False)
class SmoothedCertificate:
    """Of B examples. label: the class of g, ABSTAINED (-1) where none is shown. radius: g keeps the label nearer than
    this in l_2, 0 where abstained. used: noises evaluated. Each holds with probability `confidence`."""

    label: NDArray[np.int64]
    radius: NDArray[np.float64]
    used: NDArray[np.int64]
    confidence: float
    evidence: Evidence = Evidence.ESTIMATE


@dataclass(frozen=True, eq=False)
class Smoothed:
    """model: from inputs "N *shape" to logits "N m", in evaluation mode. sigma: of the noise, in input units."""

    model: Callable[[Tensor], Tensor]
    sigma: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.sigma < math.inf:
            raise ValueError(f"sigma must be > 0, got {self.sigma}")

    def predict(self, x: Tensor, *, samples: int = 1000, alpha: float = 0.001, ids: Tensor | None = None
                ) -> NDArray[np.int64]:
        """The classes "B" of g at x "B *shape", ABSTAINED where the two most frequent are too close: with probability
        1 - alpha no answer is another class than g's. ids "B": the examples' numbers, from which their noise comes."""
        _check(samples, alpha)
        noise = _Noise(self, x, ids)
        counts = noise.counts(torch.arange(len(x)), samples)
        most, second = np.sort(counts, axis=1)[:, :-3:-1].T
        # The two-sided test of a fair coin between the two.
        doubt = 2 * stats.binom.sf(most - 1, most + second, 0.5)
        return np.where(doubt <= alpha, counts.argmax(1), ABSTAINED)

    def certify(self, x: Tensor, *, samples: int = 10_000, guesses: int = 100, alpha: float = 0.001,
                target: float | None = None, ids: Tensor | None = None) -> SmoothedCertificate:
        """The class of g at x "B *shape" and a radius within which it stays. guesses: noises that only choose the class
        (n0 of the paper). target: stop sampling an example once it is known whether its radius exceeds this, and
        whether it abstains. None: take all samples."""
        _check(samples, alpha)
        if guesses < 1:
            raise ValueError(f"guesses must be >= 1, got {guesses}")
        noise = _Noise(self, x, ids)
        open_ = torch.arange(len(x))
        guess = noise.counts(open_, guesses).argmax(1)
        looks = {samples} if target is None else {math.ceil(share * samples) for share in LOOKS}
        part = alpha / len(looks)
        needed = {r: _least_count(r, samples, part, self.sigma) for r in (0.0, target or 0.0)}
        hits, radius = np.zeros(len(x), np.int64), np.zeros(len(x))
        spent, used = np.full(len(x), guesses, np.int64), 0
        for end in sorted({*range(ROUND, samples, ROUND), *looks}):
            k = open_.numpy()
            if not len(k):
                break
            hits[k] += noise.counts(open_, end - used)[np.arange(len(k)), guess[k]]
            spent[k], used = guesses + end, end
            if end in looks:
                radius[k] = np.maximum(radius[k], radius_of(hits[k], end, part, self.sigma))
            if target is not None:
                settled = np.logical_and.reduce([(radius[k] > r) | _hopeless(hits[k], used, samples, count)
                                                 for r, count in needed.items()])
                open_ = open_[torch.from_numpy(~settled)]
        return SmoothedCertificate(np.where(radius > 0, guess, ABSTAINED), radius, spent, 1 - alpha)


def _check(samples: int, alpha: float) -> None:
    if samples < 1 or not 0 < alpha < 1:
        raise ValueError(f"expected samples >= 1 and alpha in (0, 1), got {samples} and {alpha}")


def _least_count(radius: float, samples: int, alpha: float, sigma: float) -> int:
    """The least count whose radius exceeds this one; samples + 1 where none does."""
    counts = np.arange(samples + 1)
    return int(np.searchsorted(radius_of(counts, samples, alpha, sigma), radius, side="right"))


def _hopeless(hits: NDArray[np.int64], used: int, samples: int, needed: int) -> NDArray[np.bool_]:
    """Whether so many hits of `used` noises will hardly become `needed` of all samples."""
    most = np.where(hits < used, stats.beta.ppf(1 - HARDLY, hits + 1, np.maximum(used - hits, 1)), 1.0)
    return np.asarray(stats.binom.sf(needed - hits - 1, samples - used, most) < HARDLY)


class _Noise:
    """The noise around some inputs, drawn on and on, and what the model says there."""

    def __init__(self, smoothed: Smoothed, x: Tensor, ids: Tensor | None) -> None:
        self.smoothed, self.x = smoothed, x
        ids = torch.arange(len(x)) if ids is None else ids
        if ids.shape != x.shape[:1]:
            raise ValueError(f"expected a number for each of {len(x)} inputs, got {tuple(ids.shape)}")
        self.draws = Draws(smoothed.seed, ids.to(x.device))

    @torch.no_grad()
    def counts(self, chosen: Tensor, samples: int) -> NDArray[np.int64]:
        """How often each class came up under the next noises of some examples "K": "K m"."""
        entries = max(1, self.x[0].numel()) if len(self.x) else 1
        together = max(1, BATCH_ENTRIES // (samples * entries))
        found = []
        for part in chosen.to(self.x.device).split(together):
            count: Tensor | None = None
            done = 0
            while done < samples:  # a round of one large input alone may be too much
                now = min(samples - done, max(1, BATCH_ENTRIES // (len(part) * entries)))
                noise = self.draws.normal(part, (now, *self.x.shape[1:]), self.x.dtype)
                points = (self.x[part].unsqueeze(1) + self.smoothed.sigma * noise).flatten(0, 1)
                y = self.smoothed.model(points)
                classes = y.shape[1]
                top = y.argmax(1).view(len(part), now)
                # What is no number is no class: such answers count for none.
                wrong = ~torch.isfinite(y).all(1).view(len(part), now)
                top = torch.where(wrong, classes, top)
                more = torch.zeros(len(part), classes + 1, dtype=torch.long, device=y.device).scatter_add(
                    1, top, torch.ones_like(top))[:, :classes]
                count, done = more if count is None else count + more, done + now
            assert count is not None, "there are samples"
            found.append(count.cpu())
        return torch.cat(found).numpy() if found else np.zeros((0, 1), np.int64)
