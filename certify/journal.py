"""The record of a run for people: a table of epochs (CSV), curves (PNG), TensorBoard where it is installed."""

from __future__ import annotations

import csv
import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
UNDRAWN = ("epoch", "update", "seconds", "note", "eps", "lr", "natural_weight")


def columns(rows: Sequence[Row]) -> list[str]:
    """In the order in which they come up."""
    return list(dict.fromkeys(key for row in rows for key in row))


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """One line an epoch, whole or not at all."""
    beside = path.with_name(path.name + ".part")
    with beside.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns(rows))
        table.writeheader()
        table.writerows(rows)
    beside.replace(path)


class TensorBoard:
    """The same numbers for TensorBoard; silent where that is not installed. Epochs that a resumed run does again
    replace those before."""

    def __init__(self, folder: Path, first_epoch: int) -> None:
        self.writer: Any = None
        if importlib.util.find_spec("tensorboard") is not None:
            module: Any = importlib.import_module("torch.utils.tensorboard")
            self.writer = module.SummaryWriter(str(folder), purge_step=first_epoch)

    def add(self, row: Row) -> None:
        if self.writer is None:
            return
        for name, value in row.items():
            if isinstance(value, int | float) and name not in ("epoch", "update"):
                self.writer.add_scalar(name, value, row["epoch"])
        self.writer.flush()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def draw_curves(rows: Sequence[Row], path: Path, title: str) -> None:
    """Losses, shares of examples, and schedules over the epochs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    figure = Figure(figsize=(8, 8), layout="constrained")
    FigureCanvasAgg(figure)
    losses, shares, schedules = figure.subplots(3, 1, sharex=True)
    epochs = [row["epoch"] for row in rows]
    for name in columns(rows):
        if name in UNDRAWN or not all(isinstance(row.get(name, 0.0), int | float) for row in rows):
            continue
        share = name.startswith("validation_") or name in ("accuracy", "certified")
        values = [row.get(name, float("nan")) for row in rows]
        (shares if share else losses).plot(epochs, [100 * v for v in values] if share else values,
                                           label=name.replace("_", " "), marker="." if len(rows) < 30 else None)
    losses.set_ylabel("loss (nats)")
    drawn = [v for line in losses.get_lines() for v in line.get_ydata() if v > 0]
    losses.set_yscale("log" if drawn and max(drawn) > 10 * min(drawn) else "linear")
    shares.set_ylabel("examples (%)")
    shares.set_ylim(0, 101)
    largest = max(row["eps"] for row in rows) or 1.0
    schedules.plot(epochs, [row["eps"] / largest for row in rows], label=f"radius of training / {largest:.4g}")
    schedules.plot(epochs, [row["natural_weight"] for row in rows], label="weight of the natural loss")
    schedules.set_xlabel("epoch")
    for axes in (losses, shares, schedules):
        axes.grid(alpha=0.3)
        if axes.get_lines():  # an adversarial run without validation has no shares
            axes.legend(fontsize="small", ncols=2)
    figure.suptitle(title, fontsize="medium")
    figure.savefig(path, dpi=100)
