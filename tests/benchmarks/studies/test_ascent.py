"""The study of ascent dynamics: linear losses whose ascent is known, verdicts that follow the numbers, a quick run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from benchmarks.studies.ascent import MODES, NEAR, STUDY, arrived, check, judge, left_after, passes, shrinking
from benchmarks.studies.claims import AGAINST, HOLDS, OPEN, SILENT
from benchmarks.studies.study import NOT_SEEN, PARTLY, SEEN, Context, Verdict, perform
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


def judged(numbers: dict[str, Any], settings: dict[str, Any] = QUICK) -> list[str]:
    return [v.outcome for v in judge(numbers, settings)]


def rates(near: float = 0.5, long: float = -1.0, **others: Any) -> dict[str, Any]:
    etas = QUICK["etas"]
    return {"late": 0, "not_maxima": 0, "distance": [[c * eta**near for c in (1, 2, 3)] for eta in etas],
            "steps": [[c * eta**long for c in (1, 2, 3)] for eta in etas],
            "shrinking": [{"multiple": m, "exponent": [-4 / m, -4 / m - 1e-3]} for m in QUICK["multiples"]], **others}


def test_verdicts_on_rates_follow_arrivals_and_steps(record: dict[str, Any]) -> None:
    for found, expected, said in (
            (rates(), SEEN, HOLDS),
            (rates(near=0.2), SEEN, HOLDS),  # the distance follows from where a run is stopped
            (rates(long=-3.0), PARTLY, AGAINST),
            (rates(steps=[[1.0, 10.0, 10.0], [1.0, 10.0, 100.0], [1.0, 100.0, 10_000.0]]), PARTLY, OPEN),
            (rates(not_maxima=1), NOT_SEEN, AGAINST),
            # Late ones would enter with the limit, and make the steps look soon enough.
            (rates(late=1), NOT_SEEN, OPEN)):
        verdict = judge({**record["numbers"], "rates": found}, QUICK)[RATES]
        assert verdict.outcome == expected and said in verdict.why
    one = rates(steps=[[1 / eta] for eta in QUICK["etas"]], distance=[[eta**0.5] for eta in QUICK["etas"]])
    verdict = judge({**record["numbers"], "rates": one}, QUICK)[RATES]
    assert verdict.outcome == PARTLY and SILENT in verdict.why


@pytest.mark.parametrize(("exponents", "expected", "said"), [
    ([-1.02, -1.01, -1.03], SEEN, HOLDS), ([-4.0, -4.1, -4.0], SEEN, HOLDS), ([-0.5, -0.51, -0.5], NOT_SEEN, AGAINST),
    ([-1.5, -0.5, -1.0], NOT_SEEN, OPEN), ([-1.0], NOT_SEEN, SILENT)])
def test_shrinking_steps_are_judged_at_the_beta_that_is_tight(record: dict[str, Any], exponents: list[float],
                                                             expected: str, said: str) -> None:
    found = rates()
    for row in found["shrinking"]:  # at the others whatever is found does not count
        row["exponent"] = exponents if row["multiple"] == 4 else [-4.0 if expected == NOT_SEEN else -0.1] * 2
    verdict = judge({**record["numbers"], "rates": found}, QUICK)[RATES + 1]
    assert verdict.outcome == expected and said in verdict.why
    assert ("too slow" in verdict.why) == (expected == SEEN)


def spheres(record: dict[str, Any], nets: int, by_eps: Callable[[int], dict[str, Any]]) -> list[Verdict]:
    """by_eps: the place of eps in its list -> what every network has there."""
    numbers = copy.deepcopy(record["numbers"])
    for row in numbers["spheres"]:
        radii = QUICK["circle_radii" if row["d"] == 2 else "radii"]
        row |= {name: [v] * nets if name != "on_sphere" else v for name, v in by_eps(radii.index(row["eps"])).items()}
    return judge(numbers, {**QUICK, "nets": nets})


def regular(place: int) -> dict[str, Any]:
    return {"maxima": 1 + place, "saddles": place, "minima": 1, "best": 1 - 0.2 * place, "cosine": 0.999 - place,
            "on_sphere": 1.0}


def test_verdicts_on_spheres_follow_what_was_found(record: dict[str, Any]) -> None:
    ours = (ON_SPHERE, SADDLES, ONE_MAXIMUM, BEST, PARALLEL)
    found = spheres(record, 20, regular)
    assert [found[k].outcome for k in ours] == [SEEN] * 5
    few = spheres(record, 4, regular)
    assert few[ONE_MAXIMUM].outcome == NOT_SEEN and SILENT in few[ONE_MAXIMUM].why, "four are too few for Wilson"
    bad = spheres(record, 20, lambda place: {**regular(0), "maxima": 2, "saddles": 1, "best": 0.5, "cosine": 0.0,
                                             "on_sphere": 0.5})
    assert [bad[k].outcome for k in ours] == [NOT_SEEN] * 5
    assert [(AGAINST if AGAINST in bad[k].why else OPEN) for k in ours] == [OPEN, AGAINST, AGAINST, AGAINST, AGAINST]


def test_the_same_at_every_eps_is_no_trend(record: dict[str, Any]) -> None:
    found = spheres(record, 20, lambda place: regular(0))
    assert [found[k].outcome for k in (ONE_MAXIMUM, BEST, PARALLEL)] == [PARTLY, PARTLY, NOT_SEEN]
    lower = spheres(record, 20, lambda place: {**regular(place), "best": 0.5, "maxima": 1})
    assert lower[BEST].outcome == NOT_SEEN and OPEN in lower[BEST].why, "one maximum: the others are on their way"
    none = spheres(record, 20, lambda place: {**regular(place), "maxima": 0, "saddles": 0})
    assert none[SADDLES].outcome == NOT_SEEN and SILENT in none[SADDLES].why, "the search found nothing at all"


def circle(record: dict[str, Any], maxima: Callable[[int, int], list[float]],
           fixed: Callable[[int, int], list[float]]) -> list[Verdict]:
    """Numbers by the places of scale and ratio in their lists, a value a network."""
    numbers = copy.deepcopy(record["numbers"])
    for row in numbers["circle"]:
        at = QUICK["scales"].index(row["scale"]), QUICK["ratios"].index(row["ratio"])
        row["maxima"], row["steps"] = maxima(*at), {"fixed": fixed(*at), "relative": [10.0] * 3}
    return judge(numbers, QUICK)[REGULAR:]


def test_verdicts_on_the_circle_follow_scale_and_ratio(record: dict[str, Any]) -> None:
    found = circle(record, lambda i, j: [1 + i * j] * 3, lambda i, j: [1.0 + i * j] * 3)
    assert [v.outcome for v in found] == [SEEN, SEEN, NOT_SEEN] and AGAINST in found[2].why
    for same in (1, 2):
        found = circle(record, lambda i, j, same=same: [same] * 3, lambda i, j: [5.0] * 3)
        assert [v.outcome for v in found] == [NOT_SEEN] * 3, "one maximum everywhere is no effect of the scale"
    at_once = circle(record, lambda i, j: [1] * 3, lambda i, j: [1.0] * 3)
    assert at_once[1].outcome == NOT_SEEN and SILENT in at_once[1].why


def test_networks_that_disagree_count_once_each(record: dict[str, Any]) -> None:
    """Steps of two rise, of one fall: over all pairs that would be a trend."""
    found = circle(record, lambda i, j: [1] * 3, lambda i, j: [5.0 + i + j, 6.0 + i + j, 9.0 - i - j])
    assert found[1].outcome == NOT_SEEN and OPEN in found[1].why


def test_medians_are_between_the_two_middle_values(record: dict[str, Any]) -> None:
    found = circle(record, lambda i, j: [1] * 4, lambda i, j: [2.0, 4.0, 8.0, 20.0])
    assert "medians 6, 6, 6" in found[1].why


@pytest.mark.parametrize(("name", "value"), [
    ("shrink_from", 0.5), ("d", 2), ("multiples", [1.0, 8.0]), ("etas", [1e-3]), ("etas", [1e-3, -1e-3]),
    ("scales", [0.01, 1.0]), ("ratios", [10.0, 0.1, 0.001]), ("radii", [0.01, 1.0]), ("nets", 0)])
def test_settings_that_allow_no_verdict_are_refused(name: str, value: Any) -> None:
    with pytest.raises(SystemExit, match=name):
        check({**QUICK, name: value})


def test_settings_of_all_modes_allow_verdicts() -> None:
    for mode in MODES.values():
        check(mode)
