"""The study of leaving minima on images: walks whose ends are known, verdicts that follow the numbers, a quick run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.studies import image_escape
from benchmarks.studies.claims import AGAINST, HOLDS, OPEN, SILENT
from benchmarks.studies.escape import MODES, STUDY, check, judge, walk_of
from benchmarks.studies.study import NOT_SEEN, PARTLY, SEEN, Context, Verdict, perform
from certify.data.registry import load

QUICK = MODES["quick"]
UNTRAINED, TRAINED = 0, 2


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("escape")
    return {**perform(STUDY, "quick", folder, Context(lambda text: None)), "folder": str(folder)}


def test_scaled_data_have_no_range_and_radii_follow_the_scale() -> None:
    data = load("digits")
    small = image_escape.scaled(data, 0.1)
    assert small.clip is None and len(small.first(7, None).train) == 7 and len(small.first(None, 5).test) == 5
    torch.testing.assert_close(small.test.x, 0.1 * data.test.x)
    length = float(data.test.x.flatten(1).norm(dim=1).mean())
    assert image_escape.radius(small.test, 0.5) == pytest.approx(0.05 * length)


def test_untrained_networks_are_drawn_by_their_seed() -> None:
    data = load("digits")
    first, again, other = (image_escape.untrained(data, seed, xavier=True, device=None) for seed in (0, 0, 1))
    x = data.test.x[:3]
    assert torch.equal(first(x), again(x)) and not torch.equal(first(x), other(x))
    assert all(not p.any() for name, p in first.module.named_parameters() if name.endswith("bias"))


def test_walks_begin_at_the_bottom_and_rise() -> None:
    data = load("digits")
    model, part = image_escape.untrained(data, 0, xavier=True, device=None), data.test.take(slice(0, 6))
    walk = walk_of({**QUICK, "steps": 60})
    fixed, relative = image_escape.escapes(model, part, image_escape.radius(part, 0.1), walk)
    for row in (fixed, relative):
        assert row["middle"][0] == 0 and all(0 <= v <= 1 for v in row["middle"])
        assert len(row["middle"]) == len(walk.places)
    assert max(fixed["middle"]) > 0.5
    assert relative["escaped"] == 1 and relative["steps"] <= 60 and relative["middle"][-1] > 0.9


def test_a_quick_run_leaves_figures_and_verdicts(record: dict[str, Any]) -> None:
    folder = Path(record["folder"])
    assert set(record["figures"]) == {f"escape-{end}.png" for end in ("untrained", "trained")}
    assert all(0 < (folder / file).stat().st_size < 150_000 for file in record["figures"])
    assert (folder / "escape.json").stat().st_size < 300_000
    assert len(record["verdicts"]) == 4
    rows = len(image_escape.RULES) * (len(QUICK["ratios"]) + len(QUICK["train_ratios"]))
    assert record["table"].count("\n| ") == rows + 4, "two tables with a head and a line each"


def judged(numbers: dict[str, Any], settings: dict[str, Any] = QUICK) -> list[str]:
    return [v.outcome for v in judge(numbers, settings)]


SCALES, RATIOS = [0.1, 1.0, 10.0], [0.01, 0.1, 1.0]
SETTINGS = {**QUICK, "scales": SCALES, "ratios": RATIOS, "train_scales": [0.1, 10.0], "train_ratios": RATIOS,
            "seeds": 3, "epochs": [0, 1, 2], "steps": 100}
Count = Callable[[int, int, int], float]  # of the places of scale and ratio in their lists, and the seed or epoch


def untrained(steps: Count, escaped: Count = lambda *_: 1.0) -> dict[str, Any]:
    """Numbers of both rules alike; those of training have no effect."""
    rows = [{"rule": rule, "scale": scale, "ratio": ratio, "seed": seed, "steps": steps(i, j, seed),
             "escaped": escaped(i, j, seed)}
            for rule in image_escape.RULES for i, scale in enumerate(SCALES) for j, ratio in enumerate(RATIOS)
            for seed in range(3)]
    return {"untrained": rows, "trained": trained(lambda *_: 20.0)["trained"]}


def trained(steps: Count, escaped: Count = lambda *_: 1.0) -> dict[str, Any]:
    rows = [{"rule": rule, "scale": scale, "ratio": ratio, "seed": seed, "epoch": epoch, "clean": 1.0, "pgd": 1.0,
             "steps": min(steps(i, j, epoch) + 0.01 * seed, 101.0), "escaped": escaped(i, j, epoch)}
            for rule in image_escape.RULES for i, scale in enumerate((0.1, 10.0)) for j, ratio in enumerate(RATIOS)
            for epoch in (0, 1, 2) for seed in range(3)]
    return {"trained": rows}


def untrained_outcomes(steps: Count, escaped: Count = lambda *_: 1.0) -> list[str]:
    return judged(untrained(steps, escaped), SETTINGS)[:TRAINED]


def trained_verdicts(steps: Count, escaped: Count = lambda *_: 1.0) -> list[Verdict]:
    return judge({**untrained(lambda *_: 20.0), **trained(steps, escaped)}, SETTINGS)[TRAINED:]


def test_no_effect_at_all_is_not_seen() -> None:
    assert judged(untrained(lambda *_: 20.0), SETTINGS) == [NOT_SEEN] * 4


def test_steps_that_rise_are_seen_where_leaving_is_easy_at_the_smallest_scale() -> None:
    def rising(i: int, j: int, _: int) -> float:
        return 1.0 + 5 * i + 2 * j

    def hard_when_large(i: int, *_: int) -> float:
        return 0.2 if i == 2 else 0.9
    assert untrained_outcomes(rising, hard_when_large) == [SEEN] * 2
    assert untrained_outcomes(rising) == [PARTLY] * 2, "easy at the largest scale too"
    assert untrained_outcomes(rising, lambda *_: 0.2) == [NOT_SEEN, PARTLY], "hard everywhere: of steps that are a " \
        "share of eps ease is not asked"
    assert untrained_outcomes(lambda *_: 101.0, lambda *_: 0.0) == [NOT_SEEN] * 2
    assert untrained_outcomes(lambda i, j, k: 50 - rising(i, j, k)) == [NOT_SEEN] * 2
    only_by_ratio = judge(untrained(lambda i, j, _: 50.0 - 5 * i + 2 * j), SETTINGS)[UNTRAINED]
    assert only_by_ratio.outcome == NOT_SEEN and "show 1, contradict 2" in only_by_ratio.why, "one part of three"


def test_networks_that_disagree_count_once_each() -> None:
    """Two rise with scale and ratio, one falls: 27 pairs would be significant, three networks are not."""
    def split(i: int, j: int, seed: int) -> float:
        return 20.0 - 2 * (i + j) if seed == 2 else 20.0 + 2 * (i + j)
    numbers = untrained(split)
    assert judged(numbers, SETTINGS)[:TRAINED] == [NOT_SEEN] * 2
    assert OPEN in judge(numbers, SETTINGS)[UNTRAINED].why


def test_ratios_that_are_at_one_end_at_every_scale_cannot_tell() -> None:
    def one_of_three(i: int, j: int, _: int) -> float:
        return (1.0, 2.0 + i, 101.0)[j]

    def two_of_three(i: int, j: int, _: int) -> float:
        return (1.0, 2.0 + i, 50.0 + i)[j]
    for steps, said in ((one_of_three, SILENT), (two_of_three, HOLDS)):
        why = judge(untrained(steps), SETTINGS)[UNTRAINED].why
        assert f"ratios that can tell ({said};" in why


def test_training_makes_leaving_harder_and_the_more_so_at_a_large_scale() -> None:
    def doubling(i: int, _: int, epoch: int) -> float:
        return 2.0 ** (epoch * (1 + i))
    assert [v.outcome for v in trained_verdicts(doubling)] == [SEEN] * 2
    assert [v.outcome for v in trained_verdicts(doubling, lambda *_: 0.3)] == [NOT_SEEN, SEEN], "not easy to begin with"
    alike = trained_verdicts(lambda i, j, epoch: 2.0**epoch)
    assert [v.outcome for v in alike] == [PARTLY] * 2
    falling = trained_verdicts(lambda i, j, epoch: 20.0 - 5 * epoch)
    assert [v.outcome for v in falling] == [NOT_SEEN] * 2 and all(AGAINST in v.why for v in falling)


def test_networks_that_learnt_nothing_tell_nothing_of_training() -> None:
    numbers = untrained(lambda i, j, _: 1.0 + i + j)
    for row in numbers["trained"]:
        row["clean"] = 0.12
    found = judge(numbers, SETTINGS)[TRAINED:]
    assert [v.outcome for v in found] == [NOT_SEEN] * 2
    assert all("could not have shown 2" in v.why and "contradict" not in v.why for v in found)


def test_counts_that_end_at_the_limit_do_not_say_that_nothing_rose() -> None:
    """At the large scale two ratios are at the limit already; with one of them, the others are compared alone."""
    def full(of: int) -> Count:
        return lambda i, j, epoch: 101.0 if i and j < of else 2.0 ** (epoch * (1 + i))
    one, two = trained_verdicts(full(1)), trained_verdicts(full(2))
    assert [v.outcome for v in one] == [SEEN] * 2 and "3 at scale 10 after epoch 1" in one[0].why
    assert [v.outcome for v in two] == [PARTLY] * 2
    assert all(f"only 1 of 3 ratios can tell (above zero is asked for; {SILENT})" in v.why for v in two)
    # What the small scale rose is its least: the large one may have risen less, the numbers cannot tell.
    short = trained_verdicts(lambda i, j, epoch: (4.0 if epoch < 2 else 101.0) / (2 if i and epoch < 2 else 1))
    assert [v.outcome for v in short] == [PARTLY] * 2 and all(SILENT in v.why for v in short)
    least = trained_verdicts(lambda i, j, epoch: (2.0 + 60 * (epoch == 2)) if i == 0 else 80.0 + 21 * (epoch == 2))
    assert [v.outcome for v in least] == [PARTLY] * 2 and all(OPEN in v.why for v in least)


def test_one_training_could_not_have_shown_anything() -> None:
    settings = {**SETTINGS, "seeds": 1}
    numbers = untrained(lambda i, j, _: 1.0 + i + j)
    numbers = {name: [r for r in rows if r["seed"] == 0] for name, rows in numbers.items()}
    found = judge(numbers, settings)
    assert [v.outcome for v in found] == [NOT_SEEN] * 4 and all(SILENT in v.why for v in found)


@pytest.mark.parametrize(("name", "value"), [
    ("scales", [0.1, 10.0]), ("ratios", [1.0, 0.1, 0.01]), ("train_scales", [0.1]), ("epochs", [0, 3]),
    ("epochs", [1, 2, 3]), ("seeds", 0), ("train_ratios", []), ("train_ratios", [-0.1])])
def test_settings_that_allow_no_verdict_are_refused(name: str, value: Any) -> None:
    with pytest.raises(SystemExit, match=name):
        check({**QUICK, name: value})


def test_settings_of_all_modes_allow_verdicts() -> None:
    for mode in MODES.values():
        check(mode)
