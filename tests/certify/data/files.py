"""Data files made by the tests themselves."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certify.data import cifar, idx

Bytes = NDArray[np.uint8]


def idx_bytes(array: Bytes) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", 2048 + array.ndim, *array.shape) + array.tobytes()


def mnist(folder: Path, *, zipped: bool = False, seed: int = 0) -> dict[str, tuple[Bytes, Bytes]]:
    """Four files of a small MNIST; what they hold, by part."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    held = {}
    for part, count in (("train", 30), ("test", 12)):
        x = rng.integers(0, 256, (count, 5, 4), dtype=np.uint8)
        y = rng.integers(0, 10, count, dtype=np.uint8)
        for name, array in zip(idx.FILES[part], (x, y), strict=True):
            data = idx_bytes(array)
            (folder / (name + (".gz" if zipped else ""))).write_bytes(gzip.compress(data) if zipped else data)
        held[part] = (x, y)
    return held


def cifar_arrays(count: int) -> list[tuple[Bytes, Bytes]]:
    """(pixels "N 3072", labels "N") of five batches and the test batch."""
    rng = np.random.default_rng(1)
    return [(rng.integers(0, 256, (count, 3072), dtype=np.uint8), rng.integers(0, 10, count, dtype=np.uint8))
            for _ in range(6)]


def cifar_files(arrays: list[tuple[Bytes, Bytes]], version: str, protocol: int = 2) -> dict[str, bytes]:
    """The six files of a version by their names."""
    names = (*cifar.TRAIN, cifar.TEST)
    if version == "cifar-10-batches-bin":
        return {f"{name}.bin": np.column_stack([y, x]).tobytes() for name, (x, y) in zip(names, arrays, strict=True)}
    return {name: pickled({b"batch_label": b"a batch", b"labels": y.tolist(), b"data": x, b"filenames": [b"a.png"]},
                          protocol) for name, (x, y) in zip(names, arrays, strict=True)}


def pickled(content: Any, protocol: int = 2) -> bytes:
    return pickle.dumps(content, protocol=protocol)


def archive(path: Path, files: dict[str, bytes], folder: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def lay(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
