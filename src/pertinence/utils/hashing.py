"""The hash of a set of named arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np


def hash_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of names, shapes and values, with floating-point values cast to float32, in hexadecimal."""
    digest = hashlib.sha256()
    for name, values in sorted(arrays.items()):
        if np.issubdtype(values.dtype, np.floating):
            values = values.astype(np.float32, copy=False)
        digest.update(f"{name}\0{tuple(values.shape)}\0".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()
