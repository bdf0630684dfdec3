"""The study of FOSC: what it measures where that is known, verdicts that follow the numbers, a quick run from end to
end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.studies import fosc
from benchmarks.studies.convergence import Reached, short
from benchmarks.studies.fosc import (
    STUDY,
    Training,
    along,
    lower_shares,
    rank_along,
    robustness,
    size_name,
    strength,
    swept,
    trained,
)
from benchmarks.studies.study import NOT_SEEN, PARTLY, SEEN, Context, perform
from certify.data.registry import load

QUIET = Context(lambda text: None)
QUICK = STUDY.modes["quick"]
DEFAULT = STUDY.modes["default"]


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("fosc")
    return perform(STUDY, "quick", out, QUIET) | {"out": out}


def test_a_quick_run_leaves_figures_verdicts_and_a_small_record(record: dict[str, Any]) -> None:
    out: Path = record["out"]
    assert set(record["figures"]) == {f"fosc-{end}.png" for end in ("groups", "paths", "sizes", "steps", "epochs")}
    for name, caption in record["figures"].items():
        assert 5_000 < (out / name).stat().st_size < 150_000
        assert "digits" in caption and "eps 0.2" in caption and "seeds 0, 1" in caption
    assert (out / "fosc.json").stat().st_size < 300_000
    assert [v["place"].rpartition("2019, ")[2] for v in record["verdicts"]] == [
        "Figure 1a", "Figure 1b", "Figure 2a", "Figures 2a and 2c", "Figures 2c and 2e", "Figures 2b and 2d",
        "Figure 3a", "Figures 3b and 3c"]
    assert all("nan" not in v["why"] and "inf " not in v["why"] for v in record["verdicts"])
    assert "FGSM to epoch 1, PGD-3, eps/4" in record["table"]


def test_numbers_are_shares_and_distances(record: dict[str, Any]) -> None:
    numbers = record["numbers"]
    for key in ("sizes", "steps", "stages"):
        for row in numbers[key]["trainings"]:
            assert all(0 <= share <= 1 for shares in row["robust"] for share in shares)
            assert len(row["robust"]) == len(numbers[key]["attacks"])
            for shares in row["robust"]:
                assert all(a <= b + 0.05 for a, b in zip(shares, row["clean"], strict=True)), "corrects hardly any"
    assert all(row["fosc"]["quantiles"][0] >= 0 for row in numbers["sizes"]["trainings"])
    assert json.loads((record["out"] / "fosc.json").read_text())["numbers"] == numbers


def test_the_same_settings_give_the_same_numbers() -> None:
    data = load("digits").first(100, 40)
    s = QUICK | {"epochs": 2, "look_at": [1, 2, 2]}
    one, other = (trained(Training(2, 0.5), 0, [Training(3, 0.5)], s, data, QUIET) for _ in range(2))
    assert one.robust == other.robust and torch.equal(one.epochs[2].fosc, other.epochs[2].fosc)


def test_epochs_of_fgsm_are_looked_at_with_fgsm(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    whole = fosc.distribution
    monkeypatch.setattr(fosc, "distribution", lambda model, examples, **how: (asked.append(how),
                                                                             whole(model, examples, **how))[1])
    data = load("digits").first(100, 40)
    seen = trained(Training(2, 0.5, 1), 0, [], QUICK | {"look_at": [1, 2]}, data, QUIET)
    assert [(how["steps"], how["step_size"], how.get("random", True)) for how in asked[:3]] == [
        (1, 1.0, False), (2, 0.5, True), (2, 0.5, True)]
    assert set(seen.epochs) == {1, 2, 3} and seen.path is None


# ---------------------------------------------------------------------- what is made of samples


def reached(values: Tensor, loss: Tensor | None = None, correct: Tensor | None = None) -> Reached:
    values = values.double()
    return Reached(values, values if loss is None else loss.double(), torch.ones_like(values),
                   torch.ones_like(values).bool() if correct is None else correct)


def test_groups_hold_neighbours_in_fosc() -> None:
    values = torch.arange(40) / 40
    end = reached(values, loss=1 - values, correct=values > 0.5)
    found = strength([end, end], DEFAULT | {"groups": 4, "groups_end": 0.5, "eps": 1.0})
    assert [row["examples"] for row in found["count"]] == [10] * 4
    assert [row["fosc"] for row in found["count"]] == pytest.approx([0.1125, 0.3625, 0.6125, 0.8625])
    assert [row["accuracy"] for row in found["count"]] == pytest.approx([0, 0, 0.9, 1])
    assert [row["examples"] for row in found["width"]] == [10] * 4, "half of both samples; what lies beyond is left out"
    assert found["within"] == [0.5, 0.5]
    assert found["ranks"]["count"] == {"accuracy": [short(0.9486832980505138)] * 2, "loss": [-1.0, -1.0]}
    assert found["ranks"]["width"] == {"accuracy": [0.0, 0.0], "loss": [0.0, 0.0]}, "groups of five are too small"
    assert found["rho"] == {"loss": [-1.0, -1.0], "slope": [0.0, 0.0], "share_loss": [-1.0, -1.0]}


def test_ranks_along_the_steps() -> None:
    rising = torch.arange(5.0).repeat(3, 1).T
    assert rank_along(rising) == pytest.approx(1.0) and rank_along(-rising) == pytest.approx(-1.0)
    assert rank_along(torch.zeros(5, 3)) == 0.0
    assert rank_along(torch.cat([rising, torch.zeros(5, 3)], 1)) == pytest.approx(0.5)


def test_shares_of_lower_values_count_ties_half() -> None:
    assert lower_shares([torch.tensor([0.0, 0, 1, 2])], [torch.tensor([0.0, 1, 1, 1])]) == [0.5]


@pytest.mark.parametrize(("share", "name"), [
    (1.0, "eps"), (0.5, "eps/2"), (1 / 6, "eps/6"), (0.4, "0.4 eps"), (2.0, "2 eps")])
def test_step_sizes_have_the_names_of_the_paper(share: float, name: str) -> None:
    assert size_name(share) == name


def test_a_training_is_tested_with_the_attacks_of_its_group() -> None:
    s = DEFAULT | {"seeds": [0], "step_sizes": [1.0, 0.5]}
    one, two = fosc.by_size(s)
    values = torch.rand(50)
    seen = {(t, 0): fosc.Seen(0.9, {60: reached(values)}, {one: 0.1 + k / 2, two: 0.2 + k / 2}, None)
            for k, t in enumerate((one, two))}
    found = swept([one, two], seen, s)
    assert [row["robust"] for row in found["trainings"]] == [[[0.1], [0.2]], [[0.6], [0.7]]]
    assert found["apart"] == {name: {"most": [0.0], "mean": [0.0]} for name in ("fosc", "loss")}


def test_distributions_are_compared_pair_by_pair() -> None:
    """The largest distance grows with the number of trainings; their mean does not."""
    s = DEFAULT | {"seeds": [0], "step_sizes": [1.0, 0.5, 0.25]}
    trainings = fosc.by_size(s)
    seen = {(t, 0): fosc.Seen(0.9, {60: reached(torch.linspace(0, 1, 50) + 2 * (k == 2))},
                              dict.fromkeys(trainings, 0.1), None) for k, t in enumerate(trainings)}
    assert swept(trainings, seen, s)["apart"]["fosc"] == {"most": [1.0], "mean": [pytest.approx(2 / 3, abs=1e-4)]}


# ---------------------------------------------------------------------- verdicts


def groups(slope: float) -> list[dict[str, float]]:
    return [{"examples": 20, "fosc": k / 10, "accuracy": 0.5 + slope * k / 20, "loss": 1 - slope * k / 20}
            for k in range(10)]


def grouped(slope: float, ranks: list[float]) -> dict[str, Any]:
    """Groups of all networks, and how accuracy goes with FOSC over those of each: the loss the other way."""
    each = {"accuracy": ranks, "loss": [-rho for rho in ranks]}
    return {"count": groups(slope), "width": groups(slope), "ranks": {"count": each, "width": each}, "accuracy": [0.6],
            "rho": {"loss": [0.5], "slope": [0.9], "share_loss": [0.1]}}


@pytest.mark.parametrize(("slope", "ranks", "expected", "standing"), [
    (1.0, [0.9, 0.8, 1.0], SEEN, "above zero"), (-1.0, [-0.9, -0.8, -1.0], NOT_SEEN, "contradict 2"),
    (0.0, [0.1, -0.2, 0.1], NOT_SEEN, "leave 2 open"), (1.0, [1.0], NOT_SEEN, "could not have shown 2"),
    (1.0, [1.0, 0.9, -0.6], NOT_SEEN, "leave 2 open")])
def test_verdict_on_groups(slope: float, ranks: list[float], expected: str, standing: str) -> None:
    """By what networks have in common, and not by how many groups their examples make."""
    found = fosc.judge_groups(grouped(slope, ranks), DEFAULT)
    assert found.outcome == expected and standing in found.why and "{" not in found.why
    assert ("gradients are small" in found.why) == (slope < 0), "told only where it explains something"


def test_the_setting_says_which_groups_count() -> None:
    found = grouped(1.0, [0.9, 0.8, 1.0])
    found["ranks"]["width"] = grouped(-1.0, [-0.9, -0.8, -1.0])["ranks"]["width"]
    assert [fosc.judge_groups(found, DEFAULT | {"grouping": kind}).outcome for kind in ("count", "width")] == [
        SEEN, NOT_SEEN]


def test_verdict_on_paths() -> None:
    steps = torch.linspace(0, 1, 6, dtype=torch.float64)[:, None]
    size = torch.linspace(0.5, 1.5, 30, dtype=torch.float64)
    told = Reached((1 - steps) * size, steps * size, size.expand(6, 30), torch.ones(6, 30).bool())
    other = Reached(steps * size, (1 - steps) * size, size.expand(6, 30), torch.ones(6, 30).bool())
    assert fosc.judge_paths(along([told, told])).outcome == SEEN
    against = fosc.judge_paths(along([other, other]))
    assert against.outcome == NOT_SEEN and "contradict 4" in against.why
    mixed = Reached(told.fosc, other.loss, told.slope, told.correct)
    assert fosc.judge_paths(along([mixed, mixed])).outcome == PARTLY


def falling(*fosc_after: float) -> Reached:
    """The FOSC of 30 examples goes along these values; the loss rises as it should."""
    size = torch.linspace(0.5, 1.5, 30, dtype=torch.float64)
    steps = torch.linspace(0, 1, len(fosc_after), dtype=torch.float64)[:, None]
    gaps = torch.tensor(fosc_after, dtype=torch.float64)[:, None]
    return Reached(gaps * size, steps * size, size.expand(len(gaps), 30), torch.ones(len(gaps), 30).bool())


def test_fosc_that_rises_before_it_falls_does_not_fall_consistently() -> None:
    path = falling(0.9, 1.0, 0.5, 1.0, 0.4, 0.01)
    found = fosc.judge_paths(along([path, path]))
    assert found.outcome == PARTLY and "show 3, contradict 1" in found.why
    assert "at step 3 it rises, to 1" in found.why


def test_fosc_that_falls_by_a_little_does_not_go_towards_zero() -> None:
    path = falling(1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
    assert fosc.judge_paths(along([path, path])).outcome == PARTLY


def sizes(middle: float, *, apart: tuple[float, float] = (0.5, 0.1)) -> dict[str, Any]:
    """Four step sizes, three seeds; `middle` is what eps/2 and eps/4 gain."""
    rows = []
    for k, size in enumerate((1.0, 0.5, 0.25, 0.125)):
        level = 0.5 + middle * (k in (1, 2))
        shift = [0.0, 0.001, -0.001]
        rows.append({"name": f"{size}", "size": size, "steps": 20,
                     "robust": [[level + v * (1 + k / 5) for v in shift]] * 4,
                     "fosc": {"means": [(2, 1, 1.1, 3)[k] + v for v in shift]},
                     "loss": {"means": [1 + (k % 2) / 10 + v for v in shift]}})
    return {"attacks": ["a"] * 4, "trainings": rows,
            "apart": {name: {which: [value, value + 0.01, value - 0.01] for which in ("most", "mean")}
                      for name, value in zip(("fosc", "loss"), apart, strict=True)}}


@pytest.mark.parametrize(("middle", "expected", "standing"), [
    (0.1, SEEN, "above zero"), (0.0, NOT_SEEN, "leave 2 open"), (-0.1, NOT_SEEN, "contradict 2")])
def test_verdict_on_step_sizes(middle: float, expected: str, standing: str) -> None:
    found = fosc.judge_sizes(sizes(middle))
    assert found.outcome == expected and standing in found.why


def test_one_good_neighbour_makes_the_verdict_on_step_sizes_partial() -> None:
    found = sizes(0.1)
    found["trainings"][0]["robust"] = [[0.9, 0.9, 0.9]] * 4
    verdict = fosc.judge_sizes(found)
    assert verdict.outcome == PARTLY and "robust is training with eps, eps, eps, eps" in verdict.why


def test_verdict_on_what_fosc_tells() -> None:
    assert fosc.judge_indicator(sizes(0.1)).outcome == SEEN
    against = fosc.judge_indicator(sizes(-0.1))
    assert against.outcome == NOT_SEEN and "contradict" in against.why and "`dynamic`" in against.why
    found = sizes(0.1)
    for row in found["trainings"]:
        row["loss"]["means"] = [-float(share) for share in robustness(row)]
    assert fosc.judge_indicator(found).outcome == PARTLY, "the loss tells more"


def test_seeds_that_disagree_leave_open_what_fosc_tells() -> None:
    """Six seeds, of which two go the other way: 24 networks that are counted as draws of their own show p < 0.05."""
    ranks = [[0.1, 0.2, 0.3, 0.4]] * 4 + [[0.3, 0.2, 0.4, 0.1]] * 2
    rows = [{"size": size, "robust": [[0.5 - gaps[k] + seed / 1000 for seed, gaps in enumerate(ranks)]],
             "fosc": {"means": [(1.0, 2.0, 3.0, 4.0)[k]] * 6}, "loss": {"means": [(1.0, 2.0, 1.5, 1.2)[k]] * 6}}
            for k, size in enumerate((1.0, 0.5, 0.25, 0.125))]
    pooled = spearmanr([v for row in rows for v in row["fosc"]["means"]],
                       [float(v) for row in rows for v in robustness(row)])
    assert pooled.statistic < 0 and pooled.pvalue < 0.05
    found = fosc.judge_indicator({"trainings": rows, "attacks": []})
    assert found.outcome == NOT_SEEN and "leave" in found.why


@pytest.mark.parametrize(("apart", "expected", "standing"), [
    ((0.5, 0.05), SEEN, "above 0.1"), ((0.1, 0.5), NOT_SEEN, "contradict"), ((0.05, 0.05), NOT_SEEN, "contradict"),
    ((0.9, 0.4), NOT_SEEN, "contradict"), ((0.5, 0.1), NOT_SEEN, "leave the claim open")])
def test_verdict_on_distributions(apart: tuple[float, float], expected: str, standing: str) -> None:
    """Almost the same is a size of its own, and not whatever is less than FOSC's."""
    found = fosc.judge_shapes(sizes(0.1, apart=apart), 1000)
    assert found.outcome == expected and standing in found.why


