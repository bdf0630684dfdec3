"""The examples of an evaluation: the test set of a data set that is known by name, or an .npz."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from certify.data.npz import has_test_part, stored_clip
from certify.data.registry import NAMES, load
from verifier.data import POOL, DataSet, fitting, read_arrays


def examples_of(source: str, shape: tuple[int, ...], classes: int, data_dir: str | Path | None = None
                ) -> tuple[DataSet, tuple[float, float] | None, str]:
    """(examples, the range of valid inputs where it is known, which part of the source they are) for a network with
    this input shape and so many outputs. Of a file that `rmax train` takes, the test part.

    Raises OSError or ValueError with a sentence: what is wrong, and what was expected.
    """
    if source not in NAMES:
        if not Path(source).exists() and not source.endswith(".npz"):
            raise ValueError(f"{source}: neither a file (.npz with x and y) nor one of {', '.join(NAMES)}")
        arrays = read_arrays(source)
        part = ("x_test", "y_test") if has_test_part(arrays) else ("x", "y")
        return fitting(arrays, shape, classes, *part), stored_clip(arrays), ", ".join(part)
    known = load(source, data_dir)
    x, y = known.test.x.numpy(), known.test.y.numpy()
    if math.prod(known.shape) != math.prod(shape):
        raise ValueError(f"{source}: has inputs of shape {known.shape}, the network expects {shape}")
    if known.classes > classes:
        raise ValueError(f"{source}: has {known.classes} classes, the network {classes} outputs")
    x = x.reshape(-1, *shape)
    return DataSet(x, y, np.arange(len(y)), x[:POOL]), known.clip, "the test set"
