"""The study of certified defence: what the quick mode measures, least margins against oracles, verdicts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.studies.certified import (
    ERRORS,
    FOLLOWED,
    NAMES,
    STUDY,
    check,
    in_order,
    judge,
    loose_ends,
    looseness,
    measure,
    tight,
    upto,
)
from benchmarks.studies.study import NOT_SEEN, PARTLY, SEEN, Context, perform
from certify.data.dataset import Examples, TrainingData
from verifier.panels import save

QUIET = Context(lambda text: None)
ATOL = 2e-5  # of a solver's margins


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("certified")
    perform(STUDY, "quick", out, QUIET)
    return out


@pytest.fixture(scope="module")
def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "certified.json").read_text())
    return found


# ---------------------------------------------------------------------- the quick mode


def test_record_and_figures_are_there(folder: Path, record: dict[str, Any]) -> None:
    assert set(record["figures"]) == {f"certified-{end}.png" for end in ("errors", "cascade", "tightness")}
    for file in record["figures"]:
        assert 5_000 < (folder / file).stat().st_size < 150_000
    assert (folder / "certified.json").stat().st_size < 300_000
    assert len(record["verdicts"]) == 6 and all("Rule: " in verdict["why"] for verdict in record["verdicts"])


def test_every_training_has_its_errors_in_order(record: dict[str, Any]) -> None:
    rows = record["numbers"]["networks"]
    assert [row["training"] for row in rows] == list(NAMES)
    for row in rows:
        assert all(0 <= row[key] <= 1 for key in ERRORS)
        assert row["clean"] <= min(row["fgsm"], row["pgd"]) and max(row["fgsm"], row["pgd"]) <= row["attacked"]
        assert row["attacked"] <= min(row["search"], row["crown"], row["dual"]) and row["clashes"] == 0


def test_a_cascade_of_one_network_is_that_network(record: dict[str, Any]) -> None:
    numbers = record["numbers"]
    for row in numbers["cascades"]:
        if row["networks"] == 1:
            (network,) = (n for n in numbers["networks"] if n["training"] == row["training"])
            assert row["certified"] == pytest.approx(network["dual"]) and row["broken"] == 0
            assert row["clean"] == pytest.approx(network["clean"])


def test_a_cascade_certifies_what_its_first_networks_certify_or_another_label(record: dict[str, Any]) -> None:
    """Each stage answers images that those before it left: an answer is never taken back."""
    for name in ("exact", "projected"):
        errors = [row["certified"] for row in record["numbers"]["cascades"] if row["training"] == name]
        assert errors == sorted(errors, reverse=True)


def test_bounds_lie_below_the_least_margins_and_those_below_the_margins(record: dict[str, Any]) -> None:
    rows = record["numbers"]["tightness"]
    assert {(row["training"], row["epoch"]) for row in rows} == {
        (name, epoch) for name in FOLLOWED for epoch in (1, 2, 3, 4)}
    for row in rows:
        keys = ("margin", "least_lower", "least_upper", "dual", "crown")
        for margin, low, high, *bounds in zip(*(row[k] for k in keys), strict=True):
            assert max(bounds) <= low + ATOL and low <= high <= margin + ATOL
        assert 0 <= row["unstable"] <= 1 and looseness(row, "dual") >= 1 - ATOL


@pytest.mark.parametrize(("key", "value", "words"), [
    ("tight_eps", 0.5, "one of eps"), ("looks", [1, 4], "3 different epochs"), ("looks", [0, 2, 3, 4], "from 1 on"),
    ("looks", [2, 4, 5, 6, 7], "3 different epochs"), ("seeds", [], "one or more"), ("seeds", [0, 0], "different"),
    ("eps", [], "one or more"), ("cascade", 1, "two networks"), ("sample", 0, "from 1 on"),
    ("exact_s", 0, "above zero"), ("model", "wk-small", "")])
def test_settings_without_verdicts_are_refused_before_measuring(key: str, value: Any, words: str) -> None:
    settings = {**STUDY.modes["quick"], key: value, **({"widths": [3]} if key == "model" else {})}
    with pytest.raises(SystemExit, match=f"--set .*{words}"):
        measure(settings, Context(lambda text: pytest.fail("it measured")))


@pytest.mark.parametrize("mode", STUDY.modes)
def test_settings_of_every_mode_are_accepted(mode: str) -> None:
    check(STUDY.modes[mode])


# ---------------------------------------------------------------------- least margins against oracles


def data_of(x: torch.Tensor, y: torch.Tensor, classes: int) -> TrainingData:
    return TrainingData("own", Examples(x, y), Examples(x, y), classes, clip=None)


def test_where_no_relu_is_undecided_every_bound_is_exact() -> None:
    """relu(W x + 100) is affine over the ball: the least margin is the margin less eps times an l_1 norm."""
    generator = torch.Generator().manual_seed(0)
    first, last = nn.Linear(4, 6), nn.Linear(6, 3)
    for p in (*first.parameters(), *last.parameters()):
        p.data = torch.randn(p.shape, generator=generator)
    first.bias.data += 100
    x, y = torch.rand(5, 4, generator=generator), torch.tensor([0, 1, 2, 0, 1])
    eps = 0.1
    W = (last.weight @ first.weight).double().detach()
    logits = x.double() @ W.T + (last.weight.double() @ first.bias.double() + last.bias.double()).detach()
    wanted = []
    for k, label in enumerate(y.tolist()):
        wanted.append(min(float(logits[k, label] - logits[k, j] - eps * (W[label] - W[j]).abs().sum())
                          for j in range(3) if j != label))
    row = tight(nn.Sequential(first, nn.ReLU(), last), Examples(x, y), eps, data_of(x, y, 3), 10.0)
    for key in ("least_lower", "least_upper", "dual", "crown"):
        assert row[key] == pytest.approx(wanted, abs=1e-3), key  # sums of hundreds, in float32
    assert row["unstable"] == 0 and looseness(row, "dual") == pytest.approx(1, abs=1e-3)


def test_least_margins_are_those_of_a_fine_grid() -> None:
    generator = torch.Generator().manual_seed(1)
    module = nn.Sequential(nn.Linear(2, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
    for p in module.parameters():
        p.data = torch.randn(p.shape, generator=generator)
    x, y = torch.rand(4, 2, generator=generator), torch.tensor([0, 1, 2, 0])
    eps = 0.3
    steps = torch.linspace(-eps, eps, 201, dtype=torch.float64)
    grid = torch.cartesian_prod(steps, steps)
    wanted = []
    with torch.no_grad():
        wide = module.double()
        for k, label in enumerate(y.tolist()):
            logits = wide(x[k].double() + grid)
            others = [j for j in range(3) if j != label]
            wanted.append(float((logits[:, [label]] - logits[:, others]).min()))
    row = tight(module, Examples(x, y), eps, data_of(x, y, 3), 30.0)
    for low, high, seen, *bounds in zip(row["least_lower"], row["least_upper"], wanted, row["dual"], row["crown"],
                                        strict=True):
        assert high - low < 1e-3
        assert seen - 0.2 <= low <= seen + ATOL and max(bounds) <= low + ATOL
    assert looseness(row, "dual") > 1.01, "this network has undecided ReLUs"


def test_without_time_the_least_margin_seen_is_what_an_attack_finds() -> None:
    """Nothing above the margin at the image itself, which would say that bounds are infinitely loose."""
    generator = torch.Generator().manual_seed(2)
    module = nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 4))
    for p in module.parameters():
        p.data = torch.randn(p.shape, generator=generator)
    x = torch.rand(5, 6, generator=generator)
    y = module(x).argmax(1)
    hasty, whole = (tight(module, Examples(x, y), 0.2, data_of(x, y, 4), limit_s) for limit_s in (1e-9, 30.0))
    for at, low, high, crown, least in zip(hasty["margin"], hasty["least_lower"], hasty["least_upper"], hasty["crown"],
                                           whole["least_upper"], strict=True):
        assert crown - ATOL <= low <= least + ATOL and least - ATOL <= high < at
    assert 1 < looseness(whole, "crown") - ATOL <= looseness(hasty, "crown") < math.inf


def test_a_look_without_a_looseness_is_drawn_as_a_gap(tmp_path: Path) -> None:
    numbers = given()
    for row in numbers["tightness"]:
        if row["epoch"] == 1:
            row["least_upper"] = row["margin"]
    assert math.isinf(looseness(numbers["tightness"][0], "dual"))
    for drawing in STUDY.draw(numbers, SETTINGS).values():
        save(drawing.figure, tmp_path / "drawn.png")


# ---------------------------------------------------------------------- verdicts of given numbers


SETTINGS = {**STUDY.modes["default"], "eps": [0.1], "tight_eps": 0.1, "cascade": 2, "seeds": [0, 1, 2], "epochs": 9}
GAPS = {"standard": 0.6, "pgd": 0.3, "exact": 0.04, "projected": 0.04}
LOOSE = {1: 2.0, 3: 1.4, 6: 1.2, 9: 1.1}  # at the full radius from epoch 3 on


def given() -> dict[str, Any]:
    """Numbers of which every claim is seen: three seeds, whose values differ by a little."""
    networks, cascades, tightness = [], [], []
    for seed in range(3):
        for name, gap in GAPS.items():
            which = {"training": name, "eps": 0.1, "seed": seed}
            pgd = 0.10 + 0.01 * seed
            dual = pgd + gap + 0.001 * seed
            networks.append({**which, "clean": 0.02, "fgsm": 0.08, "pgd": pgd, "attacked": pgd, "search": pgd,
                             "crown": dual, "dual": dual, "clashes": 0, "undecided": 0, "train_s": 1.0})
            if name in ("exact", "projected"):
                cascades += [{**which, "networks": count, "clean": 0.02, "certified": certified, "attacked": 0.1,
                              "broken": 0, "answered": 3, "train_s": 1.0}
                             for count, certified in ((1, 0.20 + 0.01 * seed), (2, 0.15 + 0.011 * seed))]
            if name in FOLLOWED:
                tightness += [look_of(which, epoch, loose if name == "exact" else 3.0 + 0.1 * seed)
                              for epoch, loose in LOOSE.items()]
    return {"networks": networks, "cascades": cascades, "tightness": tightness, "test": 100, "training": 1000}


def look_of(which: dict[str, Any], epoch: int, loose: float) -> dict[str, Any]:
    return {**which, "epoch": epoch, "margin": [2.0], "least_lower": [1.0], "least_upper": [1.0], "dual": [2 - loose],
            "crown": [2 - loose], "unstable": 0.1}


def outcomes(numbers: dict[str, Any]) -> list[str]:
    return [verdict.outcome for verdict in judge(numbers, SETTINGS)]


def test_numbers_that_bear_out_every_claim() -> None:
    assert outcomes(given()) == [SEEN] * 6


def change(rows: list[dict[str, Any]], key: str, value: Any, **which: Any) -> None:
    for row in rows:
        if all(row[k] == v for k, v in which.items()):
            row[key] = value


def test_one_certified_image_that_fell_refutes_the_upper_bound() -> None:
    numbers = given()
    change(numbers["networks"], "clashes", 1, training="pgd", seed=2)
    assert outcomes(numbers) == [NOT_SEEN, *[SEEN] * 5]
    why = judge(numbers, SETTINGS)[0].why
    assert "1 images did" in why and "contradict the claim" in why


def test_bounds_that_certify_nothing_show_nothing() -> None:
    numbers = given()
    for key in ("dual", "crown", "search"):
        change(numbers["networks"], key, 1.0)
    verdict = judge(numbers, SETTINGS)[0]
    assert verdict.outcome == NOT_SEEN and "could not have shown" in verdict.why


def gaps_of(**points: float) -> dict[str, Any]:
    numbers = given()
    for row in numbers["networks"]:
        row["dual"] = row["pgd"] + (points.get(row["training"], 0.0) + 0.1 * row["seed"]) / 100
    return numbers


@pytest.mark.parametrize(("points", "expected", "words"), [
    ({"exact": 1, "pgd": 20, "standard": 30}, SEEN, "show 2"),
    ({"exact": 40, "pgd": 41, "standard": 41}, NOT_SEEN, "show 0, contradict 2"),  # neither is closed
    ({"exact": 1, "pgd": 2, "standard": 2}, NOT_SEEN, "show 0, contradict 2"),  # nothing there to close
    ({"exact": 1, "pgd": 2, "standard": 20}, PARTLY, "show 1, contradict 1"),
    ({"exact": 1, "pgd": 4.9, "standard": 4.9}, NOT_SEEN, "leave 2 open")])
def test_a_gap_must_be_closed_and_wide_for_others(points: dict[str, float], expected: str, words: str) -> None:
    verdict = judge(gaps_of(**points), SETTINGS)[1]
    assert verdict.outcome == expected and words in verdict.why


def courses(numbers: dict[str, Any], loose: list[list[float]]) -> dict[str, Any]:
    """Other looseness of training on the bound, by seed and look."""
    rows = [row for row in numbers["tightness"] if row["training"] != "exact"]
    rows += [look_of({"training": "exact", "eps": 0.1, "seed": seed}, epoch, value)
             for seed, values in enumerate(loose) for epoch, value in zip(LOOSE, values, strict=True)]
    return {**numbers, "tightness": rows}


def test_a_fall_before_the_radius_is_full_is_none() -> None:
    """Every training loses looseness in the first epochs."""
    numbers = courses(given(), [[2.0, 1.1, 1.12, 1.14], [2.0, 1.1, 1.12, 1.14], [2.0, 1.1, 1.12, 1.14]])
    verdict = judge(numbers, SETTINGS)[2]
    assert verdict.outcome == PARTLY and "show 2, contradict 2" in verdict.why
    numbers = courses(given(), [[2.0, 1.1, 1.12, 1.14], [2.0, 1.14, 1.12, 1.1], [2.0, 1.1, 1.12, 1.14]])
    assert "show 2, leave 2 open" in judge(numbers, SETTINGS)[2].why


def test_bounds_must_end_tighter_than_those_of_networks_with_the_same_seed() -> None:
    numbers = given()
    for name in ("standard", "pgd"):
        for row in numbers["tightness"]:
            if row["training"] == name and row["epoch"] == 9:
                row["dual"] = [2 - (1.0 + 0.01 * row["seed"])]
    verdict = judge(numbers, SETTINGS)[2]
    assert verdict.outcome == PARTLY and "show 2, contradict 2" in verdict.why
    numbers = courses(numbers, [[1.1, 1.1, 1.2, 1.3]] * 3)
    assert judge(numbers, SETTINGS)[2].outcome == NOT_SEEN


def test_with_margins_not_known_only_what_holds_wherever_they_lie_is_said() -> None:
    numbers = given()
    verdict = judge(numbers, SETTINGS)[2]
    assert verdict.outcome == SEEN and "All 36 least margins" in verdict.why and "show 4" in verdict.why
    change(numbers["tightness"], "least_upper", [1.6], training="exact", epoch=9)  # looseness between 1.1 and 2.75
    verdict = judge(numbers, SETTINGS)[2]
    assert verdict.outcome == PARTLY and "33 of 36 least margins" in verdict.why
    assert "show 2, leave 2 open" in verdict.why, "others end looser than 2.75, but the fall is not known"
    change(numbers["tightness"], "least_upper", [1.8], training="exact", epoch=9)  # between 1.1 and 5.5
    verdict = judge(numbers, SETTINGS)[2]
    assert verdict.outcome == NOT_SEEN and "show 0, leave 4 open" in verdict.why
    assert "something between -2.40 [" in verdict.why and "the order is known of 0 of 3 seeds" in verdict.why


def test_what_is_worse_wherever_margins_lie_is_contradicted() -> None:
    numbers = courses(given(), [[2.0, 4.1, 4.2, 4.3]] * 3)
    change(numbers["tightness"], "least_upper", [1.05], epoch=9)
    assert "show 0, contradict 4" in judge(numbers, SETTINGS)[2].why


def test_overlapping_looks_have_no_order() -> None:
    def of(*ends: tuple[float, float]) -> list[dict[str, Any]]:
        """Looks whose looseness lies between two ends."""
        return [{"margin": [1.0], "least_upper": [1 - 1 / high], "least_lower": [1 - 1 / low], "dual": [0.0]}
                for low, high in ends]
    assert loose_ends(*of((2, 3)), "dual") == pytest.approx((2, 3))
    assert in_order(of((2, 3), (4, 5), (1.5, 1.9)), "dual")
    assert not in_order(of((2, 3), (4, 5), (1.5, 2.1)), "dual")
    assert not in_order(of((2, 5), (3, 3)), "dual"), "one inside the other"
    assert in_order(of((2, 2), (2, 2), (3, 3)), "dual"), "equal ones are known to be so"
    assert not in_order(of((2, 3), (2, 3)), "dual")


def test_a_drop_of_nothing_is_exact_or_without_end() -> None:
    flat = look_of({}, 1, 0.0) | {"least_lower": [2.0], "least_upper": [2.0]}
    assert looseness(flat, "dual") == 1
    assert looseness(flat | {"dual": [1.5]}, "dual") == math.inf
    numbers = given()
    change(numbers["tightness"], "least_lower", [2.0], training="exact")
    change(numbers["tightness"], "least_upper", [2.0], training="exact")
    verdict = judge(numbers, SETTINGS)[2]
    assert verdict.outcome == NOT_SEEN and "without end" in verdict.why and "inf" not in verdict.why


def test_a_cascade_must_help_beyond_the_spread_of_seeds() -> None:
    numbers = given()
    change(numbers["cascades"], "certified", 0.30, training="exact", networks=2, seed=0)
    verdict = judge(numbers, SETTINGS)[3]
    assert verdict.outcome == PARTLY and "show 1, leave 1 open" in verdict.why
    change(numbers["cascades"], "certified", 0.30, training="projected", networks=2)
    assert outcomes(numbers)[3] == NOT_SEEN


def test_one_certified_image_that_falls_refutes_a_cascade() -> None:
    numbers = given()
    assert "a later one answers" not in judge(numbers, SETTINGS)[4].why, "no such point was found"
    change(numbers["cascades"], "broken", 7, networks=2, seed=1)
    assert outcomes(numbers) == [*[SEEN] * 4, NOT_SEEN, SEEN]
    why = judge(numbers, SETTINGS)[4].why
    assert "up to 7 of 100 images" in why and "contradict the claim" in why and "a later one answers" in why


def test_cascades_that_ended_after_one_network_show_nothing() -> None:
    numbers = given()
    numbers["cascades"] = [row for row in numbers["cascades"] if row["networks"] == 1]
    verdicts = judge(numbers, SETTINGS)
    assert verdicts[4].outcome == NOT_SEEN and "could not have shown" in verdicts[4].why
    assert verdicts[3].outcome == NOT_SEEN and "contradict 2" in verdicts[3].why


def test_one_seed_has_no_spread_and_shows_no_difference() -> None:
    numbers = given()
    for key in ("networks", "cascades", "tightness"):
        numbers[key] = [row for row in numbers[key] if row["seed"] == 0]
    settings = {**SETTINGS, "seeds": [0]}
    verdicts = judge(numbers, settings)
    assert [v.outcome for v in verdicts] == [SEEN, NOT_SEEN, NOT_SEEN, NOT_SEEN, SEEN, NOT_SEEN]
    for verdict in verdicts:
        assert "inf" not in verdict.why and "nan" not in verdict.why and "1 seeds" not in verdict.why
    for k in (1, 2, 3, 5):
        assert "could not have shown" in verdicts[k].why and "of one value" in verdicts[k].why
    assert "(of one seed)" in STUDY.table(numbers, settings)


@pytest.mark.parametrize(("factor", "expected", "words"), [
    (1.24, NOT_SEEN, "contradict the claim"), (1.02, SEEN, "rule is met"), (0.7, NOT_SEEN, "contradict the claim")])
def test_projections_far_from_exact_are_not_close(factor: float, expected: str, words: str) -> None:
    numbers = given()
    for row in numbers["networks"]:
        if row["training"] in ("exact", "projected"):
            row["dual"] = (0.2 + 0.001 * row["seed"]) * (factor if row["training"] == "projected" else 1)
    verdict = judge(numbers, SETTINGS)[5]
    assert verdict.outcome == expected and words in verdict.why
    change(numbers["networks"], "dual", 0.3, training="projected", seed=0)
    change(numbers["networks"], "dual", 0.1, training="projected", seed=1)
    assert "could not have shown" in judge(numbers, SETTINGS)[5].why, "the interval is wider than what is close"


def test_whether_projections_saved_time_is_told_from_the_seconds() -> None:
    numbers = given()
    assert "they did not." in judge(numbers, SETTINGS)[5].why
    change(numbers["networks"], "train_s", 0.5, training="projected")
    assert "0.5 times" in judge(numbers, SETTINGS)[5].why and "they did." in judge(numbers, SETTINGS)[5].why


def test_a_cascade_that_ended_early_stands_as_it_ended() -> None:
    rows = [{"seed": 0, "networks": 1}, {"seed": 0, "networks": 2}, {"seed": 1, "networks": 1}]
    assert upto(rows, 3) == upto(rows, 2) == [rows[1], rows[2]]
    assert upto(rows, 1) == [rows[0], rows[2]]
