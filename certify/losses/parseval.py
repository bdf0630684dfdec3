"""Parseval networks (Cisse et al., arXiv:1704.08847): layers kept close to tight frames, so that none of them expands.

After every step of the optimiser each weight matrix W makes one step on `||W W^T - I||^2`,

    W <- (1 + beta) W - beta W W^T W,

which leaves orthonormal rows as they are (columns, where there are more rows). A kernel is the matrix "Cout Cin*k*k" of
the map of one patch; an input number lies in `prod ceil(k / stride)` patches at most, so the kernel times the root
of that is what should be a frame: then the convolution expands nothing. The paper scales the layer's output instead.

What is left out: the paper takes a random part of the rows each time, to save work, and keeps sums of branches convex
(a residual block here may still expand by 2). Nothing is certified by it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from certify.method import Method
from certify.terms import LossTerms, Step, Update


@dataclass(frozen=True)
class Parseval(Method):
    """beta: of the retraction. The paper's is smaller, over many more steps."""

    beta: float = 0.01

    name: ClassVar[str] = "parseval"
    paper: ClassVar[str] = "arXiv:1704.08847"

    def __post_init__(self) -> None:
        if not 0 < self.beta < 0.5:
            raise ValueError(f"beta must lie in (0, 0.5), got {self.beta}")

    def loss(self, step: Step) -> LossTerms:
        logits = step.model(step.x)
        natural = functional.cross_entropy(logits, step.y)
        return LossTerms(natural, {"natural": natural.detach(), "frames": deviation(step.model.module)},
                         logits.detach())

    def updates(self, step: Step) -> Iterator[Update]:
        """The optimiser has moved the weights when the generator goes on; then they are drawn towards frames."""
        yield lambda: self.loss(step)
        retract(step.model.module, self.beta)


def matrices(module: nn.Module) -> Iterator[tuple[Tensor, float]]:
    """(weight, factor) of every dense or convolutional layer: the weight as a matrix times the factor is the frame."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            yield layer.weight, 1.0
        elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            overlap = math.prod(-(-k // s) for k, s in zip(layer.kernel_size, layer.stride, strict=True))
            yield layer.weight, math.sqrt(overlap)


def _short(weight: Tensor, factor: float) -> Tensor:
    """The matrix with its short side first."""
    W = weight.detach().flatten(1) * factor
    return W if W.shape[0] <= W.shape[1] else W.T


@torch.no_grad()
def deviation(module: nn.Module) -> Tensor:
    """The sum over layers of `||W W^T - I||^2`."""
    total = []
    for weight, factor in matrices(module):
        W = _short(weight, factor)
        total.append((W @ W.T - torch.eye(len(W), dtype=W.dtype, device=W.device)).square().sum())
    if not total:
        raise ValueError("Parseval regularisation needs a dense or convolutional layer, the network has none")
    return torch.stack(total).sum()


@torch.no_grad()
def retract(module: nn.Module, beta: float) -> None:
    """One step of every weight towards its frames."""
    for weight, factor in matrices(module):
        W = _short(weight, factor)
        moved = W + beta * (W - W @ W.T @ W)
        moved = moved if weight.shape[0] <= weight[0].numel() else moved.T
        weight.copy_((moved / factor).view_as(weight))
