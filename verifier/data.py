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


MOST_LABEL = np.iinfo(np.int64).max  # uint64 has larger ones, which a cast would make negative
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

    def within(self, clip: tuple[float, float] | None, free: NDArray[np.bool_] | None = None) -> DataSet:
        """The same inside a range (see `into_range`), of which only free features know (free "*shape"; None: all are).
        Raises ValueError for the first example that lies outside, by its number."""
        if clip is None:
            return self
        x, outside = into_range(self.x, clip, True if free is None else free.reshape(self.x.shape[1:]))
        for k in np.flatnonzero(outside)[:1]:
            raise ValueError(f"input {int(self.index[k])} has entries from {self.x[k].min()!s} to "
                             f"{self.x[k].max()!s}, outside the clip range [{clip[0]}, {clip[1]}]; are the inputs "
                             "normalised?")
        return DataSet(x, self.y, self.index, self.pool)

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


def fitting(arrays: dict[str, NDArray[Any]], shape: tuple[int, ...], classes: int, inputs: str = "x",
            labels: str = "y") -> DataSet:
    """Two of the arrays as examples for a network with this input shape and so many outputs. Raises ValueError."""
    x, y = checked_examples(arrays, inputs, labels)
    if x.shape[1:] != shape:
        flat = int(np.prod(shape))
        if x.ndim < 2 or int(np.prod(x.shape[1:])) != flat:
            raise ValueError(f"{inputs} has shape {x.shape}, the network expects (N, {', '.join(map(str, shape))})")
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
    if (wrong := np.flatnonzero((y < 0) | (y > MOST_LABEL))).size:
        raise ValueError(f"label {int(y[wrong[0]])} of example {int(wrong[0])} is out of range: labels are 0 or more, "
                         "and int64 must hold them")
    with np.errstate(over="ignore"):  # what is beyond float32 becomes infinite and is told here
        x = x.astype(np.float32)
    strange = np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(1))
    if strange.size:
        raise ValueError(f"example {int(strange[0])} has values that are NaN, infinite, or beyond float32")
    return x, y.astype(np.int64)


def nearest_ends(clip: tuple[float, float]) -> tuple[np.float32, np.float32]:
    """The ends of a range as inputs are stored: each as the nearest float32, which may lie beyond it."""
    with np.errstate(over="ignore"):  # of a range that is wider than float32
        return np.float32(clip[0]), np.float32(clip[1])


def into_range(x: NDArray[np.float32], clip: tuple[float, float], free: NDArray[np.bool_] | bool = True
               ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """(inputs "N *shape" whose free entries lie in the range, which of them "N" lay outside and mean nothing here).

    An end may be no float32. What is stored as the nearest one stands for the end itself, and becomes the nearest
    inside: over the reals it would lie beyond. Between two neighbouring float32 nothing lies inside.
    """
    near_low, near_high = nearest_ends(clip)
    low = near_low if float(near_low) >= clip[0] else np.nextafter(near_low, np.float32(np.inf))
    high = near_high if float(near_high) <= clip[1] else np.nextafter(near_high, np.float32(-np.inf))
    outside = np.asarray(((x < near_low) | (x > near_high) | (low > high)) & free).reshape(len(x), -1).any(1)
    return np.asarray(np.where(free, x.clip(low, high), x), np.float32), np.asarray(outside)


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
