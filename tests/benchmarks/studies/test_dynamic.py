"""Dynamic, Curriculum and Standard: FOSC of a linear network is known, verdicts follow numbers, the quick mode runs."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.studies.dynamic import (
    ATTACKS,
    CURRICULUM,
    DEFENCES,
    DYNAMIC,
    STANDARD,
    STUDY,
    UNSECURED,
    check,
    correlation,
    draw,
    gaps,
    judge,
    lead,
    ranked_within,
    slope,
    table,
)
from benchmarks.studies.fits import Interval
from benchmarks.studies.study import NOT_SEEN, PARTLY, SEEN, Context, Verdict, finish, perform
from certify.classifier import Classifier
from certify.data.dataset import Examples

SETTINGS = {**STUDY.modes["default"], "tested": [0.05, 0.1], "trained": [0.05, 0.1], "eps": 0.1, "seeds": [0, 1, 2]}
NOISE = (0.0, 0.001, -0.001)  # of three seeds


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("dynamic")
    return perform(STUDY, "quick", out, Context(lambda text: None)), out


def test_fosc_of_a_linear_network_is_known() -> None:
    """Of two classes, far from the ends of the range: 0 at the corner that the gradient points to, and at the input eps
    times the gradient's l_1 norm."""
    torch.manual_seed(0)
    net = nn.Linear(6, 2)
    model = Classifier(net, (6,))
    examples = Examples(torch.rand(5, 6), torch.tensor([0, 1, 0, 1, 1]))
    logits = net(examples.x)
    away = (net.weight[1 - examples.y] - net.weight[examples.y]).detach()
    wrong = logits.softmax(1).gather(1, 1 - examples.y[:, None]).detach()
    expected = 0.1 * (wrong * away).abs().sum(1)
    here = gaps(model, examples, examples.x, 0.1, None)
    assert here.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    there = gaps(model, examples, examples.x + 0.1 * away.sign(), 0.1, None)
    assert there.abs().max() < 1e-7


# ---------------------------------------------------------------------- verdicts


def network(training: str, eps: float, seed: int, *, white: float = 0.8, black: float = 0.9, late: float = 0.01,
            fosc: tuple[float, float, float] = (0.03, 0.02, 0.01), apart: float = 0.3, small: float = 0.3
            ) -> dict[str, Any]:
    """One network with about these numbers."""
    shake = NOISE[(seed + (*DEFENCES, UNSECURED).index(training) + (eps == 0.1)) % 3]  # each draws its own
    whites = {"clean": 0.95 + shake} | dict.fromkeys(ATTACKS, white + shake)
    if eps != SETTINGS["eps"]:
        return {"training": training, "eps": eps, "seed": seed, "white": whites,
                "fosc": {"last": {"mean": late + 0.01 * shake}, "common": {"mean": late + 0.01 * shake}}}
    stages = [{"mean": m + 0.01 * shake, "small": small + shake, "quantiles": [m * k / 20 for k in range(41)],
               "density": [1.0, 0.5]} for m in fosc]
    return {"training": training, "eps": eps, "seed": seed, "white": whites, "tested": [white + 0.1, white + shake],
            "black": {a: black + shake + 0.002 * k * (1 + seed / 10) for k, a in enumerate(ATTACKS)},
            "fosc": {"last": {"mean": late + 0.01 * shake}, "common": {"mean": late + 0.01 * shake}, "stages": stages,
                     "apart": apart + shake}}


def numbers(**by_training: dict[str, Any]) -> dict[str, Any]:
    """Three seeds of every training at two radii; what is said of a training differs from the others."""
    networks = [network(t, eps, seed, **by_training.get(t, {}))
                for t, eps, seed in product(DEFENCES, (0.05, 0.1), range(3))]
    for seed in range(3):
        unsecured = network(UNSECURED, 0.1, seed)
        unsecured["white"] = {"clean": 0.99 + 2 * NOISE[seed]} | dict.fromkeys(ATTACKS, 0.0)
        networks.append({k: unsecured[k] for k in ("training", "eps", "seed", "white", "black", "tested")})
    return {"training_images": 1437, "test_images": 360, "watched": 512, "grid": [0.0, 0.1], "networks": networks,
            "surrogate": {"clean": 0.9}}


def verdict(found: dict[str, Any], begin: str) -> Verdict:
    """The one whose claim begins like this."""
    (one,) = [v for v in judge(found, SETTINGS) if v.claim.startswith(begin)]
    return one


AS_PUBLISHED = numbers(
    pgd={"white": 0.80, "black": 0.90, "late": 0.012, "fosc": (0.02, 0.02, 0.02), "apart": 0.1, "small": 0.30},
    curriculum={"white": 0.81, "black": 0.92, "late": 0.011, "fosc": (0.04, 0.03, 0.02), "apart": 0.3, "small": 0.40},
    dynamic={"white": 0.84, "black": 0.94, "late": 0.010, "fosc": (0.03, 0.02, 0.01), "apart": 0.5, "small": 0.50})

