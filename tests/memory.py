"""What this process holds, as glibc and Linux count it."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path


class _Mallinfo2(ctypes.Structure):
    """Of glibc 2.33 and newer: bytes by what they are."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


def memory() -> dict[str, float]:
    """MiB that are allocated in this process, and that it has, after what Python can free is freed.

    Raises:
        AttributeError: the C library has no mallinfo2.
    """
    gc.collect()
    glibc = ctypes.CDLL(None)
    glibc.mallinfo2.restype = _Mallinfo2
    counted = glibc.mallinfo2()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {"allocated": (counted.uordblks + counted.hblkhd) / 2**20, "resident": pages * 4096 / 2**20}
