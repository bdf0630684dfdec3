"""The study of zeroth-order descent: exact cases, verdicts that follow the numbers, and a quick run."""

from __future__ import annotations

import copy
import math
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.studies.claims import AGAINST, HOLDS, OPEN, SILENT
from benchmarks.studies.study import (
    NOT_SEEN,
    PARTLY,
    SEEN,
    Context,
    perform,
)
from benchmarks.studies.zeroth_order import (
    EXACT,
    METHODS,
    MODES,
    PROFILES,
    STUDY,
    Problem,
    _times,
    arrivals,
    check,
    descent,
    freed,
    game_rate,
    judge,
    leave,
    measure,
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
    assert judged(planted(record, 1.5, 1.0))[:4] == [NOT_SEEN, NOT_SEEN, SEEN, PARTLY]
    assert judged(planted(record, 1.0, 0.0))[4] == NOT_SEEN, "no price of the dimension"


def test_an_upper_end_says_whether_it_is_attained(record: dict[str, Any]) -> None:
    """Steps that know no dimension are of at most order d, and the sentence says that none needs the whole of it."""
    constant = judge(planted(record, 0.0, 0.0), MODES["quick"])
    whole = judge(planted(record, 1.0, 1.0), MODES["quick"])
    for k, variable in ((0, "1/eps"), (1, "1/eps"), (2, "d")):
        assert "at most" in constant[k].claim
        assert f"The order in {variable} is attained (interval within 0.1 of 1) by none" in constant[k].why
        assert "is attained (interval within 0.1 of 1) by G" in whole[k].why.replace("by gradient", "by G")


def test_one_exponent_of_many_is_no_part(record: dict[str, Any]) -> None:
    """Of twelve intervals one holds by chance now and then."""
    numbers = planted(record, 1.5, 1.5)
    good = planted(record, 1.0, 1.0)
    one = next(k for k, row in enumerate(numbers["complexity"]) if row["method"] == "zoo" and row["by"] == "d")
    numbers["complexity"][one] = good["complexity"][one]
    verdict = judge(numbers, MODES["quick"])[3]
    assert verdict.outcome == NOT_SEEN and "Of 12 parts the numbers show 1, contradict 11" in verdict.why


def test_what_did_not_arrive_is_not_seen(record: dict[str, Any]) -> None:
    numbers = planted(record, 1.0, 1.0)
    for row in numbers["complexity"]:
        row["steps"][0][-1] = None
    verdicts = judge(numbers, MODES["quick"])[:5]
    assert [v.outcome for v in verdicts] == [NOT_SEEN] * 5
    assert all("could not have shown" in v.why for v in verdicts)
    for row in numbers["complexity"]:
        row["steps"] = [[None] * len(row["at"]) for _ in row["steps"]]
    for kind in numbers["saddle"]["steps"].values():
        kind |= {"plain": [None] * 4, "perturbed": [[None] * 5] * 4}
    for drawing in STUDY.draw(numbers, MODES["quick"]).values():
        drawing.figure.savefig(BytesIO())  # empty axes can be drawn
    assert "could not have shown" in judge(numbers, MODES["quick"])[6].why
    numbers["gaps"] = {profile: [1e-3] * 3 for profile in PROFILES}  # the bound lies far below the limit on steps
    assert "contradict 1" in judge(numbers, MODES["quick"])[0].why


def test_one_run_shows_no_exponent(record: dict[str, Any]) -> None:
    numbers = planted(record, 1.0, 1.0)
    for row in numbers["complexity"]:
        row["steps"] = row["steps"][:1]
    numbers["gaps"] = {profile: [1e6] for profile in PROFILES}
    for verdict in judge(numbers, MODES["quick"])[1:5]:
        assert verdict.outcome == NOT_SEEN and "could not have shown" in verdict.why
        assert "inf" not in verdict.why and "nan" not in verdict.why


def test_the_middle_of_two_seeds_is_between_them() -> None:
    rows = [{"by": "d", "profile": "well", "method": "gd", "steps": [[10], [10]]},
            {"by": "d", "profile": "well", "method": "zoo", "steps": [[100], [300]]}]
    assert _times({"complexity": rows}, "well", "zoo") == "20 times"


def test_starts_that_end_elsewhere_refute_or_leave_open(record: dict[str, Any]) -> None:
    """That the line into the saddle is never left is no part of this: it cannot be."""
    numbers = copy.deepcopy(record["numbers"])
    random = numbers["saddle"]["random"]
    assert judged(numbers)[5] == SEEN
    for minima, saddle, words in ((0, 0, "leave the claim open"), (99, 0, "leave the claim open"),
                                  (99, 1, "contradict the claim"), (0, 100, "contradict the claim")):
        random |= {"at_minima": minima, "at_saddle": saddle}
        verdict = judge(numbers, MODES["quick"])[5]
        assert verdict.outcome == NOT_SEEN and words in verdict.why
    random |= {"starts": 1, "at_minima": 1, "at_saddle": 0}
    assert "could not have shown" in judge(numbers, MODES["quick"])[5].why, "one start is not almost every one"


@pytest.mark.parametrize(("alone", "runs", "state"), [
    (None, [50, 60], HOLDS), (200, [50, 60], HOLDS), (55, [50, 60], OPEN), (20, [50, 51], AGAINST),
    (200, [50, None], AGAINST), (None, [50, None], SILENT), (200, [50], SILENT)])
def test_what_perturbed_runs_say_beside_one_alone(alone: int | None, runs: list[int | None], state: str) -> None:
    assert freed(alone, runs, 300) == state


def test_perturbations_that_free_only_the_line_are_not_enough(record: dict[str, Any]) -> None:
    numbers = copy.deepcopy(record["numbers"])
    for kind in numbers["saddle"]["steps"].values():
        kind["plain"] = [None, *([1] * (len(kind["plain"]) - 1))]
    assert judged(numbers)[6] == NOT_SEEN, "two of six parts"


def test_verdicts_on_saddles_and_games_follow_the_numbers(record: dict[str, Any]) -> None:
    numbers = copy.deepcopy(record["numbers"])
    assert judged(numbers)[5:] == [SEEN] * 5
    numbers["saddle"]["random"] |= {"at_minima": 0, "at_saddle": 1}
    for kind in numbers["saddle"]["steps"].values():
        kind["plain"] = [1] * len(kind["plain"])
    for way in numbers["game"]["ways"].values():
        way["rate"] = [-rate for rate in way["rate"]]
    numbers["game"]["ways"]["alternating"] |= {"drift": 1.0, "late": [[0.1] * 3, [0.1] * 3]}
    verdicts = judge(numbers, MODES["quick"])[5:]
    assert [v.outcome for v in verdicts] == [NOT_SEEN] * 5 and all("contradict" in v.why for v in verdicts)
    numbers["game"]["ways"]["optimistic"]["rate"] = [-1.0, 1.0, 0.1]
    assert "leave the claim open" in judge(numbers, MODES["quick"])[8].why


# ---------------------------------------------------------------------- settings

@pytest.mark.parametrize(("key", "value", "words"), [
    ("levels", [0.01], "two or more different"), ("levels", [0.01, 0.01], "two or more different"),
    ("levels", [0.5, 0.01], "below 0.0"), ("level", 0.5, "below 0.0"), ("dimensions", [4], "two or more different"),
    ("dimensions", [4, 0], "whole numbers"), ("nearness", [1, 2], "1e-06 or nearer"),
    ("nearness", [0, 12], "below 0.5"),
    ("seeds", 0, "from 1 on"), ("saddle_seeds", 0, "from 1 on"), ("game_seeds", 1.5, "whole number"),
    ("game_steps", 100, "at least 251"), ("game_rate", 2.0, "below 2"), ("rate", 1.5, "below 1"),
    ("width", 0, "above zero")])
def test_settings_without_verdicts_are_refused_before_measuring(key: str, value: Any, words: str) -> None:
    with pytest.raises(SystemExit, match=f"--set {key}=.*{words}"):
        measure({**MODES["quick"], key: value}, Context(lambda text: pytest.fail("it measured")))


@pytest.mark.parametrize("mode", MODES)
def test_settings_of_every_mode_are_accepted(mode: str) -> None:
    check(MODES[mode])
