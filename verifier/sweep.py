"""A whole benchmark in one process: every row of an instances.csv gets an answer, whatever happens to one of them.

Results are stored as they come (`verifier.store`), each instance has its own deadline, a network is read
once for the rows that use it, and published verdicts beside the file are compared. A resumed run asks again about
files that have changed, and where the time was up and there is more of it now.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from bounds.files import existing, trouble
from verifier.deadline import Deadline
from verifier.network import NetworkCache, digest_of
from verifier.out_of_memory import is_out_of_memory
from verifier.store import Key, Row, Store
from verifier.strategy import HARD_LIMIT_GRACE_S, Result, as_json, verify
from verifier.verdict import Falsified, Reason
from verifier.vnnlib import read_vnnlib
from verifier.watchdog import TimeUp, hard_limit
from verifier.witness import ReplayError

log = logging.getLogger(__name__)

DEFAULT_TIMEOUT_S = 60.0
FORMAT = 2  # of stored rows: 1 had no digests
AGREES = {("verified", "unsat"), ("falsified", "sat")}
CONTRADICTS = {("verified", "sat"), ("falsified", "unsat")}


class InvalidInstances(ValueError):
    """instances.csv or expected.csv cannot be read; the message names the file and the line."""


@dataclass(frozen=True)
class Instance:
    """One row of instances.csv; paths as written there, relative to its folder."""

    onnx: str
    vnnlib: str
    timeout_s: float

    @property
    def key(self) -> Key:
        return (self.onnx, self.vnnlib)


def read_instances(path: Path, time_limit_s: float | None = None) -> list[Instance]:
    """The rows `onnx,vnnlib[,timeout_s]`, without doubles; the smaller of both time limits counts."""
    instances: dict[Key, Instance] = {}
    for line, cells in _cells(path):
        if cells[0].startswith("#") or (line == 1 and cells[:2] == ["onnx", "vnnlib"]):
            continue
        if len(cells) not in (2, 3) or not cells[0] or not cells[1]:
            raise InvalidInstances(f"{path}, line {line}: expected onnx,vnnlib,timeout, got {','.join(cells)!r}")
        try:
            timeout_s = float(cells[2]) if len(cells) == 3 and cells[2] else DEFAULT_TIMEOUT_S
        except ValueError:
            timeout_s = math.nan
        if not timeout_s > 0:
            raise InvalidInstances(f"{path}, line {line}: expected a positive timeout, got {cells[2]!r}")
        instance = Instance(cells[0], cells[1], min(timeout_s, time_limit_s or math.inf))
        instances.setdefault(instance.key, instance)
    if not instances:
        raise InvalidInstances(f"{path}: holds no instance")
    return list(instances.values())


def read_expected(path: Path) -> dict[Key, str]:
    """The published verdicts (sat, unsat, unknown, conflict) of expected.csv, or nothing where it is absent."""
    if not path.is_file():
        return {}
    rows = _cells(path)
    line, header = next(rows, (1, []))
    if missing := [name for name in ("onnx", "vnnlib", "verdict") if name not in header]:
        raise InvalidInstances(f"{path}, line {line}: expected a column {missing[0]!r}, got {','.join(header)!r}")
    at = [header.index(name) for name in ("onnx", "vnnlib", "verdict")]
    expected = {}
    for line, cells in rows:
        if len(cells) != len(header):
            raise InvalidInstances(f"{path}, line {line}: expected {len(header)} cells, got {len(cells)}")
        onnx, vnnlib, verdict = (cells[i] for i in at)
        expected[onnx, vnnlib] = verdict
    return expected


def _cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, its cells without blanks around them) of a CSV file; empty lines are left out."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, skipinitialspace=True)
        try:
            for row in reader:
                cells = [cell.strip() for cell in row]
                if any(cells):
                    yield reader.line_num, cells
        except (UnicodeDecodeError, csv.Error) as error:
            raise InvalidInstances(f"{path}, line {reader.line_num + 1}: not a CSV file in UTF-8 ({error})") from error


@dataclass
class Tally:
    """Counts of a run. `contradictions` are verdicts that the published ones exclude."""

    total: int
    counts: Counter[str] = field(default_factory=Counter)
    agreed: int = 0
    contradictions: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    done_here: int = 0

    def add(self, row: Row, expected: dict[Key, str]) -> None:
        self.counts[row.verdict] += 1
        pair = (row.verdict, expected.get(row.key, ""))
        self.agreed += pair in AGREES
        if pair in CONTRADICTS:
            self.contradictions.append(f"{row.onnx} {row.vnnlib}: {row.verdict}, published {pair[1]}")

    @property
    def done(self) -> int:
        return self.counts.total()

    def left_s(self) -> float:
        """Time left, as if the rest took as long a piece as what this process has done."""
        if not self.done_here:
            return math.nan
        return (time.monotonic() - self.started) / self.done_here * (self.total - self.done)

    def line(self) -> str:
        counts = "  ".join(f"{name} {self.counts[name]}" for name in ("verified", "falsified", "unknown", "error"))
        left = self.left_s()
        return f"{self.done}/{self.total}  {counts}  left {'?' if math.isnan(left) else f'{left:.0f} s'}"


class Digests:
    """What tells the files of instances from others that may lie there later; each file is read once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, str] = {}

    def of(self, instance: Instance) -> str:
        """The digest of the network with its weights, and of the property; nothing stands for what cannot be read."""
        return f"{self._digest(instance.onnx, digest_of)} {self._digest(instance.vnnlib, digest_of_file)}"

    def _digest(self, name: str, of: Callable[[Path], str]) -> str:
        if name not in self._known:
            try:
                self._known[name] = of(existing(self.folder / name))
            except Exception:  # as in `answer`, which says what is wrong
                self._known[name] = ""
        return self._known[name]


