"""Networks and examples that the tests of evaluations share."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.verifier.models import save_network
from verifier.data import DataSet
from verifier.demo import EXAMPLES

CNN = EXAMPLES / "digits_cnn.onnx"


def noisy_digits(count: int) -> tuple[np.ndarray, np.ndarray]:
    """The bundled digits, plain and with noise of growing size, so that some are close; the last has a wrong label."""
    with np.load(EXAMPLES / "digits.npz") as bundled:
        x, y = bundled["x"], bundled["y"]
    noise = np.random.default_rng(0).random((count, *x.shape[1:]), dtype=np.float32) - np.float32(0.5)
    size = np.linspace(0, 1.2, count, dtype=np.float32).reshape(-1, 1, 1, 1)
    x = np.clip(np.tile(x, (count // len(x), 1, 1, 1)) + size * noise, 0, 1)
    label = np.tile(y, count // len(y))
    label[-1] = (label[-1] + 1) % 10
    return x, label


def data_of(x: np.ndarray, y: np.ndarray, first: int = 0) -> DataSet:
    return DataSet(x, y.astype(np.int64), np.arange(len(y)) + first, x)


def half_plane(path: Path) -> Path:
    """Class 0 where x_0 + x_1 > 1, through ReLUs: its margin is exact for every bound method but intervals."""
    save_network(path, [(np.array([[1.0, 1.0], [-1.0, -1.0]]), np.array([-1.0, 1.0])),
                        (np.array([[1.0, -1.0], [0.0, 0.0]]), np.zeros(2))])
    return path


def distance(x: np.ndarray, norm: float) -> np.ndarray:
    """Of points "N 2" to the boundary of `half_plane`."""
    return np.abs(x.astype(np.float64).sum(1) - 1) / {np.inf: 2, 2.0: np.sqrt(2), 1.0: 1}[norm]
