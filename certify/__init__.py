"""Training networks whose safe radius is large, and measuring what a defence is worth.

Names are loaded on first use (PEP 562), so importing this package never loads PyTorch.
"""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "train": "certify.training", "Trained": "certify.training",
    "TrainSettings": "certify.settings", "resolve": "certify.settings",
    "TrainingData": "certify.data.dataset", "Examples": "certify.data.dataset",
    "Method": "certify.method",
    "evaluate": "certify.evaluation.evaluate", "Evaluation": "certify.evaluation.evaluate",
    "Smoothed": "certify.smoothing",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'certify' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
