"""The frame of a study: numbers are measured and stored, figures and verdicts are made from what is stored.

A script defines one `Study` and hands it to `run`. Its numbers go to NAME.json; figures and verdict sentences are
functions of that file alone, so that `--redraw` makes them again without measuring, and nothing in them is typed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.machine import ROOT, commit, hardware

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEEN, PARTLY, NOT_SEEN = "seen", "seen in part", "not seen"
MODES = ("quick", "default", "paper")
MNIST = "mnist"  # a mode that some studies have beside them: MNIST on two cores
HOME = ROOT / "docs" / "studies"
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")  # Okabe and Ito: told apart by all
WRITTEN = ("docs/studies", "docs/studies.md")  # by studies: a checkout is none the worse for what the one before wrote

Settings = dict[str, Any]
Numbers = dict[str, Any]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Verdict:
    """claim: in our words; place: where the source makes it; outcome: one of the three; why: in numbers."""

    claim: str
    place: str
    outcome: str
    why: str

    def __post_init__(self) -> None:
        if self.outcome not in (SEEN, PARTLY, NOT_SEEN):
            raise ValueError(f"an outcome is {SEEN!r}, {PARTLY!r} or {NOT_SEEN!r}, got {self.outcome!r}")


@dataclass(frozen=True)
class Drawing:
    """A figure and what a person must know to read it: what is drawn, on which data and network, which seeds, and the
    settings that matter (all of them stand at the end of the section)."""

    figure: Figure
    caption: str


@dataclass(frozen=True)
class Context:
    """What a measurement is given beside its settings. Where data lie is no setting: it stays out of the record."""

    tell: Tell
    data_dir: str | None = None
    device: str | None = None


@dataclass(frozen=True)
class Study:
    """modes: settings by mode; quick is for tests (ten seconds), default for two cores and minutes, paper as published
    as far as is known. Where there is a fourth, mnist, it has MNIST at a size for two cores, and a record of its own:
    NAME-mnist.json.

    measure: settings -> numbers, plain JSON. draw: figures by the end of their file name. judge: a verdict a claim.
    table: the numbers for people, Markdown.
    """

    name: str
    title: str
    source: str
    modes: Mapping[str, Settings]
    measure: Callable[[Settings, Context], Numbers]
    draw: Callable[[Numbers, Settings], Mapping[str, Drawing]]
    judge: Callable[[Numbers, Settings], list[Verdict]]
    table: Callable[[Numbers, Settings], str]

    def __post_init__(self) -> None:
        if set(self.modes) - {MNIST} != set(MODES):
            raise ValueError(f"modes are {', '.join(MODES)} and, if wanted, {MNIST}, got {', '.join(self.modes)}")
        if len({tuple(sorted(settings)) for settings in self.modes.values()}) != 1:
            raise ValueError("every mode must give the same settings")


def perform(study: Study, mode: str, out: Path, context: Context, overriding: Mapping[str, Any] | None = None,
            ) -> dict[str, Any]:
    """Measure, store, draw, judge: the record that lies in `out`/NAME.json afterwards. SystemExit for wrong settings.

    A measurement that cannot be drawn or judged is kept beside the record, which stays as it was.
    """
    settings = _plain(chosen(study, mode, overriding or {}))
    out.mkdir(parents=True, exist_ok=True)  # before hours of work
    begun = {"study": study.name, "mode": mode, "overriding": _plain(overriding or {}), "settings": settings,
             "commit": commit(apart=WRITTEN), "hardware": hardware() | _accelerator(context.device)}
    begin = time.monotonic()
    numbers = study.measure(settings, context)
    record = {**begun, "seconds": round(time.monotonic() - begin, 1), "numbers": numbers}
    name = record_name(study.name, mode)
    beside = _beside(name, out)
    beside.write_text(json.dumps(record), encoding="utf-8")
    try:
        return finish(study, _plain(record), out)
    except Exception as error:
        error.add_note(f"What was measured lies in {beside}: as {name}.json it can be drawn with --redraw.")
        raise


def record_name(study: str, mode: str) -> str:
    """What its files are called: MNIST stands beside the rest, other modes in each other's place."""
    return f"{study}-{MNIST}" if mode == MNIST else study


def chosen(study: Study, mode: str, overriding: Mapping[str, Any]) -> Settings:
    """The settings of a mode with some of them set otherwise. SystemExit for a name that is none, or another type."""
    settings = {**study.modes[mode]}
    for key, value in overriding.items():
        if key not in settings:
            raise SystemExit(f"--set {key}: unknown; {study.name} knows {', '.join(settings)}")
        if settings[key] is not None and _kind(value) != _kind(settings[key]):
            raise SystemExit(f"--set {key}={json.dumps(value)}: expected {_kind(settings[key])}, as in "
                             f"{key}={json.dumps(settings[key])}")
        settings[key] = value
    return settings


def required(held: bool, settings: Settings, name: str, expected: str) -> None:
    """A setting without which there is nothing to measure or to judge. Raises SystemExit."""
    if not held:
        raise SystemExit(f"--set {name}={json.dumps(settings[name])}: expected {expected}")


