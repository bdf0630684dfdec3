"""IDX files of bytes, the format of MNIST (LeCun, Cortes and Burges) and Fashion-MNIST (arXiv:1708.07747).

A magic number (2048 + the number of axes), the lengths of the axes, all big-endian in 32 bits, then the bytes.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bounds.files import read_bytes

MAGIC, MOST_AXES = 2048, 4
FILES = {"train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
         "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")}


def read_idx(path: str | Path) -> NDArray[np.uint8]:
    """The array of a file, plain or gzip (`PATH` or `PATH.gz`). Raises OSError, or ValueError with a sentence."""
    try:
        return _array(read_bytes(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _array(data: bytes) -> NDArray[Any]:
    axes = int.from_bytes(data[:4], "big") - MAGIC
    if len(data) < 4 or not 1 <= axes <= MOST_AXES:
        raise ValueError(f"not an IDX file of bytes: expected a magic number from {MAGIC + 1} to {MAGIC + MOST_AXES}")
    start = 4 + 4 * axes
    if len(data) < start:
        raise ValueError("not an IDX file of bytes: it ends inside its header")
    shape = [int.from_bytes(data[k : k + 4], "big") for k in range(4, start, 4)]
    if len(data) - start != math.prod(shape):
        raise ValueError(f"damaged IDX file: its header says {' x '.join(map(str, shape))} bytes, it holds "
                         f"{len(data) - start}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def read_images(folder: str | Path, part: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(x "N 1 H W" in [0, 1], y "N") of the "train" or "test" part. Raises OSError, or ValueError with a sentence."""
    images, labels = (Path(folder) / name for name in FILES[part])
    x, y = read_idx(images), read_idx(labels)
    if x.ndim != 3 or not x.size or y.shape != x.shape[:1]:
        raise ValueError(f"{images} holds {' x '.join(map(str, x.shape))} bytes and {labels.name} "
                         f"{' x '.join(map(str, y.shape))}: expected N x H x W pixels and N labels")
    return x.astype(np.float32)[:, None] / np.float32(255), y.astype(np.int64)
