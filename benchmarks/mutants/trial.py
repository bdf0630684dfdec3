"""One mutant in a process of its own: forked from a warm one, with limits, watched, and its answer judged.

A fork costs milliseconds where importing PyTorch costs a second, and whatever happens in it stays in it: a crash, a
leak, a hang. Address space may grow by `MEMORY` and resident memory is watched; both are measured from the fork.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.mutants.mutant import Mutant
from benchmarks.mutants.second_opinion import wrong

MEMORY = 2 << 30
HANG_S = 10.0      # from the command's start to its end
JUDGING_S = 20.0   # the second opinion may take longer
LONGEST_SENTENCE = 2000
ANSWERS = {0: "verified", 1: "falsified", 3: "unknown"}
REASONS = ("time limit", "incomplete", "numerical", "unsupported")


@dataclass(frozen=True)
class Outcome:
    """`good`, what came out in a word, and the sentence or the fault."""

    good: bool
    word: str
    why: str
    seconds: float
    mib: float


def warm_up() -> None:
    """Import what a verification uses, once, before the first fork; nothing may start a thread."""
    from verifier.cli.startup import load_torch
    load_torch()
    import onnx.reference  # noqa: F401
    import onnxruntime  # noqa: F401
    import torch
    import vnnlib  # noqa: F401

    import verifier.cli.bounds
    import verifier.cli.sweep
    import verifier.cli.verify
    import verifier.strategy
    import verifier.sweep
    import verifier.vnnlib.version2  # noqa: F401
    torch.set_num_threads(1)


class Trial:
    """A running process. `outcome` is None until it has ended or has been ended."""

    def __init__(self, mutant: Mutant, folder: Path) -> None:
        self.mutant, self.folder, self.start = mutant, folder, time.monotonic()
        mutant.lay_out(folder)
        self.base = resident(os.getpid())
        sys.stdout.flush()
        sys.stderr.flush()
        self.peak = 0
        self.outcome: Outcome | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _child(mutant, folder)

    def poll(self) -> Outcome | None:
        """Look at memory and clock; ends the process that passed a limit."""
        if self.outcome is not None:
            return self.outcome
        ended, status = os.waitpid(self.pid, os.WNOHANG)
        answered = (self.folder / "answer.json").exists()
        if ended:
            self.outcome = self._judged(status)
        else:
            self.peak = max(self.peak, resident(self.pid) - self.base)
            seconds = time.monotonic() - self.start
            if not answered and self.peak > MEMORY:
                self._end("memory", f"{self.peak >> 20} MiB")
            elif not answered and seconds > HANG_S:
                self._end("hang", f"no answer within {HANG_S:g} s")
            elif seconds > HANG_S + JUDGING_S:
                self._end("unchecked", "the second opinion took too long", good=True)
        return self.outcome

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def _end(self, word: str, why: str, good: bool = False) -> None:
        self.stop()
        self.outcome = Outcome(good, word, why, round(time.monotonic() - self.start, 2), self.peak / 2**20)

    def _judged(self, status: int) -> Outcome:
        path = self.folder / "outcome.json"
        if path.exists():
            return Outcome(**json.loads(path.read_text()))
        answer = self.folder / "answer.json"
        where = "while it was judged" if answer.exists() else "before it answered"
        how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit code {os.WEXITSTATUS(status)}"
        return Outcome(answer.exists(), "unchecked" if answer.exists() else "died", f"{how} {where}",
                       round(time.monotonic() - self.start, 2), self.peak / 2**20)


def resident(pid: int) -> int:
    """Bytes; 0 for a process that is gone."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except (OSError, IndexError, ValueError):
        return 0


def _child(mutant: Mutant, folder: Path) -> None:
    """Answers, judges, and never returns."""
    try:
        os.chdir(folder)
        with open("/proc/self/statm", encoding="ascii") as file:
            size = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        before, start = resident(os.getpid()), time.monotonic()
        with _captured():
            code = _answer(list(mutant.arguments))
        seconds = round(time.monotonic() - start, 3)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / 2**20
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        Path("answer.json").write_text(json.dumps({"code": code, "seconds": seconds}))
        good, word, why = judged(mutant, code, Path("stdout").read_text("utf-8", "replace"),
                                 Path("stderr").read_text("utf-8", "replace"))
        part = Path("outcome.part")
        part.write_text(json.dumps(asdict(Outcome(good, word, why, seconds, round(grown, 1)))))
        part.rename("outcome.json")
        os._exit(0)
    except BaseException:  # a fault of this harness: told, and the process ends here in any case
        Path("harness.txt").write_text(traceback.format_exc())
        os._exit(70)


def _answer(arguments: list[str]) -> int:
    import torch

    from verifier import cli, deadline
    deadline.PROCESS_START = time.monotonic()  # the time limit counts from here
    torch.manual_seed(0)
    return cli.run(arguments)


@contextlib.contextmanager
def _captured() -> Iterator[None]:
    """Both streams into files, those of libraries in C too."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(handle, number)
        os.close(handle)
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
    yield
    sys.stdout.flush()
    sys.stderr.flush()


def judged(mutant: Mutant, code: int, out: str, err: str) -> tuple[bool, str, str]:
    """(good, word, why) of an exit code with what was written."""
    if "Traceback" in err or "unexpected" in err:
        return False, "traceback", err[-600:]
    if code == 2:
        lines = [line for line in err.splitlines() if line.strip()]
        if len(lines) != 1 or not lines[0].startswith("Error: ") or len(lines[0]) > LONGEST_SENTENCE or out:
            return False, "no sentence", err[:600]
        return True, "refused", lines[0]
    if mutant.arguments[0] != "verify":
        return (True, "answered", "") if code == 0 else (False, f"exit code {code}", err[-600:])
    try:
        answer: dict[str, Any] = json.loads(out)
    except ValueError:
        return False, "no JSON", f"exit code {code}: {out[:200]} {err[-400:]}"
    if ANSWERS.get(code) != answer["verdict"]:
        return False, "exit code", f"{code} with {answer['verdict']}"
    if code == 3:
        good = answer["reason"] in REASONS
        return good, f"unknown ({answer['reason']})", answer["detail"] or ""
    if "spec.vnnlib" not in mutant.files:
        return True, answer["verdict"], "unchecked: a ball around an input"
    opinion, why = _opinion(answer, mutant)
    word = opinion if opinion == "WRONG" else answer["verdict"]
    return opinion != "WRONG", word, f"{opinion}: {why}" if why else opinion


def _opinion(answer: dict[str, Any], mutant: Mutant) -> tuple[str, str]:
    from bounds.files import read_bytes
    return wrong(answer, read_bytes(mutant.files["net.onnx"]), read_bytes(mutant.files["spec.vnnlib"]))
