"""Data of one's own: an .npz with inputs `x` (N, *input shape) and integer labels `y` (N,), as all commands read it.

Also read where present: `x_test` and `y_test` (else a fifth of the examples, chosen by a fixed seed, is for testing),
`clip` (two numbers, the range of every input), `mean` and `std` (one number a channel, the first axis of an input, by
which a model normalises). Inputs are used in the units in which they are stored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bounds.files import trouble
from certify.data.dataset import Examples, TrainingData
from verifier.data import checked_examples, into_range, read_arrays

TEST_SHARE, SPLIT_SEED = 5, 0  # one of so many
MOST_CLASSES = 100_000  # a model has an output for every number up to the largest label


def load_npz(path: str | Path) -> TrainingData:
    """Raises FileNotFoundError or ValueError with a sentence that names the file."""
    try:
        return _data(Path(path), read_arrays(path))
    except OSError as error:
        raise type(error)(f"{path}: {trouble(error)}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _data(path: Path, arrays: dict[str, NDArray[Any]]) -> TrainingData:
    x, y = checked_examples(arrays)
    if has_test_part(arrays):
        test_x, test_y = checked_examples(arrays, "x_test", "y_test")
        if test_x.shape[1:] != x.shape[1:]:
            raise ValueError(f"x_test has inputs of shape {test_x.shape[1:]}, x of {x.shape[1:]}")
    else:
        order = np.random.default_rng(SPLIT_SEED).permutation(len(y))
        tests = len(y) // TEST_SHARE
        if not tests:
            raise ValueError(f"holds {len(y)} examples, expected at least {TEST_SHARE} to keep some for testing")
        x, y, test_x, test_y = x[order[tests:]], y[order[tests:]], x[order[:tests]], y[order[:tests]]
    if x.ndim < 2:
        raise ValueError(f"x has shape {x.shape}, expected (N, *input shape)")
    classes = int(max(y.max(), test_y.max())) + 1
    if classes > MOST_CLASSES:
        raise ValueError(f"label {classes - 1} is out of range, expected numbers of classes, below {MOST_CLASSES}")
    if len(np.unique(y)) < 2:
        raise ValueError("holds one class only to train with, expected at least two")
    clip = stored_clip(arrays)
    if clip is None:
        lowest, highest = _ends(x, test_x)
        clip = (0.0, 1.0) if lowest >= 0 and highest <= 1 else None
    else:
        x, test_x = _clipped(clip, x, test_x)
    mean, std = _normalisation(arrays, x.shape[1])
    train, test = (Examples(torch.from_numpy(np.ascontiguousarray(a)), torch.from_numpy(b))
                   for a, b in ((x, y), (test_x, test_y)))
    return TrainingData(path.name, train, test, classes, clip, mean, std)


def has_test_part(arrays: dict[str, NDArray[Any]]) -> bool:
    return "x_test" in arrays or "y_test" in arrays


def stored_clip(arrays: dict[str, NDArray[Any]]) -> tuple[float, float] | None:
    """The stored range of every input, else that of bytes. Raises ValueError."""
    of_bytes = _are_bytes(arrays)
    if "clip" in arrays:
        low, high = _numbers(arrays, "clip", 2)
        if low > high:
            raise ValueError(f"clip is [{low}, {high}], expected LO <= HI")
        return low, high
    return (0.0, 255.0) if of_bytes else None


def _are_bytes(arrays: dict[str, NDArray[Any]]) -> bool:
    """Whether inputs are bytes, in every part: their units are others than those of fractions."""
    kinds = {name: arrays[name].dtype for name in ("x", "x_test") if name in arrays}
    if len({kind == np.uint8 for kind in kinds.values()}) > 1:
        raise ValueError(f"x holds {kinds['x']} and x_test {kinds['x_test']}, expected uint8 in both or in neither")
    return np.dtype(np.uint8) in kinds.values()


def _ends(*inputs: NDArray[np.float32]) -> tuple[float, float]:
    return min(float(x.min()) for x in inputs), max(float(x.max()) for x in inputs)


def _clipped(clip: tuple[float, float], *inputs: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    clipped = [into_range(x, clip) for x in inputs]
    if any(outside.any() for _, outside in clipped):
        lowest, highest = (np.float32(end) for end in _ends(*inputs))  # its digits tell it from its neighbours
        raise ValueError(f"clip is {list(clip)}, and inputs lie between {lowest!s} and {highest!s}")
    return [x for x, _ in clipped]


def _normalisation(arrays: dict[str, NDArray[Any]], channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if ("mean" in arrays) != ("std" in arrays):
        raise ValueError("holds one of mean and std, expected both or none")
    if "mean" in arrays:
        mean, std = _numbers(arrays, "mean", channels), _numbers(arrays, "std", channels)
        if min(std) <= 0:
            raise ValueError(f"std is {list(std)}, expected numbers > 0")
        return mean, std
    if _are_bytes(arrays):  # a network that sees hundreds learns badly
        return (0.0,) * channels, (255.0,) * channels
    return (), ()


def _numbers(arrays: dict[str, NDArray[Any]], name: str, count: int) -> tuple[float, ...]:
    array = arrays[name]
    if array.dtype.kind not in "fiu" or array.shape != (count,) or not np.isfinite(array).all():
        raise ValueError(f"{name} has shape {array.shape} and {array.dtype}, expected {count} finite numbers")
    return tuple(float(v) for v in array)
