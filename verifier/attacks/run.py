"""One attack under way on a batch of examples: only here points are projected, evaluated, counted and judged.

An attack proposes points through a `Run` and reads margins and gradients back. The run moves every point into its room
first, counts calls for each example, decides success, keeps the best point of each example, and closes examples that
need no more work: fallen ones (of a fixed budget), those whose queries are used up, those stationary enough.

Axis legend: B examples, P points, `owner` "P" says which example a point belongs to.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from verifier.attacks.boundary import step_off
from verifier.attacks.criterion import Criterion
from verifier.attacks.draws import Draws
from verifier.attacks.fosc import stationarity_gap
from verifier.attacks.losses import Loss, loss_named
from verifier.attacks.model import Gives, Model, ModelError
from verifier.attacks.threat import Room
from verifier.deadline import Deadline

BATCH_ENTRIES = 1 << 23     # activations of one batch, all layers (32 MiB of float32)
BOUNDARY_STEPS = 12         # evaluations of the search back to the boundary
NEARLY = 1e-4               # of a distance: more than float32 loses in it
FIRST_SHARE, SHARE_GROWTH = 1 / 64, 8.0  # of the distance that its first step gives up, and how much more the next


@dataclass(frozen=True, eq=False)
class Scores:
    """x: the points as projected "P *shape"; y "P m" (NaN: not evaluated), margin "P" (inf there), met bool "P"."""

    x: Tensor
    y: Tensor
    margin: Tensor
    met: Tensor


@dataclass(frozen=True, eq=False)
class Slopes(Scores):
    """With the loss "P" and its gradient "P *shape" (zero where not finite)."""

    value: Tensor
    slope: Tensor


@dataclass
class Run:
    """See the module. `minimum_norm`: keep the nearest success and never stop at one; else the least margin."""

    model: Model
    room: Room
    criterion: Criterion
    draws: Draws
    minimum_norm: bool = False
    queries: int | None = None          # forward calls an example may cost
    deadline: Deadline = field(default_factory=Deadline.starting_now)
    early_stop: bool = True             # close an example of a fixed budget when it falls
    fosc_stop: float | None = None      # close an example when its gradient's stationarity gap is at most this
    tick: Callable[[Run], None] | None = None
    anywhere: Room = None  # type: ignore[assignment]  # the same without its ball; `room` where not given
    pool: Tensor | None = None          # inputs "N *shape" among which decision-based attacks may look for a start

    def __post_init__(self) -> None:
        x0 = self.room.x0
        count, where = x0.shape[0], x0.device
        self.x = x0.clone()             # the best point of each example
        self.last = x0.clone()          # the latest point evaluated
        self._last_is_theirs = False    # whether `last` is a tensor that the attack holds too
        self.key = torch.full((count,), math.inf, dtype=torch.float64, device=where)  # distance or margin of `x`
        self.margin = torch.full((count,), math.inf, dtype=x0.dtype, device=where)    # of `x`
        self.success = torch.zeros(count, dtype=torch.bool, device=where)
        self.closed = torch.zeros(count, dtype=torch.bool, device=where)
        self.not_finite = torch.zeros(count, dtype=torch.bool, device=where)
        self.forward_calls = torch.zeros(count, dtype=torch.long, device=where)
        self.backward_calls = torch.zeros(count, dtype=torch.long, device=where)
        self.zero_slopes = torch.zeros(count, dtype=torch.long, device=where)
        self.fosc = torch.full((count,), math.nan, dtype=x0.dtype, device=where)
        self.fell_in = torch.full((count,), -1, dtype=torch.long, device=where)  # stage of an ensemble
        self.notes: list[str] = []
        self.anywhere = self.anywhere or self.room
        self.y0 = x0.new_zeros(count, 0)  # outputs at the originals

    # ------------------------------------------------------------------ facts

    @property
    def batch(self) -> int:
        return self.x.shape[0]

    @property
    def x0(self) -> Tensor:
        return self.room.x0

    def open_examples(self) -> Tensor:
        """The examples to go on with: LongTensor; empty when the time is up."""
        if self.tick is not None:
            self.tick(self)
        if self.deadline.passed():
            return self.closed.new_zeros(0, dtype=torch.long)
        return (~self.closed).nonzero().flatten()

    @property
    def outputs(self) -> int:
        """How many outputs the model has."""
        return self.y0.shape[1]

    def loss(self, name: str) -> Loss:
        """A loss of `verifier.attacks.losses` for this criterion; what stands in for an undefined one is noted."""
        loss, instead = loss_named(name, self.criterion, self.outputs)
        if instead:
            self.note(instead)
        return loss

    def points_at_once(self) -> int:
        return max(1, BATCH_ENTRIES // max(1, self.model.entries))

    def queries_left(self, owner: Tensor) -> Tensor:
        """How many forward calls are left: long "P", at most 2^62."""
        if self.queries is None:
            return torch.full_like(owner, 1 << 62)
        return (self.queries - self.forward_calls[owner]).clamp(min=0)

    def note(self, sentence: str) -> None:
        """Something the user should know, said once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    # ------------------------------------------------------------------ evaluation

    def begin(self, starts: Tensor | None = None) -> None:
        """Evaluate the originals: those that succeed as they are need no attack; without a radius there is none. Then
        `starts` "B *shape", where there are."""
        everything = torch.arange(self.batch, device=self.x.device)
        scores = self.evaluate(self.x0, everything)
        self.y0 = scores.y
        self.closed |= scores.met & (self.minimum_norm or self.early_stop)
        if self.room.eps == 0 or not bool(self.room.free.any()):
            self.closed[:] = True
        elif self.minimum_norm and self.model.gives is Gives.GRADIENTS:
            step_off(self, scores)
        if starts is not None and (i := self.open_examples()).numel():
            self.evaluate(starts[i], i)

    def evaluate(self, x: Tensor, owner: Tensor) -> Scores:
        """Move points "P *shape" into their rooms and evaluate them; `owner` "P" may repeat an example."""
        x = self.room.project(x.detach(), owner)
        allowed = self._allowed(owner)
        if allowed is not None and not bool(allowed.all()):
            at = allowed.nonzero().flatten()
            return self._filled(x, at, self.evaluate(x[at], owner[at]) if at.numel() else None)
        size = self.points_at_once()
        with torch.no_grad():
            y = self._outputs(x) if x.shape[0] <= size else torch.cat([self._outputs(p) for p in x.split(size)])
            self._count_evaluations(owner)
            return self._judged(x, y, owner)

    def gradient(self, x: Tensor, owner: Tensor, loss: Loss) -> Slopes:
        """As `evaluate`, with the gradient of a loss, whose values belong to one point each."""
        x = self.room.project(x.detach(), owner)
        allowed = self._allowed(owner)
        if allowed is not None and not bool(allowed.all()):
            at = allowed.nonzero().flatten()
            done = self.gradient(x[at], owner[at], loss) if at.numel() else None
            rest = self._filled(x, at, done)
            value, slope = x.new_full((x.shape[0],), -math.inf), torch.zeros_like(x)
            if done is not None:
                value[at], slope[at] = done.value, done.slope
            return Slopes(rest.x, rest.y, rest.margin, rest.met, value, slope)
        parts = []
        for i in range(0, max(1, x.shape[0]), self.points_at_once()):
            part = slice(i, i + self.points_at_once())
            parts.append(self._differentiate(x[part], owner[part], loss))
        y, value, slope = parts[0] if len(parts) == 1 else (torch.cat(t) for t in zip(*parts, strict=True))
        self._count_evaluations(owner)
        self._count(self.backward_calls, owner)
        with torch.no_grad():
            scores = self._judged(x, y, owner)
            size = torch.linalg.vector_norm(slope.flatten(1), ord=1, dim=1)  # one pass shows what is zero or not finite
            if not bool(torch.isfinite(size).all()) and not bool(torch.isfinite(slope).all()):
                self.note("some gradients are not finite; they count as zero")
                slope = torch.nan_to_num(slope, nan=0.0, posinf=0.0, neginf=0.0)
                size = torch.linalg.vector_norm(slope.flatten(1), ord=1, dim=1)
            self._count(self.zero_slopes, owner[size == 0])
            if self.fosc_stop is not None:
                self._stop_stationary(x, owner, slope, self.fosc_stop)
        return Slopes(scores.x, scores.y, scores.margin, scores.met, value, slope)

    def jacobian(self, x: Tensor, owner: Tensor, rows: Tensor) -> tuple[Scores, Tensor]:
        """(scores, gradients of linear functions of the outputs): rows "P R m" -> "P R *shape". R backward calls."""
        x = self.room.project(x.detach(), owner)
        allowed = self._allowed(owner)
        if allowed is not None and not bool(allowed.all()):
            at = allowed.nonzero().flatten()
            part = self.jacobian(x[at], owner[at], rows[at]) if at.numel() else None
            slopes_of_all = x.new_zeros(*rows.shape[:2], *x.shape[1:])
            if part is not None:
                slopes_of_all[at] = part[1]
            return self._filled(x, at, None if part is None else part[0]), slopes_of_all
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            y = self._outputs(leaf)
            slopes = [torch.autograd.grad(y, leaf, rows[:, r], retain_graph=r + 1 < rows.shape[1])[0]
                      for r in range(rows.shape[1])]
        self._count_evaluations(owner)
        self._count(self.backward_calls, owner, rows.shape[1])
        with torch.no_grad():
            scores = self._judged(x, y.detach(), owner)
        return scores, torch.nan_to_num(torch.stack(slopes, 1), nan=0.0, posinf=0.0, neginf=0.0)

    def _differentiate(self, x: Tensor, owner: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            y = self._outputs(leaf)
            value = loss(y, leaf, owner)
            if value.requires_grad:
                (slope,) = torch.autograd.grad(value.sum(), leaf)
            else:
                slope = torch.zeros_like(leaf)
        return y.detach(), value.detach(), slope

    def _outputs(self, x: Tensor) -> Tensor:
        y = self.model(x)
        if y.dim() != 2 or y.shape[0] != x.shape[0]:
            raise ModelError(f"the model returned shape {tuple(y.shape)} for {x.shape[0]} inputs; expected "
                             f"({x.shape[0]}, outputs)")
        if not self.y0.shape[1]:
            self.criterion.check_outputs(y.shape[1])
        elif self.y0.shape[1] != y.shape[1]:
            raise ModelError(f"the model returned {self.y0.shape[1]} outputs first and {y.shape[1]} later")
        return y

    def _allowed(self, owner: Tensor) -> Tensor | None:
        """bool "P": points that queries are left for, the first ones of each example; None: no limit."""
        if self.queries is None:
            return None
        order = owner.argsort(stable=True)
        ranked = owner[order]
        first = torch.searchsorted(ranked, ranked)
        rank = torch.empty_like(owner)
        rank[order] = torch.arange(owner.numel(), device=owner.device) - first
        return rank < self.queries - self.forward_calls[owner]

    def _filled(self, x: Tensor, at: Tensor, done: Scores | None) -> Scores:
        """Scores of all points "P", where only those at `at` were evaluated."""
        outputs = max(1, self.y0.shape[1])
        y, margin = x.new_full((x.shape[0], outputs), math.nan), x.new_full((x.shape[0],), math.inf)
        met = torch.zeros(x.shape[0], dtype=torch.bool, device=x.device)
        if done is not None:
            y[at], margin[at], met[at] = done.y, done.margin, done.met
        return Scores(x, y, margin, met)

    def _count_evaluations(self, owner: Tensor) -> None:
        """Count one each, and close examples that have used up theirs."""
        self._count(self.forward_calls, owner)
        if self.queries is not None:
            self.closed |= self.forward_calls >= self.queries

    def _count(self, calls: Tensor, owner: Tensor, times: int = 1) -> None:
        calls.index_add_(0, owner, torch.full_like(owner, times))

    # ------------------------------------------------------------------ judgement

    def _judged(self, x: Tensor, y: Tensor, owner: Tensor) -> Scores:
        margin = self.criterion.margin(y, x, owner)
        met = self.criterion.met(y, x, owner, margin)
        finite = torch.isfinite(y).all(1)
        if not bool(finite.all()):
            self.not_finite[owner[~finite]] = True
            margin = torch.where(finite, margin, torch.full_like(margin, math.inf))
            met = met & finite
        self._record(x, owner, margin, met)
        return Scores(x, y, margin, met)

    def _record(self, x: Tensor, owner: Tensor, margin: Tensor, met: Tensor) -> None:
        if self.room.of(self.last, owner) is self.last:
            self.last, self._last_is_theirs = x, True
        else:
            if self._last_is_theirs:  # the attack goes on with that tensor
                self.last, self._last_is_theirs = self.last.clone(), False
            self.last[owner] = x
        if self.minimum_norm:
            # What the dtype at hand shows to be no nearer needs no exact distance.
            rough = self.room.norm_of(x, owner)
            far = (met & (rough <= self.key[owner] * (1 + NEARLY))).nonzero().flatten()
            self.success[owner[met]] = True
            if not far.numel():
                return
            x, owner, margin, met = x[far], owner[far], margin[far], met[far]
            key = self.room.distance(x, owner)
        else:
            # Among successes and among failures the least margin counts; any success goes before any failure.
            key = torch.where(met, margin.double().clamp(max=0) - 1, margin.double().clamp(min=0))
        best = self.key.scatter_reduce(0, owner, key, "amin")
        ahead = ((key < self.key[owner]) & (key == best[owner])).nonzero().flatten()
        if ahead.numel():
            at = owner[ahead]
            self.x[at], self.margin[at] = x[ahead], margin[ahead].to(self.margin)
            self.key = best
        self.success[owner[met]] = True
        if self.early_stop and not self.minimum_norm:
            self.closed |= self.success

    def adopt(self, i: Tensor, x: Tensor, margin: Tensor) -> None:
        """Take over successes of examples `i` that another run over the same examples judged; x lies in their rooms."""
        self.x[i], self.margin[i] = x, margin
        self.key[i] = margin.double().clamp(max=0) - 1
        self.success[i] = True
        if self.early_stop:
            self.closed[i] = True

    def _stop_stationary(self, x: Tensor, owner: Tensor, slope: Tensor, least: float) -> None:
        gap = stationarity_gap(slope, x, self.room, owner)
        self.fosc[owner] = gap
        self.closed[owner[gap <= least]] = True

    # ------------------------------------------------------------------ the end

    def finish(self) -> None:
        """Bring the nearest successes of a minimum norm back to the boundary."""
        if not self.minimum_norm:
            return
        i = (self.success & (self.key > 0)).nonzero().flatten()
        low, share = torch.zeros_like(self.key[i]), torch.full_like(self.key[i], FIRST_SHARE)
        for _ in range(BOUNDARY_STEPS):
            if not i.numel() or self.deadline.passed():
                return
            # The nearest point of a smaller ball to the best point so far: first a little smaller, then much.
            radius = torch.where(low > 0, (low + self.key[i]) / 2, self.key[i] * (1 - share))
            scores = self.evaluate(self.room.within(self.x[i], i, radius), i)
            low, share = torch.where(scores.met, low, radius), (share * SHARE_GROWTH).clamp(max=1)
            least = 1.0 if self.room.norm == 0.0 else 0.0
            more = (low + least < self.key[i]) & (self.queries_left(i) > 0)
            i, low, share = i[more], low[more], share[more]
