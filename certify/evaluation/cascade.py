"""Bounds and attacks over many examples at once, ever tighter ones over ever fewer, and branch and bound for the rest.

What is open are pairs (example, other class): the branches of one property whose regions are the examples' sets, which
is the form that every stage of `verifier` takes. A pair closes where a bound of its margin `y_label - y_j` is positive;
an example is verified once its pairs are, and falsified by one witness that stands on the original file.

    ibp, crown         bounds of the open pairs
    pgd                projected gradient descent on the open pairs
    alpha-crown        the slopes of the open pairs optimised, of the margins alone and then of the neurons too
    alone              what is left, example by example and over its open classes only, by `verifier.verify`

Whatever goes wrong in a step decides nothing: its examples stay open, and the trouble is kept by its name.

Axis legend: K pairs, N rows, U regions.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from bounds.graph import UnsupportedOperator
from bounds.precision import full_precision
from certify.evaluation.asked import ALPHA, CROWN, IBP, PGD, ROWS, Asked
from verifier.attacks.falsifier import Falsifier
from verifier.data import DataSet
from verifier.deadline import Deadline
from verifier.network import Network
from verifier.out_of_memory import is_out_of_memory
from verifier.problem import Problem, State, make_problem, narrowed
from verifier.property import Property, robustness
from verifier.stages import BoundStage, contradiction
from verifier.strategy import verify
from verifier.verdict import Claim, Evidence, Falsified, Reason, Unknown, Verified
from verifier.witness import OnnxReplayer, ReplayError, Witness

NEAR = 1e-4  # candidates this close to unsafe are replayed as well
ATTACK = Falsifier(restarts=8, steps=50, rounds=1, samples=32, branches=1 << 30, time_limit_s=math.inf)
BOUNDS = {
    IBP: BoundStage(IBP),
    CROWN: BoundStage(CROWN, keep=True),
    ROWS: BoundStage(ROWS, {"neuron_iterations": 0}, method=ALPHA, inherit=True),
    ALPHA: BoundStage(ALPHA, keep=True),
}
VERIFIED, FALSIFIED, OPEN = "verified", "falsified", "open"
LEAST_S = 1e-3

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Trouble:
    """Why a step decided nothing."""

    reason: Reason
    detail: str = ""


@dataclass(eq=False)
class Standing:
    """What is known of one example. by: the step that decided. lower: of the margins to all classes that are closed;
    rounded: whether every rounding error of what closed them is accounted for. open: the other classes. trouble: the
    last. why: the reason where it stays open without any. time_s: its share of the work."""

    open: list[int]
    verdict: str = OPEN
    by: str = ""
    lower: float = math.inf
    rounded: bool = True
    witness: Witness | None = None
    trouble: Trouble | None = None
    why: Reason = Reason.INCOMPLETE
    time_s: float = 0.0

    @property
    def evidence(self) -> Evidence:
        return Evidence.ROUNDED if self.rounded else Evidence.FLOAT

    def closed(self, target: int, lower: float, rounded: bool) -> None:
        self.open.remove(target)
        self.lower, self.rounded = min(self.lower, lower), self.rounded and rounded


@dataclass(frozen=True, eq=False)
class Cascade:
    """Answers a question about examples of a data set, which are named by their places in it."""

    network: Network
    data: DataSet
    asked: Asked
    device: str | None = None

    @property
    def classes(self) -> int:
        return math.prod(self.network.graph.output_shape)

    @cached_property
    def replayer(self) -> OnnxReplayer:
        """What runs the original file, as the claim has it."""
        replayer = self.network.replayer
        return replayer if self.asked.claim == Claim.REAL.value else replayer.node_by_node()

    def property_of(self, place: int) -> Property:
        q = self.asked
        return robustness(self.data.x[place], int(self.data.y[place]), q.eps, norm=q.norm, classes=self.classes,
                          clip=q.clip)

    def targets(self, place: int) -> list[int]:
        """The class of each branch of an example's property."""
        return [j for j in range(self.classes) if j != int(self.data.y[place])]

    def problem(self, prop: Property, limit_s: float = math.inf) -> Problem:
        return make_problem(self.network.graph, prop, replayer=self.replayer, deadline=Deadline.starting_now(limit_s),
                            seed=self.asked.seed, device=self.device, simplified=self.network.simplified,
                            rounded=self.asked.evidence != "float", claim=Claim(self.asked.claim))

    def standing(self, place: int) -> Standing:
        return Standing(self.targets(place))

    # ------------------------------------------------------------------ many examples

    def batched(self, places: Sequence[int], *, steps: Sequence[str] | None = None,
                fallen: Collection[int] = ()) -> dict[int, Standing]:
        """What the steps (default: those asked for) say of some examples together. fallen: examples with a known
        counterexample, which cheap bounds must not verify either, and for which nothing else is done."""
        begin = time.monotonic()
        batch = Batch(self, places, frozenset(fallen))
        try:
            with full_precision():
                batch.run(self.asked.certifier.steps if steps is None else steps)
        except Exception as error:
            if not is_out_of_memory(error) or len(places) < 2:
                raise
            # What two halves hold is done again: rare, and simpler than to save it.
            half = len(places) // 2
            return self.batched(places[:half], steps=steps, fallen=fallen) | self.batched(places[half:], steps=steps,
                                                                                         fallen=fallen)
        share_s = (time.monotonic() - begin) / max(1, len(places))
        for standing in batch.standings.values():
            standing.time_s += share_s
        return batch.standings

    # ------------------------------------------------------------------ one example

    def alone(self, place: int, standing: Standing) -> Standing:
        """One example by `verifier.verify`, over the classes that are open, in the time that is left of its own."""
        q = self.asked
        whole = self.property_of(place)
        branches = tuple(b for b, j in zip(whole.branches, self.targets(place), strict=True) if j in standing.open)
        open_part = Property(branches, whole.inputs, whole.outputs, whole.source)
        begin = time.monotonic()
        try:
            result = verify(self.network.graph, open_part, replayer=self.network.replayer, method=q.certifier.alone,
                            device=self.device, seed=q.seed, simplified=self.network.simplified, claim=Claim(q.claim),
                            evidence=Evidence[q.evidence.upper()] if q.evidence else None,
                            deadline=Deadline.starting_now(max(LEAST_S, q.time_limit_s - standing.time_s)))
        except UnsupportedOperator as error:
            return replace(standing, trouble=Trouble(Reason.UNSUPPORTED, str(error)))
        by = f"alone: {result.method}"
        found = replace(standing, time_s=standing.time_s + time.monotonic() - begin)
        verdict = result.verdict
        if isinstance(verdict, Verified):
            return replace(found, verdict=VERIFIED, by=by, open=[], lower=min(standing.lower, verdict.lower),
                           rounded=standing.rounded and verdict.evidence >= Evidence.ROUNDED)
        if isinstance(verdict, Falsified):
            return replace(found, verdict=FALSIFIED, by=by, witness=verdict.witness)
        assert isinstance(verdict, Unknown), "there are three verdicts"
        if verdict.reason is Reason.INTERRUPTED:
            raise KeyboardInterrupt
        undecided = verdict.reason in (Reason.TIME_LIMIT, Reason.INCOMPLETE, Reason.ROUNDING)
        # Trouble of an earlier step is not covered up by a limit that the last one met.
        trouble = standing.trouble if undecided else Trouble(verdict.reason, verdict.detail)
        return replace(found, trouble=trouble, why=verdict.reason)