def digest_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class SweepResult:
    tally: Tally
    csv_path: Path
    interrupted: bool


def sweep(
    instances_csv: Path,
    out: Path,
    *,
    time_limit_s: float | None = None,
    method: str = "auto",
    device: str | None = None,
    seed: int = 0,
    resume: bool = False,
    on_row: Callable[[Row, Tally], None] = lambda row, tally: None,
) -> SweepResult:
    """Answer every instance that `out` has no answer for. Raises `ValueError` or `OSError` for a bad CSV or store."""
    instances = read_instances(instances_csv, time_limit_s)
    expected = read_expected(instances_csv.parent / "expected.csv")
    settings = {"instances": str(instances_csv.resolve()), "time limit": time_limit_s, "method": method,
                "device": device or "cpu", "seed": seed, "format": FORMAT}
    with Store(out, settings, resume=resume) as store:
        tally = Tally(total=len(instances))
        digests = Digests(instances_csv.parent)
        stored = {row.key: row for row in store.rows()}
        answered = [i for i in instances if i.key in stored]
        standing = [i for i in answered if stored[i.key].files == digests.of(i)]
        finished = {i.key for i in standing if not _has_more_time(i, stored[i.key])}
        if changed := len(answered) - len(standing):
            log.warning("the files of %d answers have changed since: these instances are asked again", changed)
        if longer := len(standing) - len(finished):
            log.warning("%d instances that ran out of time have more of it now: they are asked again", longer)
        for key, row in stored.items():
            if key in finished:
                tally.add(row, expected)
        waiting = (i for i in instances if i.key not in finished)
        try:
            interrupted = _work(waiting, digests, store, tally, expected, method, device, seed, on_row)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            csv_path = store.export_csv()
    return SweepResult(tally, csv_path, interrupted)


def _has_more_time(instance: Instance, row: Row) -> bool:
    return row.reason == Reason.TIME_LIMIT.value and instance.timeout_s > row.timeout_s


def _work(waiting: Iterable[Instance], digests: Digests, store: Store, tally: Tally, expected: dict[Key, str],
          method: str, device: str | None, seed: int, on_row: Callable[[Row, Tally], None]) -> bool:
    """Answer and store one instance after the other; true when the user interrupted one."""
    networks = NetworkCache()
    for instance in waiting:
        files = digests.of(instance)  # before they are read: files that change meanwhile are asked about again
        row = replace(answer(instance, digests.folder, networks, method=method, device=device, seed=seed), files=files)
        if row.reason == Reason.INTERRUPTED.value:
            return True  # not finished: a resumed run asks it again
        store.record(row)
        tally.add(row, expected)
        tally.done_here += 1
        on_row(row, tally)
    return False


def answer(instance: Instance, folder: Path, networks: NetworkCache, *, method: str = "auto", device: str | None = None,
           seed: int = 0) -> Row:
    """The row of one instance; whatever goes wrong is an `error` row with the sentence or an `unknown` one."""
    deadline = Deadline.starting_now(instance.timeout_s)
    failed: tuple[str, str, str]
    try:
        with hard_limit(deadline.left() + HARD_LIMIT_GRACE_S):
            network = networks.get(existing(folder / instance.onnx))
            simplified, replayer = network.simplified, network.replayer
            property = read_vnnlib(existing(folder / instance.vnnlib), inputs=math.prod(network.graph.input_shape),
                                   outputs=math.prod(network.graph.output_shape))
        result = verify(network.graph, property, replayer=replayer, method=method, device=device, seed=seed,
                        deadline=deadline, simplified=simplified)
        return _row(instance, result)
    except TimeUp:
        failed = ("unknown", Reason.TIME_LIMIT.value, "the time was up while the files were read")
    except KeyboardInterrupt:
        failed = ("unknown", Reason.INTERRUPTED.value, "")
    except Exception as error:  # one bad instance must not end the run; it is stored with its reason
        log.debug("instance failed", exc_info=True)
        if is_out_of_memory(error):
            failed = ("unknown", Reason.MEMORY.value, str(error))
        else:
            failed = ("error", Reason.ERROR.value, _sentence(error))
    return Row(instance.onnx, instance.vnnlib, *failed, time_s=deadline.elapsed(), timeout_s=instance.timeout_s,
               method=method)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {trouble(error)}"
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError | OSError | ReplayError) else f"{type(error).__name__}: {text}"


def _row(instance: Instance, result: Result) -> Row:
    plain = as_json(result)
    witness = result.verdict.witness if isinstance(result.verdict, Falsified) else None
    return Row(
        onnx=instance.onnx, vnnlib=instance.vnnlib, verdict=result.name, reason=plain["reason"] or "",
        detail=result.detail, lower=plain["lower"], upper=plain["upper"], time_s=result.time_s,
        timeout_s=instance.timeout_s, method=result.method, domains=result.domains,
        witness_x=None if witness is None else np.asarray(witness.x, "<f4").tobytes(),
        witness_y=None if witness is None else np.asarray(witness.y, "<f4").tobytes(),
        stages=json.dumps(plain["stages"]),
    )
