"""Lipschitz constants and ranges as records: over balls around examples, over boxes of a property, or everywhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bounds.graph import Graph, UnsupportedOperator
from bounds.sets import InputSet
from verifier.data import DataSet
from verifier.deadline import Deadline
from verifier.lipschitz.certified import GLOBAL, Kept, global_euclidean
from verifier.lipschitz.constant import Constant
from verifier.lipschitz.functions import Confidence, Logit, Margin, OutputFunction
from verifier.lipschitz.operator_norms import operator_norm_constant
from verifier.logits import ranking_of
from verifier.network import Network
from verifier.properties.lipschitz import lipschitz_constant
from verifier.properties.reach import one_range
from verifier.property import Property
from verifier.radius.balls import Balls
from verifier.verdict import Evidence

FUNCTIONS: dict[str, Callable[[int], OutputFunction]] = {
    "margin": Margin, "logit": lambda label: Logit(index=label), "confidence": Confidence}
SEVERAL = {"global": ("norms", "eclipse-fast"), "best": ("jacobian", "exact", "norms", "eclipse-fast")}
CONSTANT_SHARE = 0.5  # of the time; the rest is for the range
LEAST_S = 1e-3
NAMES = {math.inf: "inf", 2.0: "2", 1.0: "1"}

Record = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """What is asked of every set. eps, clip, mask: the balls around examples; function: of FUNCTIONS; method: of
    `verifier.lipschitz.certified.METHODS` or SEVERAL; error: of a range that is searched."""

    norm: float
    method: str
    eps: float | None = None
    clip: tuple[float, float] | None = None
    mask: NDArray[np.bool_] | None = None
    function: str = "margin"
    error: float = 0.01
    time_limit_s: float = 60.0
    seed: int = 0

    @property
    def methods(self) -> tuple[str, ...]:
        return SEVERAL.get(self.method, (self.method,))


def over_examples(network: Network, data: DataSet, asked: Asked, *, skip: set[int] | frozenset[int] = frozenset()
                  ) -> Iterator[Record]:
    """One record an example that is not in `skip`: of the function of its label's logits over its ball. Of the margin,
    whose constant is at most the largest of the rows label less other, those rows' constants are recorded."""
    graph = ranking_of(network.simplified).to(dtype=torch.float64)
    assert asked.eps is not None
    mask = None if asked.mask is None else torch.from_numpy(asked.mask)
    balls = Balls(torch.from_numpy(data.x.astype(np.float64)), torch.from_numpy(data.y), asked.norm, asked.clip, mask)
    radius = torch.tensor([asked.eps], dtype=torch.float64)
    kept: Kept = {}
    for k, (index, label) in enumerate(zip(data.index.tolist(), data.y.tolist(), strict=True)):
        if index not in skip:
            ball = balls.take(torch.tensor([k])).sets(radius)
            about = {"index": index, "label": label, "eps": asked.eps, "function": asked.function}
            yield _record(graph, ball, FUNCTIONS[asked.function](label), asked, about, kept)


def over_boxes(network: Network, property: Property, asked: Asked, *, skip: set[int] | frozenset[int] = frozenset()
               ) -> Iterator[Record]:
    """One record an output and input set of a property, the outputs of one set after those of the other."""
    graph = network.simplified.to(dtype=torch.float64)
    sets = property.tensors(graph.input_shape, dtype=torch.float64).sets
    kept: Kept = {}
    for u in range(sets.batch):
        for output in range(property.outputs):
            index = u * property.outputs + output
            if index not in skip:
                about = {"index": index, "region": u, "output": output, "function": "logit"}
                yield _record(graph, sets.index(torch.tensor([u])), Logit(index=output), asked, about, kept)


