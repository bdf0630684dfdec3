"""Fully connected ReLU networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from certify.models.layers import at_least_one


def mlp(shape: Sequence[int], classes: int, *, hidden: Sequence[int] = (128, 64)) -> nn.Sequential:
    """hidden: widths of the layers between input and logits."""
    at_least_one(**{f"hidden[{k}]": w for k, w in enumerate(hidden)})
    widths = [math.prod(shape), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))
