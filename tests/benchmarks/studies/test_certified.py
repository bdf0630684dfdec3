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
    interval,
    judge,
    looseness,
    measure,
    tight,
    upto,
)
from benchmarks.studies.study import NOT_SEEN, PARTLY, SEEN, Context, perform
from certify.data.dataset import Examples, TrainingData

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
    assert {(row["training"], row["epoch"]) for row in rows} == {(name, epoch) for name in FOLLOWED for epoch in (1, 4)}
    for row in rows:
        keys = ("margin", "least_lower", "least_upper", "dual", "crown")
        for margin, low, high, *bounds in zip(*(row[k] for k in keys), strict=True):
            assert max(bounds) <= low + ATOL and low <= high <= margin + ATOL
        assert 0 <= row["unstable"] <= 1 and looseness(row, "dual") >= 1 - ATOL


def test_a_radius_that_is_not_trained_for_is_refused() -> None:
    settings = {**STUDY.modes["quick"], "tight_eps": 0.5}
    with pytest.raises(SystemExit, match=r"tight_eps=0\.5: expected one of eps"):
        measure(settings, QUIET)


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


# ---------------------------------------------------------------------- verdicts of given numbers


SETTINGS = {**STUDY.modes["default"], "eps": [0.1], "tight_eps": 0.1, "cascade": 2}
GAPS = {"standard": 0.6, "pgd": 0.3, "exact": 0.05, "projected": 0.06}


def given() -> dict[str, Any]:
    """Numbers of which every claim is seen: three seeds, whose values differ by a little."""
    networks, cascades, tightness = [], [], []
    for seed in range(3):
        for name, gap in GAPS.items():
            which = {"training": name, "eps": 0.1, "seed": seed}
            pgd = 0.10 + 0.01 * seed
            networks.append({**which, "clean": 0.02, "fgsm": 0.08, "pgd": pgd, "attacked": pgd, "search": pgd,
                             "crown": pgd + gap, "dual": pgd + gap, "clashes": 0, "undecided": 0, "train_s": 1.0})
            if name in ("exact", "projected"):
                cascades += [{**which, "networks": count, "clean": 0.02, "certified": certified, "attacked": 0.1,
                              "broken": 0, "answered": 3, "train_s": 1.0}
                             for count, certified in ((1, 0.20 + 0.01 * seed), (2, 0.15 + 0.011 * seed))]
            if name in FOLLOWED:
                tightness += [{**which, "epoch": epoch, "margin": [2.0], "least_lower": [1.0], "least_upper": [1.0],
                               "dual": [2 - loose], "crown": [2 - loose], "unstable": 0.1}
                              for epoch, loose in ((1, 2.0), (9, 1.1 if name == "exact" else 3.0))]
    return {"networks": networks, "cascades": cascades, "tightness": tightness, "test": 100, "training": 1000}


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
    assert "1 images did" in judge(numbers, SETTINGS)[0].why


def test_a_gap_counts_against_every_seed_of_both_other_trainings() -> None:
    numbers = given()
    change(numbers["networks"], "dual", 0.13, training="pgd", seed=0)  # a gap of 3 points; the largest of ours is 5
    assert outcomes(numbers)[1] == PARTLY
    change(numbers["networks"], "dual", 0.13, training="standard", seed=0)
    assert outcomes(numbers)[1] == NOT_SEEN


def test_bounds_must_become_tighter_in_every_seed_and_end_tighter_than_others() -> None:
    numbers = given()
    change(numbers["tightness"], "dual", [-0.5], training="exact", epoch=9, seed=1)
    assert outcomes(numbers)[2] == PARTLY
    change(numbers["tightness"], "crown", [-0.5], training="exact", epoch=9, seed=1)
    for name in ("standard", "pgd"):
        change(numbers["tightness"], "dual", [1.0], training=name, epoch=9)
    assert outcomes(numbers)[2] == NOT_SEEN


def test_a_cascade_must_help_beyond_the_spread_of_seeds() -> None:
    numbers = given()
    change(numbers["cascades"], "certified", 0.30, training="exact", networks=2, seed=0)
    assert outcomes(numbers)[3] == PARTLY
    change(numbers["cascades"], "certified", 0.20, training="projected", networks=2, seed=0)
    assert outcomes(numbers)[3] == NOT_SEEN


def test_one_certified_image_that_falls_refutes_a_cascade() -> None:
    numbers = given()
    change(numbers["cascades"], "broken", 7, networks=2, seed=1)
    assert outcomes(numbers) == [*[SEEN] * 4, NOT_SEEN, SEEN]
    assert "Up to 7 of 100 images" in judge(numbers, SETTINGS)[4].why


def test_one_seed_has_no_spread_and_shows_no_difference() -> None:
    numbers = given()
    for key in ("networks", "cascades", "tightness"):
        numbers[key] = [row for row in numbers[key] if row["seed"] == 0]
    verdicts = judge(numbers, {**SETTINGS, "seeds": [0]})
    assert verdicts[3].outcome == NOT_SEEN and "one seed does not show" in verdicts[3].why


def test_projections_far_from_exact_are_not_close() -> None:
    numbers = given()
    change(numbers["networks"], "dual", 0.5, training="projected")
    assert outcomes(numbers)[5] == NOT_SEEN


def test_intervals_of_means() -> None:
    found = interval([1.0, 2.0, 3.0])
    assert found is not None
    assert found == pytest.approx((2 - 4.30265 / math.sqrt(3), 2 + 4.30265 / math.sqrt(3)), abs=1e-4)
    assert interval([1.0]) is None


def test_a_cascade_that_ended_early_stands_as_it_ended() -> None:
    rows = [{"seed": 0, "networks": 1}, {"seed": 0, "networks": 2}, {"seed": 1, "networks": 1}]
    assert upto(rows, 3) == upto(rows, 2) == [rows[1], rows[2]]
    assert upto(rows, 1) == [rows[0], rows[2]]
