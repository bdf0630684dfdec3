"""Data sets by name, and where their files may lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bounds.files import existing
from certify.data.dataset import Examples, TrainingData

NAMES = ("digits", "mnist", "fashion-mnist", "cifar10")
CLASSES = 10  # of MNIST and of Fashion-MNIST
HERE = "data"  # where files are looked for unless told otherwise
FOLDERS = {  # of each data set, inside the one that is given
    "mnist": ("mnist", "MNIST/raw", ""),
    "fashion-mnist": ("fashion-mnist", "FashionMNIST/raw", ""),
    "cifar10": ("cifar10", "cifar-10", "CIFAR10", ""),
}
FIRST_LABELS = {  # of the test sets: these two have files of the same names
    "mnist": [7, 2, 1, 0, 4, 1, 4, 9, 5, 9],
    "fashion-mnist": [9, 2, 1, 1, 6, 1, 4, 6, 5, 7],
}


def load(name: str, data_dir: str | Path | None = None, *, download: bool = False) -> TrainingData:
    """A data set by its name, or an .npz by its path. Files are looked for in data_dir (None: `data`) and below it as
    other libraries lay them; with `download` they are fetched from their publisher where they are missing.

    Raises ValueError for an unknown name or damaged files, FileNotFoundError that says how to get what is not there.
    """
    if name == "digits":
        from certify.data.digits import load_digits
        return load_digits()
    if name.endswith(".npz"):
        from certify.data.npz import load_npz
        return load_npz(name)
    if name not in FOLDERS:
        raise ValueError(f"data must be one of {', '.join(NAMES)}, or a path that ends in .npz, got {name!r}")
    root = Path(HERE if data_dir is None else data_dir)
    read = _cifar if name == "cifar10" else _idx
    found = read(name, root)
    if found is None and download:
        from certify.data.fetch import fetch
        fetch(name, root / name)
        found = read(name, root)
    if found is None:
        raise FileNotFoundError(_missing(name, root))
    return found


def _idx(name: str, root: Path) -> TrainingData | None:
    """MNIST and what has its format: four files in one folder."""
    from certify.data import idx
    files = [file for part in idx.FILES.values() for file in part]
    folder = next((f for f in _folders(name, root) if all(_is_there(f / file) for file in files)), None)
    if folder is None:
        return None
    train, test = (_examples(*idx.read_images(folder, part)) for part in ("train", "test"))
    begin = test.y[:10].tolist()
    if other := [known for known, labels in FIRST_LABELS.items() if labels == begin and known != name]:
        raise ValueError(f"{folder} holds {other[0]}, expected {name}: both have files of the same names")
    return TrainingData(name, train, test, CLASSES)


def _is_there(path: Path) -> bool:
    try:
        return existing(path).is_file()
    except OSError:
        return False


def _cifar(name: str, root: Path) -> TrainingData | None:
    from certify.data import cifar
    place = cifar.find(_folders(name, root))
    if place is None:
        return None
    train, test = (_examples(*part) for part in cifar.read_cifar(place))
    return TrainingData(name, train, test, cifar.CLASSES, mean=cifar.MEAN, std=cifar.STD, augmentation="flip-crop")


def _examples(x: NDArray[np.float32], y: NDArray[np.int64]) -> Examples:
    return Examples(torch.from_numpy(x), torch.from_numpy(y))


def _folders(name: str, root: Path) -> list[Path]:
    return [root / inside for inside in FOLDERS[name]]


def _missing(name: str, root: Path) -> str:
    from certify.data.fetch import SOURCES
    source = SOURCES[name]
    if name == "cifar10":
        from certify.data.cifar import VERSIONS
        files = " or ".join(f"{archive} (unpacked: {folder})" for folder, (archive, _) in VERSIONS.items())
    else:
        files = ", ".join(file.removesuffix(".gz") for file in source.files) + " (plain or .gz)"
    return (f"data {name} needs {files}, not found in {', '.join(map(str, _folders(name, root)))}: get them from "
            f"{source.url} or ask for a download")
