"""Full precision while bounds are computed, and no gain where one changes its dtype.

On CUDA, PyTorch multiplies float32 in convolutions as TF32 unless told otherwise: factors keep ten bits, and a bound
is wrong in its third digit. Products do the same where a program asked for speed (`set_float32_matmul_precision`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def full_precision() -> Iterator[None]:
    """IEEE float32 inside the block, in products and convolutions on every device; afterwards as before."""
    backends: Any = torch.backends
    switches = (backends.cudnn.conv, backends.cuda.matmul, backends.mkldnn.conv, backends.mkldnn.matmul)
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


def rounded_down(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Lower bounds in another dtype, none of them larger than it was."""
    out = value.to(dtype)
    return torch.where(out > value, torch.nextafter(out, torch.full_like(out, -torch.inf)), out)
