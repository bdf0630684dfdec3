"""The error of sums in floating point: the constants that `bounds.rounding` pays with.

A sum of n products, in any order, with or without fused multiply-adds, is wrong by at most gamma_n times the sum of
their sizes, gamma_n = n u / (1 - n u) (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1), and
by n times the smallest normal number where results underflow.
"""

from __future__ import annotations

import torch

MORE = 1.05          # prices of rounding are rounded themselves: sums of terms of one sign, right to a share of gamma
SPARE = 4            # roundings besides the sum: products, centres and radii, the last difference
LARGEST_GAMMA = 0.02  # above it, prices are not right to a few hundredths: nothing is proved then


def unit(dtype: torch.dtype) -> float:
    """The unit roundoff u: half the distance from 1 to the next number."""
    return torch.finfo(dtype).eps / 2


def gamma(terms: int, dtype: torch.dtype) -> float:
    """The relative error of a sum of so many products, and `SPARE` roundings besides; infinite where sums are too long
    for the dtype."""
    share = (terms + SPARE) * unit(dtype)
    return share / (1 - share) if share < LARGEST_GAMMA else float("inf")


def underflow(terms: int, dtype: torch.dtype) -> float:
    """What results below the smallest normal number may lose in a sum of so many products, flushed to zero or not."""
    return (terms + SPARE) * torch.finfo(dtype).tiny
