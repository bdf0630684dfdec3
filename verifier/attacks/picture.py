"""A picture of what an attack did: a row for each example with the original, the perturbation and the result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from verifier.panels import new_figure, save, show_input, show_move

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
    before, after = originals[:count].astype(float), results[:count].astype(float)
    shown = np.concatenate([before, after])
    low, high = float(np.nanmin(shown)), float(np.nanmax(shown))
    figure = new_figure(WIDTH_INCHES, ROW_INCHES * count + 0.3)
    for k, row in enumerate(figure.subplots(count, COLUMNS, squeeze=False)):
        show_input(row[0], before[k], low, high)
        row[0].set_title(f"{labels[k]}", fontsize=9)
        show_move(row[1], after[k] - before[k], "perturbation")
        show_input(row[2], after[k], low, high)
        row[2].set_title(f"{labels[k]} → {predictions[k]}, " + (
            "nothing found" if math.isinf(distances[k]) else f"distance {distances[k]:.4g}"), fontsize=9)
    save(figure, path)
