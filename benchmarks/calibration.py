"""How fast is this machine? The figures that make two benchmark files from two days comparable.

    python benchmarks/calibration.py [--out calibration.json]

Seconds of `import torch` in a fresh process (median of 3 after one warm-up, so that files are cached), GFLOP/s of a
matrix product and of a convolution in float32 and float64, versions, cores. Every benchmark stores `calibrate()`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

GEMM_SIZE = 1024
CONV = {"batch": 32, "channels": 64, "side": 32, "kernel": 3}
REPEATS = 5
PACKAGES = ("torch", "numpy", "scipy", "onnx", "onnxruntime")
IMPORT = "import time; t = time.perf_counter(); import torch; print(time.perf_counter() - t)"


def calibrate(device: str = "cpu") -> dict[str, Any]:
    """The machine's figures as plain JSON values."""
    return {
        "import_torch_s": round(_import_torch_s(), 3),
        "gemm_gflops": {name: round(_gemm(dtype, device), 1) for name, dtype in _DTYPES.items()},
        "conv_gflops": {name: round(_conv(dtype, device), 1) for name, dtype in _DTYPES.items()},
        "gemm_size": GEMM_SIZE,
        "conv_size": CONV,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "processor": _processor(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {name: _version(name) for name in PACKAGES},
    }


_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def _import_torch_s() -> float:
    def once() -> float:
        return float(subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True).stdout)
    once()
    return statistics.median(once() for _ in range(3))


def _seconds(work: Callable[[], object], device: str) -> float:
    """Median seconds of one call after a warm-up."""
    def once() -> float:
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start
    once()
    return statistics.median(once() for _ in range(REPEATS))


def _gemm(dtype: torch.dtype, device: str) -> float:
    a = torch.rand(GEMM_SIZE, GEMM_SIZE, dtype=dtype, device=device)
    return 2 * GEMM_SIZE**3 / _seconds(lambda: a @ a, device) / 1e9


def _conv(dtype: torch.dtype, device: str) -> float:
    batch, channels, side, kernel = CONV.values()
    x = torch.rand(batch, channels, side, side, dtype=dtype, device=device)
    weight = torch.rand(channels, channels, kernel, kernel, dtype=dtype, device=device)
    flop = 2 * batch * channels * channels * side * side * kernel * kernel
    with torch.no_grad():
        return flop / _seconds(lambda: torch.nn.functional.conv2d(x, weight, padding=kernel // 2), device) / 1e9


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure this machine.")
    parser.add_argument("--out", type=Path, help="write JSON there as well")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    arguments = parser.parse_args()
    text = json.dumps(calibrate(arguments.device), indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
