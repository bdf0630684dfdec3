"""Pictures of safe radii: one input with its nearest counterexample, and the radii of a data set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from verifier.panels import new_figure, save, show_input, show_move
from verifier.radius.interval import RadiusInterval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH_INCHES, HEIGHT_INCHES = 7.2, 2.8
BINS = 30


def save_radius_picture(path: Path, original: NDArray[Any], found: RadiusInterval, point: NDArray[Any] | None,
                        name: str = "") -> None:
    """Write a PNG: the original "*shape", the counterexample `point` at the upper end (None: none is known, and only
    the original is shown), and their difference, from blue (less) to red (more); the title gives both ends with their
    evidence. Raises ValueError where the counterexample has another shape."""
    before = np.asarray(original, dtype=float)
    after = None if point is None else np.asarray(point, dtype=float)
    if after is not None and after.shape != before.shape:
        raise ValueError(f"the original has shape {before.shape}, the counterexample {after.shape}")
    shown = before if after is None else np.stack([before, after])
    low, high = float(shown.min()), float(shown.max())
    figure = new_figure(WIDTH_INCHES, HEIGHT_INCHES)
    figure.suptitle(f"{name}: {radii(found)}" if name else radii(found), fontsize=10)
    axes = figure.subplots(1, 1 if after is None else 3, squeeze=False)[0]
    show_input(axes[0], before, low, high)
    axes[0].set_title("original" if after is not None else "original; no counterexample is known", fontsize=9)
    if after is not None:
        show_input(axes[1], after, low, high)
        axes[1].set_title("counterexample", fontsize=9)
        show_move(axes[2], after - before, "difference")
    save(figure, path)


def radii(found: RadiusInterval) -> str:
    """Both ends in words."""
    if math.isinf(found.lower):
        return f"nothing is unsafe ({found.lower_evidence.name.lower()})"
    above = "none known" if math.isinf(found.upper) else f"{found.upper:.6g} ({found.upper_evidence.name.lower()})"
    return f"r1 = {found.lower:.6g} ({found.lower_evidence.name.lower()}), r2 = {above}"


def save_radii(path: Path, found: Sequence[RadiusInterval], title: str = "") -> None:
    """Write a PNG of many inputs: their intervals [r1, r2] in the order of r2, and histograms of both ends. Inputs
    without a counterexample reach to the top; those with no unsafe point at all are counted only. Raises ValueError for
    no inputs."""
    if not found:
        raise ValueError("expected at least one radius, got none")
    finite = [f for f in found if math.isfinite(f.lower)]
    lower, upper = (np.array([getattr(f, end) for f in finite], dtype=float) for end in ("lower", "upper"))
    order = np.lexsort((lower, upper))
    figure = new_figure(WIDTH_INCHES, HEIGHT_INCHES + 0.6)
    without, nothing = int(np.isinf(upper).sum()), len(found) - len(finite)
    told = [title, f"{len(found)} inputs", f"{without} without a counterexample" if without else "",
            f"{nothing} with nothing unsafe" if nothing else ""]
    figure.suptitle(", ".join(part for part in told if part), fontsize=10)
    intervals, histograms = figure.subplots(1, 2)
    _intervals(intervals, lower[order], upper[order])
    _histograms(histograms, lower, upper)
    save(figure, path)


def _top(lower: NDArray[Any], upper: NDArray[Any]) -> float:
    """The end of the axis."""
    ends = np.concatenate([lower, upper[np.isfinite(upper)]])
    return 1.05 * float(ends.max(initial=0.0)) or 1.0


def _intervals(axis: Axes, lower: NDArray[Any], upper: NDArray[Any]) -> None:
    top, place = _top(lower, upper), np.arange(len(lower))
    width = min(4.0, max(0.5, 150 / max(1, len(lower))))
    axis.vlines(place, lower, np.minimum(upper, top), color="0.6", linewidth=width)
    axis.plot(place, lower, ".", color="tab:blue", markersize=3, label="r1, certified")
    known = np.isfinite(upper)
    axis.plot(place[known], upper[known], ".", color="tab:red", markersize=3, label="r2, counterexample")
    axis.set_ylim(0, top)
    axis.set_xlabel("inputs, by r2", fontsize=9)
    axis.set_ylabel("radius", fontsize=9)
    axis.legend(fontsize=7, loc="upper left")


def _histograms(axis: Axes, lower: NDArray[Any], upper: NDArray[Any]) -> None:
    bins = np.linspace(0, _top(lower, upper), BINS + 1).tolist()
    axis.hist(lower, bins, histtype="step", color="tab:blue", label="r1, certified")
    axis.hist(upper[np.isfinite(upper)], bins, histtype="step", color="tab:red", label="r2, counterexample")
    axis.set_xlabel("radius", fontsize=9)
    axis.set_ylabel("inputs", fontsize=9)
    axis.legend(fontsize=7, loc="upper right")
