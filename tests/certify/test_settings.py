"""Settings from recipes, YAML and flags, in that order; wrong ones are refused by name."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from certify.schedules import Ramp
from certify.settings import TrainSettings, parsed, read_settings, resolve


def test_later_sources_win_key_by_key() -> None:
    settings = resolve({"model": {"name": "mlp", "hidden": [5, 4]}, "lr": "1e-3", "eps": 0.1},
                       {"model.hidden": [7], "lr": 1e-2, "norm": 2})
    assert settings.model == "mlp" and settings.model_settings == {"hidden": [7]}
    assert settings.lr == 1e-2 and settings.eps == 0.1 and settings.p == 2.0
    assert settings.ramp == "smooth", "the recipe of interval bounds"
    assert resolve({"method": "standard"}).ramp == "linear"


def test_a_recipe_stretches_to_the_epochs_that_are_asked_for() -> None:
    usual, short = resolve({}), resolve({"epochs": 6})
    assert (usual.epochs, usual.ramp_end, usual.milestones) == (60, 30, (45, 55))
    assert (short.ramp_begin, short.ramp_end, *short.milestones) == pytest.approx((0.2, 3, 4.5, 5.5))
    assert resolve({"epochs": 6, "ramp_end": 5}).ramp_end == 5


@pytest.mark.parametrize(("given", "words"), [
    ({"epocs": 3}, "unknown setting 'epocs'"), ({"method": "iBP"}, "method must be one of"),
    ({"lr": "fast"}, "lr: expected a number"), ({"batch_size": 2.5}, "batch_size: expected a whole number"),
    ({"eps": -1}, "eps must be > 0"), ({"eps": float("nan")}, "eps must be > 0"), ({"norm": 1}, "norm must be one of"),
    ({"milestones": 5}, "milestones: expected a list"), ({"lr": True}, "lr: expected a number"),
    ({"ramp_begin": 5, "ramp_end": 1}, "ramp_begin"), ({"natural_last": 2}, "natural_last must lie in"),
    ({"ramp_end": 30, "epochs": 10}, "ramp_end is epoch 30, and the run ends with epoch 10"),
    ({"average": "swa", "average_from": 7, "epochs": 6}, "average_from is epoch 7"),
    ({"seed": -1}, "seed must be >= 0"),
    ({"method": 3}, "method: expected a word"), ({"data": 3}, "data: expected a word"),
    ({"method": ["pgd"]}, "method: expected a word"), ({"data": {"name": "digits"}}, "data: expected a word"),
    ({"model": {"hidden": [8], 3: 4}}, "model: expected names of settings, got 3"),
    ({"model_settings": {None: 4}}, "model: expected names of settings, got None"),
    ({"method_settings": {"name": "pgd"}}, "method_settings: its name belongs to method"),
    ({"method": {"name": ["pgd"]}}, "method: expected a word"),
    ({"seed": 1e30}, "seed: expected a whole number below"), ({"seed": 2**63}, "seed: expected a whole number below"),
    ({"batch_size": "1e30"}, "batch_size: expected a whole number below"),
    ({"lr": 10**400}, "lr: expected a number below"), ({"method_settings": 5, "method.steps": 3}, "names and values"),
    ({"milestones": [float("nan")]}, "milestones must be"), ({"milestones": [-1]}, "milestones must be"),
    ({"milestones": [float("inf")]}, "milestones must be"),
    ({"milestones": [10, 30], "epochs": 30}, "milestones is epoch 30, and the run ends with epoch 30"),
    ({"milestones": [45, 55], "epochs": 40}, "milestones is epoch 55"),
    ({"lr_warmup": 5, "epochs": 4}, "lr_warmup is epoch 5, and the run ends with epoch 4"),
])
def test_wrong_settings_are_refused_by_name(given: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        resolve(given)


def test_a_name_behind_a_dot_is_the_name() -> None:
    settings = resolve({"method.name": "pgd", "method.steps": 3}, {"model.name": "cnn5", "model.width": 2})
    assert (settings.method, settings.model) == ("pgd", "cnn5")
    assert settings.method_settings == {"steps": 3} and settings.model_settings == {"width": 2}


@pytest.mark.parametrize("method", ["ibp", "fast-ibp", "crown-ibp", "zonotope", "lipschitz-margin", "wong-kolter"])
@pytest.mark.parametrize("data", ["mine.npz", "cifar10", "fashion-mnist"])
def test_every_method_on_bounds_has_a_ramp(method: str, data: str) -> None:
    """With none the radius is that of the end from the first step on: CROWN-IBP would be IBP throughout."""
    usual, short = resolve({"method": method, "data": data}), resolve({"method": method, "data": data, "epochs": 3})
    assert 0 < usual.ramp_end == usual.epochs / 2 and short.ramp_end == 1.5
    assert resolve({"method": method, "data": data, "ramp_end": 0}).ramp_end == 0
    assert resolve({"method": "pgd", "data": data}).ramp_end == 0


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    settings = resolve({"milestones": [1, 2.5], "method.x": 1} | {"method": "standard"})
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(settings.as_dict()))
    assert resolve(read_settings(path)) == settings


@pytest.mark.parametrize("text", ["- a", "a: [", "7"])
def test_files_that_hold_no_settings_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"YAML|names and values"):
        read_settings(tmp_path / "c.yaml")


def test_values_of_the_command_line() -> None:
    assert [parsed(t) for t in ("1e-3", "3", "[1, 2]", "sgd", "0.5")] == [1e-3, 3, [1, 2], "sgd", 0.5]


@pytest.mark.parametrize("kind", ["linear", "smooth"])
def test_ramps_rise_from_end_to_end_without_jumps(kind: str) -> None:
    ramp = Ramp(0.1, 0.9, 2.0, 6.0, kind)
    grid = [ramp.at(k / 100) for k in range(1000)]
    assert grid[0] == grid[200] == 0.1 and grid[600] == grid[-1] == 0.9
    steps = [b - a for a, b in pairwise(grid)]
    assert min(steps) >= 0 and max(steps) < 0.005
    if kind == "linear":
        assert ramp.at(4.0) == pytest.approx(0.5)
    else:
        slopes = [(ramp.at(3 + h) - ramp.at(3)) / h for h in (-1e-6, 1e-6)]
        assert slopes[0] == pytest.approx(slopes[1], rel=1e-4), "the line goes on where the power ends"
        assert ramp.at(3.0) < 0.2


def test_defaults_are_valid() -> None:
    assert TrainSettings().method == "ibp"
