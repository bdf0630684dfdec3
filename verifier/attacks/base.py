"""The base of all attacks over a data set: `Attack.run` prepares, `propose` proposes, and the run decides.

An attack is a frozen object whose fields are its settings. `propose` gets a `Run` (see there) and looks for points
through it; what it returns does not exist: successes, distances and calls are what the run saw. Settings that every
attack shares (seed, limits, batch) belong to `run`.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from verifier.attacks.criterion import Criterion, Misclassified
from verifier.attacks.draws import Draws
from verifier.attacks.fosc import stationarity_gap
from verifier.attacks.losses import loss_named
from verifier.attacks.model import Gives, as_model
from verifier.attacks.run import BATCH_ENTRIES, Run
from verifier.attacks.threat import Room, Threat
from verifier.deadline import Deadline

MOST_EXAMPLES = 1024  # of a batch: larger ones leave the cache and gain nothing

Progress = Callable[[int, int, int], None]  # (examples done, of, fallen so far)


@dataclass(frozen=True, eq=False)
class AttackResult:
    """What an attack reached on N examples.

    x "N *shape": the nearest (minimum norm) or worst (fixed budget) point found, the original where there is none;
    last: the latest point evaluated. success: whether x meets the criterion inside the threat, as re-evaluated;
    distance: of a point that meets it, in the threat's norm (float64, rounded up; else inf). margin: of x.
    fosc: the stationarity gap of the cross-entropy at x (NaN where not asked for or undefined). not_finite: whether
    outputs were NaN or infinite on the way; complete: false where time ran out first.
    fell_in: the stage of an ensemble that succeeded (its `stage_names`), else -1.
    """

    x: Tensor
    last: Tensor
    success: Tensor
    distance: Tensor
    margin: Tensor
    forward_calls: Tensor
    backward_calls: Tensor
    zero_slopes: Tensor
    fosc: Tensor
    not_finite: Tensor
    complete: Tensor
    fell_in: Tensor
    time_s: float
    notes: tuple[str, ...] = ()

    @classmethod
    def joined(cls, parts: list[AttackResult]) -> AttackResult:
        tensors = {name: torch.cat([getattr(p, name) for p in parts]) for name in TENSORS}
        notes = dict.fromkeys(n for p in parts for n in p.notes)
        return cls(**tensors, time_s=sum(p.time_s for p in parts), notes=tuple(notes))


TENSORS = ("x", "last", "success", "distance", "margin", "forward_calls", "backward_calls", "zero_slopes", "fosc",
           "not_finite", "complete", "fell_in")


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """A strategy with its settings.

    norms: those it works in. minimum_norm: it looks for the nearest success (a finite eps then only says which count),
    else for any inside eps; not additive: what limits it are its own settings, as an angle, and eps says which count.
    together: one batch holds all examples, which share what it finds. walks_on: it goes on from a success that
    `run` is given. needs: what it must know of the model. Its paper
    stands in `verifier.attacks.registry`.
    """

    name: ClassVar[str]
    norms: ClassVar[tuple[float, ...]]
    minimum_norm: ClassVar[bool] = False
    additive: ClassVar[bool] = True
    together: ClassVar[bool] = False
    walks_on: ClassVar[bool] = False
    needs: ClassVar[Gives] = Gives.GRADIENTS
    points: ClassVar[int] = 1  # that it evaluates at once for each example, roughly

    @property
    def stage_names(self) -> tuple[str, ...]:
        """What an ensemble consists of."""
        return ()

    @abstractmethod
    def propose(self, run: Run) -> None:
        """Look for successes of the run's open examples until there are none or the strategy has nothing left."""

    def run(self, model: Any, x: Tensor, criterion: Criterion, threat: Threat, *, seed: int = 0,
            queries: int | None = None, deadline: Deadline | None = None, ids: Tensor | None = None,
            batch: int | None = None, early_stop: bool = True, fosc: bool = False, fosc_stop: float | None = None,
            pool: Tensor | None = None, starts: Tensor | None = None, progress: Progress | None = None
            ) -> AttackResult:
        """Attack originals x "N *shape".

        model: see `as_model`. ids "N": the examples' numbers, from which their random numbers come (default 0, 1, ..).
        queries: forward calls an example may cost, the boundary search included. early_stop=False: go on with examples
        that have fallen. fosc: report the stationarity gap (one gradient more an example, not counted); fosc_stop:
        close an example once its gap is at most this. pool "M *shape": where decision-based attacks may look for a
        start (x itself by default). starts "N *shape": where attacks begin that `walks_on` from a success; the others
        begin as always. Raises ValueError for settings that do not fit, ModelError where the model fails.
        """
        begin = time.monotonic()
        network = as_model(model, shape=tuple(x.shape[1:]), named=_classes_named(criterion))
        self._check(network.gives, network.shape, x, criterion, threat)
        if queries is not None and queries < 1:
            raise ValueError(f"queries must be >= 1, got {queries}")
        if fosc_stop is not None and network.gives < Gives.GRADIENTS:
            raise ValueError("fosc_stop needs gradients")
        if starts is not None and starts.shape != x.shape:
            raise ValueError(f"expected a start for every input, got {tuple(starts.shape)} for {tuple(x.shape)}")
        x = x.to(network.device or x.device, network.dtype or x.dtype)
        deadline = deadline or Deadline.starting_now()
        ids = torch.arange(x.shape[0]) if ids is None else ids
        size = batch or max(1, min(MOST_EXAMPLES, BATCH_ENTRIES // max(1, network.entries * self.points)))
        size = max(1, x.shape[0]) if self.together else size
        limited, anywhere = threat.around(x), Threat(threat.norm, math.inf, threat.clip, threat.mask).around(x)
        rooms = anywhere if self.minimum_norm or not self.additive else limited
        parts: list[AttackResult] = []
        fallen = 0
        for i in range(0, x.shape[0], size):
            chosen = torch.arange(i, min(x.shape[0], i + size), device=x.device)

            def tick(run: Run, done: int = i, before: int = fallen) -> None:
                if progress is not None:
                    progress(done, x.shape[0], before + int(run.success.sum()))

            run = Run(network, rooms.index(chosen), criterion.index(chosen),
                      Draws(seed, ids[chosen.cpu()].to(x.device)), self.minimum_norm, queries, deadline, early_stop,
                      fosc_stop, tick, anywhere.index(chosen), x if pool is None else pool.to(x))
            if not deadline.passed():
                known = starts if self.walks_on else None
                run.begin(None if known is None else known[chosen.to(known.device)].to(x))
                self._check_knowledge(network.gives, criterion)  # a function's first answer tells what it gives
                self.propose(run)
                run.finish()
            parts.append(self._result(run, threat.eps, limited.index(chosen) if fosc else None))
            fallen += int(parts[-1].success.sum())
            if progress is not None:
                progress(min(x.shape[0], i + size), x.shape[0], fallen)
        result = AttackResult.joined(parts) if parts else _nothing(x)
        notes = (network.note, *result.notes) if network.note else result.notes
        return replace(result, notes=notes, time_s=time.monotonic() - begin)

    def _check(self, gives: Gives, shape: tuple[int, ...] | None, x: Tensor, criterion: Criterion,
               threat: Threat) -> None:
        if shape is not None and tuple(x.shape[1:]) != shape:
            raise ValueError(f"inputs must have shape (N, {', '.join(map(str, shape))}), got {tuple(x.shape)}")
        if criterion.batch != x.shape[0]:
            raise ValueError(f"{criterion.batch} criteria for {x.shape[0]} inputs")
        if threat.norm not in self.norms:
            raise ValueError(f"{self.name} works in the norms {', '.join(norm_name(p) for p in self.norms)}, "
                             f"not {norm_name(threat.norm)}")
        self._check_knowledge(gives, criterion)
        if self.additive and not self.minimum_norm and math.isinf(threat.eps):
            raise ValueError(f"{self.name} needs eps: it looks inside a ball and not for the nearest point")

    def _check_knowledge(self, gives: Gives, criterion: Criterion) -> None:
        if gives < self.needs:
            raise ValueError(f"{self.name} needs {self.needs.name.lower()}, the model gives {gives.name.lower()} only")
        if gives is Gives.LABELS and not isinstance(criterion, Misclassified):
            raise ValueError(f"a model that gives labels only can be misclassified and no more; "
                             f"{type(criterion).__name__} needs scores")

    def _result(self, run: Run, eps: float, limited: Room | None) -> AttackResult:
        everything = torch.arange(run.batch, device=run.x.device)
        reached = run.room.distance(run.x, everything)
        none = torch.full_like(reached, math.inf)
        x = torch.where(run.room.per_example(run.success), run.x, run.x0) if self.minimum_norm else run.x
        gap = run.fosc if limited is None else _final_gap(run, x, limited)
        complete = torch.full_like(run.success, not run.deadline.passed()) | run.closed
        return AttackResult(x, run.last, run.success & (reached <= eps), torch.where(run.success, reached, none),
                            run.margin, run.forward_calls, run.backward_calls, run.zero_slopes, gap, run.not_finite,
                            complete, run.fell_in, 0.0, tuple(run.notes))


def _final_gap(run: Run, x: Tensor, room: Room) -> Tensor:
    """FOSC of the cross-entropy at x moved into `room` (nearest successes may lie beyond it): "B"."""
    unbounded = math.isinf(room.eps) and not room.bounded
    if run.model.gives < Gives.GRADIENTS or room.norm == 0.0 or unbounded:
        return run.fosc
    owner = torch.arange(run.batch, device=x.device)
    loss, _ = loss_named("ce", run.criterion, 0)
    inside = room.project(x, owner)
    with torch.enable_grad():
        leaf = inside.detach().requires_grad_()
        (slope,) = torch.autograd.grad(loss(run.model(leaf), leaf, owner).sum(), leaf)
    return stationarity_gap(slope, inside, room, owner)


def _classes_named(criterion: Criterion) -> int | None:
    """One more than the largest class that a criterion names, if it names classes."""
    if not isinstance(criterion, Misclassified) or not criterion.batch:
        return None
    return 1 + max(int(t.max()) for t in (criterion.label, criterion.target) if t is not None)


def norm_name(p: float) -> str:
    return "inf" if p == math.inf else str(int(p))


def _nothing(x: Tensor) -> AttackResult:
    none = torch.zeros(0, device=x.device)
    flags, calls = none.bool(), none.long()
    return AttackResult(x, x, flags, none.double(), none, calls, calls, calls, none, flags, flags, calls, 0.0)
