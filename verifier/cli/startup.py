"""Fast start: PyTorch is loaded once, by the commands that need it, with the garbage collector asleep and without
the kernels that are for tensors without data."""

from __future__ import annotations

import gc
import os

from verifier.cli.meta_kernels import meta_kernels_later


def load_torch() -> None:
    """Import torch without garbage collections in between, and with threads that soon sleep while they wait.

    The import allocates a few hundred thousand objects that live to the end; collecting meanwhile finds
    nothing and costs about 0.1 s. `freeze` keeps later collections from walking over them again.

    Threads that spin long while they wait take the cores from each other on a busy machine: three instances of
    mnist_fc took 4.5 s on two cores with load 4, and 1.1 s with sleeping threads (0.8 s with one thread). Threads
    that sleep at once cost a quiet machine as much as they save a busy one: CROWN on a ResNet took 0.50 s against
    0.38 s. A short spin (some ten microseconds) loses neither.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # read once, when the library is loaded
    # Only the CPU and CUDA are used, so no installed package needs to be searched for other devices' backends.
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    enabled = gc.isenabled()
    gc.disable()
    try:
        with meta_kernels_later():
            import torch  # noqa: F401

        from bounds.memory import keep_freed_memory
        keep_freed_memory()
    finally:
        gc.freeze()
        if enabled:
            gc.enable()

