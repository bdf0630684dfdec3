"""Looking before the attack: gradients that cost calls but are no proposals.

Some attacks must look at points that they may not propose: noisy copies for a saliency map, or a perturbation that is
still in training. A scout is a run of its own on the same examples; its successes are forgotten, its calls are charged.
"""

from __future__ import annotations

from verifier.attacks.run import Run
from verifier.attacks.threat import Room


def scout(run: Run, room: Room | None = None) -> Run:
    """A run beside `run`, in its room by default, with the same random numbers. Charge it once it is done."""
    return Run(run.model, run.room if room is None else room, run.criterion, run.draws, deadline=run.deadline,
               early_stop=False, anywhere=run.anywhere)


def charge(run: Run, scouted: Run) -> None:
    """Count a scout's calls as the run's, and keep what the user should know."""
    run.forward_calls += scouted.forward_calls
    run.backward_calls += scouted.backward_calls
    run.zero_slopes += scouted.zero_slopes
    run.not_finite |= scouted.not_finite
    for sentence in scouted.notes:
        run.note(sentence)