@dataclass(eq=False)
class Batch:
    """The steps over some examples; `problem` and `state` hold what is open."""

    cascade: Cascade
    places: Sequence[int]
    fallen: frozenset[int] = frozenset()
    standings: dict[int, Standing] = field(init=False)

    def __post_init__(self) -> None:
        self.standings = {i: self.cascade.standing(i) for i in self.places}
        self.pairs: list[tuple[int, int]] = []

    @property
    def left(self) -> list[int]:
        """The examples that are open."""
        return [i for i, s in self.standings.items() if s.verdict == OPEN]

    def run(self, steps: Sequence[str]) -> None:
        if not steps or not self.places or not self._done("begin", self._begin):
            return
        for step in steps:
            if not self.pairs or self.problem.deadline.passed():
                break
            begin = time.monotonic()
            self._done(step, lambda step=step: self._step(step))  # type: ignore[misc]
            log.info("%-16s left %d of %d, %d pairs  %.2f s", step, len(self.left), len(self.places), len(self.pairs),
                     time.monotonic() - begin)
        if self.problem.deadline.passed():
            for i in self.left:
                self.standings[i].why = Reason.TIME_LIMIT

    def _done(self, step: str, work: Callable[[], None]) -> bool:
        """Whether a piece of work ended well; what went wrong is kept with the examples that are open. Lack of memory
        is raised while there are fewer examples to try with."""
        try:
            work()
        except ReplayError:  # the file is at fault
            raise
        except UnsupportedOperator as error:
            self._troubled(Trouble(Reason.UNSUPPORTED, str(error)))
        except Exception as error:
            if is_out_of_memory(error):
                if len(self.places) > 1:
                    raise
                self._troubled(Trouble(Reason.MEMORY, str(error)))
            else:
                log.debug("%s stopped", step, exc_info=True)
                self._troubled(Trouble(Reason.ERROR, f"{step}: {type(error).__name__}: {error}"))
        else:
            return True
        return False

    def _step(self, step: str) -> None:
        if step not in (IBP, CROWN):
            self._close(self._mask(lambda i: i not in self.fallen))
        if self.pairs and step == PGD:
            self._attack()
        elif self.pairs:
            self._bound(BOUNDS[step])

    def _troubled(self, trouble: Trouble) -> None:
        for i in self.left:
            self.standings[i].trouble = trouble

    # ------------------------------------------------------------------ the steps

    def _begin(self) -> None:
        """All pairs as one problem: an OR over the examples' branches."""
        parts = [self.cascade.property_of(i) for i in self.places]
        whole = Property(tuple(b for p in parts for b in p.branches), parts[0].inputs, parts[0].outputs,
                         f"{len(parts)} examples")
        self.problem: Problem = self.cascade.problem(whole, self.cascade.asked.time_limit_s * len(parts))
        self.state: State = State.of(self.problem)
        self.pairs = [(i, j) for i in self.places for j in self.cascade.targets(i)]

    def _bound(self, stage: BoundStage) -> None:
        """One bound method over the open pairs; pairs it decides close, unless sampled points contradict it."""
        rounded = self.problem.rounded and stage.is_rounded(self.problem)
        if not rounded and (self.problem.claim is Claim.FLOAT32 or self.cascade.asked.evidence == "rounded"):
            for i in self.left:
                self.standings[i].why = Reason.ROUNDING  # what does not account for it proves nothing
            return
        try:
            stage.run(self.problem, self.state)
        except Exception:
            # What it may have closed before it failed must not count as closed by the next step.
            self.state = State.of(self.problem)
            raise
        still_open = self.state.open_branches(self.problem.tensors)
        closes = not bool(still_open.all())
        clash = contradiction(*narrowed(self.problem, self.state, ~still_open)) if closes else ""
        if clash or self.state.numerical:
            self._troubled(Trouble(Reason.NUMERICAL, clash or self.state.numerical))
            self.state = State.of(self.problem)  # nothing of this step is trusted: its examples stay open
            return
        if not closes:
            return
        margins = self.state.branch_lower(self.problem.tensors).tolist()
        for (i, j), is_open, margin in zip(self.pairs, still_open.tolist(), margins, strict=True):
            if not is_open:
                self.standings[i].closed(j, margin, rounded)
        for i in self.left:
            if not self.standings[i].open:
                self.standings[i].verdict, self.standings[i].by = VERIFIED, stage.name
        self._close(still_open)

    def _attack(self) -> None:
        """The best point of every open pair; those of an example are offered to the gate, least margin first."""
        graph, tensors = self.problem.attacked
        found = ATTACK.best_of_each(graph, tensors, deadline=self.problem.deadline, generator=self.problem.generator)
        margins = found.margin.tolist()
        for k in found.margin.argsort(stable=True).tolist():
            i, _ = self.pairs[k]
            if margins[k] > NEAR or self.standings[i].verdict == FALSIFIED:
                continue
            if (witness := self.problem.confirm(found.x[k])) is not None:
                self.standings[i].verdict, self.standings[i].by = FALSIFIED, PGD
                self.standings[i].witness = witness
        self._close(self._mask(lambda i: self.standings[i].verdict == OPEN))

    # ------------------------------------------------------------------ what stays open

    def _mask(self, wanted: Callable[[int], bool]) -> Tensor:
        return torch.tensor([wanted(i) for i, _ in self.pairs], dtype=torch.bool,
                            device=self.problem.tensors.bound.device)

    def _close(self, kept: Tensor) -> None:
        if bool(kept.all()):
            return
        self.pairs = [pair for pair, keep in zip(self.pairs, kept.tolist(), strict=True) if keep]
        if self.pairs:
            self.problem, self.state = narrowed(self.problem, self.state, kept)

