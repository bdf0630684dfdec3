"""`rmax radius`: how far can each input of a data set move before the network changes its mind?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from verifier.cli.attack import NORMS
from verifier.cli.data_run import check_clip, check_run, chosen_data, write_csv
from verifier.cli.data_work import DataWork
from verifier.cli.errors import BadInput, writing
from verifier.cli.question import check_device, check_writable, read_mask, read_network
from verifier.cli.startup import load_torch
from verifier.cli.verify import SEED
from verifier.radius.methods import COUNTING, METHODS

if TYPE_CHECKING:
    from verifier.data import DataSet
    from verifier.example_store import Finished
    from verifier.network import Network
    from verifier.radius.data import Asked
    from verifier.radius.interval import RadiusInterval

PLACE = "{index}"  # in a name of --picture


def _listing() -> str:
    return "\n".join(["\b", "Methods (source)", *(
        f"  {name:11s} {entry.summary}{f' ({entry.source})' if entry.source else ''}"
        for name, entry in METHODS.items())])


@click.command(epilog=f"""{_listing()}

\b
Examples
  rmax radius net.onnx test.npz --clip 0 1
  rmax radius net.onnx test.npz --clip 0 1 --norm 2 --index 3 --index 7 --time-limit 300
  rmax radius net.onnx test.npz --clip 0 1 --out out/radii --resume --json radii.jsonl --csv radii.csv
  rmax radius net.onnx test.npz --clip 0 1 --method crown --count 1000 --histogram radii.png
  rmax radius net.onnx test.npz --clip 0 1 --norm 0 --count 10 --picture pictures

