"""Which failures are a lack of memory."""

from __future__ import annotations

import pytest
import torch

from verifier.out_of_memory import is_out_of_memory


@pytest.mark.parametrize(("error", "memory"), [
    (MemoryError(), True),
    (torch.cuda.OutOfMemoryError("CUDA out of memory."), True),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:130] err == 0. DefaultCPUAllocator: can't allocate memory: you tried "
                  "to allocate 8 bytes. Error code 12 (Cannot allocate memory)"), True),
    (RuntimeError("could not create a primitive"), True),  # a convolution under `ulimit -v`
    (RuntimeError("could not create a primitive descriptor for a convolution forward propagation primitive"), False),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"), False),
    (ValueError("out of memory"), False),
])
def test_a_lack_of_memory_is_told_from_other_failures(error: Exception, memory: bool) -> None:
    assert is_out_of_memory(error) == memory


def test_more_bytes_than_can_be_counted_are_a_lack_of_memory() -> None:
    with pytest.raises(RuntimeError) as found:
        torch.empty(10**18, 64)
    assert is_out_of_memory(found.value)
