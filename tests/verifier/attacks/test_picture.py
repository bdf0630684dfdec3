"""Pictures of attacks: files that can be read back, with what they should show."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from verifier.attacks.picture import save_picture


def examples(shape: tuple[int, ...], count: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.random((count, *shape)).astype(np.float32)
    return x, np.clip(x + rng.normal(0, 0.1, x.shape).astype(np.float32), 0, 1)


@pytest.mark.parametrize("shape", [(1, 6, 5), (3, 6, 5), (7,), (4, 3, 3), (2, 9)])
def test_a_png_with_three_axes_a_row(shape: tuple[int, ...], tmp_path: Path, drawn: list[Figure]) -> None:
    x, y = examples(shape)
    path = tmp_path / "attack.png"
    save_picture(path, x, y, [1, 2, 3], [0, 5, 3], [0.5, 0.25, math.inf])
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    pixels = imread(path)
    assert pixels.shape[0] > 200
    assert pixels.std() > 0.05
    axes = drawn[0].axes
    assert len(axes) == 9
    assert [a.get_title() for a in axes[2::3]] == ["1 → 0, distance 0.5", "2 → 5, distance 0.25",
                                                   "3 → 3, nothing found"]
    image = len(shape) == 3 and shape[0] in (1, 3)
    assert all(bool(a.images) is image and bool(a.patches) is not image for a in axes)


def test_perturbations_are_centred_on_zero_and_say_their_scale(tmp_path: Path, drawn: list[Figure]) -> None:
    x = np.full((2, 3, 4, 4), 0.5, np.float32)
    y = x.copy()
    y[0, 2, 1, 1] -= 0.25  # one channel of one pixel
    save_picture(tmp_path / "a.png", x, y, ["cat"] * 2, ["dog"] * 2, [0.25, 0.0])
    first, second = drawn[0].axes[1], drawn[0].axes[4]
    assert "0.25" in first.get_title()
    assert first.images[0].get_clim() == (-0.25, 0.25)
    shown = np.asarray(first.images[0].get_array())
    assert shown[1, 1] == pytest.approx(-0.25)
    assert np.count_nonzero(shown) == 1
    assert second.images[0].get_clim() == (-1.0, 1.0)  # nothing moved


def test_originals_and_results_share_their_brightness(tmp_path: Path, drawn: list[Figure]) -> None:
    x, y = np.zeros((1, 1, 3, 3)), np.full((1, 1, 3, 3), 2.0)
    save_picture(tmp_path / "a.png", x, y, [0], [1], [2.0])
    left, _, right = drawn[0].axes
    assert left.images[0].get_clim() == right.images[0].get_clim() == (0.0, 2.0)


def test_only_so_many_rows(tmp_path: Path, drawn: list[Figure]) -> None:
    x, y = examples((1, 4, 4), 12)
    save_picture(tmp_path / "a.png", x, y, [0] * 12, [1] * 12, [1.0] * 12)
    save_picture(tmp_path / "b.png", x, y, [0] * 12, [1] * 12, [1.0] * 12, rows=2)
    assert [len(f.axes) for f in drawn] == [24, 6]


def test_no_global_figures(tmp_path: Path) -> None:
    x, y = examples((1, 4, 4))
    save_picture(tmp_path / "a.png", x, y, [0] * 3, [1] * 3, [1.0] * 3)
    plots = sys.modules.get("matplotlib.pyplot")
    assert plots is None or not plots.get_fignums()


@pytest.mark.parametrize("labels", [[0], [0, 1, 2, 3]])
def test_unequal_lengths_are_refused(labels: list[int], tmp_path: Path) -> None:
    x, y = examples((1, 4, 4))
    with pytest.raises(ValueError, match="as many originals"):
        save_picture(tmp_path / "a.png", x, y, labels, [0] * 3, [1.0] * 3)
    with pytest.raises(ValueError, match="as many originals"):
        save_picture(tmp_path / "a.png", x[:0], y[:0], [], [], [])
