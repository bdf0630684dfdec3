"""A question that is narrowed to some branches is the question of these branches, in float64 as well."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from verifier.deadline import Deadline
from verifier.demo import EXAMPLES
from verifier.network import Network
from verifier.problem import Problem, State, make_problem, narrowed
from verifier.property import Property, robustness
from verifier.stages import BoundStage
from verifier.verdict import Claim


@pytest.fixture(scope="module")
def network() -> Network:
    return Network.read(EXAMPLES / "digits_cnn.onnx")


def question(network: Network, places: list[int], classes: dict[int, list[int]], claim: Claim = Claim.REAL) -> Problem:
    with np.load(EXAMPLES / "digits.npz") as data:
        x, y = data["x"], data["y"]
    parts = [robustness(x[i], int(y[i]), 0.02, classes=10, clip=(0.0, 1.0)) for i in places]
    branches = tuple(b for i, p in zip(places, parts, strict=True)
                     for j, b in zip([j for j in range(10) if j != y[i]], p.branches, strict=True)
                     if j in classes.get(i, range(10)))
    whole = Property(branches, parts[0].inputs, parts[0].outputs, "test")
    return make_problem(network.graph, whole, replayer=network.replayer, deadline=Deadline.starting_now(), claim=claim,
                        simplified=network.simplified)


@pytest.mark.parametrize("claim", list(Claim))
def test_bounds_of_a_narrowed_question_are_those_of_its_branches(network: Network, claim: Claim) -> None:
    whole = question(network, [0, 1, 2, 3], {}, claim)
    state = State.of(whole)
    BoundStage("crown", keep=True).run(whole, state)
    classes = {1: [0, 1, 3], 3: [5]}
    labels = np.load(EXAMPLES / "digits.npz")["y"]
    pairs = [(i, j) for i in range(4) for j in range(10) if j != labels[i]]
    kept = torch.tensor([j in classes.get(i, []) for i, j in pairs])
    fewer, known = narrowed(whole, state, kept)
    alone = question(network, [1, 3], classes, claim)
    for one, other in ((fewer.tensors, alone.tensors), (fewer.attacked[1], alone.attacked[1])):
        for name in ("C", "bound", "strict", "region", "branch", "branch_region"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
        assert torch.equal(one.sets.lower, other.sets.lower)
        assert torch.equal(one.replay_sets.upper, other.replay_sets.upper)
    stage = BoundStage("crown")
    assert stage.is_rounded(fewer) and stage.is_rounded(alone)
    assert (fewer.double is None) == (alone.double is None) == (fewer.graph.dtype == torch.float64)
    assert torch.equal(known.row_lower, state.row_lower[kept])
    anew, other_state = State.of(fewer), State.of(alone)
    stage.run(fewer, anew)
    stage.run(alone, other_state)
    torch.testing.assert_close(anew.row_lower, other_state.row_lower)
    assert all(torch.equal(v.lower, state.intervals[n].lower[[1, 3]]) for n, v in known.intervals.items())
    if fewer.double is not None and whole.double is not None:
        for n, v in fewer.double.proved.items():
            assert torch.equal(v.lower, whole.double.proved[n].lower[[1, 3]])


def test_a_candidate_of_a_narrowed_question_is_confirmed_by_the_whole_property(network: Network) -> None:
    whole = question(network, [0, 1], {})
    kept = torch.zeros(18, dtype=torch.bool)
    kept[9:12] = True
    fewer, _ = narrowed(whole, State.of(whole), kept)
    assert fewer.property is whole.property and fewer.tensors.sets.batch == 1
