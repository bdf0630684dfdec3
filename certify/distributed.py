"""Several processes that train one network: under `torchrun`, one a device; alone, nothing happens here.

The loss is computed in the forward pass of `LossModule`, which is what DistributedDataParallel wraps: gradients of
whatever a loss does with the parameters (bounds included) synchronise so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed, nn

from certify.terms import LossTerms, Update


class LossModule(nn.Module):
    """The network with the loss as its forward pass."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, update: Update) -> LossTerms:
        return update()


@dataclass(frozen=True)
class Processes:
    """This process among all that train together."""

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009  (immutable)

    @property
    def is_first(self) -> bool:
        """Whether files are this process's to write."""
        return self.rank == 0

    def wrapped(self, network: nn.Module) -> nn.Module:
        """A module whose forward pass takes an `Update`, gradients synchronised where there are several processes."""
        module = LossModule(network)
        if self.world == 1:
            return module
        # Buffers are broadcast before each pass: attacks and bounds see the same running statistics everywhere.
        return nn.parallel.DistributedDataParallel(
            module, device_ids=[self.device.index] if self.device.type == "cuda" else None)

    def wait(self) -> None:
        if self.world > 1:
            distributed.barrier()


@contextmanager
def processes(device: str | None = None) -> Iterator[Processes]:
    """Join the processes that `torchrun` started, or be alone. device: cpu, cuda, or None: cpu."""
    kind = device or "cpu"
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Processes(device=torch.device(kind))
        return
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    own = torch.device("cuda", local) if kind.startswith("cuda") else torch.device(kind)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    distributed.init_process_group("nccl" if own.type == "cuda" else "gloo")
    try:
        yield Processes(rank, world, own)
    finally:
        distributed.destroy_process_group()
