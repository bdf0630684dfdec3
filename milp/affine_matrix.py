"""Affine operators as sparse matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from bounds.ops.base import Affine, Shape
from bounds.ops.conv import Conv
from bounds.ops.linear import Linear
from milp.problem import Floats

UNIT_ENTRIES = 1 << 22   # numbers that unit vectors are pushed through an operator with at a time


def affine_matrices(op: Affine, shapes: Sequence[Shape]) -> tuple[list[sparse.csr_matrix], Floats]:
    """(one matrix an input, constant) with `op(x_1, ..) = sum_j matrix_j x_j + constant`, all flat, in float64.
    shapes: of the inputs. Any affine operator; dense layers and convolutions are read off their weights."""
    sizes = [torch.Size(s).numel() for s in shapes]
    zeros = [torch.zeros(1, *s, dtype=torch.float64) for s in shapes]
    constant = op.forward(*zeros).flatten().numpy()
    if isinstance(op, Linear) and len(shapes[0]) == 1:
        return [sparse.csr_matrix(op.weight.numpy())], constant
    if isinstance(op, Conv) and op.weight.dim() == 4 and op.groups == 1:
        return [_convolution(op, shapes[0])], constant
    return [_pushed(op, zeros, j, size) for j, size in enumerate(sizes)], constant


def _convolution(op: Conv, shape: Shape) -> sparse.csr_matrix:
    seen = op.taps(shape).numpy()
    weight = op.weight.flatten(1).numpy()
    channels, count = len(weight), seen.shape[1]
    value = np.repeat(weight[:, :, None], count, 2)
    row = np.arange(channels)[:, None, None] * count + np.arange(count)[None, None, :]
    row, column = np.broadcast_to(row, value.shape), np.broadcast_to(seen[None], value.shape)
    keep = (column >= 0) & (value != 0)
    return sparse.csr_matrix((value[keep], (row[keep], column[keep])), shape=(channels * count, math.prod(shape)))


def _pushed(op: Affine, zeros: list[Tensor], j: int, size: int) -> sparse.csr_matrix:
    """What unit vectors at input j give."""
    out = op.linear(*zeros).numel()
    step = max(1, UNIT_ENTRIES // max(1, out + sum(z.numel() for z in zeros)))
    parts = []
    for first in range(0, size, step):
        count = min(step, size - first)
        unit = torch.zeros(count, size, dtype=torch.float64)
        unit[torch.arange(count), first + torch.arange(count)] = 1
        given = [unit.view(count, *z.shape[1:]) if k == j else z.expand(count, *z.shape[1:])
                 for k, z in enumerate(zeros)]
        parts.append(sparse.csr_matrix(op.linear(*given).flatten(1).numpy()))
    return sparse.csr_matrix(sparse.vstack(parts).T)
