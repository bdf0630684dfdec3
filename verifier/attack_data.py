"""An attack over a data set: in pieces, each confirmed in onnxruntime on the original file and handed on when done."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from verifier.attacks.base import Attack, AttackResult, Progress, norm_name
from verifier.attacks.criterion import Criterion, Misclassified
from verifier.attacks.model import Model, OnnxModel
from verifier.attacks.threat import Threat
from verifier.data import DataSet
from verifier.deadline import Deadline
from verifier.example_store import Finished
from verifier.network import Network
from verifier.standing import proved_standing

PIECE = 500  # examples that are stored together
NUDGES = (0.0, 1e-6, 1e-5, 1e-4, 1e-3)  # of its distance, by which a point moves on until the original file agrees


@dataclass(frozen=True, eq=False)
class Piece:
    """A finished part of a data set: its records, and what the attack says about all of it."""

    finished: list[Finished]
    notes: tuple[str, ...]


def attack_data(network: Network, data: DataSet, attack: Attack, threat: Threat, *, target: int | None = None,
                seed: int = 0, queries: int | None = None, deadline: Deadline | None = None, fosc: bool = False,
                device: str | None = None, skip: set[int] | frozenset[int] = frozenset(), piece: int = PIECE,
                through_onnx: bool = False, skip_proved: bool = False,
                progress: Callable[[int, int], None] | None = None) -> Iterator[Piece]:
    """Attack the examples that are not in `skip` (by number), a piece at a time.

    The network is attacked in simplified form on `device`; through_onnx: as onnxruntime evaluates the file, without
    gradients. A success counts when onnxruntime agrees on the original file. target: a class; examples of it are left
    out. skip_proved: what bounds prove to stand (see `verifier.standing`) is not attacked. progress(done, fallen): of
    the examples worked on now. Stops early when the deadline has passed.
    """
    deadline = deadline or Deadline.starting_now()
    graph = network.simplified if device is None else network.simplified.to(device=device)
    original = OnnxModel(network.replayer, network.graph.input_shape)
    model: Any = original if through_onnx else graph
    classes = math.prod(network.graph.output_shape)
    if classes < 2:
        raise ValueError(f"classes need at least 2 outputs, the network has {classes}")
    chosen = [k for k, i in enumerate(data.index.tolist()) if i not in skip and data.y[k] != target]
    piece = max(1, len(chosen)) if attack.together else piece
    done = fallen = 0
    for start in range(0, len(chosen), piece):
        if deadline.passed():
            return
        everything = chosen[start : start + piece]
        part, spared = everything, list[Finished]()
        if skip_proved:
            stands = proved_standing(network.graph, torch.from_numpy(data.x[part]), torch.from_numpy(data.y[part]),
                                     threat, target=target).tolist()
            spared = _spared(data, [k for k, s in zip(everything, stands, strict=True) if s], original, attack, threat,
                             target)
            part = [k for k, s in zip(everything, stands, strict=True) if not s]
        if not part:
            done += len(everything)
            yield Piece(spared, ())
            continue
        x, label = torch.from_numpy(data.x[part]), torch.from_numpy(data.y[part])
        goal = Misclassified(label.to(graph.device),
                             None if target is None else torch.full_like(label, target).to(graph.device))
        result = attack.run(model, x, goal, threat, seed=seed, queries=queries, deadline=deadline, fosc=fosc,
                            ids=torch.from_numpy(data.index[part]), pool=torch.from_numpy(data.pool),
                            progress=_shifted(progress, done, fallen))
        finished = [*spared, *_records(result, original, data, part, attack, threat, target)]
        done, fallen = done + len(everything), fallen + sum(record["success"] for record, _ in finished)
        yield Piece(finished, result.notes)


def _shifted(progress: Callable[[int, int], None] | None, done: int, fallen: int) -> Progress | None:
    if progress is None:
        return None
    return lambda now, _, fell: progress(done + now, fallen + fell)


def _records(result: AttackResult, original: Model, data: DataSet, part: list[int], attack: Attack, threat: Threat,
             target: int | None) -> list[Finished]:
    x0, label = torch.from_numpy(data.x[part]), torch.from_numpy(data.y[part])
    goal = Misclassified(label, None if target is None else torch.full_like(label, target))
    x, success, distance = confirmed(result, original, x0, goal, threat)
    before, after = (original(p).argmax(1).tolist() for p in (x0, x))
    finished: list[Finished] = []
    for k, place in enumerate(part):
        record = _asked(data, place, attack, threat, target) | {
            "predicted": before[k], "success": bool(success[k]), "distance": _number(distance[k]), "became": after[k],
            "margin": _number(result.margin[k]), "calls": int(result.backward_calls[k]),
            "queries": int(result.forward_calls[k]), "fosc": _number(result.fosc[k]),
            "by": attack.stage_names[stage] if (stage := int(result.fell_in[k])) >= 0 else None,
            "unconfirmed": bool(result.success[k]) and not bool(success[k]),
            "not_finite": bool(result.not_finite[k]), "complete": bool(result.complete[k]), "proved": False}
        finished.append((record, x[k].numpy()))
    return finished


def _asked(data: DataSet, place: int, attack: Attack, threat: Threat, target: int | None) -> dict[str, Any]:
    """How a record begins."""
    return {"index": int(data.index[place]), "label": int(data.y[place]), "attack": attack.name,
            "norm": norm_name(threat.norm), "eps": None if math.isinf(threat.eps) else threat.eps, "target": target}


def _spared(data: DataSet, places: list[int], original: Model, attack: Attack, threat: Threat, target: int | None
            ) -> list[Finished]:
    """The records of examples that are proved to stand. Their points are the originals."""
    classes = original(torch.from_numpy(data.x[places])).argmax(1).tolist() if places else []
    return [(_asked(data, place, attack, threat, target) | {
        "predicted": found, "success": False, "distance": None, "became": found, "margin": None, "calls": 0,
        "queries": 0, "fosc": None, "by": None, "unconfirmed": False, "not_finite": False, "complete": True,
        "proved": True}, data.x[place]) for place, found in zip(places, classes, strict=True)]


def _number(value: Tensor) -> float | None:
    return float(value) if math.isfinite(value) else None


def confirmed(result: AttackResult, original: Model, x0: Tensor, goal: Criterion, threat: Threat
              ) -> tuple[Tensor, Tensor, Tensor]:
    """(points, success, distance) as the original file has it, in float32 on the CPU.

    A point that it judges otherwise is moved on a little, away from its original, as long as that stays inside the
    threat. distance: of points that succeed there (inf else), within eps or not.
    """
    x = result.x.detach().cpu().to(torch.float32)
    room = threat.around(x0)
    free = Threat(threat.norm, math.inf, threat.clip, threat.mask).around(x0)
    met = torch.zeros(len(x), dtype=torch.bool)
    open_ = torch.isfinite(result.distance.cpu())
    for nudge in NUDGES:
        i = (open_ & ~met).nonzero().flatten()
        if not i.numel():
            break
        inside = result.success.cpu()[i]
        tried = x0[i] + (x[i] - x0[i]) * (1 + nudge) if nudge else x[i]
        tried = torch.where(room.per_example(inside), room.project(tried, i), free.project(tried, i))
        y = original(tried)
        good = goal.met(y, tried, i, goal.margin(y, tried, i)) & torch.isfinite(y).all(1)
        x[i[good]], met[i[good]] = tried[good], True
    distance = free.distance(x, torch.arange(len(x)))
    none = torch.full_like(distance, math.inf)
    return x, met & (distance <= threat.eps), torch.where(met, distance, none)


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares and medians over records: clean accuracy, robust accuracy, median distance of all and of the fallen."""
    count = len(records)
    distances = np.array([math.inf if r["distance"] is None else r["distance"] for r in records])
    fell = np.array([r["success"] for r in records], dtype=bool)
    median = float(np.median(distances)) if count else math.nan
    return {
        "summary": True, "count": count,
        "clean": float(np.mean([r["predicted"] == r["label"] for r in records])) if count else None,
        "robust": float(1 - fell.mean()) if count else None, "fallen": int(fell.sum()),
        "median_distance": median if math.isfinite(median) else None,
        "calls": int(sum(r["calls"] for r in records)), "queries": int(sum(r["queries"] for r in records)),
        "unconfirmed": int(sum(r["unconfirmed"] for r in records)),
        "not_finite": int(sum(r["not_finite"] for r in records)),
        "proved": int(sum(r["proved"] for r in records)),
        "incomplete": int(sum(not r["complete"] for r in records))}


def arrays(finished: list[Finished]) -> dict[str, NDArray[Any]]:
    """For an .npz: the points x "N *shape" and what became of them."""
    return {"x": np.stack([x for _, x in finished if x is not None]),
            "index": np.array([r["index"] for r, _ in finished]), "y": np.array([r["label"] for r, _ in finished]),
            "became": np.array([r["became"] for r, _ in finished]),
            "success": np.array([r["success"] for r, _ in finished])}
