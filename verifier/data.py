"""Data sets of the commands: an .npz with inputs `x` (N, *input shape) and integer labels `y` (N,)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

# A damaged header is parsed as Python, and a file that begins like an archive is opened as one.
UNREADABLE_ARRAY = (ValueError, EOFError, SyntaxError, TypeError, OverflowError, TokenError, BadZipFile)


POOL = 2000  # inputs among which decision-based attacks look for starts: more cost time and hardly come nearer


@dataclass(frozen=True, eq=False)
class DataSet:
    """Examples under their numbers: x "N *shape" float32, y "N" int64, index "N" (their places in the file).

    pool "M *shape": the first inputs of the file, whichever examples are chosen: where decision-based attacks look for
    starting points.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    index: NDArray[np.int64]
    pool: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.index)

    @property
    def digest(self) -> str:
        """Of the examples and labels themselves."""
        state = hashlib.sha256(np.ascontiguousarray(self.x).tobytes())
        for part in (self.y, self.index):
            state.update(part.astype("<i8").tobytes())
        state.update(np.ascontiguousarray(self.pool).tobytes())
        return state.hexdigest()

    def chosen(self, numbers: list[int]) -> DataSet:
        """Some examples, by their places in the file. Raises ValueError for a place that is not there."""
        beyond = [i for i in numbers if not 0 <= i < len(self.index)]
        if beyond:
            raise ValueError(f"index {beyond[0]} is out of range: there are {len(self.index)} examples")
        return DataSet(self.x[numbers], self.y[numbers], self.index[numbers], self.pool)


def read_data(path: str | Path, shape: tuple[int, ...], classes: int) -> DataSet:
    """The examples of a file for a network with this input shape and so many outputs.

    Raises OSError, or ValueError with a sentence: what is wrong, and what was expected.
    """
    return fitting(read_arrays(path), shape, classes)


def fitting(arrays: dict[str, NDArray[Any]], shape: tuple[int, ...], classes: int) -> DataSet:
    """The examples x and y for a network with this input shape and so many outputs. Raises ValueError."""
    x, y = checked_examples(arrays)
    if x.shape[1:] != shape:
        flat = int(np.prod(shape))
        if x.ndim < 2 or int(np.prod(x.shape[1:])) != flat:
            raise ValueError(f"x has shape {x.shape}, the network expects (N, {', '.join(map(str, shape))})")
        x = x.reshape(-1, *shape)
    wrong = np.flatnonzero(y >= classes)
    if wrong.size:
        raise ValueError(f"label {int(y[wrong[0]])} of example {int(wrong[0])} is out of range: the network has "
                         f"{classes} outputs")
    return DataSet(x, y, np.arange(len(x)), x[:POOL])


def checked_examples(arrays: dict[str, NDArray[Any]], inputs: str = "x", labels: str = "y"
                     ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Two of the arrays as inputs "N *shape" and labels "N". Raises ValueError: what is wrong, what was expected."""
    if missing := [name for name in (inputs, labels) if name not in arrays]:
        raise ValueError(f"holds {', '.join(sorted(arrays)) or 'nothing'} and no {missing[0]}, expected {inputs} "
                         f"(N, *input shape) and {labels} (N,)")
    x, y = arrays[inputs], arrays[labels]
    if x.dtype.kind not in "fiub" or (y.dtype.kind not in "iu"):
        raise ValueError(f"expected numbers {inputs} and integer labels {labels}, got {x.dtype} and {y.dtype}")
    if not x.size:
        raise ValueError("holds no examples")
    if not x.ndim or y.shape != x.shape[:1]:
        raise ValueError(f"{inputs} of shape {x.shape} and {labels} of shape {y.shape}: expected one label an input")
    if (wrong := np.flatnonzero(y < 0)).size:
        raise ValueError(f"label {int(y[wrong[0]])} of example {int(wrong[0])} is out of range: labels are 0 or more")
    with np.errstate(over="ignore"):  # what is beyond float32 becomes infinite and is told here
        x = x.astype(np.float32)
    strange = np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(1))
    if strange.size:
        raise ValueError(f"example {int(strange[0])} has values that are NaN, infinite, or beyond float32")
    return x, y.astype(np.int64)


def read_arrays(path: str | Path) -> dict[str, NDArray[Any]]:
    """All arrays of an .npz by name. Raises OSError or ValueError; pickled objects are refused."""
    try:
        with Path(path).open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                raise ValueError("holds one array (.npy), expected an .npz with x and y")
            return {name: loaded[name] for name in loaded.files}
    except OSError:
        raise
    except UNREADABLE_ARRAY as error:
        known = isinstance(error, ValueError) and str(error).startswith("holds one")
        # NumPy's own words would advise to load pickles, which run code.
        raise ValueError(str(error) if known else "not an .npz file with arrays x and y of numbers") from error
