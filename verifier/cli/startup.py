"""Fast start: PyTorch is loaded once, by the commands that need it, with the garbage collector asleep."""

from __future__ import annotations

import gc


def load_torch() -> None:
    """Import torch without garbage collections in between.

    The import allocates a few hundred thousand objects that live to the end; collecting meanwhile finds
    nothing and costs about 0.1 s. `freeze` keeps later collections from walking over them again.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        import torch  # noqa: F401
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
