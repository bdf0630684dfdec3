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
from verifier.data import checked_examples, read_arrays

TEST_SHARE, SPLIT_SEED = 5, 0  # one of so many


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
    if "x_test" in arrays or "y_test" in arrays:
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
    if classes < 2:
        raise ValueError("holds one class only, expected at least two")
    clip = _clip(arrays, x, test_x)
    mean, std = _normalisation(arrays, x.shape[1])
    return TrainingData(path.name, *(Examples(torch.from_numpy(np.ascontiguousarray(a)), torch.from_numpy(b))
                                     for a, b in ((x, y), (test_x, test_y))), classes, clip, mean, std)


def _clip(arrays: dict[str, NDArray[Any]], *inputs: NDArray[np.float32]) -> tuple[float, float] | None:
    """The stored range; that of bytes; [0, 1] where everything lies inside it; none."""
    lowest, highest = min(float(x.min()) for x in inputs), max(float(x.max()) for x in inputs)
    if "clip" in arrays:
        stored = _numbers(arrays, "clip", 2)
        if not stored[0] <= lowest <= highest <= stored[1]:
            raise ValueError(f"clip is {list(stored)}, and inputs lie between {lowest:g} and {highest:g}")
        return stored[0], stored[1]
    if arrays["x"].dtype == np.uint8:
        return 0.0, 255.0
    return (0.0, 1.0) if lowest >= 0 and highest <= 1 else None


def _normalisation(arrays: dict[str, NDArray[Any]], channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if ("mean" in arrays) != ("std" in arrays):
        raise ValueError("holds one of mean and std, expected both or none")
    if "mean" in arrays:
        mean, std = _numbers(arrays, "mean", channels), _numbers(arrays, "std", channels)
        if min(std) <= 0:
            raise ValueError(f"std is {list(std)}, expected numbers > 0")
        return mean, std
    if arrays["x"].dtype == np.uint8:  # a network that sees hundreds learns badly
        return (0.0,) * channels, (255.0,) * channels
    return (), ()


def _numbers(arrays: dict[str, NDArray[Any]], name: str, count: int) -> tuple[float, ...]:
    array = arrays[name]
    if array.dtype.kind not in "fiu" or array.shape != (count,) or not np.isfinite(array).all():
        raise ValueError(f"{name} has shape {array.shape} and {array.dtype}, expected {count} finite numbers")
    return tuple(float(v) for v in array)
