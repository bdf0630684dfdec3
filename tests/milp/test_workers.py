"""Processes that work for another one end with it, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from milp.workers import workers

ROOT = Path(__file__).resolve().parents[2]
BUSY = """
import sys, time
from milp.workers import workers
from tests.milp.test_workers import tell
if __name__ == "__main__":
    with workers(2) as pool:
        waiting = [pool.submit(tell, sys.argv[1]) for _ in range(4)]
        waiting[0].result()
"""


def tell(folder: str) -> None:
    """Leave a sign of life, and work for a long time."""
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(600)


def double(x: int) -> int:
    return 2 * x


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_they_work() -> None:
    with workers(2) as pool:
        assert list(pool.map(double, range(5))) == [0, 2, 4, 6, 8]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_none_is_left_behind(end: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "busy.py"
    script.write_text(BUSY)
    folder = tmp_path / "signs"
    folder.mkdir()
    process = subprocess.Popen([sys.executable, str(script), str(folder)], cwd=ROOT, stderr=subprocess.DEVNULL,
                               env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True)
    until = time.monotonic() + 60
    while len(list(folder.iterdir())) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    pids = [int(p.name) for p in folder.iterdir()]
    assert len(pids) == 2
    process.send_signal(end)
    process.wait(timeout=20)
    until = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(alive, pids))
