"""From a verification to a proof file: what is proved about what, and the branches that no search has proved."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from bounds.files import read_bytes
from bounds.graph import Graph
from verifier.branch_and_bound.plan import plan_for
from verifier.branch_and_bound.recorder import ProofTarget, Recorder, record_witness, unnamed_neurons
from verifier.branch_and_bound.stage import BranchAndBoundStage
from verifier.certificate import sha256
from verifier.network import digest_of
from verifier.problem import Problem, State, without_final_softmax
from verifier.property import Property
from verifier.witness import OnnxReplayer

log = logging.getLogger(__name__)


def target_of(proof: ProofTarget | str | Path, replayer: Any, property: Property) -> ProofTarget:
    """A path becomes a target where network and property came from files (the property's `source`)."""
    if isinstance(proof, ProofTarget):
        return proof
    source = replayer.source if isinstance(replayer, OnnxReplayer) else replayer
    if not isinstance(source, str | Path | bytes):
        raise ValueError("a proof is about an ONNX file; expected one as the replayer")
    try:
        content = read_bytes(property.source)
    except OSError as error:
        raise ValueError(f"a proof names the property's file, and {property.source} is none; "
                         "pass a ProofTarget") from error
    return ProofTarget(Path(proof), {"sha256": digest_of(source)}, {"sha256": sha256(content)})


def named_twin(graph: Graph, property: Property, simplified: Graph | None = None) -> Graph:
    """The search form of a network whose neurons are elements of its tensors, so that a proof can name them."""
    merged = graph.simplify() if simplified is None else simplified
    search = without_final_softmax(merged, property)
    x = property.tensors(graph.input_shape, dtype=search.dtype).sets.centre_point[:1]
    return graph.simplify(merge=False) if unnamed_neurons(search, graph, x) else merged


def falsified(target: ProofTarget, problem: Problem, state: State) -> dict[str, Any]:
    """A file with the witness; what became of it."""
    assert state.witness is not None
    return record_witness(target, state.witness, problem.property)


def certified(recorder: Recorder, problem: Problem, state: State) -> dict[str, Any]:
    """The verified property's proof, finished: branches that bound methods decided are proved once more by a search,
    which records what it does. What became of the file."""
    if not recorder.refusal and bool(recorder.not_proved().any()):
        BranchAndBoundStage(plan_for(problem), "proof", certify=True).run(problem, state)
    outcome = recorder.finish()
    if not outcome["written"]:
        log.warning("proof not recorded: %s", outcome["reason"])
    return outcome
