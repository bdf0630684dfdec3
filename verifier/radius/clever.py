"""CLEVER: an estimate of the safe radius from sampled gradients (Weng et al., arXiv:1801.10578).

Inside a ball of radius R the margin of class j cannot fall faster than its local Lipschitz constant L_j, the supremum
of its gradient's dual norm, so that the input is safe up to `min(margin_j / L_j, R)`. L_j is estimated: the largest
norm of each of many batches of uniform points is taken, a reverse Weibull is fitted to these maxima, and its location
is the estimate (`verifier.radius.weibull`). The score is therefore no bound: where the gradient is large on a set so
small that no sample meets it, the score lies above the safe radius (Goodfellow, arXiv:1804.07870). Its evidence is
`ESTIMATE`.

Left out: the second-order variant, and the transfer of networks that are not differentiable.

Axis legend: N inputs, K other classes, S points of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.graph import Graph
from verifier.deadline import Deadline
from verifier.logits import ranking_of
from verifier.problem import choose_dtype
from verifier.radius.balls import Balls
from verifier.radius.lower import compared_classes
from verifier.radius.weibull import fit
from verifier.verdict import Evidence

ENTRIES = 1 << 24   # of all nodes of the points that run together; their gradients are as many
DOUBTFUL = 0.05     # a p-value below it: the maxima do not look like a reverse Weibull's
CLOSE = 2.0         # a class whose score is so many times the least one does not decide it
FEWEST = 8          # batches from which a distribution is fitted

Progress = Callable[[int, int], None]  # (inputs done, of)


@dataclass(frozen=True, eq=False)
class CleverScores:
    """score "N" estimates r_max, and never exceeds the radius of its ball; between low and high "N" it lies when the
    batches are drawn anew, in `confidence` of the cases. Of every other class "N K": its score, the estimated Lipschitz
    constant, the largest norm seen (a lower bound of it), the p-value of the fit; doubtful bool "N K": the fit is bad
    or there is none (then the largest norm seen stands for it), so that the score is rather too large. complete bool
    "N"."""

    score: Tensor
    low: Tensor
    high: Tensor
    by_class: Tensor
    lipschitz: Tensor
    largest: Tensor
    p_value: Tensor
    doubtful: Tensor
    complete: Tensor
    evidence: Evidence = Evidence.ESTIMATE

    @property
    def warning(self) -> Tensor:
        """bool "N": whether the class that decides the score, or one that might, has a doubtful fit."""
        return (self.doubtful & (self.by_class <= self.high.unsqueeze(1))).any(1)


@dataclass(frozen=True, kw_only=True)
class Clever:
    """batches of `samples` points each (the paper takes 500 of 1024). confidence: of the interval of a score, found by
    drawing the batches' maxima `resamples` times with replacement."""

    batches: int = 100
    samples: int = 256
    confidence: float = 0.95
    resamples: int = 100

    def __post_init__(self) -> None:
        if self.batches < FEWEST or self.samples < 1 or self.resamples < 1:
            raise ValueError(f"expected at least {FEWEST} batches, 1 sample and 1 resample, got {self}")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence must be in (0, 1), got {self.confidence}")

    def scores(self, graph: Graph, balls: Balls, radius: Tensor | float, *, seed: int = 0, ids: Tensor | None = None,
               deadline: Deadline | None = None, progress: Progress | None = None,
               simplified: Graph | None = None) -> CleverScores:
        """Scores inside balls of `radius` (one number or "N", > 0). ids "N": the inputs' numbers (default 0, 1, ..),
        from which their random points come: an input has the same score alone and in a batch."""
        classes = compared_classes(graph, balls)
        stored = ranking_of(simplified if simplified is not None else graph.simplify())
        searched = stored.to(dtype=choose_dtype(stored, stored.device))
        deadline = deadline or Deadline()
        N, K = len(balls), 1 if balls.target is not None else classes - 1
        radii = torch.as_tensor(radius, dtype=torch.float64).expand(N)
        if not bool((torch.isfinite(radii) & (radii > 0)).all()):
            raise ValueError(f"expected a finite radius > 0, got {radius}")
        numbers = torch.arange(N) if ids is None else ids
        if numbers.shape != (N,):
            raise ValueError(f"expected one number an input, got {tuple(numbers.shape)} for {N}")
        parts = []
        for i in range(N):
            one = _One(self, searched, balls.take(torch.tensor([i])), float(radii[i]), deadline,
                       torch.Generator(searched.device).manual_seed((seed * 1_000_003 + int(numbers[i])) % (1 << 63)))
            parts.append(one.score(K))
            if progress is not None:
                progress(i + 1, N)
        nothing = [torch.zeros(0, dtype=torch.float64)] * 3 + [torch.zeros(0, K, dtype=torch.float64)] * 4 + [
            torch.zeros(0, K, dtype=torch.bool), torch.zeros(0, dtype=torch.bool)]
        return CleverScores(*(torch.stack(p) for p in zip(*parts, strict=True)) if parts else nothing)


