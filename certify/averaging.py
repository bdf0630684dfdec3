"""Averages of weights over a run, through `torch.optim.swa_utils`.

`swa`: the mean of all (stochastic weight averaging, arXiv:1803.05407). `ema`: a moving one, `decay` of the old average
and the rest of the new weights at each update; early on less is kept, (1 + n) / (10 + n) after n updates, or a short
run would end near its first weights. Running statistics of batch normalisation do not belong to averaged
weights: recompute them afterwards (`certify.statistics`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

KINDS = ("swa", "ema")


class WeightAverage:
    """Averages the parameters of `module` from epoch `start` on; buffers are those of the last update."""

    def __init__(self, module: nn.Module, kind: str = "swa", start: float = 0.0, *, decay: float = 0.999) -> None:
        if kind not in KINDS:
            raise ValueError(f"an average is one of {', '.join(KINDS)}, got {kind!r}")
        if not start >= 0:
            raise ValueError(f"start must be >= 0, got {start}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.start = start
        self.kind, self.decay = kind, decay
        self._averaged = AveragedModel(module, multi_avg_fn=get_swa_multi_avg_fn())

    @property
    def count(self) -> int:
        """How many updates were averaged."""
        return int(self._averaged.n_averaged)

    def update(self, module: nn.Module, epoch: float) -> None:
        """Take the weights of now into the average, once `start` is reached."""
        if epoch >= self.start:
            if self.kind == "ema":
                kept = min(self.decay, (1 + self.count) / (10 + self.count))
                self._averaged.multi_avg_fn = get_ema_multi_avg_fn(kept)
            self._averaged.update_parameters(module)

    @torch.no_grad()
    def apply(self, module: nn.Module) -> None:
        """Give the module, in place, the averaged weights; before the first update nothing happens."""
        if self.count:
            module.load_state_dict(self._averaged.module.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Tensors by name, for a checkpoint."""
        state: dict[str, Any] = self._averaged.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._averaged.load_state_dict(state)