BETTER = ("Dynamic training is more robust than Standard", "Dynamic training is more robust than Curriculum",
          "Dynamic training withstands", "Curriculum training withstands", "The distributions of Dynamic",
          "Late in training")
FOSC_TELLS = "Between Standard, Curriculum and Dynamic"


@pytest.mark.parametrize("begin", [
    *BETTER, "Training without attacks", "Transferred attacks are weaker", "Stronger attacks transfer less",
    "Curriculum and Dynamic are above", "Curriculum and Dynamic meet", FOSC_TELLS])
def test_what_was_published_is_seen(begin: str) -> None:
    found = verdict(AS_PUBLISHED, begin)
    assert found.outcome == SEEN, found
    assert ("`fosc`" if begin == FOSC_TELLS else "n = 3" if "Training" not in begin else "%") in found.why


@pytest.mark.parametrize("begin", [
    *BETTER, "Curriculum training gains", "Curriculum and Dynamic are above", "Dynamic leads", "Dynamic gains"])
def test_where_all_trainings_are_alike_nothing_is_seen(begin: str) -> None:
    found = verdict(numbers(), begin)
    assert found.outcome == NOT_SEEN and ("contradict" in found.why or "open" in found.why)


def test_the_other_way_round_is_not_seen_either() -> None:
    found = numbers(dynamic={"white": 0.7, "black": 0.65, "fosc": (0.01, 0.02, 0.03), "late": 0.005},
                    curriculum={"fosc": (0.01, 0.02, 0.03)})
    for begin in (*BETTER[:3], FOSC_TELLS, "Curriculum and Dynamic meet", "The distributions of Dynamic"):
        assert verdict(found, begin).outcome == NOT_SEEN, begin
    assert verdict(found, "Transferred attacks are weaker").outcome == PARTLY
    assert "contradict 8" in verdict(found, "Dynamic training withstands").why


def test_a_gain_that_grows_with_the_radius_is_seen() -> None:
    found = numbers(dynamic={"white": 0.84})
    for n in found["networks"]:
        if n["eps"] == 0.05:
            n["white"] = dict.fromkeys(n["white"], 0.8 + 0.1 * n["fosc"]["last"]["mean"])
    assert verdict(found, "Dynamic gains").outcome == SEEN
    for n in found["networks"]:
        n["tested"] = [0.8, n["white"]["fgsm"]]
    assert verdict(found, "Dynamic leads").outcome == SEEN


def test_a_lead_that_is_not_there_does_not_grow() -> None:
    """Dynamic is behind at every radius, least at the largest: the slope alone is that of a lead that grows."""
    found = numbers(dynamic={"white": 0.74})
    for n in found["networks"]:
        n["white"] = {a: v - 0.2 * (n["training"] == DYNAMIC and n["eps"] == 0.05) for a, v in n["white"].items()}
        if "tested" in n:
            n["tested"][0] -= 0.2 * (n["training"] == DYNAMIC)
    for begin in ("Dynamic gains", "Dynamic leads"):
        one = verdict(found, begin)
        assert one.outcome == NOT_SEEN and "contradict" in one.why, begin
        assert "Slope, in points for 0.1 more of radius: +" in one.why


def test_most_examples_of_small_fosc_are_more_than_those_of_standard() -> None:
    found = numbers(pgd={"small": 0.6}, curriculum={"small": 0.3}, dynamic={"small": 0.5})
    one = verdict(found, "Late in training")
    assert one.outcome == NOT_SEEN and "show 1, contradict 2" in one.why


def test_one_attack_of_four_is_not_enough_for_a_part() -> None:
    found = numbers()
    for n in found["networks"]:
        if "black" in n:
            n["black"]["fgsm"] += 0.05 * (n["training"] == CURRICULUM)
    one = verdict(found, "Curriculum training withstands")
    assert one.outcome == NOT_SEEN and "show 1," in one.why and "by chance" in one.why


def test_fosc_that_ranks_the_networks_of_most_seeds_rightly_leaves_the_rest_open() -> None:
    """Of three seeds one disagrees. Over all 18 networks inside their radii, rho is -0.58."""
    found = numbers()
    for n in found["networks"]:
        if n["training"] in DEFENCES:
            place = DEFENCES.index(n["training"])
            gap = place if n["seed"] else (1, 2, 0)[place]
            n["fosc"] |= {which: {"mean": float(gap)} for which in ("last", "common")}
            n["white"]["pgd-20"] = 0.9 - 0.1 * place
    one = verdict(found, FOSC_TELLS)
    assert one.outcome == NOT_SEEN and "leave 2 open" in one.why
    assert [correlation(found, which).n for which in ("last", "common")] == [3, 3], "seeds, not networks"


def test_weak_attacks_may_be_all_that_curriculum_helps_against() -> None:
    found = numbers()
    for n in found["networks"]:
        n["white"]["fgsm"] += 0.05 * (n["training"] == CURRICULUM)
    assert verdict(found, "Curriculum training gains").outcome == SEEN
    for n in found["networks"]:
        n["white"] = {a: v - 0.1 * (n["training"] == CURRICULUM) for a, v in n["white"].items()}
    assert verdict(found, "Curriculum training gains").outcome == NOT_SEEN, "a smaller loss is no gain"


