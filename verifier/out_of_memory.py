"""Telling a lack of memory from other failures."""

from __future__ import annotations

import torch

# The last is said of so many bytes that their number is none, before any are asked for.
WORDS = ("can't allocate memory", "out of memory", "not enough memory", "storage size calculation overflowed")
# oneDNN's for its scratch space. One that it does not offer is "could not create a primitive descriptor ..." instead.
SCRATCH = "could not create a primitive"


def is_out_of_memory(error: BaseException) -> bool:
    """Memory ran out: Python's error, the device's, or a plain RuntimeError of the CPU allocator or of oneDNN."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (text.strip() == SCRATCH or any(words in text for words in WORDS))
