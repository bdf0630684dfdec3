"""Values as affine forms in the variables of a linear programme, and the rows collected from them.

Every variable is normalised to [-1, 1]: an input x is `centre + radius v`, so that tiny boxes are as well scaled as
large ones. Variables are numbered in the order of the nodes that introduce them; domains differ in how many they
have, and a number that a domain does not use has zero coefficients there.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from milp.problem import LinearPrograms

NARROWEST_ROW = 1e-6  # rows that hardly move are not blown up further: their constants have been rounded


@dataclass(frozen=True, eq=False)
class Form:
    """A node's value `constant + sum_v columns[:, v] v`: columns "B V *shape", constant "B *shape"."""

    columns: Tensor
    constant: Tensor

    @property
    def radius(self) -> Tensor:
        """How far the value can be from `constant` over the box of the variables: "B *shape"."""
        return self.columns.abs().sum(1)

    def widened(self, variables: int) -> Tensor:
        """The columns with zeros for later variables: "B variables *shape"."""
        missing = variables - self.columns.shape[1]
        if not missing:
            return self.columns
        batch, _, *shape = self.columns.shape
        return torch.cat([self.columns, self.columns.new_zeros(batch, missing, *shape)], 1)


@dataclass(frozen=True, eq=False)
class RowBlock:
    """Rows `lower <= coefficients v + size v[slot] <= upper`: domain "n", coefficients "n V", and one more entry `size`
    "n" at the variable `slot` "n" (None: no such entry)."""

    domain: Tensor
    coefficients: Tensor
    lower: Tensor
    upper: Tensor
    slot: Tensor | None = None
    size: Tensor | None = None


@dataclass
class RowBlocks:
    """Rows in the order in which they were found; `duals` hands their multipliers back in that order."""

    blocks: list[RowBlock] = field(default_factory=list)

    def add(self, block: RowBlock) -> int:
        """Keep a block; its number."""
        self.blocks.append(block)
        return len(self.blocks) - 1

    def programmes(self, cost: Tensor) -> tuple[LinearPrograms, Tensor, Tensor]:
        """(programmes with rows scaled to radius one, the scale "N" of each found row, where each one went "N")."""
        batch, variables = cost.shape
        if not self.blocks:
            self.add(RowBlock(torch.zeros(0, dtype=torch.long), cost.new_zeros(0, 1), cost.new_zeros(0),
                              cost.new_zeros(0)))
        domain = torch.cat([block.domain for block in self.blocks])
        A = cost.new_zeros(domain.shape[0], variables)
        begin = 0
        for block in self.blocks:
            rows = A[begin:begin + block.domain.shape[0]]
            rows[:, :block.coefficients.shape[1]] = block.coefficients
            if block.slot is not None and block.size is not None:
                rows.scatter_(1, block.slot.unsqueeze(1), block.size.unsqueeze(1))
            begin += rows.shape[0]
        order = torch.sort(domain, stable=True).indices
        scale = A.abs().sum(1)
        scale = scale.clamp(min=NARROWEST_ROW)
        A = (A / scale.unsqueeze(1))[order]
        lower, upper = ((torch.cat([getattr(block, side) for block in self.blocks]) / scale)[order].numpy()
                        for side in ("lower", "upper"))
        row, column = A.nonzero(as_tuple=True)
        programmes = LinearPrograms(
            cost.numpy(), lower, upper, _starts(domain, batch), _starts(row, domain.shape[0]),
            column.to(torch.int32).numpy(), A[row, column].numpy())
        return programmes, scale, torch.empty_like(order).scatter_(0, order, torch.arange(order.shape[0]))

    def split(self, values: Tensor) -> list[Tensor]:
        """Values "N" of all rows, in parts: one "n" a block."""
        return list(values.split([block.domain.shape[0] for block in self.blocks]))


def _starts(group: Tensor, groups: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """Where each group begins once the members are sorted by group: "groups + 1"."""
    return np.concatenate(([0], np.cumsum(np.bincount(group.numpy(), minlength=groups)))).astype(np.int32)
