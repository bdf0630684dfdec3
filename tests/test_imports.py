"""Imports run one way, and the command line starts without PyTorch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ORDER = ("bounds", "milp", "verifier", "certify")
NOT_IN_PACKAGES = {"benchmarks", "tests"}


def imported_packages(source: str) -> set[str]:
    """Top-level names of every import statement, wherever it stands in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("package", ORDER)
def test_packages_import_only_what_stands_to_their_left(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"{package} has files"
    forbidden = set(ORDER[ORDER.index(package) + 1:]) | NOT_IN_PACKAGES
    wrong = {str(f.relative_to(ROOT)): hit for f in files if (hit := imported_packages(f.read_text()) & forbidden)}
    assert not wrong


def test_the_reader_of_imports_sees_nested_and_relative_forms() -> None:
    source = "import a.b\nfrom .c import d\ndef f():\n    from verifier.x import y\n"
    assert imported_packages(source) == {"a", "verifier"}


WITHOUT_TORCH = {
    "packages": "import bounds, milp, verifier, certify",
    "help": "from verifier.cli import run\nassert run(['--help']) == 0",
    "help of verify": "from verifier.cli import run\nassert run(['verify', '--help']) == 0",
    "refusal": "from verifier.cli import run\nassert run(['train', 'net.onnx']) == 2",
    "unknown command": "from verifier.cli import run\nassert run(['no-such-command']) == 2",
}


@pytest.mark.parametrize("what", WITHOUT_TORCH)
def test_light_commands_never_load_torch(what: str) -> None:
    code = f"""{WITHOUT_TORCH[what]}
import sys
loaded = [m for m in ('torch', 'onnx', 'onnxruntime') if m in sys.modules]
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
