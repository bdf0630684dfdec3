"""Records and shares of an evaluation: consistent with each other, with exact distances, and with what went wrong."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from certify.evaluation import cascade as cascade_module
from certify.evaluation import evaluate as module
from certify.evaluation.asked import METHODS, Asked
from certify.evaluation.cascade import VERIFIED, Cascade, Standing, Trouble
from certify.evaluation.evaluate import Evaluator, evaluate, evaluate_data
from certify.evaluation.records import as_facts, is_final, summary, table, wilson
from tests.certify.evaluation.cases import CNN, data_of, distance, half_plane, noisy_digits
from tests.verifier.models import save_network
from verifier.network import Network
from verifier.problem import Problem
from verifier.verdict import Reason

CLIP = (0.0, 1.0)
POINTS = np.array([[0.6, 0.6], [0.68, 0.7], [0.9, 0.8], [0.55, 0.5], [0.95, 0.95], [0.4, 0.4], [0.5, 0.5]], np.float32)
LABELS = np.zeros(7, np.int64)


@pytest.fixture
def net(tmp_path: Path) -> Path:
    return half_plane(tmp_path / "net.onnx")


# ---------------------------------------------------------------------- answers


@pytest.mark.parametrize(("x", "y", "words"), [
    (POINTS, LABELS + 2, "out of range"), (POINTS[:, :1], LABELS, "shape"), (POINTS, LABELS[:3], "one label an input"),
    (POINTS * np.nan, LABELS, "NaN"), (POINTS, LABELS + 0.5, "integer labels"), (POINTS, LABELS - 1, "out of range")])
def test_arrays_that_do_not_fit_are_refused(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], words: str, net: Path
                                            ) -> None:
    with pytest.raises(ValueError, match=words):
        evaluate(net, (x, y), eps=0.1)


@pytest.mark.parametrize("norm", [math.inf, 2.0, 1.0])
def test_shares_are_those_of_the_exact_distances(net: Path, norm: float) -> None:
    found = evaluate(net, (POINTS, LABELS), eps=0.2, norm=norm, clip=CLIP, attacks=("fgsm", "pgd-10"))
    clean = POINTS.astype(np.float64).sum(1) > 1  # the last is a tie: another rule for ties may change its label
    stands = clean & (distance(POINTS, norm) > 0.2)
    assert [r["clean"] for r in found.records] == clean.tolist()
    for name in ("certified", "attacked", "fgsm", "pgd-10"):
        assert [r[name] for r in found.records] == stands.tolist(), name
    total = found.summary
    assert (total["clean"], total["attacked"], total["certified"]) == (clean.mean(), stands.mean(), stands.mean())
    assert total["counts"]["misclassified"] == 2 and total["counts"]["counterexample"] == clean.sum() - stands.sum()
    assert total["evidence"] == "rounded" and total["claim"] == "real" and total["undecided"] == total["trouble"] == 0
    assert all((r["evidence"] == "rounded") == r["certified"] == (r["reason"] is None) for r in found.records)
    assert all(r["lower"] > 0 for r in found.records if r["certified"])


def test_certified_is_at_most_attacked_is_at_most_clean() -> None:
    x, y = noisy_digits(18)
    found = evaluate(CNN, (x, y), eps=0.07, clip=CLIP, method="batched", attacks=("fgsm", "pgd-20", "cw-inf"))
    for r in found.records:
        attacks = [r[name] for name in ("fgsm", "pgd-20", "cw-inf")]
        assert r["certified"] <= r["attacked"] <= min(attacks) <= max(attacks) <= r["clean"]
    shares = found.summary
    assert 0 < shares["certified"] <= shares["attacked"] < shares["clean"] < 1
    assert shares["counts"]["misclassified"] >= 1 and shares["count"] == 18


def test_counterexamples_are_kept_and_stand(net: Path) -> None:
    network, data = Network.read(net), data_of(POINTS, LABELS, first=10)
    for attacks in (("pgd-10",), ()):
        asked = Asked(0.2, clip=CLIP, attacks=attacks)
        found = [f for piece in evaluate_data(network, data, asked) for f in piece.finished]
        fell = [(r, x) for r, x in found if r["reason"] == "counterexample"]
        assert [r["index"] for r, _ in fell] == [10, 11, 13]
        for record, x in fell:
            assert x is not None and np.abs(x - POINTS[record["index"] - 10]).max() <= 0.2 + 1e-6
            scores = network.replayer.run(x[None])[0]
            assert scores[0] <= scores[1] and record["by"] == (attacks or ("pgd",))[0]
        assert all(x is None for r, x in found if r["certified"])


def test_columns_do_not_depend_on_each_other() -> None:
    x, y = noisy_digits(12)
    both = evaluate(CNN, (x, y), eps=0.08, clip=CLIP, method="none", attacks=("fgsm", "pgd-10"))
    for name in ("fgsm", "pgd-10"):
        alone = evaluate(CNN, (x, y), eps=0.08, clip=CLIP, method="none", attacks=(name,))
        assert [r[name] for r in alone.records] == [r[name] for r in both.records]
    assert both.summary["certified"] is None and all(r["certified"] is None for r in both.records)
    assert 0 < both.summary["attacks"]["pgd-10"] <= both.summary["attacks"]["fgsm"] < 1


@pytest.mark.parametrize(("method", "attacks", "attacked"), [
    ("none", (), None), ("crown", (), None), ("crown", ("fgsm",), False), ("batched", (), False)])
def test_attacked_is_said_where_something_searched(net: Path, method: str, attacks: tuple[str, ...],
                                                   attacked: bool | None) -> None:
    found = evaluate(net, (POINTS[:1], LABELS[:1]), eps=0.2, clip=CLIP, method=method, attacks=attacks)
    assert found.records[0]["attacked"] is attacked
    assert found.records[0]["reason"] == (None if method == "none" else "incomplete" if attacked is None
                                          else "counterexample")
    wrong = evaluate(net, (POINTS[5:6], LABELS[:1]), eps=0.2, clip=CLIP, method=method, attacks=attacks)
    assert wrong.records[0]["attacked"] is False and wrong.records[0]["reason"] == "misclassified"


def test_transferred_examples_come_from_the_surrogate(net: Path, tmp_path: Path) -> None:
    """Those of the same network fell it as its own do; of one that is steered by another direction they do not."""
    other = tmp_path / "other.onnx"  # class 0 where x_0 - x_1 > -1: its examples leave the sum as it is
    save_network(other, [(np.array([[1.0, -1.0], [-1.0, 1.0]]), np.array([1.0, -1.0])),
                         (np.array([[1.0, -1.0], [0.0, 0.0]]), np.zeros(2))])
    own, same, foreign = (evaluate(net, (POINTS, LABELS), eps=0.2, clip=CLIP, method="none", **q)
                          for q in ({"attacks": ("pgd-20",)}, {"attacks": (), "surrogate": str(net)},
                                    {"attacks": (), "surrogate": str(other)}))
    assert [r["transfer"] for r in same.records] == [r["pgd-20"] for r in own.records]
    assert sum(r["transfer"] for r in foreign.records) > sum(r["transfer"] for r in same.records)
    assert "transfer" in same.summary["attacks"] and same.summary["attacked"] == same.summary["attacks"]["transfer"]


def test_a_surrogate_may_be_attacked_in_other_ways(net: Path) -> None:
    """With itself as surrogate a network falls to what fells it anyhow, and columns are named by the attack."""
    found = evaluate(net, (POINTS, LABELS), eps=0.2, clip=CLIP, method="none", surrogate=str(net),
                     attacks=("fgsm", "transfer-fgsm", "transfer-pgd-20"))
    assert list(found.summary["attacks"]) == ["fgsm", "transfer-fgsm", "transfer-pgd-20", "transfer"]
    assert [r["transfer-fgsm"] for r in found.records] == [r["fgsm"] for r in found.records]
    assert [r["transfer-pgd-20"] for r in found.records] == [r["transfer"] for r in found.records]


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("none", "milp")])
def test_every_method_certifies(net: Path, method: str) -> None:
    found = evaluate(net, (POINTS[4:5], LABELS[:1]), eps=0.05, clip=CLIP, method=method, attacks=())
    assert found.records[0]["certified"] and found.records[0]["by"] == "ibp"


# ---------------------------------------------------------------------- what goes wrong


def pretending(monkeypatch: pytest.MonkeyPatch, **standing: Any) -> None:
    """Let the cascade say this of every example."""
    monkeypatch.setattr(Cascade, "batched", lambda cascade, places, **_: {
        p: Standing([], **standing) for p in places})


def test_a_contradiction_is_named_and_counts_as_neither(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretending(monkeypatch, verdict=VERIFIED, by="crown", lower=1.0)
    found = evaluate(net, (POINTS[:1], LABELS[:1]), eps=0.2, clip=CLIP)
    (record,) = found.records
    assert (record["reason"], record["certified"], record["attacked"]) == ("contradiction", False, False)
    assert record["by"] == "pgd-20" and "certified by crown (rounded)" in record["detail"]
    assert found.summary["counts"]["contradiction"] == 1 and found.summary["evidence"] is None


def test_a_point_that_float32_alone_has_is_no_contradiction_but_no_certificate(net: Path,
                                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    pretending(monkeypatch, verdict=VERIFIED, by="crown", lower=1.0)
    monkeypatch.setattr(Problem, "confirm", lambda problem, x: None)
    found = evaluate(net, (POINTS[:1], LABELS[:1]), eps=0.2, clip=CLIP)
    (record,) = found.records
    assert (record["reason"], record["certified"], record["attacked"]) == ("float32 only", False, False)


@pytest.mark.parametrize("reason", [Reason.MEMORY, Reason.NUMERICAL, Reason.UNSUPPORTED, Reason.ERROR])
def test_trouble_is_counted_apart_from_what_is_undecided(net: Path, monkeypatch: pytest.MonkeyPatch, reason: Reason
                                                         ) -> None:
    def batched(cascade: Cascade, places: Any, **_: Any) -> dict[int, Standing]:
        trouble = Trouble(reason, "what happened")
        return {p: Standing([1], trouble=trouble if p < 1 else None, why=Reason.TIME_LIMIT) for p in places}
    monkeypatch.setattr(Cascade, "batched", batched)
    found = evaluate(net, (POINTS[1:5], LABELS[1:5]), eps=0.01, clip=CLIP, method="batched")
    total = found.summary
    assert (total["trouble"], total["undecided"], total["certified"], total["attacked"]) == (1, 3, 0, 1)
    assert total["counts"][reason.value] == 1 and total["counts"]["time limit"] == 3
    assert (found.records[0]["reason"], found.records[0]["detail"]) == (reason.value, "what happened")


def test_a_limit_that_is_too_short_leaves_examples_undecided() -> None:
    x, y = noisy_digits(6)
    found = evaluate(CNN, (x, y), eps=0.07, clip=CLIP, time_limit_s=1e-9, attacks=(), method="batched")
    assert {r["reason"] for r in found.records} <= {"time limit", "misclassified"}
    assert found.summary["undecided"] >= 5 and found.summary["certified"] == 0


def test_attacks_that_the_original_file_does_not_confirm_do_not_count(net: Path, monkeypatch: pytest.MonkeyPatch
                                                                      ) -> None:
    from verifier import attack_data
    confirmed = attack_data.confirmed

    def refused(*arguments: Any) -> Any:
        x, success, distance = confirmed(*arguments)
        return x, torch.zeros_like(success), distance
    monkeypatch.setattr(attack_data, "confirmed", refused)
    worker = Evaluator(Network.read(net), data_of(POINTS[:2], LABELS[:2]), Asked(0.2, clip=CLIP, method="none"))
    piece = worker.piece([0, 1])
    assert [r["pgd-20"] for r, _ in piece.finished] == [True, True]
    assert piece.notes == ["pgd-20: 2 successes not confirmed by onnxruntime"]


def test_near_margins_are_evaluated_alone(net: Path) -> None:
    """At a tie within rounding the file itself is asked, one point at a time."""
    from certify.evaluation.attacks import clean_places
    from verifier.attacks.model import OnnxModel
    network = Network.read(net)
    asked: list[int] = []
    original = OnnxModel(network.replayer, (2,))
    run = network.replayer.run

    def watched(x: Any) -> Any:
        asked.append(len(x))
        return run(x)
    object.__setattr__(network.replayer, "run", watched)
    x = np.array([[0.9, 0.9], [0.5, 0.5], [0.5, 0.50001], [0.1, 0.1]], np.float32)
    assert clean_places(original, data_of(x, np.zeros(4, int)), [0, 1, 2, 3]) == {0, 2}
    assert asked[-2:] == [1, 1]


# ---------------------------------------------------------------------- shares


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (3, 10), (9562, 10_000), (10, 10), (1, 1)])
def test_intervals_are_wilsons(hits: int, count: int) -> None:
    expected = stats.binomtest(hits, count).proportion_ci(0.95, "wilson")
    assert wilson(hits, count) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert wilson(0, 0) is None


def test_a_summary_of_nothing_says_so() -> None:
    asked = Asked(0.1)
    total = summary([], asked.columns, as_facts(asked))
    assert (total["count"], total["clean"], total["certified"], total["evidence"]) == (0, None, None, None)
    assert table(total)[1].split() == ["clean", "-"]


@pytest.mark.parametrize("done", [1, 5, 20])
def test_a_part_of_a_run_bounds_the_whole_of_it(done: int) -> None:
    """Whichever examples come first: here those that fall, as in a run whose hard ones are still open."""
    records = [{"clean": i > 2, "pgd-20": i > 4, "attacked": i > 6, "certified": i > 14, "evidence": "float",
                "by": "crown", "reason": None} for i in range(20)]
    whole, part = (summary(records[:n], ("pgd-20",), as_facts(Asked(0.1)), 20 - n) for n in (20, done))
    assert part["certified"] <= whole["certified"] == 0.25
    assert part["clean"] >= whole["clean"] and part["attacks"]["pgd-20"] >= whole["attacks"]["pgd-20"]
    assert part["attacked"] >= whole["attacked"] == 0.65 and part["counts"]["attacked"] == 20 * part["attacked"]
    assert (part["count"], part["left"]) == (done, 20 - done)
    if done < 20:
        assert set(part["intervals"].values()) == {None}, "what is done is no random part"
        assert [line.split()[-2:] for line in table(part)[1:]] == [["at", "most"]] * 3 + [["at", "least"]]
        assert "interval" not in table(part)[0] and all("of    20" in line for line in table(part)[1:])


def test_the_least_evidence_counts() -> None:
    def record(evidence: str | None) -> dict[str, Any]:
        certified = evidence is not None
        return {"clean": True, "attacked": True, "certified": certified, "evidence": evidence, "by": "crown",
                "reason": None if certified else "time limit"}
    total = summary([record("rounded"), record("float"), record(None)], (), as_facts(Asked(0.1)))
    assert total["evidence"] == "float" and total["certified"] == pytest.approx(2 / 3) and total["by"] == {"crown": 2}


@pytest.mark.parametrize(("reason", "limit", "final"), [
    (None, 1.0, True), ("counterexample", 1.0, True), ("misclassified", 1.0, True), ("contradiction", 1.0, True),
    ("time limit", 1.0, False), ("memory", 1.0, False), ("time limit", 10.0, True), ("error", 20.0, True)])
def test_what_stayed_open_for_less_time_is_asked_again(reason: str | None, limit: float, final: bool) -> None:
    assert is_final({"reason": reason, "time_limit_s": limit}, 10.0) is final


@pytest.mark.parametrize(("wrong", "said"), [
    ({"eps": -1.0}, "eps must be"), ({"eps": math.nan}, "eps must be"), ({"norm": 0.0}, "norm must be"),
    ({"method": "magic"}, "method must be"), ({"time_limit_s": 0.0}, "time limit"), ({"claim": "int8"}, "claim"),
    ({"attacks": ("pgd-0",)}, "attacks are pgd-N"), ({"attacks": ("uap",)}, "attacks are pgd-N"),
    ({"attacks": ("cw-inf",), "norm": 2.0}, "works in the norms inf"), ({"attacks": ("fgsm", "fgsm")}, "once each"),
    ({"claim": "float32", "method": "milp"}, "milp knows nothing"), ({"norm": 2.0, "method": "milp"}, "quadratic"),
    ({"attacks": ("transfer-fgsm",)}, "needs a surrogate"), ({"attacks": ("transfer-uap",)}, "attacks are pgd-N"),
    ({"attacks": ("transfer-fab",), "surrogate": "net.onnx"}, "white box, inside eps"),
    ({"claim": "float32", "evidence": "float"}, "leave out"), ({"evidence": "checked"}, "evidence must be")])
def test_bad_questions_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Asked(**{"eps": 0.1, **wrong})


def test_inputs_outside_the_range_are_refused_before_any_work(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "answers", lambda *_, **__: pytest.fail("work began"))
    with pytest.raises(ValueError, match=r"input 1 has entries from 0\.7 to 1\.5, outside the clip range"):
        evaluate(net, (np.array([[0.5, 0.6], [1.5, 0.7]]), LABELS[:2]), eps=0.1, clip=CLIP)


def test_a_range_may_end_between_two_float32(net: Path) -> None:
    """Inputs that reach it lie at the last number inside, with counterexamples inside as well."""
    low, high = -0.1, float(np.nextafter(float(np.float32(0.7)), 0))
    assert float(np.float32(low)) < low and float(np.float32(high)) > high
    x = np.array([[0.7, 0.7], [0.7, 0.35]], np.float32)
    found = evaluate(net, (x, LABELS[:2]), eps=0.1, clip=(low, high), attacks=("fgsm",))
    assert [r["certified"] for r in found.records] == [True, False]
    assert data_of(x, LABELS[:2]).within((low, high)).x.max() == np.nextafter(np.float32(0.7), np.float32(0))
    with pytest.raises(ValueError, match=r"input 0 has entries from 0\.7 to 0\.7, outside"):
        data_of(x, LABELS[:2]).within((0.0, float(np.nextafter(np.float32(0.7), np.float32(0)))))
    with pytest.raises(ValueError, match="outside the clip range"):
        data_of(np.full((1, 2), 0.1, np.float32), LABELS[:1]).within((0.1, 0.1))


def test_of_a_file_with_a_test_part_that_is_evaluated_in_its_range(net: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", x=POINTS[::-1], y=LABELS, x_test=POINTS[:3], y_test=LABELS[:3],
             clip=np.array([0.0, 0.9]))
    found = evaluate(net, tmp_path / "own.npz", eps=0.2, attacks=())
    same = evaluate(net, (POINTS[:3], LABELS[:3]), eps=0.2, attacks=(), clip=(0.0, 0.9))
    assert [r["certified"] for r in found.records] == [r["certified"] for r in same.records]
    assert found.summary["clip"] == [0.0, 0.9] and found.summary["count"] == 3
    assert evaluate(net, tmp_path / "own.npz", eps=0.2, attacks=(), clip=None).summary["clip"] is None


def test_the_door_is_the_package() -> None:
    import certify
    assert certify.evaluate is evaluate and "evaluate" in certify.__all__
    with pytest.raises(AttributeError, match="no attribute"):
        _ = certify.nothing
    assert cascade_module.BOUNDS["crown"].keep