def test_of_few_examples_no_distributions_are_almost_the_same() -> None:
    found = fosc.judge_shapes(sizes(0.1, apart=(0.5, 0.05)), 100)
    assert found.outcome == NOT_SEEN and "could not have shown" in found.why


def numbers_of_steps(robust: dict[int, float], apart: float, noise: float = 0.001) -> dict[str, Any]:
    """Networks of these numbers of steps and about this robustness, three seeds."""
    return {"trainings": [{"steps": n, "size": 1 / 6, "robust": [[share + noise * v * n / 40 for v in (0, 1, -1)]]}
                          for n, share in robust.items()],
            "apart": {"fosc": {"most": [1.0] * 3, "mean": [apart, apart + 0.01, apart - 0.005]}}}


@pytest.mark.parametrize(("gain", "apart", "expected"), [
    (0.0, 0.1, SEEN), (0.2, 0.1, NOT_SEEN), (0.0, 0.6, PARTLY), (0.2, 0.6, NOT_SEEN), (-0.2, 0.1, PARTLY)])
def test_verdict_on_numbers_of_steps(gain: float, apart: float, expected: str) -> None:
    steps = numbers_of_steps({n: 0.5 + gain * (n - 10) / 30 for n in (10, 20, 40)}, apart)
    assert fosc.judge_steps(steps, sizes(0.1)).outcome == expected