def test_of_one_seed_no_training_is_called_better() -> None:
    alone = {**AS_PUBLISHED, "networks": [n for n in AS_PUBLISHED["networks"] if n["seed"] == 0]}
    assert {verdict(alone, begin).outcome for begin in BETTER} == {NOT_SEEN}
    assert "no interval" in verdict(alone, BETTER[0]).why
    assert "could not have shown 4" in verdict(alone, BETTER[0]).why


def test_leads_and_slopes_are_taken_seed_by_seed() -> None:
    found = lead(AS_PUBLISHED, 0.1, DYNAMIC, STANDARD, lambda n: float(n["seed"] + (n["training"] == DYNAMIC)))
    assert found == Interval(1.0, 1.0, 1.0, 3), "what belongs to the seed is in both"
    assert slope([1.0, 2.0, 3.0], [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]).mean == pytest.approx(2.0)


def test_ranks_are_compared_inside_groups() -> None:
    """Groups that lie apart make a rising cloud of falling pieces; ties count nothing."""
    a, b = [1, 2, 3, 4, 11, 12, 13, 14], [4, 3, 2, 1, 14, 13, 12, 11]
    assert ranked_within(a, b, [0.1] * 4 + [0.2] * 4) == pytest.approx(-1)
    assert ranked_within(a, b, [0] * 8) > 0
    assert ranked_within([1, 2, 3], [5, 5, 5], [0, 0, 0]) == 0


@pytest.mark.parametrize(("name", "value"), [
    ("seeds", []), ("seeds", [0, 0]), ("seeds", [0, 1000]), ("tested", [0.1]), ("trained", [0.1]),
    ("tested", [0.1, 0.1]), ("stages", [3, 18]), ("curriculum_stages", [18, 27, 37]), ("steps", 0)])
def test_settings_are_checked_before_anything_is_measured(name: str, value: Any) -> None:
    with pytest.raises(SystemExit, match=f"--set {name}="):
        STUDY.measure({**STUDY.modes["default"], name: value}, Context(lambda text: None))


@pytest.mark.parametrize("mode", list(STUDY.modes))
def test_every_mode_has_settings_that_can_be_judged(mode: str) -> None:
    check(STUDY.modes[mode])


# ---------------------------------------------------------------------- the whole study


def test_the_quick_mode_stores_every_network(record: tuple[dict[str, Any], Path]) -> None:
    whole, out = record
    settings, found = whole["settings"], whole["numbers"]
    assert len(found["networks"]) == 2 + 3 * 2 * 2 and found["test_images"] == 40
    for n in found["networks"]:
        assert all(0 <= share <= n["white"]["clean"] for share in n["white"].values())
        assert n["white"]["pgd-20"] <= n["white"]["pgd-10"] + 0.05
    main = [n for n in found["networks"] if n["eps"] == settings["eps"]]
    assert all(n["tested"][-1] == n["white"]["pgd-10"] and n["tested"][0] >= n["tested"][-1] - 0.05 for n in main)
    for n in main:
        assert ("fosc" in n) == (n["training"] != UNSECURED)
    assert (out / "dynamic.json").stat().st_size < 300_000
    assert {v["outcome"] for v in whole["verdicts"]} <= {SEEN, PARTLY, NOT_SEEN}


def test_figures_exist_and_follow_the_record(record: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    whole, out = record
    assert {f"dynamic-{end}.png" for end in ("tables", "radii", "fosc", "rank")} == set(whole["figures"])
    assert all(5_000 < (out / file).stat().st_size < 150_000 for file in whole["figures"])
    stored = json.loads((out / "dynamic.json").read_text())
    again = finish(STUDY, {k: stored[k] for k in ("study", "mode", "settings", "commit", "hardware", "seconds",
                                                  "numbers")}, tmp_path)
    assert again["verdicts"] == whole["verdicts"] and again["table"] == whole["table"]
    assert [asdict(v) for v in judge(stored["numbers"], stored["settings"])] == whole["verdicts"]


def test_the_table_has_a_row_a_training_and_the_published_ones_where_data_are_the_same() -> None:
    ours = table(AS_PUBLISHED, SETTINGS)
    assert ours.count("\n| Dynamic") == 4 and "paper" not in ours
    theirs = table(AS_PUBLISHED, {**SETTINGS, "data": "mnist"})
    assert "Dynamic, paper" in theirs and "91.27" in theirs and "98.36" in theirs
    assert set(draw(AS_PUBLISHED, SETTINGS)) == {"tables", "radii", "fosc", "rank"}


def test_curriculum_has_stages_of_its_own() -> None:
    for settings in STUDY.modes.values():
        assert settings["curriculum_stages"][-1] <= settings["epochs"] and settings["stages"][-1] <= settings["epochs"]
        assert len(settings["stages"]) == len(settings["curriculum_stages"]) == 3
