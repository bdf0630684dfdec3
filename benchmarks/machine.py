"""What a benchmark says about itself: the machine with its speed, the checkout, the environment of its processes."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_waiting(variables: Mapping[str, str]) -> dict[str, str | None]:
    """How threads wait for each other, where the environment says so (else as the command line sets it)."""
    return {name: variables.get(name) for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}


def environment(threads: int) -> dict[str, str]:
    """Of every process that measures: the thread count, and packages from this checkout."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    # Compiled modules are kept, as on any machine that a tool is installed on.
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}


def calibration(threads: int) -> Any:
    """What `calibration.py` measures, with the same threads."""
    script = Path(__file__).with_name("calibration.py")
    done = subprocess.run([sys.executable, script], env=environment(threads), capture_output=True, text=True,
                          check=True)
    return json.loads(done.stdout)


def hardware() -> dict[str, Any]:
    """Cores, memory, system, and the load just now: asked before a benchmark begins."""
    return {"cores": available_cores(), "memory_gib": memory_gib(),
            "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None, "system": platform.platform()}


def memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def commit(apart: Sequence[str] = ()) -> str | None:
    """The checkout's commit, with a + where tracked files differ from it, but for paths `apart`; None outside git."""
    try:
        name = subprocess.run(["git", "describe", "--always", "--abbrev=12"], cwd=ROOT, capture_output=True, text=True,
                              check=True).stdout.strip()
        changed = subprocess.run(["git", "diff", "--name-only", "HEAD", "--", ".", *(f":(exclude){p}" for p in apart)],
                                 cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return name + "+" * bool(changed)


def finite(value: Any) -> Any:
    """The value with None for every number that JSON has no word for (a bound may be -inf)."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def markdown(header: list[str], lines: list[list[str]], left: int) -> str:
    """An aligned Markdown table; the first `left` columns are text, the others numbers."""
    cells = [header, *lines]
    widths = [max(len(line[k]) for line in cells) for k in range(len(header))]
    padded = [[cell.ljust(w) if k < left else cell.rjust(w)
               for k, (cell, w) in enumerate(zip(line, widths, strict=True))] for line in cells]
    rule = ["-" * w if k < left else "-" * (w - 1) + ":" for k, w in enumerate(widths)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (padded[0], rule, *padded[1:]))