@pytest.mark.parametrize("worse", [10, 20, 40])
def test_a_number_of_steps_that_is_worse_is_not_nearly_the_same(worse: int) -> None:
    """Whichever it is, and though nothing is gained by more steps."""
    steps = numbers_of_steps({n: 0.5 - 0.2 * (n == worse) for n in (10, 20, 40)}, 0.1)
    found = fosc.judge_steps(steps, sizes(0.1))
    assert found.outcome != SEEN and "contradict" in found.why


def test_seeds_that_are_too_noisy_cannot_show_that_robustness_is_nearly_the_same() -> None:
    found = fosc.judge_steps(numbers_of_steps(dict.fromkeys((10, 20, 40), 0.5), 0.1, noise=0.05), sizes(0.1))
    assert found.outcome == NOT_SEEN and "could not have shown" in found.why


def test_only_steps_that_cross_the_ball_are_more_than_enough() -> None:
    """Twelve of eps/6; from ten to more a gain is no surprise."""
    steps = numbers_of_steps({n: 0.5 + 0.1 * (n >= 12) for n in (10, 12, 40)}, 0.1)
    found = fosc.judge_steps(steps, sizes(0.1))
    assert found.outcome == PARTLY and "From 12, the fewest" in found.why


def test_where_no_steps_cross_the_ball_none_are_said_to() -> None:
    found = fosc.judge_steps(numbers_of_steps({2: 0.5, 4: 0.5}, 0.1), sizes(0.1))
    assert found.outcome == SEEN and "the fewest" not in found.why and "crosses the ball" not in found.claim