def _record(graph: Graph, input_set: InputSet, function: OutputFunction, asked: Asked, about: Record, kept: Kept
            ) -> Record:
    begin = time.monotonic()
    rows = function.rows(math.prod(graph.output_shape))[0] if isinstance(function, Margin) else [function]
    found = lipschitz_constant(graph, input_set, norm=asked.norm, functions=rows, methods=asked.methods,
                               time_limit_s=CONSTANT_SHARE * asked.time_limit_s, seed=asked.seed, kept=kept)
    left = max(LEAST_S, asked.time_limit_s - (time.monotonic() - begin))
    values = one_range(graph, input_set, function, error=asked.error, method="crown",
                       deadline=Deadline.starting_now(left), seed=asked.seed)
    pair = max((p for p in found.pairs if p is not None), key=lambda p: p.slope, default=None)
    return {**about, "norm": NAMES[asked.norm], "certified": _finite(found.largest.value),
            "evidence": found.evidence.name.lower(), "estimate": _finite(max(found.estimate)),
            "slope": 0.0 if pair is None else pair.slope,
            "slope_evidence": None if pair is None else pair.evidence.name.lower(),
            "range_lower": _finite(values.lower_proved), "range_upper": _finite(values.upper_proved),
            "range_lower_seen": _finite(values.lower_seen), "range_upper_seen": _finite(values.upper_seen),
            "range_evidence": values.evidence.name.lower(), "range_complete": values.complete,
            "method": found.method, "note": found.largest.note, "time_s": round(time.monotonic() - begin, 3)}


def everywhere(network: Network, asked: Asked, *, data: DataSet | None = None,
               skip: set[int] | frozenset[int] = frozenset()) -> Iterator[Record]:
    """One record a method: a constant of the whole network, from the norm to the same norm, that holds for all inputs.
    data: examples at which the largest Jacobian norm is the estimate. A method that does not take the network is left
    out where others do."""
    graph = network.simplified.to(dtype=torch.float64)
    estimate = None if data is None else max((_jacobian_norm(graph, x, asked.norm) for x in data.x), default=None)
    refused: list[Exception] = []
    for name in asked.methods:
        index = GLOBAL.index(name)
        if index in skip:
            continue
        try:
            found = _global_constant(graph, name, asked)
        except (UnsupportedOperator, ValueError) as error:
            refused.append(error)
            continue
        yield {"index": index, "function": "outputs", "norm": NAMES[asked.norm], "certified": _finite(found.value),
               "evidence": found.evidence.name.lower(), "estimate": estimate, "range_lower": None, "range_upper": None,
               "method": name, "note": found.note, "time_s": round(found.time_s, 3)}
    if len(refused) == len(asked.methods):
        raise refused[0]


def _global_constant(graph: Graph, name: str, asked: Asked) -> Constant:
    if name == "norms":
        return operator_norm_constant(graph, norm_in=asked.norm, norm_out=asked.norm)
    if asked.norm != 2.0:
        raise ValueError(f"{name} gives constants in l_2, got --norm {NAMES[asked.norm]}")
    return global_euclidean(graph, name, time_limit_s=asked.time_limit_s)


def _jacobian_norm(graph: Graph, x: NDArray[np.float32], norm: float) -> float:
    def outputs(point: Tensor) -> Tensor:
        return graph(point.unsqueeze(0)).flatten()
    point = torch.from_numpy(x.astype(np.float64))
    jacobian = torch.autograd.functional.jacobian(outputs, point).flatten(1)
    return float(torch.linalg.matrix_norm(jacobian, ord=norm))


def summary(records: list[Record]) -> Record:
    """Averages over records; ratio: how far certified constants are above the estimates."""
    certified = [r["certified"] for r in records if r["certified"] is not None]
    ratios = [r["certified"] / r["estimate"] for r in records if r["certified"] is not None and r["estimate"]]
    return {"summary": True, "count": len(records), "infinite": len(records) - len(certified),
            "least_certified": min(certified, default=None), "largest_certified": max(certified, default=None),
            "mean_certified": float(np.mean(certified)) if certified else None,
            "median_ratio": float(np.median(ratios)) if ratios else None,
            "least_evidence": min((r["evidence"] for r in records), key=lambda name: Evidence[name.upper()],
                                  default=None)}


def _finite(value: float) -> float | None:
    return float(value) if abs(value) < math.inf else None
