"""Panels of pictures: an input as an image or as bars, and a move from one input to another in colours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH = 110


def new_figure(width_inches: float, height_inches: float) -> Figure:
    """A figure that is written to a file; no display is needed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_inches, height_inches), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=DOTS_PER_INCH, format="png")


def is_image(x: NDArray[Any]) -> bool:
    """Whether it is shown as one: (C, H, W) with one or three channels."""
    return x.ndim == 3 and x.shape[0] in (1, 3)


def show_input(axis: Axes, x: NDArray[Any], low: float, high: float) -> None:
    """An input, black at `low` and white at `high`; what is no image as bars, a feature each."""
    if not is_image(x):
        _bars(axis, x, "0.35")
        axis.set_ylim(min(low, 0.0), max(high, 0.0) or 1.0)
        return
    if x.shape[0] == 1:
        axis.imshow(x[0], cmap="gray", vmin=low, vmax=high)
    else:
        axis.imshow(np.moveaxis((x - low) / ((high - low) or 1.0), 0, -1).clip(0, 1))
    axis.set_axis_off()


def show_move(axis: Axes, move: NDArray[Any], what: str) -> None:
    """A move from blue (less) over white to red (more), to a scale that the title states after `what`; of colour
    images the channel that moved most, at each pixel."""
    scale = float(np.abs(move).max())
    image = is_image(move)
    axis.set_title(f"{what}, colours to ±{scale:.3g}" if image else f"{what}, at most {scale:.3g}", fontsize=9)
    extent = scale or 1.0
    if not image:
        _bars(axis, move, "tab:red")
        axis.set_ylim(-1.05 * extent, 1.05 * extent)
        return
    largest = np.take_along_axis(move, np.abs(move).argmax(0)[None], 0)[0]
    axis.imshow(largest, cmap="RdBu_r", vmin=-extent, vmax=extent)
    axis.set_axis_off()


def _bars(axis: Axes, x: NDArray[Any], colour: str) -> None:
    axis.bar(np.arange(x.size), x.ravel(), color=colour, width=1.0 if x.size > 40 else 0.8)
    axis.tick_params(labelsize=7)
