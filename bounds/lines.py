"""Pulling rows back through the two lines of an elementwise operator.

    <A, f(z)> >= <A+ * lower_slope + A- * upper_slope, z> + <A+, lower_intercept> + <A-, upper_intercept>
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bounds.relaxation import Relaxation
from bounds.rows import Rows


def pull_back_lines(A: Tensor, lines: Relaxation) -> tuple[Tensor, Tensor]:
    """A "N ..." and lines aligned with it -> (A' "N ...", constant "N")."""
    args = (A, lines.lower_slope, lines.lower_intercept, lines.upper_slope, lines.upper_intercept)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in args):
        result: tuple[Tensor, Tensor] = _PullBackLines.apply(*args)
        return result
    return _pull_back_lines(*args)


class _PullBackLines(torch.autograd.Function):
    """(A, lines) -> (A', constant); one pass forward and one backward instead of autograd's many."""

    @staticmethod
    def forward(ctx: Any, A: Tensor, lower_slope: Tensor, lower_intercept: Tensor | None,
                upper_slope: Tensor, upper_intercept: Tensor | None) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(A, lower_slope, lower_intercept, upper_slope, upper_intercept)
        return _pull_back_lines(A, lower_slope, lower_intercept, upper_slope, upper_intercept)

    @staticmethod
    def backward(ctx: Any, grad_A: Tensor, grad_c: Tensor) -> tuple[Tensor | None, ...]:
        A, lower_slope, lower_intercept, upper_slope, upper_intercept = ctx.saved_tensors
        grad_c = grad_c.view(-1, *(1,) * (A.dim() - 1))
        result: list[Tensor | None] = [None] * 5
        needs = ctx.needs_input_grad
        if needs[0]:
            low = grad_A * lower_slope
            if lower_intercept is not None:
                low = torch.addcmul(low, grad_c, lower_intercept)
            high = grad_A * upper_slope
            if upper_intercept is not None:
                high = torch.addcmul(high, grad_c, upper_intercept)
            result[0] = torch.where(A >= 0, low, high)
        if needs[1] or needs[2]:
            positive = A.clamp(min=0)
            if needs[1]:
                result[1] = (positive * grad_A).sum_to_size(lower_slope.shape)
            if needs[2] and lower_intercept is not None:
                result[2] = (positive * grad_c).sum_to_size(lower_intercept.shape)
        if needs[3] or needs[4]:
            negative = A.clamp(max=0)
            if needs[3]:
                result[3] = (negative * grad_A).sum_to_size(upper_slope.shape)
            if needs[4] and upper_intercept is not None:
                result[4] = (negative * grad_c).sum_to_size(upper_intercept.shape)
        return tuple(result)


def _pull_back_lines(A: Tensor, lower_slope: Tensor, lower_intercept: Tensor | None,
                     upper_slope: Tensor, upper_intercept: Tensor | None) -> tuple[Tensor, Tensor]:
    """As few passes over A as there are; the halves of A are fresh, so they may be overwritten."""
    positive = A.clamp(min=0)
    constant = None
    if lower_intercept is not None:
        constant = dot(positive, lower_intercept)
    if lower_slope is upper_slope and upper_intercept is None:
        out = A * lower_slope
    else:
        negative = A.clamp(max=0)
        if upper_intercept is not None:
            part = dot(negative, upper_intercept)
            constant = part if constant is None else constant + part
        out = torch.addcmul(negative.mul_(upper_slope), positive, lower_slope)
    return out, A.new_zeros(A.shape[0]) if constant is None else constant


def pull_back_band(A: Tensor, lines: Relaxation) -> tuple[Tensor, Tensor, Tensor]:
    """Through parallel lines aligned with A: (A' "N ...", middle "N", half "N"), where `<A, f(z)>` lies within half of
    `<A', z> + middle`."""
    assert lines.upper_slope is lines.lower_slope and lines.upper_intercept is not None, "lines of one slope"
    low, high = lines.lower_intercept, lines.upper_intercept
    middle, half = (high / 2, high / 2) if low is None else ((high + low) / 2, (high - low) / 2)
    result: tuple[Tensor, Tensor, Tensor] = _PullBackBand.apply(A, lines.lower_slope, middle, half)
    return result


class _PullBackBand(torch.autograd.Function):
    """(A, slope, middle, half) -> (A * slope, <A, middle>, <|A|, half>) in few passes over A, and few back."""

    @staticmethod
    def forward(ctx: Any, A: Tensor, slope: Tensor, middle: Tensor, half: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(A, slope, middle, half)
        return A * slope, dot(A, middle), dot(A.abs(), half)

    @staticmethod
    def backward(ctx: Any, grad_A: Tensor, grad_middle: Tensor, grad_half: Tensor) -> tuple[Tensor | None, ...]:
        A, slope, middle, half = ctx.saved_tensors
        needs = ctx.needs_input_grad
        result: list[Tensor | None] = [None] * 4
        if needs[0]:
            column = (-1, *(1,) * (A.dim() - 1))
            sides = grad_half.view(column) * half
            result[0] = torch.addcmul(torch.addcmul(grad_A * slope, grad_middle.view(column), middle), A.sign(), sides)
        if needs[1]:
            result[1] = (A * grad_A).sum_to_size(slope.shape)
        if needs[2]:
            result[2] = _outer(grad_middle, A, middle.shape)
        if needs[3]:
            result[3] = _outer(grad_half, A.abs(), half.shape)
        return tuple(result)


def _outer(grad: Tensor, A: Tensor, shape: torch.Size) -> Tensor:
    """The gradient of `dot(A, t)` by t, where t has this shape: grad "N", A "N ..."."""
    if shape[0] != 1 or A.dim() not in (2, 4) or shape[1:] != A.shape[1:]:
        return (A * grad.view(-1, *(1,) * (A.dim() - 1))).sum_to_size(shape)
    total = grad @ _flat(A)
    return total.view(1, *A.shape[2:], A.shape[1]).permute(0, 3, 1, 2) if A.dim() == 4 else total.view(1, -1)


def _flat(A: Tensor) -> Tensor:
    """"N ..." -> "N F". Maps lie channels-last in memory: flattened without copying."""
    return (A.permute(0, 2, 3, 1) if A.dim() == 4 else A).flatten(1)


def dot(A: Tensor, t: Tensor) -> Tensor:
    """<A_n, t_n>: A "N ...", t "N ..." or "1 ..." -> "N"."""
    t = t.expand(-1, *A.shape[1:])
    flat = _flat(A)
    return flat @ _flat(t).view(-1) if t.shape[0] == 1 else torch.linalg.vecdot(flat, _flat(t))


def gather_lines(relaxation: Relaxation, rows: Rows) -> Relaxation:
    """The lines of a node over all domains, aligned with rows over it."""
    def get(t: Tensor | None) -> Tensor | None:
        return None if t is None else rows.gather(t)
    lower_slope = rows.gather(relaxation.lower_slope)
    same = relaxation.upper_slope is relaxation.lower_slope
    upper_slope = lower_slope if same else rows.gather(relaxation.upper_slope)
    return Relaxation(lower_slope, get(relaxation.lower_intercept), upper_slope, get(relaxation.upper_intercept))
