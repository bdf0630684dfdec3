"""The cascade over many examples says what single questions say, and trouble decides nothing and is named."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bounds.graph import UnsupportedOperator
from certify.evaluation import cascade as module
from certify.evaluation.asked import BATCHED, CROWN, IBP, PGD, Asked
from certify.evaluation.cascade import FALSIFIED, OPEN, VERIFIED, Batch, Cascade, Standing
from tests.certify.evaluation.cases import CNN, data_of, distance, half_plane, noisy_digits
from verifier.deadline import Deadline
from verifier.network import Network
from verifier.property import robustness
from verifier.stages import BoundStage
from verifier.strategy import Result, verify
from verifier.verdict import Evidence, Reason, Unknown

IMAGES, EPS = 18, 0.1
CLIP = (0.0, 1.0)


@pytest.fixture(scope="module")
def network() -> Network:
    return Network.read(CNN)


@pytest.fixture(scope="module")
def cascade(network: Network) -> Cascade:
    x, y = noisy_digits(IMAGES)
    y[-1] = noisy_digits(IMAGES + 6)[1][IMAGES - 1]  # all labels are right: wrong ones do not come this far
    return Cascade(network, data_of(x, y), Asked(EPS, clip=CLIP, attacks=(), time_limit_s=20.0))


@pytest.fixture(scope="module")
def batched(cascade: Cascade) -> dict[int, Standing]:
    return cascade.batched(range(IMAGES))


def asked(cascade: Cascade, **changes: Any) -> Cascade:
    from dataclasses import replace
    return replace(cascade, asked=replace(cascade.asked, **changes))


# ---------------------------------------------------------------------- answers


def test_batches_answer_as_single_questions_do(cascade: Cascade, batched: dict[int, Standing]) -> None:
    network, x, y = cascade.network, cascade.data.x, cascade.data.y
    seen = set()
    for i, standing in batched.items():
        prop = robustness(x[i], int(y[i]), EPS, classes=10, clip=CLIP)
        seen.add((standing.verdict, standing.by))
        if standing.verdict == OPEN:
            assert standing.open and standing.trouble is None
            continue
        alone = verify(network.graph, prop, replayer=network.replayer, time_limit_s=10.0)
        assert alone.name in (standing.verdict, "unknown"), i
        if standing.verdict == VERIFIED:
            scores = network.replayer.run(x[i : i + 1])[0]
            assert 0 < standing.lower <= scores[y[i]] - np.delete(scores, y[i]).max() + 1e-5
            assert not standing.open and standing.witness is None and standing.evidence is Evidence.ROUNDED
        else:
            assert standing.witness is not None
            again = network.replayer.run(standing.witness.x[None])[0]
            assert prop.holds_unsafe(standing.witness.x.ravel(), again), "a witness stands on the original file"
    assert {(VERIFIED, CROWN), (FALSIFIED, PGD)} <= seen


@pytest.mark.parametrize("norm", [math.inf, 2.0, 1.0])
def test_every_norm_is_decided_as_the_distance_says(tmp_path: Path, norm: float) -> None:
    x = np.array([[0.6, 0.6], [0.7, 0.7], [0.9, 0.8], [0.55, 0.5], [0.95, 0.95]], np.float32)
    found = Cascade(Network.read(half_plane(tmp_path / "net.onnx")), data_of(x, np.zeros(5, int)),
                    Asked(0.2, norm, CLIP, attacks=())).batched(range(5))
    stands = distance(x, norm) > 0.2
    assert 0 < stands.sum() < 5
    assert [s.verdict for s in found.values()] == [VERIFIED if s else FALSIFIED for s in stands]


def test_what_is_left_is_asked_alone_over_its_open_classes_only(cascade: Cascade, monkeypatch: pytest.MonkeyPatch
                                                                ) -> None:
    seen = []

    def watched(graph: Any, prop: Any, **settings: Any) -> Any:
        seen.append(prop)
        return verify(graph, prop, **settings)
    monkeypatch.setattr(module, "verify", watched)
    label = int(cascade.data.y[0])
    targets = [j for j in range(10) if j != label][:3]
    found = cascade.alone(0, Standing(list(targets), lower=0.5, rounded=False, time_s=1.0))
    (prop,) = seen
    assert [max(row.y, key=lambda t: -t[1])[0] for b in prop.branches for row in b.rows] == targets
    assert found.verdict == VERIFIED and found.by.startswith("alone: ") and not found.open
    assert found.lower <= 0.5 and found.evidence is Evidence.FLOAT and found.time_s > 1.0


def test_the_time_of_an_example_is_its_own(cascade: Cascade, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []

    def watched(*_: Any, deadline: Deadline, **__: Any) -> Any:
        limits.append(deadline.limit_s)
        raise UnsupportedOperator("no matter")
    monkeypatch.setattr(module, "verify", watched)
    for spent in (0.0, 15.0, 25.0):
        cascade.alone(0, Standing([1], time_s=spent))
    assert limits == [20.0, 5.0, module.LEAST_S]


def test_claims_about_float32_rest_on_stages_that_know_it(cascade: Cascade, monkeypatch: pytest.MonkeyPatch) -> None:
    some = asked(cascade, claim="float32", method="alpha-crown")
    found = some.batched(range(6))
    assert {s.verdict for s in found.values()} >= {VERIFIED}
    assert all(s.evidence is Evidence.ROUNDED for s in found.values() if s.verdict == VERIFIED)
    monkeypatch.setattr(BoundStage, "is_rounded", lambda stage, problem: False)
    nothing = some.batched(range(6))
    assert all(s.verdict == OPEN and s.why is Reason.ROUNDING for s in nothing.values())
    float_only = asked(cascade, method="crown").batched(range(6))
    assert {s.evidence for s in float_only.values() if s.verdict == VERIFIED} == {Evidence.FLOAT}
    strict = asked(cascade, method="crown", evidence="rounded").batched(range(6))
    assert all(s.verdict == OPEN and s.why is Reason.ROUNDING for s in strict.values())


def test_work_is_saved_where_float_is_enough(cascade: Cascade, batched: dict[int, Standing]) -> None:
    found = asked(cascade, evidence="float", method="crown").batched(range(6))
    assert [s.verdict for s in found.values() if s.by == CROWN] == [s.verdict for i, s in batched.items()
                                                                    if i < 6 and s.by == CROWN]
    assert {s.evidence for s in found.values() if s.verdict == VERIFIED} == {Evidence.FLOAT}


def test_examples_that_fell_are_bounded_but_not_searched(cascade: Cascade, batched: dict[int, Standing]) -> None:
    proved = next(i for i, s in batched.items() if s.by == CROWN)
    fell = [i for i, s in batched.items() if s.by == PGD]
    found = cascade.batched([proved, *fell], fallen={proved, *fell})
    assert found[proved].verdict == VERIFIED, "a contradiction would be seen"
    assert all(found[i].verdict == OPEN and found[i].witness is None for i in fell)


# ---------------------------------------------------------------------- trouble


def test_bounds_that_samples_contradict_decide_nothing(cascade: Cascade, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "contradiction", lambda problem, state: "a point lies below its bound")
    found = cascade.batched(range(6))
    assert not any(s.verdict == VERIFIED for s in found.values())
    for standing in found.values():
        if standing.verdict == OPEN:
            assert standing.trouble is not None and standing.trouble.reason is Reason.NUMERICAL
            assert standing.trouble.detail == "a point lies below its bound" and len(standing.open) == 9


def test_bounds_with_numerical_trouble_decide_nothing(cascade: Cascade, monkeypatch: pytest.MonkeyPatch) -> None:
    run = BoundStage.run

    def troubled(stage: BoundStage, problem: Any, state: Any) -> None:
        run(stage, problem, state)
        state.numerical = f"{stage.name}: a bound is not a number"
    monkeypatch.setattr(BoundStage, "run", troubled)
    found = asked(cascade, method="crown").batched(range(3))
    assert all(s.verdict == OPEN and s.trouble is not None and s.trouble.reason is Reason.NUMERICAL
               and s.trouble.detail.startswith("crown") for s in found.values())


def test_a_batch_that_memory_is_too_small_for_is_halved(cascade: Cascade, batched: dict[int, Standing],
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    bound, sizes = Batch._bound, []

    def scarce(batch: Batch, stage: BoundStage) -> None:
        sizes.append(len(batch.places))
        if len(batch.places) > 3:
            raise MemoryError
        bound(batch, stage)
    monkeypatch.setattr(Batch, "_bound", scarce)
    found = asked(cascade, method="crown").batched(range(8))
    assert list(found) == list(range(8)) and max(sizes) == 8
    assert [s.by == CROWN for s in found.values()] == [batched[i].by == CROWN for i in range(8)]
    monkeypatch.setattr(Batch, "_bound", lambda batch, stage: (_ for _ in ()).throw(torch.cuda.OutOfMemoryError("no")))
    found = asked(cascade, method="crown").batched(range(2))
    assert all(s.verdict == OPEN and s.trouble is not None and s.trouble.reason is Reason.MEMORY
               for s in found.values())


def test_an_unexpected_error_is_named_and_later_steps_go_on(cascade: Cascade, monkeypatch: pytest.MonkeyPatch) -> None:
    bound = Batch._bound

    def failing(batch: Batch, stage: BoundStage) -> None:
        if stage.name == IBP:
            raise ZeroDivisionError("planted")
        bound(batch, stage)
    monkeypatch.setattr(Batch, "_bound", failing)
    found = asked(cascade, method="crown").batched(range(6))
    assert any(s.verdict == VERIFIED for s in found.values())
    left = [s for s in found.values() if s.verdict == OPEN]
    assert left and all(s.trouble is not None and s.trouble.reason is Reason.ERROR for s in left)
    assert left[0].trouble is not None and left[0].trouble.detail == "ibp: ZeroDivisionError: planted"


def test_what_a_failed_step_closed_does_not_count(cascade: Cascade, monkeypatch: pytest.MonkeyPatch) -> None:
    run = BoundStage.run

    def failing(stage: BoundStage, problem: Any, state: Any) -> None:
        if stage.name == IBP:
            state.row_lower = torch.full_like(state.row_lower, 1.0)
            raise ZeroDivisionError("planted")
        run(stage, problem, state)
    expected = {i for i, s in asked(cascade, method="crown").batched(range(IMAGES)).items() if s.verdict == VERIFIED}
    monkeypatch.setattr(BoundStage, "run", failing)
    found = asked(cascade, method="crown").batched(range(IMAGES))
    assert {i for i, s in found.items() if s.verdict == VERIFIED} == expected != set(range(IMAGES))


def test_operators_without_bounds_are_named(cascade: Cascade, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise UnsupportedOperator("Erf (node 12): no relaxation")
    monkeypatch.setattr(module, "make_problem", refused)
    found = cascade.batched(range(3))
    assert all(s.verdict == OPEN and s.trouble is not None and s.trouble.reason is Reason.UNSUPPORTED
               and "Erf" in s.trouble.detail for s in found.values())


def answering(monkeypatch: pytest.MonkeyPatch, reason: Reason, detail: str = "") -> None:
    monkeypatch.setattr(module, "verify", lambda *_, **__: Result(Unknown(reason, detail=detail), "auto", 1.0))


@pytest.mark.parametrize("reason", [Reason.TIME_LIMIT, Reason.INCOMPLETE])
def test_a_limit_of_the_last_step_covers_up_no_earlier_trouble(cascade: Cascade, monkeypatch: pytest.MonkeyPatch,
                                                               reason: Reason) -> None:
    answering(monkeypatch, reason)
    trouble = module.Trouble(Reason.NUMERICAL, "crown: a bound is not a number")
    found = cascade.alone(0, Standing(cascade.targets(0), trouble=trouble))
    assert found.verdict == OPEN and found.trouble is trouble
    found = cascade.alone(0, Standing(cascade.targets(0)))
    assert found.trouble is None and found.why is reason


@pytest.mark.parametrize("reason", [Reason.MEMORY, Reason.NUMERICAL, Reason.ERROR, Reason.UNSUPPORTED])
def test_trouble_of_the_last_step_is_named(cascade: Cascade, monkeypatch: pytest.MonkeyPatch, reason: Reason) -> None:
    answering(monkeypatch, reason, "what happened")
    found = cascade.alone(0, Standing(cascade.targets(0)))
    assert found.verdict == OPEN and found.trouble is not None
    assert (found.trouble.reason, found.trouble.detail) == (reason, "what happened")


def test_an_interrupted_example_is_no_answer(cascade: Cascade, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, Reason.INTERRUPTED)
    with pytest.raises(KeyboardInterrupt):
        cascade.alone(0, Standing(cascade.targets(0)))


def test_time_that_is_up_is_told(cascade: Cascade) -> None:
    found = asked(cascade, time_limit_s=1e-9).batched(range(3), steps=BATCHED)
    assert all(s.verdict == OPEN and s.why is Reason.TIME_LIMIT for s in found.values())
