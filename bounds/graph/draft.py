"""A node while `simplify` rewrites its graph."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from bounds.graph.ball import Ball
from bounds.ops.base import Operator, Shape


@dataclass(eq=False)
class Draft:
    """A node being rewritten: parameters that were computed are float64 and have radii, others are as stored."""

    name: str
    op: Operator
    inputs: tuple[int, ...]
    shape: Shape
    radii: dict[str, Tensor | None] = field(default_factory=dict)

    def ball(self, name: str) -> Ball | None:
        value = getattr(self.op, name)
        return None if value is None else Ball(value, self.radii.get(name))

    def with_op(self, op: Operator, **balls: Ball | None) -> Draft:
        """This node with another operator, whose parameters `balls` are set with their radii."""
        values: dict[str, Any] = {k: None if b is None else b.mid for k, b in balls.items()}
        radii = {k: b.radius for k, b in balls.items() if b is not None}
        return Draft(self.name, dataclasses.replace(op, **values), self.inputs, self.shape, radii)
