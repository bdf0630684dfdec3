"""Does the property hold? Attack, then cheap bounds, then tighter ones, until the sign is known.

The strategy is a list of stages (`verifier.stages`) that share one `State`; this module runs them under
one deadline and turns what is known at the end into a verdict. Whatever goes wrong becomes `Unknown`
with its reason; nothing unexpected can become `Verified`. Branch and bound is one more stage.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bounds.compute import PRICED_METHODS
from bounds.graph import Graph, UnsupportedOperator
from bounds.precision import full_precision
from bounds.rounding import priced
from milp.solvers.refusals import SolverUnsuitable
from verifier.branch_and_bound.branching import BRANCHING
from verifier.branch_and_bound.plan import plan_for
from verifier.branch_and_bound.recorder import ProofTarget, Recorder
from verifier.branch_and_bound.stage import is_confirmed
from verifier.deadline import CLOSING_S, Deadline
from verifier.out_of_memory import is_out_of_memory
from verifier.problem import Problem, State, is_integral, make_problem
from verifier.proof import certified, falsified, named_twin, target_of
from verifier.property import Property
from verifier.stages import Stage, check_method, contradiction, margin_loss, stages_for
from verifier.threads import threads_for
from verifier.verdict import Claim, Evidence, Falsified, Reason, Unknown, Verdict, Verified
from verifier.watchdog import TimeUp, hard_limit
from verifier.witness import ModuleReplayer, OnnxReplayer, Replayer, ReplayError

log = logging.getLogger(__name__)

Strategy = Callable[[Problem], Sequence[Stage]]

HARD_LIMIT_GRACE_S = 0.25  # stages that look at the clock end on time by themselves


@dataclass(frozen=True)
class StageLog:
    """What one stage cost and reached: the margin lies in [lower, upper], `open_branches` are undecided."""

    name: str
    time_s: float
    lower: float
    upper: float
    open_branches: int


@dataclass(frozen=True)
class Result:
    """A verdict with its price. `method` names the stage that decided, or what was asked for if none did."""

    verdict: Verdict
    method: str
    time_s: float
    domains: int = 0
    first_bound_s: float | None = None
    stages: tuple[StageLog, ...] = ()
    choices: dict[str, Any] = field(default_factory=dict)
    asked: Claim = Claim.REAL

    @property
    def name(self) -> str:
        """verified, falsified or unknown."""
        return type(self.verdict).__name__.lower()

    @property
    def lower(self) -> float:
        return self.verdict.lower

    @property
    def upper(self) -> float:
        return float("inf") if isinstance(self.verdict, Verified) else self.verdict.upper

    @property
    def reason(self) -> Reason | None:
        return self.verdict.reason if isinstance(self.verdict, Unknown) else None

    @property
    def detail(self) -> str:
        return self.verdict.detail if isinstance(self.verdict, Unknown) else ""

    @property
    def claim(self) -> Claim:
        return self.asked if isinstance(self.verdict, Unknown) else self.verdict.claim

    @property
    def evidence(self) -> Evidence:
        return Evidence.FLOAT if isinstance(self.verdict, Unknown) else self.verdict.evidence

    def __str__(self) -> str:
        """The line a person reads."""
        seconds = f"{self.time_s:.1f} s"
        about = f"{self.claim.value}/{self.evidence.name.lower()}"
        if isinstance(self.verdict, Verified):
            return f"verified  margin {self.lower:.3g}  {about}  {seconds}"
        if isinstance(self.verdict, Falsified):
            return f"falsified  margin {self.upper:.3g}  {about}  witness replayed  {seconds}"
        return f"unknown  {self.verdict.reason.value}  margin in [{self.lower:.3g}, {self.upper:.3g}]  {seconds}"


def verify(
    graph: Graph,
    property: Property,
    *,
    replayer: Replayer | nn.Module | str | Path,
    method: str | Strategy = "auto",
    time_limit_s: float = 60.0,
    device: torch.device | str | None = None,
    seed: int = 0,
    deadline: Deadline | None = None,
    simplified: Graph | None = None,
    proof: ProofTarget | str | Path | None = None,
    branching: str = BRANCHING[0],
    solver: str = "highs",
    evidence: Evidence | None = None,
    claim: Claim = Claim.REAL,
) -> Result:
    """Decide whether any input of the property reaches its unsafe set.

    `replayer` is the original network, on which a counterexample must stand: an ONNX path, a module or a
    `Replayer`. `method` "auto", one bound method alone, or a function that makes the stages of a problem. `deadline`
    replaces `time_limit_s` where the caller's clock already runs. `simplified` saves work where one network answers
    many questions. `proof`: a file for the recorded proof (docs/proofs.md), written where the property is verified, or
    falsified (the witness); `choices["proof"]` says what became of it. `branching`: the rule that chooses splits
    (`verifier.branch_and_bound.branching`). `solver`: of method "milp", one of `milp.solvers.MIXED_SOLVERS`.

    `claim`: REAL asks about the stored network over the reals, FLOAT32 about what IEEE float32 makes of it node by
    node, sums in any order (docs/rounding.md); that needs a network stored in float32, and a method that accounts for
    rounding.

    Verified: for every branch some row's violation stays > 0 (closed) or >= 0 (strict). Its `evidence` is ROUNDED where
    every rounding error of what decided it is accounted for, else FLOAT. `evidence` None asks for as much as there is,
    FLOAT saves the work; with ROUNDED stages that do not account for rounding are left out where others do, and what is
    verified with less is `Unknown` for its rounding. Falsified: the witness meets the unsafe set as written. Wrong use
    raises `ValueError` or `UnsupportedOperator`, an original network that cannot be run `ReplayError`; everything else
    that happens later is an `Unknown` with its reason.
    """
    deadline = deadline or Deadline.starting_now(time_limit_s)
    if isinstance(method, str):
        check_method(method, branching)
    check_claim(claim, method, evidence, proof is not None)
    problem: Problem | None = None
    state: State | None = None
    logs: list[StageLog] = []
    recorder: Recorder | None = None
    try:
        searched = graph if simplified is None else simplified
        with full_precision(), threads_for(searched), hard_limit(deadline.left() + HARD_LIMIT_GRACE_S):
            if proof is not None:
                simplified = named_twin(graph, property, simplified)
            problem = make_problem(graph, property, replayer=_as_replayer(replayer, claim), deadline=deadline,
                                   seed=seed, device=device, simplified=simplified,
                                   rounded=evidence is not Evidence.FLOAT, claim=claim)
            if claim is Claim.FLOAT32 and problem.graph.dtype == torch.float32 \
                    and not is_confirmed(plan_for(problem, branching), problem):
                problem = make_problem(graph, property, replayer=problem.replayer, deadline=deadline, seed=seed,
                                       device=device, claim=claim, wide=True)
            if proof is not None:
                recorder = Recorder.of(target_of(proof, replayer, property), problem, graph)
                problem = dataclasses.replace(problem, recorder=recorder)
                recorder.problem = problem
            if claim is Claim.REAL and evidence is not Evidence.ROUNDED and is_integral(problem.graph) \
                    and plan_for(problem, branching).contracts:
                # Unit propagation lives on thresholds that are met exactly, which no price leaves as they are (seen:
                # 40 times the seconds).
                problem = dataclasses.replace(problem, rounded=False)
            state = State.of(problem)
            with priced(problem.rounded):
                stages = stages_for(method, problem, branching, solver, evidence) if isinstance(method, str) \
                    else method(problem)
                decided_by = _run(stages, problem, state, logs)
            verdict = _conclude(problem, state, Evidence.ROUNDED if claim is Claim.FLOAT32 else evidence)
            # Two passes of CROWN: where little time is left, no answer is lost to them.
            if claim is Claim.FLOAT32 and isinstance(verdict, Verified) and deadline.left() > deadline.elapsed():
                state.choices["margin_loss"] = margin_loss(problem)
            if recorder is not None and isinstance(verdict, Verified):
                state.choices["proof"] = certified(recorder, problem, state)
            elif recorder is not None and isinstance(verdict, Falsified):
                recorder.discard()
                state.choices["proof"] = falsified(recorder.target, problem, state)
    except (UnsupportedOperator, SolverUnsuitable) as error:
        if problem is None:
            raise
        verdict, decided_by = _unknown(Reason.UNSUPPORTED, problem, state, str(error)), None
    except ReplayError:  # the file is at fault, and nothing said about it could be confirmed
        raise
    except TimeUp as error:
        verdict, decided_by = _unknown(Reason.TIME_LIMIT, problem, state, str(error)), None
    except KeyboardInterrupt:
        verdict, decided_by = _unknown(Reason.INTERRUPTED, problem, state), None
    except Exception as error:
        if problem is None and isinstance(error, ValueError):
            raise
        reason = Reason.MEMORY if is_out_of_memory(error) else Reason.ERROR
        log.debug("verification stopped", exc_info=True)
        verdict, decided_by = _unknown(reason, problem, state, f"{type(error).__name__}: {error}"), None
    finally:
        if recorder is not None:
            recorder.discard()
    return Result(
        verdict=verdict,
        method=decided_by or (method if isinstance(method, str) else "stages"),
        time_s=deadline.elapsed(),
        domains=state.domains if state else 0,
        first_bound_s=state.first_bound_s if state else None,
        stages=tuple(logs),
        choices=state.choices if state else {},
        asked=claim,
    )


def check_claim(claim: Claim, method: str | Strategy, evidence: Evidence | None, proof: bool) -> None:
    """Refuse what cannot speak about float32."""
    if claim is Claim.REAL:
        return
    if not isinstance(method, str):
        raise ValueError("claim float32: nobody knows whether stages of the caller's own account for float32's "
                         "rounding; name a method")
    known = ("auto", "attack", "bab", *PRICED_METHODS)
    if method not in known:
        raise ValueError(f"claim float32: method {method} knows nothing of float32's rounding; use one of "
                         f"{', '.join(known)}")
    if evidence is Evidence.FLOAT:
        raise ValueError("claim float32 accounts for all rounding; leave out evidence float")
    if proof:
        raise ValueError("claim float32: proof files are about the claim real; leave out one of them")


def _as_replayer(source: Replayer | nn.Module | str | Path, claim: Claim) -> Replayer:
    if isinstance(source, nn.Module):
        return ModuleReplayer(source)
    replayer = OnnxReplayer(source) if isinstance(source, str | Path) else source
    return replayer.node_by_node() if claim is Claim.FLOAT32 and isinstance(replayer, OnnxReplayer) else replayer


def _run(stages: Sequence[Stage], problem: Problem, state: State, logs: list[StageLog]) -> str | None:
    """Run stages until the sign is known or the time is up; the name of the stage that decided."""
    for stage in stages:
        if problem.deadline.passed() or not bool(state.open_branches(problem.tensors).any()):
            return None
        start = time.monotonic()
        before = state.open_branches(problem.tensors)
        try:
            stage.run(problem, state)
        finally:
            after = state.open_branches(problem.tensors)
            if stage.is_rounded(problem):
                state.rounded |= before & ~after
            still_open = int(after.sum())
            entry = StageLog(stage.name, time.monotonic() - start, state.lower(problem.tensors), state.upper,
                             still_open)
            logs.append(entry)
            log.info("%-12s lower %.4g  upper %.4g  open %d  %.2f s",
                     entry.name, entry.lower, entry.upper, entry.open_branches, entry.time_s)
        if state.witness is not None or still_open == 0:
            return stage.name
    return None


def _conclude(problem: Problem, state: State, evidence: Evidence | None) -> Verdict:
    lower = state.lower(problem.tensors)
    if state.witness is not None:
        over_reals = problem.claim is Claim.REAL and state.witness.real_agrees is True
        shown = over_reals or problem.claim is Claim.FLOAT32
        return Falsified(state.witness, min(state.upper, state.witness.margin), lower,
                         Evidence.ROUNDED if shown else Evidence.FLOAT, Claim.REAL if over_reals else Claim.FLOAT32)
    if not bool(state.open_branches(problem.tensors).any()):
        clash = contradiction(problem, state)
        if clash:
            return Unknown(Reason.NUMERICAL, float("-inf"), state.upper, clash)
        rounded = problem.rounded and bool(state.rounded.all())
        if evidence is Evidence.ROUNDED and not rounded:
            return Unknown(Reason.ROUNDING, lower, state.upper, "some branch was decided in ordinary floating point")
        return Verified(lower, Evidence.ROUNDED if rounded else Evidence.FLOAT, problem.claim)
    if state.numerical:
        return Unknown(Reason.NUMERICAL, lower, state.upper, state.numerical)
    reason = Reason.TIME_LIMIT if problem.deadline.left() < CLOSING_S else Reason.INCOMPLETE
    return Unknown(reason, lower, state.upper)


def _unknown(reason: Reason, problem: Problem | None, state: State | None, detail: str = "") -> Unknown:
    if problem is None or state is None:
        return Unknown(reason, detail=detail)
    return Unknown(reason, state.lower(problem.tensors), state.upper, detail)


def as_json(result: Result) -> dict[str, Any]:
    """The result as plain JSON values (infinities become null)."""
    witness = result.verdict.witness if isinstance(result.verdict, Falsified) else None
    return {
        "verdict": result.name,
        "reason": result.reason.value if result.reason else None,
        "detail": result.detail or None,
        "claim": result.claim.value,
        "evidence": result.evidence.name.lower(),
        "lower": _finite(result.lower),
        "upper": _finite(result.upper),
        "time_s": round(result.time_s, 4),
        "first_bound_s": None if result.first_bound_s is None else round(result.first_bound_s, 4),
        "domains": result.domains,
        "method": result.method,
        "choices": result.choices,
        "witness": None if witness is None else {
            "x": witness.x.ravel().tolist(),
            "shape": list(witness.x.shape),
            "y": witness.y.ravel().tolist(),
            "branch": witness.branch,
            "margin": _finite(witness.margin),
            "excess": _finite(witness.excess),
            "real_agrees": witness.real_agrees,
        },
        "stages": [{"name": s.name, "time_s": round(s.time_s, 4), "lower": _finite(s.lower),
                    "upper": _finite(s.upper), "open_branches": s.open_branches} for s in result.stages],
    }


def _finite(value: float) -> float | None:
    return float(value) if abs(value) < float("inf") else None  # NaN compares false as well
