"""The study of ascent dynamics: linear losses whose ascent is known, verdicts that follow the numbers, a quick run."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from benchmarks.studies.ascent import MODES, NEAR, STUDY, arrived, judge, left_after, passes, shrinking
from benchmarks.studies.study import NOT_SEEN, PARTLY, SEEN, Context, perform
from benchmarks.studies.two_layer import EXACT, in_ball, kinds
from tests.benchmarks.studies.test_two_layer import Quadratic

QUICK = MODES["quick"]
RATES, ON_SPHERE, SADDLES, ONE_MAXIMUM, BEST, PARALLEL, REGULAR = 0, 2, 3, 4, 5, 6, 7


def linear(d: int) -> Quadratic:
    """L(delta) = 2 delta_1: one maximum on any sphere, whose curvature there is 2 / eps."""
    b = torch.zeros(d, dtype=EXACT)
    b[0] = 2.0
    return Quadratic(torch.zeros(d, d, dtype=EXACT), b)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("ascent")
    return {**perform(STUDY, "quick", folder, Context(lambda text: None)), "folder": str(folder)}


def test_the_stopping_point_of_a_linear_loss_is_near_by_the_square_root_of_eta() -> None:
    net, eps, eta = linear(4), 0.5, 1e-4
    stop, steps = arrived(net, in_ball(0, 1, 6, 4, eps), eps, eta, 100_000)
    goal = eps * functional.normalize(net.a[0], dim=0)
    far = torch.linalg.vector_norm(stop - goal, dim=2)
    # The slope along the sphere is 2 sin(angle), the distance 2 eps sin(angle / 2).
    assert (far <= 1.0001 * eta**0.5 * eps / 2).all() and (far >= 0.99 * eta**0.5 * eps / 2).all()
    assert (steps > 0).all()
    _, none = arrived(net, in_ball(0, 1, 6, 4, eps), eps, eta, 3)
    assert (none == 4).all()


@pytest.mark.parametrize(("multiple", "exponent"), [(1.0, -4.0), (4.0, -1.0), (8.0, -0.5)])
def test_shrinking_steps_on_a_linear_loss_have_the_linear_exponent(multiple: float, exponent: float) -> None:
    net, eps = linear(4), 0.5
    goal = (eps * functional.normalize(net.a[0], dim=0)).expand(1, 2, 4)
    start = eps * functional.normalize(goal + 1e-3 * in_ball(0, 1, 2, 4, 1.0), dim=2)
    found = shrinking(net, start, goal, eps, 1e-3, multiple, 3000)
    assert found["exponent"] == pytest.approx([exponent], rel=0.02)
    assert found["z"] == pytest.approx(2 / (multiple * 2 / eps * 1e-3), abs=1)
    assert found["ratio_falls"] == (1.0 if multiple == 1 else found["ratio_falls"])


@pytest.mark.parametrize("eps", [1e-5, 1.0, 1e3])
def test_steps_that_are_a_share_of_eps_do_not_feel_the_scale(eps: float) -> None:
    bottom = torch.tensor([torch.pi], dtype=EXACT)
    relative = left_after(linear(2), bottom, eps, "relative", 0.02, 500)
    assert set(relative.flatten().tolist()) <= {10, 11}, "through the middle, a tenth of eps a step"
    fixed = left_after(linear(2), bottom, eps, "fixed", 0.02, 500)
    expected = {1e-5: 1, 1.0: 25, 1e3: 250}[eps]
    assert set(fixed.flatten().tolist()) <= {expected, expected + 1}
    assert 0 < NEAR < 0.1


def test_the_lowest_point_between_two_maxima_is_a_pass() -> None:
    """Of a x_1^2 + b x_2^2, a > b > 0, with a little less in the third direction: over x_2, where the loss is b."""
    net, eps = Quadratic(torch.diag(torch.tensor([3.0, 1.0, 0.5], dtype=EXACT)), torch.zeros(3, dtype=EXACT)), 2.0
    end = eps * functional.normalize(torch.tensor([[[1.0, 1e-9, 0.0], [-1.0, 1e-9, 0.0]]], dtype=EXACT), dim=2)
    found = passes(net, end, eps)
    expected = torch.tensor([0.0, eps, 0.0], dtype=EXACT)
    assert found.shape == end.shape and torch.allclose(found.abs(), expected, atol=1e-6)
    assert kinds(net, found).tolist() == [[0, 0]]


def test_a_quick_run_leaves_figures_and_verdicts(record: dict[str, Any]) -> None:
    folder = Path(record["folder"])
    ends = ("landscapes", "leaving", "spheres", "rates")
    assert set(record["figures"]) == {f"ascent-{end}.png" for end in ends}
    assert all(0 < (folder / file).stat().st_size < 150_000 for file in record["figures"])
    assert (folder / "ascent.json").stat().st_size < 300_000
    assert len(record["verdicts"]) == 10 and record["table"].count("\n") > 12


def judged(numbers: dict[str, Any]) -> list[str]:
    return [v.outcome for v in judge(numbers, QUICK)]


def test_verdicts_on_rates_follow_the_exponents(record: dict[str, Any]) -> None:
    numbers, etas = copy.deepcopy(record["numbers"]), QUICK["etas"]
    found = numbers["rates"]
    found |= {"late": 0, "not_maxima": 0}
    for near, long, expected in ((0.5, -1.0, SEEN), (0.2, -1.0, PARTLY), (0.5, -3.0, PARTLY)):
        found["distance"] = [[c * eta**near for c in (1, 2, 3)] for eta in etas]
        found["steps"] = [[c * eta**long for c in (1, 2, 3)] for eta in etas]
        assert judged(numbers)[RATES] == expected
    for exponent, falls, expected in ((-4.0, 1.0, SEEN), (-1.0, 1.0, SEEN), (-0.5, 0.0, NOT_SEEN)):
        found["shrinking"][0] |= {"exponent": [exponent, exponent + 1e-3], "ratio_falls": falls}
        assert judged(numbers)[RATES + 1] == expected


def test_verdicts_on_spheres_follow_what_was_found(record: dict[str, Any]) -> None:
    numbers, nets = copy.deepcopy(record["numbers"]), QUICK["nets"]
    for row in numbers["spheres"]:
        small = row["eps"] < 1
        row |= {"maxima": [1 if small else 3] * nets, "saddles": [0 if small else 2] * nets, "minima": [1] * nets,
                "best": [1.0 if small else 0.5] * nets, "cosine": [0.999 if small else -1.0] * nets, "on_sphere": 1.0}
    outcomes = judged(numbers)
    assert [outcomes[k] for k in (ON_SPHERE, SADDLES, BEST, PARALLEL)] == [SEEN] * 4
    assert outcomes[ONE_MAXIMUM] == PARTLY, "four networks are too few for Wilson's interval"
    for row in numbers["spheres"]:
        row |= {"maxima": [2] * nets, "saddles": [1] * nets, "best": [0.5] * nets, "cosine": [0.0] * nets,
                "on_sphere": 0.5}
    outcomes = judged(numbers)
    assert [outcomes[k] for k in (ON_SPHERE, SADDLES, ONE_MAXIMUM, BEST, PARALLEL)] == [NOT_SEEN] * 5


def test_verdicts_on_the_circle_follow_scale_and_ratio(record: dict[str, Any]) -> None:
    numbers = copy.deepcopy(record["numbers"])
    for row in numbers["circle"]:
        grade = QUICK["scales"].index(row["scale"]) * QUICK["ratios"].index(row["ratio"])
        row["maxima"] = [1 + grade] * 3
        row["steps"] = {"fixed": [1.0 + grade] * 3, "relative": [10.0] * 3}
    assert judged(numbers)[REGULAR:] == [SEEN, SEEN, NOT_SEEN]
    for row in numbers["circle"]:
        row["maxima"], row["steps"]["fixed"] = [2] * 3, [5.0] * 3
    assert judged(numbers)[REGULAR:] == [NOT_SEEN] * 3
