"""Downloads of published data sets: on request only, and kept only if their checksums are the published ones."""

from __future__ import annotations

import hashlib
import os
import urllib.request
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_S = 60.0
PIECE = 1 << 20


@dataclass(frozen=True)
class Source:
    """url: a folder's, with a slash at its end. files: their names and the MD5 sums that their publishers state."""

    url: str
    files: dict[str, str]


SOURCES = {
    "mnist": Source("https://ossci-datasets.s3.amazonaws.com/mnist/", {
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c"}),
    "fashion-mnist": Source("https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/", {
        "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310"}),
    "cifar10": Source("https://www.cs.toronto.edu/~kriz/", {
        "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"}),
}


def fetch(name: str, folder: Path) -> None:
    """Download the files of a data set that are not in the folder. Raises OSError, or ValueError for a wrong checksum;
    a file is there whole or not at all."""
    source = SOURCES[name]
    folder.mkdir(parents=True, exist_ok=True)
    for file, expected in source.files.items():
        if not (folder / file).exists():
            _one(source.url + file, folder / file, expected)


def _one(url: str, path: Path, expected: str) -> None:
    draft, seen = path.with_name(f"{path.name}.{os.getpid()}.part"), hashlib.md5(usedforsecurity=False)
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer, draft.open("wb") as out:
            while piece := answer.read(PIECE):
                seen.update(piece)
                out.write(piece)
        if seen.hexdigest() != expected:
            raise ValueError(f"{url}: its MD5 is {seen.hexdigest()}, expected {expected}; nothing was kept")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
