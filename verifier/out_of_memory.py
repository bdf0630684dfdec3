"""Telling a lack of memory from other failures."""

from __future__ import annotations

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Memory ran out: Python's error, the device's, or the plain RuntimeError of the CPU allocator."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text
                                                or "not enough memory" in text)
