"""Values as affine functions of a programme's columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from milp.problem import Floats

Columns = NDArray[np.int64]


def flat(t: Tensor) -> Floats:
    """The numbers of a tensor, in float64."""
    return t.detach().to("cpu", torch.float64).flatten().numpy()


@dataclass(frozen=True, eq=False)
class Form:
    """The values of a node: `matrix "size V" v + constant "size"`."""

    matrix: sparse.csr_matrix
    constant: Floats

    @staticmethod
    def of_columns(column: Columns, slope: Floats, constant: Floats, columns: int) -> Form:
        """Values that are each an affine function of one of so many columns."""
        index = np.arange(len(column))
        return Form(sparse.csr_matrix((slope, (index, column)), shape=(len(column), columns)), constant)

    def take(self, index: Columns) -> Form:
        """Some of the values."""
        return Form(self.matrix[index], self.constant[index])

    def scaled(self, slope: Floats, constant: Floats) -> Form:
        """`slope * value + constant`."""
        return Form(sparse.csr_matrix(sparse.diags(slope) @ self.matrix), slope * self.constant + constant)

    def replaced(self, index: Columns, column: Columns, columns: int) -> Form:
        """These values, but at `index` those of columns, of so many."""
        kept = np.ones(len(self.constant))
        kept[index] = 0.0
        unit = sparse.csr_matrix((np.ones(len(index)), (index, column)), shape=(len(kept), columns))
        return Form(sparse.csr_matrix(sparse.diags(kept) @ self.over(columns) + unit), kept * self.constant)

    def over(self, columns: int) -> sparse.csr_matrix:
        """The matrix over so many columns."""
        m = self.matrix
        return sparse.csr_matrix((m.data, m.indices, m.indptr), shape=(m.shape[0], columns))

    def at(self, v: Floats) -> Floats:
        """The values where the first columns have the values v."""
        return self.matrix @ v[:self.matrix.shape[1]] + self.constant
