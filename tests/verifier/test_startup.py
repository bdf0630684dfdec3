"""The start and the end of a process: what is left out is never missed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.verifier.models import absolute_value, spec

ROOT = Path(__file__).resolve().parents[2]


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True,
                          timeout=120, env=buffered)


def output(code: str) -> str:
    done = python(code)
    assert done.returncode == 0, done.stderr
    return done.stdout


LOAD = "from verifier.cli.startup import load_torch\nload_torch()\n"

# The kernel that the dispatcher takes for every operator and every kind of tensor. "prims" are operators of the
# compiler; MPS (Apple) is no device of ours, and one of its kernels is written in Python.
TABLES = """
import hashlib, torch
other = ("Meta", "MPS")
real = hashlib.sha256(); every = hashlib.sha256()
for name in sorted(torch._C._dispatch_get_all_op_names()):
    for line in torch._C._dispatch_dump_table(name).splitlines():
        every.update(f"{name} {line}\\n".encode())
        key = line.partition(":")[0]
        if name.partition("::")[0] not in ("prims", "rngprims", "debugprims") and not any(o in key for o in other):
            real.update(f"{name} {line}\\n".encode())
print(real.hexdigest(), every.hexdigest(), "torch._prims" in __import__("sys").modules)
"""


def test_kernels_of_tensors_with_data_are_those_of_an_ordinary_import() -> None:
    starts = ("", LOAD, LOAD + "import torch._decomp\n")
    ordinary, late, completed = (output(start + TABLES).split() for start in starts)
    assert late[0] == ordinary[0]
    assert completed == ordinary


@pytest.mark.parametrize("module", ["torch._prims", "torch._refs.linalg", "torch._dynamo", "torch._meta_registrations"])
def test_whatever_else_of_torch_is_imported_finds_the_meta_kernels(module: str) -> None:
    output(f"""{LOAD}
import importlib, sys, torch
module = importlib.import_module({module!r})
assert sys.modules[{module!r}] is module and module.__spec__.origin, module.__spec__
assert len(vars(sys.modules["torch._meta_registrations"])) > 100 and "torch._prims.rng_prims" in sys.modules
assert torch.compile(lambda x: (x.relu() @ x.T).sum(), backend="eager")(torch.ones(3, 3)) == 27
from torch._subclasses.fake_tensor import FakeTensorMode
with FakeTensorMode():
    assert torch.nn.functional.conv2d(torch.ones(1, 1, 5, 5), torch.ones(2, 1, 3, 3)).shape == (1, 2, 3, 3)
torch.Generator().manual_seed(0)
""")


def test_releases_that_were_not_checked_are_imported_as_they_are() -> None:
    output(f"""
import sys
import verifier.cli.meta_kernels as late
late.CHECKED_RELEASES = ("0.1",)
before = list(sys.meta_path)
{LOAD}
assert "torch._prims" in sys.modules and sys.meta_path == before
""")


def test_a_verification_needs_nothing_of_torch_that_loads_the_meta_kernels(tmp_path: Path) -> None:
    absolute_value(tmp_path / "net.onnx")
    (tmp_path / "p.vnnlib").write_text(spec([(-1, 2)], 2, "(>= Y_0 2.5)"))
    output(f"""
import sys, verifier.cli.meta_kernels as late
from verifier.cli import run
assert run(["verify", {str(tmp_path / "net.onnx")!r}, {str(tmp_path / "p.vnnlib")!r}]) == 0
checked = late._release().startswith(late.CHECKED_RELEASES)
assert checked != ("torch._prims" in sys.modules)
""")


# ---------------------------------------------------------------- the end

MAIN = """
import sys
from verifier.cli import leave
"""


def test_exit_handlers_run_and_output_is_written_before_the_quick_exit() -> None:
    done = python(MAIN + """
import atexit, torch
atexit.register(lambda: print("handler"))
print("x" * 100_000)
sys.stderr.write("trouble")
leave(3)
""")
    assert (done.returncode, done.stdout, done.stderr) == (3, "x" * 100_000 + "\nhandler\n", "trouble")


@pytest.mark.parametrize("who", ["import torch; sys.setprofile(lambda *a: None)",
                                 "import torch, threading; threading.Thread(target=lambda: print('thread')).start()",
                                 "pass"], ids=["a profiler", "a thread", "a process without torch"])
def test_who_watches_the_exit_gets_the_ordinary_one(who: str) -> None:
    code = MAIN + f"import time\n{who.replace('lambda: print', 'lambda: time.sleep(0.5) or print')}\n" + """
try:
    leave(3)
except SystemExit as exit:
    sys.setprofile(None)
    print("ordinary")
    raise
"""
    done = python(code)
    assert done.returncode == 3, done.stderr
    assert done.stdout == "ordinary\n" + ("thread\n" if "Thread" in who else "")


def test_a_closed_pipe_is_never_a_verdict() -> None:
    code = MAIN + "import os, torch\nprint('x')\nos.close(1)\nleave(0)\n"
    assert python(code).returncode not in (0, 1, 3)
