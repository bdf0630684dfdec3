"""A picture of what an attack did: a row for each example with the original, the perturbation and the result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 3
ROW_INCHES, WIDTH_INCHES = 2.2, 7.2


def save_picture(path: Path, originals: NDArray[Any], results: NDArray[Any], labels: Sequence[Any],
                 predictions: Sequence[Any], distances: Sequence[float], rows: int = 8) -> None:
    """Write a PNG of the first `rows` examples: originals and results "N *shape", the rest one entry each.

    Grey and colour images (C, H, W with one or three channels) are shown as such, all in one range of brightness;
    other inputs as bars, a feature each. A perturbation goes from blue (less) over white to red (more), to the scale
    that its title states. distance inf: none was found. Raises ValueError for unequal lengths or shapes.
    """
    count = min(rows, len(originals))
    lengths = {len(originals), len(results), len(labels), len(predictions), len(distances)}
    if len(lengths) > 1 or originals.shape != results.shape or count < 1:
        raise ValueError(f"expected as many originals, results, labels, predictions and distances, at least one, got "
                         f"{originals.shape}, {results.shape}, {len(labels)}, {len(predictions)} and "
                         f"{len(distances)}; rows {rows}")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    before, after = originals[:count].astype(float), results[:count].astype(float)
    shown = np.concatenate([before, after])
    low, high = float(np.nanmin(shown)), float(np.nanmax(shown))
    figure = Figure(figsize=(WIDTH_INCHES, ROW_INCHES * count + 0.3), layout="constrained")
    FigureCanvasAgg(figure)  # a file is written; no display is needed
    axes = figure.subplots(count, COLUMNS, squeeze=False)
    for k, row in enumerate(axes):
        _input(row[0], before[k], low, high)
        row[0].set_title(f"{labels[k]}", fontsize=9)
        move = after[k] - before[k]
        scale = float(np.abs(move).max())
        _perturbation(row[1], move, scale)
        row[1].set_title(f"perturbation, colours to ±{scale:.3g}" if _is_image(move) else
                         f"perturbation, at most {scale:.3g}", fontsize=9)
        _input(row[2], after[k], low, high)
        row[2].set_title(f"{labels[k]} → {predictions[k]}, " + (
            "nothing found" if math.isinf(distances[k]) else f"distance {distances[k]:.4g}"), fontsize=9)
    figure.savefig(path, dpi=110, format="png")


def _is_image(x: NDArray[Any]) -> bool:
    return x.ndim == 3 and x.shape[0] in (1, 3)


def _input(axis: Axes, x: NDArray[Any], low: float, high: float) -> None:
    if not _is_image(x):
        _bars(axis, x, "0.35")
        axis.set_ylim(min(low, 0.0), max(high, 0.0) or 1.0)
        return
    if x.shape[0] == 1:
        axis.imshow(x[0], cmap="gray", vmin=low, vmax=high)
    else:
        axis.imshow(np.moveaxis((x - low) / ((high - low) or 1.0), 0, -1).clip(0, 1))
    axis.set_axis_off()


def _perturbation(axis: Axes, move: NDArray[Any], scale: float) -> None:
    """Of colour images the channel that moved most, at each pixel."""
    if not _is_image(move):
        _bars(axis, move, "tab:red")
        axis.set_ylim(-1.05 * (scale or 1.0), 1.05 * (scale or 1.0))
        return
    largest = np.take_along_axis(move, np.abs(move).argmax(0)[None], 0)[0]
    extent = scale or 1.0
    axis.imshow(largest, cmap="RdBu_r", vmin=-extent, vmax=extent)
    axis.set_axis_off()


def _bars(axis: Axes, x: NDArray[Any], colour: str) -> None:
    axis.bar(np.arange(x.size), x.ravel(), color=colour, width=1.0 if x.size > 40 else 0.8)
    axis.tick_params(labelsize=7)
