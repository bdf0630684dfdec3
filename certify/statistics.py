"""Statistics of batch normalisation over a whole data set ("precise BN").

Running statistics trail behind weights that move, and do not fit averaged weights at all. Here they become the plain
means, over batches, of the batch statistics of the weights as they are, on clean inputs as everywhere in training: what
`torch.optim.swa_utils.update_bn` computes, but with dropout off, modes and momenta restored whatever happens, and no
statistics from no data.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor, nn

from certify.classifier import NORMS


@torch.no_grad()
def recompute_statistics(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """batches: of inputs "B *shape" on the module's device; each counts the same, so let them be of one size."""
    norms = [m for m in module.modules() if isinstance(m, NORMS)]
    if not norms:
        return
    rest = iter(batches)
    first = next(rest, None)
    if first is None:
        raise ValueError("statistics of batch normalisation need at least one batch")
    modes = [(m, m.training) for m in module.modules()]
    momenta = [norm.momentum for norm in norms]
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
        norm.momentum = None  # PyTorch's word for a cumulative mean
    try:
        for x in chain([first], rest):
            module(x)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for m, training in modes:
            m.training = training