def stages(lower: float, gain: float, after: float) -> dict[str, Any]:
    epochs = [{"means": [0.1, 0.2], "near": [0.5, 0.6]}] * 3
    rows = [{"name": name, "robust": [[0.5 + g, 0.51 + g]] * 2, "epochs": epochs,
             "lower_first": [[lower, lower + 0.01]] * 2, "lower_plain": [after, after + 0.01]}
            for name, g in (("PGD", 0.0), ("weak PGD", -0.1), ("FGSM", gain))]
    rows[2]["robust"] = [[0.5 + gain, 0.5101 + gain]] * 2
    return {"attacks": ["a", "b"], "trainings": rows}


@pytest.mark.parametrize(("lower", "expected"), [(0.9, SEEN), (0.5, NOT_SEEN), (0.1, NOT_SEEN)])
def test_verdict_on_early_epochs(lower: float, expected: str) -> None:
    assert fosc.judge_stages(stages(lower, 0, 0.5), DEFAULT).outcome == expected


@pytest.mark.parametrize(("gain", "after", "expected"), [
    (0.1, 0.9, SEEN), (0.1, 0.3, PARTLY), (-0.1, 0.9, PARTLY), (-0.1, 0.3, NOT_SEEN), (0.0, 0.5, NOT_SEEN)])
