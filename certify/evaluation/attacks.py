"""The attacks of an evaluation: each over the examples that are right when clean, confirmed on the original file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from certify.evaluation.asked import TRANSFER, TRANSFERRED, USUAL_TRANSFER, Asked, attack_settings
from verifier.attack_data import attack_data
from verifier.attacks.base import Attack
from verifier.attacks.model import OnnxModel
from verifier.attacks.registry import attack_named
from verifier.attacks.threat import Threat
from verifier.data import DataSet
from verifier.network import Network

NEAR = 1e-4  # margins this close to zero are evaluated alone: in a batch sums may be formed in another order


def attack_of(column: str, asked: Asked, device: str | None = None) -> Attack:
    """The attack of a column. Raises OSError or ValueError where the surrogate cannot be read."""
    if column != TRANSFER and not column.startswith(TRANSFERRED):
        name, settings = attack_settings(column)
        return attack_named(name, **settings)
    assert asked.surrogate is not None, "the column stands for it"
    name, settings = attack_settings(USUAL_TRANSFER if column == TRANSFER else column.removeprefix(TRANSFERRED))
    surrogate = Network.read(asked.surrogate).simplified
    if device is not None:
        surrogate = surrogate.to(device=device)
    return attack_named(TRANSFER, surrogate=surrogate, attack=name, settings=settings)


@dataclass(frozen=True, eq=False)
class Attacked:
    """Counterexamples by column and place, and what the attacks say about all of it."""

    points: dict[str, dict[int, NDArray[np.float32]]]
    notes: list[str] = field(default_factory=list)

    def of(self, place: int) -> dict[str, NDArray[np.float32]]:
        return {column: points[place] for column, points in self.points.items() if place in points}


def attacked(network: Network, data: DataSet, places: Sequence[int], asked: Asked, attacks: dict[str, Attack], *,
             device: str | None = None) -> Attacked:
    """Every attack on some examples, each of them from the beginning: columns do not depend on each other."""
    threat = Threat(asked.norm, asked.eps, asked.clip)
    part, places_of = data.chosen(list(places)), {int(data.index[k]): k for k in places}
    found = Attacked({column: {} for column in attacks})
    for column, attack in attacks.items():
        for piece in attack_data(network, part, attack, threat, seed=asked.seed, device=device,
                                 piece=max(1, len(part))):
            unconfirmed = 0
            for record, x in piece.finished:
                if record["success"]:
                    assert x is not None, "an attack's records have points"
                    found.points[column][places_of[record["index"]]] = x
                unconfirmed += record["unconfirmed"]
            notes = [*piece.notes, *([f"{unconfirmed} successes not confirmed by onnxruntime"] if unconfirmed else [])]
            found.notes.extend(f"{column}: {note}" for note in notes)
    return found


def clean_places(original: OnnxModel, data: DataSet, places: Sequence[int]) -> set[int]:
    """The examples whose label is strictly on top as the original file has it."""
    x, y = torch.from_numpy(data.x[list(places)]), torch.from_numpy(data.y[list(places)])
    margin = _margin(original(x), y)
    near = (margin.abs() <= NEAR).nonzero().flatten()
    for k in near.tolist():
        margin[k] = _margin(torch.from_numpy(original.replayer.run(data.x[[places[k]]])), y[k : k + 1])[0]
    return {place for place, m in zip(places, margin.tolist(), strict=True) if m > 0}


def _margin(y: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    at = label.unsqueeze(1)
    return y.gather(1, at).squeeze(1) - y.scatter(1, at, -torch.inf).amax(1)
