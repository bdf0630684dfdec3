"""All studies in turn, and `docs/studies.md` from what they measured: what `make studies` runs.

    python benchmarks/studies/everything.py                          # a quarter of an hour on two cores
    python benchmarks/studies/everything.py --data-dir D             # 75 minutes: on MNIST too, whose files lie in D
    python benchmarks/studies/everything.py --only ascent,fosc       # some of them
    python benchmarks/studies/everything.py --redraw                 # figures, verdicts and the page alone

Two studies run at a time, one thread each. A study that fails leaves the record before it as it was; the page says
from which mode, commit and machine each section comes. Another `--out DIR` has its page beside it (DIR/../studies.md).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # measure the checkout that this file lies in, installed or not

from benchmarks.machine import available_cores, environment, markdown  # noqa: E402
from benchmarks.studies.study import HOME, MNIST, MODES, NOT_SEEN, PARTLY, SEEN, described, record_name  # noqa: E402

STUDIES = ("fosc", "dynamic", "ascent", "escape", "zeroth_order", "certified")
LENGTHS = {name: k for k, name in enumerate(("certified", "fosc", "dynamic", "escape", "ascent", "zeroth_order"))}
"""By how long they take, in either mode: long ones that start last leave a core idle."""
ON_MNIST = ("fosc", "dynamic", "escape", "certified")  # those that have a mode for it
INTRODUCTION = """# Studies: what papers claim, seen with our own engine

