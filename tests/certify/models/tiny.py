"""Every model of the registry, narrow, for images of 8 x 8, in evaluation mode with statistics of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from certify.data.dataset import Examples, TrainingData
from certify.models.registry import build

SHAPE, CLASSES = (3, 8, 8), 4
TINY: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": (8, 6)},
    "wk-small": {"width": 2, "hidden": 8},
    "wk-large": {"width": 2, "hidden": 8},
    "wk-resnet": {"width": 2, "hidden": 8},
    "wang4": {"width": 2, "hidden": 8},
    "wang8": {"widths": (2, 3, 2), "hidden": 8},
    "cnn5": {"width": 2, "hidden": 8},
    "cnn7": {"width": 2, "hidden": 8},
    "resnet": {"width": 2, "stages": (2, 1), "hidden": 8, "norm": True},
    "wrn": {"depth": 10, "width": 1},
}


def data(mean: tuple[float, ...] = (0.4, 0.5, 0.6), std: tuple[float, ...] = (0.2, 0.25, 0.3)) -> TrainingData:
    """A few images in [0, 1], with a normalisation."""
    generator = torch.Generator().manual_seed(3)
    examples = Examples(torch.rand(6, *SHAPE, generator=generator), torch.tensor([0, 1, 2, 3, 0, 1]))
    return TrainingData("tiny", examples, examples, CLASSES, mean=mean, std=std)


def network(name: str) -> nn.Module:
    """With random statistics and factors of batch normalisation, so that each of them matters."""
    torch.manual_seed(0)
    net = build(name, data(), **TINY[name])
    for layer in net.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.3, 0.3)
            assert layer.running_mean is not None and layer.running_var is not None
            nn.init.uniform_(layer.running_mean, -0.3, 0.3)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
    return net.eval()
