"""Pictures of radii: files that can be read back, with what they should show."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from verifier.radius.interval import RadiusInterval
from verifier.radius.picture import save_radii, save_radius_picture
from verifier.verdict import Evidence


def interval(lower: float, upper: float) -> RadiusInterval:
    return RadiusInterval(lower, upper, Evidence.ROUNDED, Evidence.FLOAT, "crown", "fmn")


@pytest.mark.parametrize("shape", [(1, 6, 5), (3, 6, 5), (7,), (4, 3, 3)])
def test_an_input_with_its_counterexample_has_three_panels(shape: tuple[int, ...], tmp_path: Path,
                                                           drawn: list[Figure]) -> None:
    x = np.random.default_rng(0).random(shape).astype(np.float32)
    point = x.copy()
    point.flat[2] -= 0.25
    save_radius_picture(tmp_path / "a.png", x, interval(0.125, 0.25), point, "image 3")
    assert imread(tmp_path / "a.png").std() > 0.05
    (figure,) = drawn
    assert figure.get_suptitle() == "image 3: r1 = 0.125 (rounded), r2 = 0.25 (float)"
    assert len(figure.axes) == 3 and "0.25" in figure.axes[2].get_title()
    image = len(shape) == 3 and shape[0] in (1, 3)
    assert all(bool(axis.images) is image for axis in figure.axes)
    if image:
        low, high = figure.axes[2].images[0].get_clim()
        assert low == -high == pytest.approx(-0.25)


def test_without_a_counterexample_only_the_original_is_shown(tmp_path: Path, drawn: list[Figure]) -> None:
    save_radius_picture(tmp_path / "a.png", np.zeros((1, 3, 3)), interval(0.125, math.inf), None)
    save_radius_picture(tmp_path / "b.png", np.zeros(3), interval(math.inf, math.inf), None)
    assert [len(figure.axes) for figure in drawn] == [1, 1]
    assert [figure.get_suptitle() for figure in drawn] == ["r1 = 0.125 (rounded), r2 = none known",
                                                           "nothing is unsafe (rounded)"]


def test_intervals_of_a_data_set_are_sorted_by_their_upper_end(tmp_path: Path, drawn: list[Figure]) -> None:
    found = [interval(0.1, 0.4), interval(0.2, 0.3), interval(0.3, math.inf), interval(math.inf, math.inf)]
    save_radii(tmp_path / "a.png", found, "net")
    assert imread(tmp_path / "a.png").std() > 0.05
    (figure,) = drawn
    assert figure.get_suptitle() == "net, 4 inputs, 1 without a counterexample, 1 with nothing unsafe"
    bars, histograms = figure.axes
    certified, attacked = bars.lines
    assert np.asarray(certified.get_ydata()).tolist() == [0.2, 0.1, 0.3]
    assert np.asarray(attacked.get_ydata()).tolist() == [0.3, 0.4]
    assert len(histograms.patches) == 2
    heights = [patch.get_path().vertices[:, 1].max() for patch in histograms.patches]  # type: ignore[attr-defined]
    assert heights == [1, 1]


def test_a_data_set_where_nothing_is_known_still_makes_a_picture(tmp_path: Path) -> None:
    save_radii(tmp_path / "a.png", [interval(0.0, math.inf)])
    save_radii(tmp_path / "b.png", [interval(math.inf, math.inf)])
    assert (tmp_path / "a.png").stat().st_size > 1000 and (tmp_path / "b.png").stat().st_size > 1000


def test_wrong_use_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        save_radii(tmp_path / "a.png", [])
    with pytest.raises(ValueError, match="the counterexample"):
        save_radius_picture(tmp_path / "a.png", np.zeros(3), interval(0.0, 1.0), np.zeros(4, np.float32))
