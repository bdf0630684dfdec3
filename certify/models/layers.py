"""What the families share: layers with or without batch normalisation, sizes, initialisations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn


def conv_block(before: int, after: int, kernel: int, stride: int = 1, *, norm: bool, padding: int = 1
               ) -> list[nn.Module]:
    """Convolution with bias, batch normalisation if wanted, ReLU."""
    layers: list[nn.Module] = [nn.Conv2d(before, after, kernel, stride, padding)]
    return [*layers, *([nn.BatchNorm2d(after)] if norm else []), nn.ReLU()]


def dense_block(before: int, after: int, *, norm: bool) -> list[nn.Module]:
    """The same with a dense layer."""
    layers: list[nn.Module] = [nn.Linear(before, after)]
    return [*layers, *([nn.BatchNorm1d(after)] if norm else []), nn.ReLU()]


def channels_of(shape: Sequence[int]) -> int:
    """Raises ValueError for inputs that are no images (channels, height, width)."""
    if len(shape) != 3:
        raise ValueError(f"this model takes images (channels, height, width), got inputs of shape {tuple(shape)}")
    return int(shape[0])


def features(layers: Iterable[nn.Module], shape: Sequence[int]) -> int:
    """How many numbers layers make of one input of a shape. Raises ValueError where that is too small for them."""
    probe = nn.Sequential(*layers).eval()
    try:
        with torch.no_grad():
            count = probe(torch.zeros(1, *shape)).numel()
    except RuntimeError as error:
        raise ValueError(f"inputs of shape {tuple(shape)} are too small for this model") from error
    probe.train()
    return int(count)


def at_least_one(**widths: int) -> None:
    """Raises ValueError for a width below one."""
    for name, width in widths.items():
        if width < 1:
            raise ValueError(f"{name} must be at least 1, got {width}")


def he_normal_by_outputs(network: nn.Module) -> None:
    """Convolutions normal with variance 2 / (kernel size * output channels), their biases 0; the rest as it is."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