@dataclass(frozen=True, eq=False)
class _One:
    """One input."""

    settings: Clever
    graph: Graph
    balls: Balls
    radius: float
    deadline: Deadline
    generator: torch.Generator

    def score(self, K: int) -> tuple[Tensor, ...]:
        """The fields of `CleverScores` for this input."""
        margin = self._margins(self.balls.x.to(self.graph.device, self.graph.dtype)).detach().double().cpu()[0]
        maxima = self._maxima()
        complete = torch.tensor(maxima is not None)
        if maxima is None:
            none = torch.full((K,), torch.nan, dtype=torch.float64)
            zero = torch.zeros((), dtype=torch.float64)
            return (zero, zero, torch.tensor(self.radius).double(), torch.zeros_like(none), none, none, none,
                    torch.ones(K, dtype=torch.bool), complete)
        found = fit(maxima.T.contiguous())
        scores = self._score(margin, found.location)
        score = scores.amin()
        close = scores <= CLOSE * score
        drawn = torch.randint(len(maxima), (self.settings.resamples, len(maxima)), generator=self.generator,
                              device=self.generator.device).cpu()
        again = fit(maxima[:, close][drawn].transpose(1, 2).flatten(0, 1), p_values=False).location
        spread = self._score(margin[close], again.view(len(drawn), -1)).amin(1)
        tail = (1 - self.settings.confidence) / 2
        low, high = torch.quantile(spread, tail), torch.quantile(spread, 1 - tail)
        doubtful = ~found.constant & ~(found.p_value >= DOUBTFUL)
        return (score, torch.minimum(low, score), torch.maximum(high, score), scores, found.location, maxima.amax(0),
                found.p_value, doubtful, complete)

    def _score(self, margin: Tensor, lipschitz: Tensor) -> Tensor:
        """min(margin / L, R), 0 where the input itself is unsafe."""
        return torch.where(margin > 0, (margin / lipschitz).clamp(max=self.radius), torch.zeros_like(lipschitz))

    def _margins(self, points: Tensor) -> Tensor:
        """"S K" of points "S *shape"."""
        y = self.graph(points).flatten(1)
        C = self.balls.rows(y.shape[1], y.dtype).C.to(y)
        return y @ C.T

    def _maxima(self) -> Tensor | None:
        """"batches K" float64: the largest gradient norm of each batch; None where time ran out."""
        radius = torch.tensor([self.radius], dtype=torch.float64, device=self.balls.x.device)
        sets = self.balls.sets(radius).to(dtype=self.graph.dtype, device=self.graph.device)
        width = sum(math.prod(node.shape) for node in self.graph.nodes)
        found = []
        for _ in range(self.settings.batches):
            if self.deadline.passed():
                return None
            points = sets.sample(self.settings.samples, self.generator)[0]
            norms = [self._norms(some) for some in points.split(max(1, ENTRIES // width))]
            found.append(torch.cat(norms).amax(0))
        return torch.stack(found).double().cpu()

    @torch.enable_grad()
    def _norms(self, points: Tensor) -> Tensor:
        """"S K": the dual norms of the margins' gradients at points "S *shape", over free features."""
        x = points.detach().requires_grad_(True)
        margins = self._margins(x)
        q = {math.inf: 1.0, 1.0: math.inf, 2.0: 2.0}[self.balls.norm]
        free = self.balls.free.to(x.device)
        norms = []
        for k in range(margins.shape[1]):
            gradient = _gradient(margins[:, k].sum(), x, keep=k + 1 < margins.shape[1])
            norms.append(torch.linalg.vector_norm((gradient * free).flatten(1), ord=q, dim=1))
        return torch.stack(norms, 1)


def _gradient(value: Tensor, x: Tensor, *, keep: bool) -> Tensor:
    """d value / d x, zero where it does not depend on x."""
    if not value.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(value, x, retain_graph=keep, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient
