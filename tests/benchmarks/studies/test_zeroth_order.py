"""The study of zeroth-order descent: exact cases, verdicts that follow the numbers, and a quick run."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.studies.study import NOT_SEEN, PARTLY, SEEN, Context, perform
from benchmarks.studies.zeroth_order import (
    EXACT,
    METHODS,
    MODES,
    PROFILES,
    STUDY,
    Problem,
    arrivals,
    descent,
    game_rate,
    judge,
    leave,
    play,
)
from verifier.attacks.draws import Draws

HOW = {"width": 1e-4, "pairs": 5, "limit": 20_000}


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("zeroth_order")
    return {**perform(STUDY, "quick", folder, Context(lambda text: None)), "folder": str(folder)}


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_are_smooth_with_infimum_zero(name: str) -> None:
    z = torch.linspace(-20, 20, 20_001, dtype=EXACT).requires_grad_()
    profile = PROFILES[name]
    value = profile.value(z)
    (slope,) = torch.autograd.grad(value.sum(), z, create_graph=True)
    torch.testing.assert_close(slope, profile.slope(z))
    (bend,) = torch.autograd.grad(slope.sum(), z)
    assert bend.abs().max() <= 1 + 1e-9 and bend.abs().max() > 0.9, "smoothness 1, nearly attained"
    assert (value >= 0).all() and float(profile.value(torch.tensor(1e200, dtype=EXACT).sqrt() if name == "tail" else
                                                      torch.zeros((), dtype=EXACT))) < 1e-3


@pytest.mark.parametrize("name", PROFILES)
def test_problems_do_not_depend_on_the_dimension(name: str) -> None:
    z = torch.tensor([0.7], dtype=EXACT)
    for d in (1, 9):
        x = (z / d**0.5).expand(d)
        problem = Problem(name, d)
        assert float(problem.value(x)) == pytest.approx(float(PROFILES[name].value(z)))
        assert float(problem.slope(x).norm()) == pytest.approx(float(PROFILES[name].slope(z).abs()))


def test_gradient_descent_counts_its_steps() -> None:
    (steps,) = arrivals("gd", Problem("tail", 1), [0.05, 0.01], 1, **HOW)
    z = float(Problem("tail", 1).starts(Draws(1, torch.arange(1)), torch.arange(1)))
    expected: list[int] = []
    for t in range(10_000):
        slope = -z * (1 + z * z) ** -1.05
        expected += [t] * sum(slope * slope <= eps for eps in [0.05, 0.01][len(expected):])
        z -= slope
        if len(expected) == 2:
            break
    assert steps == expected


@pytest.mark.parametrize("method", METHODS)
def test_every_method_descends_and_says_where_it_did_not_arrive(method: str) -> None:
    rows = arrivals(method, Problem("well", 3), [0.01, 0.001], 2, **HOW)
    assert all(0 < a <= b for a, b in rows)
    assert arrivals(method, Problem("well", 3), [1e-9], 2, **{**HOW, "limit": 2}) == [[None], [None]]


def test_seeds_do_not_depend_on_each_other() -> None:
    few, many = (arrivals("forward", Problem("well", 3), [0.01], n, **HOW) for n in (2, 4))
    assert many[:2] == few and many[0] != many[1]


def test_one_coordinate_a_step_moves_one_coordinate() -> None:
    owner = torch.arange(2)
    x = Problem("well", 5).starts(Draws(0, owner), owner)
    moved = descent("zoo", Problem("well", 5), Draws(0, owner), owner, width=1e-4, pairs=1)(x) != x
    assert moved.sum(1).tolist() == [1, 1]


@pytest.mark.parametrize("s", [1e-3, 1e-9])
def test_steps_from_a_saddle_are_a_logarithm(s: float) -> None:
    starts = torch.tensor([[1.0, s], [1.0, 0.0]], dtype=EXACT)
    steps, path, _ = leave("quadratic", starts, rate=0.1, limit=500, follow=3)
    assert steps == [math.ceil(math.log(0.5 / s) / math.log(1.1)), None]
    assert np.allclose(path, [[0.9**k, s * 1.1**k] for k in range(3)])


def test_perturbed_descent_leaves_the_line() -> None:
    start = torch.tensor([[1.0, 0.0]] * 5, dtype=EXACT)
    steps, _, _ = leave("bounded", start, rate=0.1, limit=1000, radius=0.01, calm=0.01, wait=50,
                        draws=Draws(0, torch.arange(5)))
    assert all(t is not None and t > 44 for t in steps), "calm comes after log(100) / -log(0.9) steps"


def test_games_on_one_number() -> None:
    a, one, rate = torch.ones(1, 1, 1, dtype=EXACT), torch.ones(1, 1, dtype=EXACT), 0.1
    far = {}
    for way in ("simultaneous", "optimistic", "alternating"):
        x, y = play(way, a, one, one, rate, 400)
        far[way] = (x.square() + y.square()).flatten()
        if way == "alternating":
            kept = (x.square() + y.square() - rate * x * y).flatten()
            assert torch.allclose(kept, kept[0])
    assert torch.allclose(far["simultaneous"][1:] / far["simultaneous"][:-1], torch.tensor(1.01, dtype=EXACT))
    fell = float((far["optimistic"][400] / far["optimistic"][200]).log()) / 2 / 200
    assert fell == pytest.approx(game_rate("optimistic", [1.0], rate), rel=1e-3) and fell < 0


def test_rates_of_games_are_those_of_their_matrices() -> None:
    rate, s = 0.2, 0.7
    turn = np.array([[0, -s], [s, 0]])
    together = np.eye(2) + rate * turn
    past = np.block([[np.eye(2) + 2 * rate * turn, -rate * turn], [np.eye(2), np.zeros((2, 2))]])
    for way, matrix in (("simultaneous", together), ("optimistic", past)):
        assert game_rate(way, [s], rate) == pytest.approx(math.log(np.abs(np.linalg.eigvals(matrix)).max()))


def test_a_quick_run_leaves_figures_and_verdicts(record: dict[str, Any]) -> None:
    folder = Path(record["folder"])
    assert set(record["figures"]) == {f"zeroth_order-{end}.png" for end in ("steps", "saddle", "game")}
    assert all(0 < (folder / file).stat().st_size < 150_000 for file in record["figures"])
    assert (folder / "zeroth_order.json").stat().st_size < 300_000
    assert len(record["verdicts"]) == 10 and record["table"].count("\n") == 1 + len(PROFILES) * len(METHODS)


def judged(numbers: dict[str, Any]) -> list[str]:
    return [v.outcome for v in judge(numbers, MODES["quick"])]


def planted(record: dict[str, Any], power: float, dimension_power: float) -> dict[str, Any]:
    """Numbers with steps that follow power laws exactly; those of gradient descent know no dimension."""
    numbers = copy.deepcopy(record["numbers"])
    for row in numbers["complexity"]:
        k = power if row["by"] == "eps" else 0.0 if row["method"] == "gd" else dimension_power
        at = [1 / v for v in row["at"]] if row["by"] == "eps" else row["at"]
        row["steps"] = [[round(1000 * (seed + 1) * v**k) for v in at] for seed in range(3)]
    numbers["gaps"] = {profile: [1e6] * 3 for profile in PROFILES}
    return numbers


def test_verdicts_follow_the_exponents(record: dict[str, Any]) -> None:
    assert judged(planted(record, 1.0, 1.0))[:5] == [SEEN] * 5
    assert judged(planted(record, 1.0, 2.0))[2:5] == [NOT_SEEN, PARTLY, NOT_SEEN]
    assert judged(planted(record, 1.5, 1.0))[:4] == [PARTLY, NOT_SEEN, SEEN, PARTLY]
    assert judged(planted(record, 1.0, 0.0))[4] == NOT_SEEN, "no price of the dimension"


def test_what_did_not_arrive_is_not_seen(record: dict[str, Any]) -> None:
    numbers = planted(record, 1.0, 1.0)
    for row in numbers["complexity"]:
        row["steps"][0][-1] = None
    assert judged(numbers)[:5] == [NOT_SEEN] * 5


def test_verdicts_on_saddles_and_games_follow_the_numbers(record: dict[str, Any]) -> None:
    numbers = copy.deepcopy(record["numbers"])
    assert judged(numbers)[5:] == [SEEN] * 5
    numbers["saddle"]["random"]["at_minima"] -= 1
    for kind in numbers["saddle"]["steps"].values():
        kind["plain"] = [1] * len(kind["plain"])
    for way in numbers["game"]["ways"].values():
        way["rate"] = [-rate for rate in way["rate"]]
    numbers["game"]["ways"]["alternating"] |= {"drift": 1.0, "late": [[0.1] * 3, [0.1] * 3]}
    assert judged(numbers)[5:] == [NOT_SEEN] * 5