\b
test.npz holds x (N, *input shape) and labels y (N,); radii and clip are in the network's input units.
Each answer is an interval: r1 is proved (nothing within r1 gets another label), at r2 lies a counterexample that
the original network was run on. They meet where the radius is exact. With --norm 0 radii count features: any r1 - 1
of them may take any value of the clip range.
A line of JSON an input: index, label, norm, r1, r1_evidence, r1_by, r2, r2_evidence, r2_by, exact, claim, became,
target, method, time_s (null instead of a number: infinitely far), of clever also estimate, estimate_low,
estimate_high, estimate_doubtful; the last line is the summary. docs/radius.md explains all of it.""")
@click.argument("net", metavar="NET.onnx")
@click.argument("data", metavar="DATA.npz")
@click.option("--norm", type=click.Choice(tuple(NORMS)), default="inf", show_default=True, help="How far is measured.")
@click.option("--clip", type=(float, float), metavar="LO HI", help="The range of valid inputs.")
@click.option("--mask", metavar="M.npy", help="Which features may move (true = may move).")
@click.option("--target", type=int, metavar="T", help="Only class T counts as a change of mind.")
@click.option("--index", type=int, multiple=True, metavar="I", help="Only this input; may be repeated.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="Only the first N inputs.")
@click.option("--method", type=click.Choice(tuple(METHODS)), default="auto", show_default=True, metavar="M",
              help="One of those listed below.")
@click.option("--time-limit", type=float, default=60.0, show_default=True, metavar="S", help="Seconds an input.")
@click.option("--tolerance", type=float, default=1e-4, show_default=True, metavar="T",
              help="Ends as near as that have met (absolute).")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Where to compute [cpu].")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of everything random.")
@click.option("--out", metavar="RUN", help="Folder that keeps results as they come.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out.")
@click.option("--json", "json_out", metavar="OUT|-", help="One JSON object a line, as they come; - for stdout alone.")
@click.option("--csv", "csv_out", metavar="OUT", help="The same as a table, at the end.")
@click.option("--witnesses", metavar="OUT.npz", help="The counterexamples at r2: x, index, y, became, r2.")
@click.option("--picture", metavar="OUT", help="Original, counterexample and difference: OUT.png of one input, of "
              "several a folder, or a name that holds {index}.")
@click.option("--histogram", metavar="OUT.png", help="How r1 and r2 are distributed.")
def command(net: str, data: str, norm: str, clip: tuple[float, float] | None, mask: str | None, target: int | None,
            index: tuple[int, ...], count: int | None, method: str, time_limit: float, tolerance: float,
            device: str | None, seed: int, out: str | None, resume: bool, json_out: str | None, csv_out: str | None,
            witnesses: str | None, picture: str | None, histogram: str | None) -> None:
    """The safe radius of every input: proved from below, attacked from above, closed where possible."""
    check_clip(clip)
    check_run(out, resume, index, count)
    if not 0 < time_limit < math.inf:
        raise BadInput(f"--time-limit must be a positive number of seconds, got {time_limit}")
    if not 0 < tolerance < math.inf:
        raise BadInput(f"--tolerance must be a positive number, got {tolerance}")
    if norm == "0" and clip is None:
        raise BadInput("--norm 0 needs --clip: a feature that changes may take any value of the range")
    if norm == "0" and method not in COUNTING:
        raise BadInput(f"--norm 0 works with --method {' or '.join(COUNTING)}, not {method}")
    if norm == "2" and method == "milp":
        raise BadInput("--method milp works with --norm inf or 1: its solver has no quadratic rows")
    if norm == "0" and device == "cuda":
        raise BadInput("--norm 0 computes on the CPU, not with --device cuda")
    for flag, path in (("--json", json_out), ("--csv", csv_out), ("--witnesses", witnesses),
                       ("--histogram", histogram)):
        check_writable(flag, path)
    check_pictures(picture)

    load_torch()
    check_device(device)
    network = read_network(net)
    chosen = chosen_data(data, network, index, count)
    classes = math.prod(network.graph.output_shape)
    if classes < 2:
        raise BadInput(f"{net}: labels need at least two outputs, it has {classes}")
    if target is not None and not 0 <= target < classes:
        raise BadInput(f"--target {target} is out of range: {net} has {classes} outputs")
    if picture is not None and picture_path(picture, 0) == picture_path(picture, 1) and len(chosen) > 1:
        raise BadInput(f"--picture {picture}: of {len(chosen)} inputs, expected a folder or a name that holds {PLACE}")
    from verifier.radius.data import Asked
    free = None if mask is None else read_mask(mask, network.graph.input_shape)
    asked = Asked(NORMS[norm], clip, free, target, method, time_limit, tolerance, seed)
    work = _Work(network, chosen, asked, device)
    work.run(json_out, out=out, resume=resume)
    done = work.done
    write_csv(csv_out, [record for record, _ in done])
    if witnesses is not None:
        _write_witnesses(witnesses, done, network.graph.input_shape)
    if picture is not None:
        _draw(picture, done, work.data)
    if histogram is not None and done:
        _draw_histogram(histogram, [record for record, _ in done])


def picture_path(picture: str, index: int) -> Path:
    """Where --picture puts one input."""
    if PLACE in picture:
        return Path(picture.replace(PLACE, str(index)))
    if Path(picture).suffix.lower() == ".png" and not Path(picture).is_dir():
        return Path(picture)
    return Path(picture) / f"{index}.png"


def check_pictures(picture: str | None) -> None:
    """Complain about --picture before the work: a folder may be new, what it lies in must be there."""
    if picture is None:
        return
    one = picture_path(picture, 0)
    check_writable("--picture", str(one if one.parent.is_dir() or one == picture_path(picture, 1) else one.parent))


class _Work(DataWork):
    """One command under way: what is asked, what is finished, what is told."""

    def __init__(self, network: Network, data: DataSet, asked: Asked, device: str | None) -> None:
        self.network, self.asked, self.device = network, asked, device
        self.data = data.chosen([k for k, y in enumerate(data.y.tolist()) if y != asked.target])
        super().__init__(network.graph.input_shape, len(self.data))

    def settings(self) -> dict[str, Any]:
        asked, mask = self.asked, self.asked.mask
        return {"norm": str(asked.norm), "clip": asked.clip and list(asked.clip), "target": asked.target,
                "mask": None if mask is None else mask.tobytes().hex(), "method": asked.method,
                "time_limit": asked.time_limit_s, "tolerance": asked.tolerance, "seed": asked.seed,
                "data": self.data.digest, "network": self.network.digest}

    def check(self) -> None:
        self.data = self.data.within(self.asked.clip, self.asked.mask)

    def results(self) -> Iterator[Finished]:
        from verifier.radius.data import radius_data
        for finished, _ in radius_data(self.network, self.data, self.asked, device=self.device,
                                       skip=set(self.finished), progress=self.tell):
            yield finished

    def summary(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        from verifier.radius.data import summary
        return summary(records)

    def tell(self, index: int, known: RadiusInterval) -> None:
        self.line.tell(f"done {len(self.finished)} of {self.total}  input {index}  "
                       f"r1 {known.lower:.6g}  r2 {known.upper:.6g}")

    def row(self, record: dict[str, Any]) -> str:
        return row(record)

    def sentence(self, total: dict[str, Any]) -> str:
        if not total["count"]:
            return f"none of {total['left']} inputs done" if total["interrupted"] else "no inputs"
        parts = [f"{total['count']} inputs", f"exact {total['exact']}"]
        for name, words in (("mean_r1", "mean r1"), ("mean_r2", "mean r2")):
            if total[name] is not None:
                parts.append(f"{words} {total[name]:.6g}")
        if total["median_gap"] is not None:
            parts.append(f"median gap {100 * total['median_gap']:.2f} %")
        for name, words in (("never_unsafe", "safe in the whole range"),
                            ("no_witness", "without a counterexample"), ("left", "not done")):
            if total[name]:
                parts.append(f"{total[name]} {words}")
        parts.append(f"{total['time_s']:.1f} s")
        return "  ".join(parts)


def row(record: dict[str, Any]) -> str:
    """One input's answer as people read it."""
    def end(name: str) -> str:
        value = "infinite" if record[name] is None else f"{record[name]:.6g}"
        evidence, by = record[f"{name}_evidence"], record[f"{name}_by"]
        return value if not by else f"{value} ({by}, {evidence})"
    became = "" if record["became"] is None else f"  {record['label']} -> {record['became']}"
    estimate = ""
    if record.get("estimate") is not None:
        estimate = (f"  estimate {record['estimate']:.6g} ({record['estimate_low']:.6g} to "
                    f"{record['estimate_high']:.6g}{', doubtful' if record['estimate_doubtful'] else ''})")
    return (f"{record['index']:6d}  {'exact' if record['exact'] else 'open '}  r1 {end('r1')}  r2 {end('r2')}{became}"
            f"{estimate}  {record['time_s']:.1f} s")


