"""Penalties on weights alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def l1(module: nn.Module) -> Tensor:
    """The sum of the absolute weights of layers, each once; biases and the factors of normalisation, which have one
    axis, are left out. (As a small multiple in CTBench, arXiv:2406.04848: it makes bounds easier to prove.)"""
    sizes = [p.abs().sum() for p in module.parameters() if p.dim() > 1]
    return torch.stack(sizes).sum() if sizes else torch.zeros(())
