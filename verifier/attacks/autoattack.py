"""AutoAttack: four attacks with fixed settings, one after the other on what still stands (Croce and Hein,
arXiv:2003.01690).

The standard version: APGD on the cross-entropy, APGD towards nine classes on the targeted logit ratio, FAB towards nine
classes, Square with 5,000 queries. The settings are fixed on purpose; `steps` and `queries` exist for tests and quick
looks. In l_1 there is no Square, and APGD begins at eps itself.

It also looks for the usual traps, and tells them as notes: gradients that vanish, outputs that are probabilities, a
model that answers at random, and a black-box attack that succeeds where all gradients failed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from verifier.attacks.apgd import ApgdCe, ApgdTargeted
from verifier.attacks.base import Attack
from verifier.attacks.fab import FabTargeted
from verifier.attacks.run import Run
from verifier.attacks.square import Square

PROBABILITY_SLACK = 1e-4  # by which rows of probabilities may miss one


@dataclass(frozen=True, kw_only=True)
class AutoAttack(Attack):
    """steps: gradients of each restart and target. targets: classes that APGD-T and FAB-T aim at. queries: Square's."""

    name: ClassVar[str] = "autoattack"
    norms: ClassVar[tuple[float, ...]] = (math.inf, 2.0, 1.0)
    steps: int = 100
    targets: int = 9
    queries: int = 5000

    def stages(self, norm: float, eps: float) -> list[Attack]:
        stages: list[Attack] = [ApgdCe(steps=self.steps), ApgdTargeted(steps=self.steps, targets=self.targets),
                                FabTargeted(steps=self.steps, classes=self.targets, stop_inside=eps)]
        return stages if norm == 1.0 else [*stages, Square(steps=self.queries)]

    @property
    def stage_names(self) -> tuple[str, ...]:
        return ("apgd-ce", "apgd-t", "fab-t", "square")

    def propose(self, run: Run) -> None:
        _warn_of_model(run)
        for number, stage in enumerate(self.stages(run.room.norm, run.room.eps)):
            i = run.open_examples()
            if not i.numel():
                break
            standing = ~run.success
            if isinstance(stage, FabTargeted):
                nearest(stage, run, i)
            else:
                stage.propose(run)
            found = standing & run.success
            run.fell_in[found] = number
            if isinstance(stage, Square) and bool(found.any()):
                run.note("Square succeeded where no gradient attack did: are gradients masked?")
        if bool((run.zero_slopes > 0).any()):
            run.note("gradients vanish entirely at some points: see zero_slopes of the examples")


def nearest(attack: Attack, run: Run, i: Tensor) -> None:
    """Let a minimum-norm attack work on examples `i` of a run inside a ball; what it finds in the ball counts."""
    inner = Run(run.model, run.anywhere.index(i), run.criterion.index(i), run.draws.index(i), minimum_norm=True,
                queries=run.queries, deadline=run.deadline)
    inner.forward_calls, inner.backward_calls = run.forward_calls[i], run.backward_calls[i]
    inner.y0 = run.y0[i]
    attack.propose(inner)
    run.forward_calls[i], run.backward_calls[i] = inner.forward_calls, inner.backward_calls
    run.zero_slopes[i] += inner.zero_slopes
    run.not_finite[i] |= inner.not_finite
    for sentence in inner.notes:
        run.note(sentence)
    found = (inner.success & (inner.key <= run.room.eps)).nonzero().flatten()
    run.adopt(i[found], inner.x[found], inner.margin[found])


def _warn_of_model(run: Run) -> None:
    """Probabilities as outputs, and answers that differ from one evaluation to the next."""
    y = run.y0
    finite = torch.isfinite(y).all(1)
    sums = y[finite].sum(1)
    if finite.any() and bool(((sums - 1).abs() < PROBABILITY_SLACK).all() and (y[finite] >= 0).all()):
        run.note("the outputs look like probabilities: give logits, a saturated softmax hides gradients")
    i = run.open_examples()
    if not i.numel():
        return
    again, first = run.evaluate(run.x0[i], i).y, y[i]
    known = torch.isfinite(again).all(1) & finite[i]  # the others had no query left, or were no numbers at first
    if bool(known.any()):
        difference = float((again - first)[known].abs().max())
        if difference > PROBABILITY_SLACK * float(first[known].abs().max()):
            run.note("the model answers differently when asked again: average over its randomness")
