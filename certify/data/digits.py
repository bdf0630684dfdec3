"""The 1,797 handwritten digits that scikit-learn bundles: 8 x 8 pixels in [0, 1], 360 of them for testing."""

from __future__ import annotations

import numpy as np
import torch

from certify.data.dataset import Examples, TrainingData

TEST, SPLIT_SEED = 360, 0


def load_digits() -> TrainingData:
    """The split is fixed: which digits are for testing depends on no seed of a run."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise FileNotFoundError("data digits comes with scikit-learn: pip install scikit-learn") from error
    data = datasets.load_digits()
    order = np.random.default_rng(SPLIT_SEED).permutation(len(data.target))
    x = torch.tensor(data.images[order] / 16.0, dtype=torch.float32).unsqueeze(1)
    y = torch.tensor(data.target[order], dtype=torch.int64)
    return TrainingData("digits", Examples(x[TEST:], y[TEST:]), Examples(x[:TEST], y[:TEST]), 10)
