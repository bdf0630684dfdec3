"""CIFAR-10 (Krizhevsky, 2009) as its authors publish it: Python or binary batches, in a folder or still in the archive.

A batch of the Python version is a pickle, and an ordinary unpickler runs whatever a file asks for. `_Reader` hands out
stand-ins instead, which know one thing: an array of bytes.
"""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bounds.files import read_bytes

SHAPE, CLASSES = (3, 32, 32), 10
BATCH = 10_000  # images in each of the six files: one that was cut off at an image's end must not pass for a whole one
TRAIN, TEST = tuple(f"data_batch_{k}" for k in range(1, 6)), "test_batch"
VERSIONS = {"cifar-10-batches-py": ("cifar-10-python.tar.gz", ""),  # folder: its archive, and how names of files end
            "cifar-10-batches-bin": ("cifar-10-binary.tar.gz", ".bin")}

# Of the 50,000 training images, each channel scaled to [0, 1].
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

Batch = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # pixels "N 3*32*32", labels "N"
Images = tuple[NDArray[np.float32], NDArray[np.int64]]


def find(folders: list[Path]) -> Path | None:
    """The first folder of batches, or archive of one, in any of the folders or as one of them."""
    for folder in folders:
        for name, (archive, ending) in VERSIONS.items():
            if (folder / name / (TRAIN[0] + ending)).is_file():
                return folder / name
            if (folder / archive).is_file():
                return folder / archive
            if folder.name == name and (folder / (TRAIN[0] + ending)).is_file():
                return folder
    return None


def read_cifar(place: Path) -> tuple[Images, Images]:
    """(x "N 3 32 32" in [0, 1], y "N") for training and for testing. Raises OSError, or ValueError with a sentence."""
    if place.is_dir():
        return _both(lambda name: read_bytes(place / name), place.name, str(place))
    folder = next(name for name, (archive, _) in VERSIONS.items() if archive == place.name)
    try:
        with tarfile.open(place) as archive:
            return _both(lambda name: _member(archive, f"{folder}/{name}"), folder, str(place))
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{place}: damaged archive ({error})") from error


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    try:
        file = archive.extractfile(name)
    except KeyError:
        file = None
    if file is None:
        raise ValueError(f"the archive holds no file {name}")
    return file.read()


def _both(read: Callable[[str], bytes], folder: str, source: str) -> tuple[Images, Images]:
    ending = VERSIONS[folder][1]

    def part(*names: str) -> Images:
        batches = []
        for name in names:
            try:
                data = read(name + ending)
                batches.append(_binary(data) if ending else _pickled(data))
            except ValueError as error:
                raise ValueError(f"{source}: {name + ending}: {error}") from error
        x, y = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
        return x.reshape(-1, *SHAPE).astype(np.float32) / np.float32(255), y.astype(np.int64)

    return part(*TRAIN), part(TEST)


def _checked(pixels: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Batch:
    if len(labels) != BATCH or len(pixels) != BATCH:
        raise ValueError(f"holds {len(pixels)} images and {len(labels)} labels, expected {BATCH}")
    if int(labels.max()) >= CLASSES:
        raise ValueError(f"holds the label {int(labels.max())}, expected 0 to {CLASSES - 1}")
    return pixels, labels


# ---------------------------------------------------------------------- binary version


def _binary(data: bytes) -> Batch:
    """One byte of label and 3,072 of pixels an image."""
    size = 1 + int(np.prod(SHAPE))
    if len(data) != BATCH * size:
        raise ValueError(f"holds {len(data)} bytes, expected {BATCH} images of {size}")
    records = np.frombuffer(data, np.uint8).reshape(-1, size)
    return _checked(records[:, 1:], records[:, 0])


# ---------------------------------------------------------------------- Python version


class _Reader(pickle.Unpickler):
    """Of all globals that a pickle may name it knows those of an array of bytes, and none of them is the real one."""

    def find_class(self, module: str, name: str) -> Any:
        found = _STAND_INS.get((module.replace("numpy._core", "numpy.core"), name))
        if found is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, expected arrays and plain values only")
        return found


class _NoArray:
    """numpy.ndarray where a pickle names the class itself."""


class _Array:
    """What a pickled array says of itself."""

    bytes_of_it: bytes = b""
    shape: tuple[int, ...] = ()

    def __init__(self, *_: Any) -> None:
        return None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, columns_first, data = state
        if not isinstance(dtype, _Dtype) or columns_first:
            raise ValueError("holds an array that is not one of bytes, row by row")
        self.shape, self.bytes_of_it = tuple(map(int, shape)), bytes(data)


class _Dtype:
    """numpy.dtype of bytes."""

    names: ClassVar[tuple[Any, ...]] = ("u1", b"u1")

    def __init__(self, name: Any, *_: Any) -> None:
        if name not in self.names:
            raise ValueError(f"holds an array of {name!r}, expected one of bytes")

    def __setstate__(self, state: Any) -> None:
        return None


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """_codecs.encode: how Python 3 writes bytes for Python 2."""
    if encoding != "latin1":
        raise ValueError(f"holds bytes in the encoding {encoding!r}, expected latin1")
    return str(text).encode("latin1")


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _NoArray,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


def _pickled(data: bytes) -> Batch:
    """A dictionary with `data` "N 3072" and `labels`, under keys of bytes or of text."""
    try:
        loaded = _Reader(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises anything at all
        raise ValueError(f"not a batch of CIFAR-10 ({error or type(error).__name__})") from error
    named = {k.decode("latin1") if isinstance(k, bytes) else k: v for k, v in loaded.items()} \
        if isinstance(loaded, dict) else {}
    pixels, labels = named.get("data"), named.get("labels")
    size = int(np.prod(SHAPE))
    if not isinstance(pixels, _Array) or not isinstance(labels, list) or not all(isinstance(k, int) for k in labels):
        raise ValueError("not a batch of CIFAR-10: expected a dictionary with an array `data` and a list `labels`")
    if len(pixels.shape) != 2 or pixels.shape[1] != size or len(pixels.bytes_of_it) != pixels.shape[0] * size:
        raise ValueError(f"holds pixels of shape {pixels.shape} in {len(pixels.bytes_of_it)} bytes, expected (N, {size})")
    if not all(0 <= k < CLASSES for k in labels):
        raise ValueError(f"holds a label out of range, expected 0 to {CLASSES - 1}")
    return _checked(np.frombuffer(pixels.bytes_of_it, np.uint8).reshape(-1, size), np.array(labels, np.uint8))