def test_verdict_on_fgsm_first(gain: float, after: float, expected: str) -> None:
    assert fosc.judge_fgsm(stages(0.5, gain, after), DEFAULT).outcome == expected


def test_one_seed_shows_no_difference() -> None:
    found = stages(0.9, 0.5, 0.9)
    for row in found["trainings"]:
        row["robust"] = [shares[:1] for shares in row["robust"]]
        row["lower_first"], row["lower_plain"] = [shares[:1] for shares in row["lower_first"]], row["lower_plain"][:1]
    assert fosc.judge_fgsm(found, DEFAULT).outcome == fosc.judge_stages(found, DEFAULT).outcome == NOT_SEEN
    assert "no interval" in fosc.judge_fgsm(found, DEFAULT).why
    assert "could not have shown 2" in fosc.judge_fgsm(found, DEFAULT).why


@pytest.mark.parametrize(("name", "value"), [
    ("seeds", []), ("seeds", [1, 1]), ("step_sizes", [0.5, 0.25]), ("step_sizes", [1.0, 0.125]),
    ("step_sizes", [1.0, 0.5, 0.25]), ("steps", [10]), ("stage_sizes", [0.25]), ("look_at", [5, 30]),
    ("look_at", [5, 30, 100]), ("look_at", [30, 5, 50]), ("fgsm_epochs", 0), ("fgsm_epochs", 60), ("groups", 1),
    ("grouping", "size"), ("stage_steps", 0)])
def test_settings_are_checked_before_anything_is_measured(name: str, value: Any) -> None:
    with pytest.raises(SystemExit, match=f"--set {name}="):
        STUDY.measure(DEFAULT | {name: value}, QUIET)


@pytest.mark.parametrize("mode", list(STUDY.modes))
def test_every_mode_has_settings_that_can_be_judged(mode: str) -> None:
    fosc.check(STUDY.modes[mode])