def _write_witnesses(path: str, done: list[Finished], shape: tuple[int, ...]) -> None:
    import numpy as np
    fallen = [(record, x) for record, x in done if x is not None]
    with writing("--witnesses", path), Path(path).open("wb") as file:
        np.savez_compressed(
            file, allow_pickle=False,
            x=np.stack([x for _, x in fallen]) if fallen else np.zeros((0, *shape), np.float32),
            **{name: np.array([r[key] for r, _ in fallen]) for name, key in (
                ("index", "index"), ("y", "label"), ("became", "became"), ("r2", "r2"))})


def _draw(picture: str, done: list[Finished], data: DataSet) -> None:
    from verifier.radius.data import as_interval
    from verifier.radius.picture import save_radius_picture
    places = {int(i): k for k, i in enumerate(data.index)}
    with writing("--picture", picture):
        for record, x in done:
            index = record["index"]
            path = picture_path(picture, index)
            path.parent.mkdir(exist_ok=True)
            became = "" if record["became"] is None else f" -> {record['became']}"
            save_radius_picture(path, data.x[places[index]], as_interval(record), x,
                                f"input {index}, {record['label']}{became}")


def _draw_histogram(path: str, records: list[dict[str, Any]]) -> None:
    from verifier.radius.data import as_interval
    from verifier.radius.picture import save_radii
    with writing("--histogram", path):
        save_radii(Path(path), [as_interval(record) for record in records])