def ascending(settings: Settings, least: int, *names: str) -> None:
    """SystemExit unless each of these settings is a list of at least so many numbers, each above the one before."""
    for name in names:
        values = settings[name]
        required(len(values) >= least and all(a < b for a, b in pairwise(values)), settings, name,
                 f"at least {least} numbers, each above the one before")


def positive(settings: Settings, *names: str) -> None:
    """SystemExit unless each of these settings, or every number in it, is above zero."""
    for name in names:
        values = settings[name] if isinstance(settings[name], list | tuple) else [settings[name]]
        required(all(value > 0 for value in values), settings, name, "above zero")


def counts(settings: Settings, *names: str) -> None:
    """SystemExit unless each of these settings is a whole number from 1 on."""
    for name in names:
        required(isinstance(settings[name], int) and settings[name] >= 1, settings, name, "a whole number from 1 on")


def different(values: Sequence[Any], least: int) -> bool:
    return len(set(values)) == len(values) >= least


def _kind(value: Any) -> str:
    """What JSON calls a value."""
    kinds = {bool: "true or false", str: "a word", int: "a number", float: "a number", list: "a list", tuple: "a list"}
    return kinds.get(type(value), "an object")


def _plain(value: Any) -> Any:
    """As a file gives it back, so that a figure drawn now is the one that is drawn from the file. Raises ValueError for
    what is no finite number."""
    return json.loads(json.dumps(value, allow_nan=False))


def _accelerator(device: str | None) -> dict[str, Any]:
    """What a measurement ran on beside the processor."""
    if device != "cuda":
        return {}
    import torch
    return {"accelerator": torch.cuda.get_device_name()}


def _beside(name: str, out: Path) -> Path:
    return out / f"{name}.json.part"


def finish(study: Study, record: dict[str, Any], out: Path) -> dict[str, Any]:
    """Draw and judge what was measured, and write the record with both. Where one of them fails nothing is written."""
    from verifier.panels import save
    settings, numbers, name = record["settings"], record["numbers"], record_name(study.name, record["mode"])
    verdicts = [asdict(verdict) for verdict in study.judge(numbers, settings)]
    table = study.table(numbers, settings)
    drawings = {f"{name}-{end}.png": drawing for end, drawing in study.draw(numbers, settings).items()}
    whole = {**record, "title": study.title, "source": study.source,
             "figures": {file: drawing.caption for file, drawing in drawings.items()},
             "verdicts": verdicts, "table": table}
    text = json.dumps(whole, allow_nan=False, indent=1) + "\n"
    for file, drawing in drawings.items():
        save(drawing.figure, out / file)
    beside = _beside(name, out)
    beside.write_text(text, encoding="utf-8")
    beside.replace(out / f"{name}.json")
    return whole


def described(settings: Mapping[str, Any]) -> str:
    """Settings in one line, for captions."""
    return ", ".join(f"{key.replace('_', ' ')} {_short(value)}" for key, value in settings.items())


def _short(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "/".join(_short(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def parser(study: Study) -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=f"{study.title}. Source: {study.source}.")
    p.add_argument("--mode", choices=list(study.modes), default="default",
                   help="quick: a check that it runs; default: minutes on two cores; paper: as published as far as "
                   "known" + ("; mnist: MNIST at a size for two cores" if MNIST in study.modes else "") + " [default]")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="others",
                   help="a setting of the mode, as JSON: " + described(study.modes["default"]).replace("%", "%%"))
    p.add_argument("--data-dir", metavar="D", help="where the files of MNIST or CIFAR-10 lie; the digits need none")
    p.add_argument("--device", choices=["cpu", "cuda"], help="where to compute [cpu]")
    p.add_argument("--out", type=Path, default=HOME, metavar="DIR", help="for JSON and figures [docs/studies]")
    p.add_argument("--redraw", action="store_true", help="figures and verdicts from the JSON that lies in --out")
    return p


def run(study: Study, argv: Sequence[str] | None = None) -> int:
    """The command line of a study's script."""
    arguments = parser(study).parse_args(argv)
    name = record_name(study.name, arguments.mode)
    if arguments.redraw:
        if arguments.others:
            raise SystemExit("--redraw measures nothing: it has the settings of the record, and no use for --set")
        file = arguments.out / f"{name}.json"
        if not file.exists():
            raise SystemExit(f"{file} is not there: run without --redraw first")
        whole = finish(study, json.loads(file.read_text(encoding="utf-8")), arguments.out)
    else:
        context = Context(lambda text: print(f"{study.name}: {text}", file=sys.stderr, flush=True), arguments.data_dir,
                          arguments.device)
        try:
            whole = perform(study, arguments.mode, arguments.out, context, dict(map(_setting, arguments.others)))
        except FileNotFoundError as error:  # data that are not there: it says how to get them
            raise SystemExit(str(error)) from error
    print(whole["table"])
    for verdict in whole["verdicts"]:
        print(f"\n{verdict['outcome'].upper()}: {verdict['claim']} ({verdict['place']})\n  {verdict['why']}")
    print(f"\n{arguments.out / name}.json, {whole['seconds']:g} s")
    return 0


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise SystemExit(f"--set {text}: expected KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
