"""`import torch` without its kernels for tensors that hold no data, until something needs them.

The module `torch._meta_registrations` holds the kernels, written in Python, of the device "meta", and builds the
reference implementations of all operators on its way: 0.25 s of the 0.85 s that `import torch` takes. Compilers and
tracers need it. Tensors with data never reach it: the kernels that the dispatcher chooses for the CPU, for CUDA and
for autograd are the same with and without it (a test compares the tables of all operators).

Whatever else of PyTorch is imported later gets it first, so that compilers find everything in its usual order. Only
releases of PyTorch for which the test has passed are treated so; others are imported as they are.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

META_KERNELS = "torch._meta_registrations"
CHECKED_RELEASES = ("2.13",)


@contextmanager
def meta_kernels_later() -> Iterator[None]:
    """Inside the block `import torch` leaves out the meta kernels; afterwards they come with the next module of
    PyTorch that is imported. Does nothing where torch is loaded already or its release was not checked."""
    release = _release()
    if "torch" in sys.modules or release is None or not release.startswith(tuple(f"{r}." for r in CHECKED_RELEASES)):
        yield
        return
    sys.modules[META_KERNELS] = ModuleType(META_KERNELS)
    try:
        yield
    finally:
        del sys.modules[META_KERNELS]
    import torch
    from torch._opaque_base import OpaqueBaseMeta
    vars(torch).pop(META_KERNELS.rpartition(".")[2], None)
    torch._C._set_generator_metaclass(OpaqueBaseMeta)  # torch.Generator is refused before
    sys.meta_path.insert(0, _Completion())


class _Completion(MetaPathFinder):
    """Loads the meta kernels before the next module of PyTorch, once."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not name.startswith("torch."):
            return None
        sys.meta_path.remove(self)
        importlib.import_module(META_KERNELS)
        loaded = sys.modules.get(name)
        if loaded is None:
            return None
        # It came with the kernels. The import system now takes the spec it finds at the module and loads that anew.
        again = ModuleSpec(name, _Loaded(loaded))
        loaded.__spec__ = again
        return again


class _Loaded(Loader):
    """Hands over a module that is loaded already, and gives it its own spec back."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec


def _release() -> str | None:
    """The version of the installed PyTorch, read without importing it; None if it is not found."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^__version__ = '([^']+)'", text, re.MULTILINE)
    return None if found is None else found[1]
