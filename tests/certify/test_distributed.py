"""Two processes with gloo on the CPU end with the weights that one process reaches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys, torch
from certify.distributed import processes
from certify.trainer import Trainer
from dataclasses import replace
from tests.certify.test_trainer import SMALL, data
torch.set_num_threads(1)
with processes() as group:
    trainer = Trainer(replace(SMALL, optimiser="sgd", method=sys.argv[2], l1=1e-4, epochs=2), data(), None, group)
    trainer.run()
    torch.save(trainer.module.state_dict(), f"{sys.argv[1]}/weights{group.world}{group.rank}.pt")
"""


@pytest.mark.parametrize("method", ["ibp"])
def test_gradients_synchronise_between_processes(method: str, tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(script), str(tmp_path), method], check=True, env=environment, timeout=120)
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script),
                    str(tmp_path), method], check=True, env=environment, timeout=120, capture_output=True)
    one, first, second = (torch.load(tmp_path / f"weights{name}.pt") for name in ("10", "20", "21"))
    for name, value in one.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-6)
