"""Losses that attacks ascend, one value a point: functions of the outputs y "P m" and classes "P".

A larger value is nearer to success. `loss_named` makes one for a criterion; where a loss is undefined (DLR needs three
classes, four in its targeted form; cross-entropy needs classes) it says what is used instead.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from verifier.attacks.criterion import Criterion, Misclassified

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # (y "P m", x "P *shape", owner "P") -> "P"
NAMES = ("ce", "dlr", "margin", "smooth")
TINY = 1e-12  # under DLR's quotient, as in the paper's code


def cross_entropy(y: Tensor, label: Tensor) -> Tensor:
    return functional.cross_entropy(y, label, reduction="none")


def best_other(y: Tensor, label: Tensor) -> Tensor:
    """The largest output of another class."""
    return y.scatter(1, label.unsqueeze(1), -torch.inf).amax(1)


def margin(y: Tensor, label: Tensor) -> Tensor:
    """max over other classes of y_j - y_label: the loss of Carlini and Wagner (arXiv:1608.04644), unclamped."""
    return best_other(y, label) - _at(y, label)


def smooth_margin(y: Tensor, label: Tensor) -> Tensor:
    """log sum over other classes of exp(y_j) - y_label: the log odds of an error. Cross-entropy is its softplus, so the
    gradients are parallel; this one does not vanish where the network is sure."""
    return y.scatter(1, label.unsqueeze(1), -torch.inf).logsumexp(1) - _at(y, label)


def dlr(y: Tensor, label: Tensor) -> Tensor:
    """Difference of logits ratio: -(y_label - max other) / (first - third largest) (arXiv:2003.01690, equation 6)."""
    top = y.topk(3, dim=1).values
    return margin(y, label) / (top[:, 0] - top[:, 2] + TINY)


def dlr_targeted(y: Tensor, label: Tensor, target: Tensor) -> Tensor:
    """-(y_label - y_target) / (first - (third + fourth) / 2) (arXiv:2003.01690, equation 7)."""
    top = y.topk(4, dim=1).values
    return (_at(y, target) - _at(y, label)) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + TINY)


def _at(y: Tensor, index: Tensor) -> Tensor:
    return y.gather(1, index.unsqueeze(1)).squeeze(1)


def loss_named(name: str, criterion: Criterion, classes: int) -> tuple[Loss, str | None]:
    """(the loss, None or a sentence on what stands in for it). Raises ValueError for an unknown name."""
    if name not in NAMES:
        raise ValueError(f"loss must be one of {', '.join(NAMES)}, got {name!r}")

    def plain(y: Tensor, x: Tensor, owner: Tensor) -> Tensor:
        return -criterion.margin(y, x, owner)

    if name == "margin":
        return plain, None
    if not isinstance(criterion, Misclassified):
        return plain, f"{name} needs classes; the criterion's margin is used instead"
    label, target = criterion.label, criterion.target
    if name == "smooth":
        sign, on = (1, label) if target is None else (-1, target)
        return (lambda y, x, owner: sign * smooth_margin(y, on[owner])), None
    if name == "ce":
        if target is None:
            return (lambda y, x, owner: cross_entropy(y, label[owner])), None
        return (lambda y, x, owner: -cross_entropy(y, target[owner])), None
    if classes < (3 if target is None else 4):
        return plain, f"dlr is not defined for {classes} classes{'' if target is None else ' and a target'}; " \
                      "the difference of the two logits is used instead"
    if target is None:
        return (lambda y, x, owner: dlr(y, label[owner])), None
    return (lambda y, x, owner: dlr_targeted(y, label[owner], target[owner])), None