Each section is a script under `benchmarks/studies/`, rerun by `make studies` (on the bundled digits; with
`make studies DATA_DIR=D`, where D has the files of MNIST, those of MNIST too). This page is written by
`benchmarks/studies/everything.py` from the JSON files in `docs/studies/`: figures, numbers and verdicts are computed
from them. A verdict is about our networks and data at the size that is named, not about the paper's own experiments:
seen where all parts of a claim hold by the rule that stands beside it. What is not seen may be contradicted by the
numbers or left open by them, or they could not have shown it: the text says which.
"""


def introduction(records: Sequence[dict[str, Any]]) -> str:
    """What the page is, and in which modes what it tells of was measured."""
    by_mode: dict[str, list[str]] = {mode: [] for mode in (*MODES, MNIST)}
    for record in records:
        by_mode[record["mode"]].append(record["study"] + " (some settings otherwise)" * bool(record.get("overriding")))
    told = [f"Measured in mode {mode}: {', '.join(names)}." for mode, names in by_mode.items() if names]
    told += ["Mode quick is a check that scripts run; little follows from its verdicts."] if by_mode["quick"] else []
    told += ["Mode paper (`--mode paper --data-dir D`), with the settings of a source as far as they are known, was "
             "not run."] if records and not by_mode["paper"] else []
    missing = [name for name in STUDIES if name not in {record["study"] for record in records}]
    told += [f"Not measured: {', '.join(missing)}."] if missing else []
    return INTRODUCTION + "\n" + "\n".join(told) + "\n"


def heading(record: dict[str, Any]) -> str:
    return record["title"] + (", MNIST" if record["mode"] == MNIST else "")


def overview(records: Sequence[dict[str, Any]]) -> str:
    """How many claims of each study were seen."""
    lines = [[f"[{heading(record)}](#{anchor(heading(record))})", f"`{record['study']}`", *(
        str([verdict["outcome"] for verdict in record["verdicts"]].count(outcome))
        for outcome in (SEEN, PARTLY, NOT_SEEN))] for record in records]
    return markdown(["study", "script", f"claims {SEEN}", PARTLY, NOT_SEEN], lines, 2) + "\n" if lines else ""


def anchor(title: str) -> str:
    """What GitHub makes of a heading, for links to it."""
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c in "-_")


def section(record: dict[str, Any], pictures: str) -> str:
    """One study as Markdown. pictures: where its figures lie, as the page says it."""
    lines = [f"## {heading(record)}", "", f"Source: {record['source']}. Script: `{command(record)}`.", ""]
    for verdict in record["verdicts"]:
        lines += [f"- **{verdict['outcome'].capitalize()}**: {verdict['claim']} ({verdict['place']}).", "",
                  f"  {verdict['why']}", ""]
    lines += [record["table"], ""]
    for file, caption in record["figures"].items():
        lines += [f"![{file}]({pictures}/{file})", "", f"*{caption}*", ""]
    machine = record["hardware"]
    place = f"a machine of {machine['cores']} cores"
    if "accelerator" in machine:
        place += f", {machine['accelerator']}"
    lines += [f"Settings: {described(record['settings'])}. Mode {record['mode']}, {record['seconds']:.0f} s on "
              f"{place}, commit {record['commit']}.", ""]
    return "\n".join(lines)


def command(record: dict[str, Any]) -> str:
    """What measures the same again."""
    words = ["python", f"benchmarks/studies/{record['study']}.py"]
    words += [] if record["mode"] == "default" else ["--mode", record["mode"]]
    words += ["--data-dir", "D"] if record["settings"].get("data", "digits") != "digits" else []
    for key, value in record.get("overriding", {}).items():
        words += ["--set", f"'{key}={json.dumps(value)}'"]
    return " ".join([*words, *(["--device", "cuda"] if "accelerator" in record["hardware"] else [])])


def page(folder: Path = HOME, beside: Path | None = None) -> str:
    """The whole text, from the records that lie in the folder; beside: the folder of the page, that folder's own where
    none is named."""
    records = [json.loads(file.read_text(encoding="utf-8")) for name in STUDIES for mode in ("default", MNIST)
               if (file := folder / f"{record_name(name, mode)}.json").exists()]
    pictures = Path(os.path.relpath(folder, beside or folder.parent)).as_posix()
    return "\n".join([introduction(records), overview(records), *(section(record, pictures) for record in records)])


def runs(names: Sequence[str], arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """(study, mode), the longest first; MNIST beside the default where its files are named, or its record lies there
    to be drawn again."""
    every = [(name, arguments.mode) for name in names]
    if arguments.mode == "default":
        every += [(name, MNIST) for name in names if name in ON_MNIST and (
            (arguments.out / f"{record_name(name, MNIST)}.json").exists() if arguments.redraw else arguments.data_dir)]
    return sorted(every, key=lambda run: (run[1] != MNIST, LENGTHS.get(run[0], 0)))


def check_data(wanted: Sequence[tuple[str, str]], arguments: argparse.Namespace) -> None:
    """Complain about --data-dir before the work: what is missing would be told of behind an hour of other studies."""
    if arguments.redraw or all(mode != MNIST for _, mode in wanted):
        return
    from certify.data.registry import load
    try:
        load("mnist", arguments.data_dir)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"--data-dir {arguments.data_dir}: {error}") from error


def script(name: str, mode: str, arguments: argparse.Namespace) -> tuple[str, int, float, str]:
    """Run one study in a process of its own: (record, exit code, seconds, what it found). How it gets on, and what goes
    wrong, is told as it comes."""
    words = [sys.executable, str(Path(__file__).with_name(f"{name}.py")), "--mode", mode, "--out", str(arguments.out)]
    words += ["--redraw"] if arguments.redraw else []
    words += ["--data-dir", arguments.data_dir] if arguments.data_dir else []
    words += ["--device", arguments.device] if arguments.device else []
    begin = time.monotonic()
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, env=environment(1))
    return record_name(name, mode), done.returncode, time.monotonic() - begin, done.stdout


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description="All studies, and the page that tells of them.")
    p.add_argument("--only", default=",".join(STUDIES), metavar="NAME,..", help=", ".join(STUDIES))
    p.add_argument("--mode", choices=MODES, default="default")
    p.add_argument("--data-dir", metavar="D",
                   help="where the files of MNIST lie: studies that have a mode for it run in that too")
    p.add_argument("--device", choices=["cpu", "cuda"])
    p.add_argument("--out", type=Path, default=HOME, metavar="DIR", help="for JSON and figures [docs/studies]")
    p.add_argument("--page", type=Path, metavar="FILE.md", help="[studies.md beside --out]")
    p.add_argument("--redraw", action="store_true", help="measure nothing")
    p.add_argument("--jobs", type=int, default=min(2, available_cores()), metavar="N", help="studies at a time")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    names = list(dict.fromkeys(arguments.only.split(",")))
    if unknown := set(names) - set(STUDIES):
        raise SystemExit(f"--only: unknown {', '.join(sorted(unknown))}; known: {', '.join(STUDIES)}")
    if arguments.jobs < 1:
        raise SystemExit(f"--jobs must be at least 1, got {arguments.jobs}")
    written = arguments.page or arguments.out.resolve().parent / "studies.md"
    wanted = runs(names, arguments)
    check_data(wanted, arguments)
    failed = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        done = pool.map(lambda run: script(*run, arguments), wanted)
        for name, code, seconds, said in done:
            print(f"=== {name}: {'done' if code == 0 else f'FAILED, exit code {code}'}, {seconds:.0f} s\n{said}",
                  flush=True)
            failed += [name] * (code != 0)
    written.write_text(page(arguments.out.resolve(), written.resolve().parent), encoding="utf-8")
    print(f"{written}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
