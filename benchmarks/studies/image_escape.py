"""Ascents from near a minimum of the loss on images: how soon projected gradient ascent leaves it.

As Figures 2 and 3 of Deng et al. 2020: inputs are multiplied by a scale, the l_2 radius is a ratio of their mean
length, and no range limits them. A start is where descent inside the ball ends. The loss of a trajectory is told as a
share of the way from there to the highest loss that any ascent found in that ball. Two rules of steps: `fixed`, one eta
for every scale, x + eta grad; and `relative`, a share of eps along the gradient, where the size of the ball alone makes
no difference: what is left is the landscape's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from certify.classifier import Classifier
from certify.data.dataset import Examples, TrainingData
from certify.inner import ascend, cross_entropy_of, input_gradient, moved
from certify.measure import Threatened, measure, step_for
from certify.models.registry import build
from certify.terms import Step
from certify.training import train

MODEL = "wk-small"  # two convolutions and two dense layers, without batch normalisation, which would undo the scale
RULES = ("fixed", "relative")
HALF = 0.5          # of the way up: from there on a start has been left

Row = dict[str, Any]


@dataclass(frozen=True)
class Walk:
    """steps: of an ascent; eta: of the fixed rule; share: of eps, of the relative rule; search: steps of descents to a
    start and of the ascents that look for the highest loss; places: the steps whose losses are kept."""

    steps: int
    search: int
    eta: float
    share: float
    places: tuple[int, ...]


def at_an_end(steps: Sequence[float], limit: float = math.inf) -> bool:
    """Whether all counts of steps are the least possible, or all beyond the limit: there is no order to see."""
    return all(v <= 1 for v in steps) or all(v > limit for v in steps)


def scaled(data: TrainingData, scale: float) -> TrainingData:
    """The data set with inputs times `scale`, and no range: the paper's attacks have none."""
    return replace(data, train=Examples(scale * data.train.x, data.train.y),
                   test=Examples(scale * data.test.x, data.test.y), clip=None)


def radius(examples: Examples, ratio: float) -> float:
    """ratio * mean ||x||_2."""
    return ratio * float(torch.linalg.vector_norm(examples.x.flatten(1), dim=1).mean())


def untrained(data: TrainingData, seed: int, *, xavier: bool, device: str | None) -> Classifier:
    """A network as training begins with it (PyTorch's rule), or with Xavier weights and no biases."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build(MODEL, data)
        if xavier:
            for layer in module.modules():
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    nn.init.xavier_normal_(layer.weight)
                    if layer.bias is not None:
                        nn.init.zeros_(layer.bias)
    return Classifier(module.to(device or "cpu").eval(), data.shape)


def bottoms(step: Step, search: int) -> Tensor:
    """Points near minima of the loss in the balls: descent with long steps, then with short ones."""
    climb = cross_entropy_of(step)

    def negated(logits: Tensor, owner: Tensor) -> Tensor:
        return -climb(logits, owner)
    rough = ascend(step, steps=search, step_size=0.1, objective=negated)
    return ascend(step, steps=search, step_size=0.01, start=rough, objective=negated)


def climbed(step: Step, start: Tensor, rule: str, walk: Walk) -> Tensor:
    """The loss of each example at the start and after each step: "T+1 B"."""
    room, losses, x, climb = step.room(), [], start, cross_entropy_of(step)
    with step.model.attacked():
        for t in range(walk.steps + 1):
            value, slope = input_gradient(step, x, step.everyone, climb)
            losses.append(value)
            if t < walk.steps:
                x = (room.project(x + walk.eta * slope, step.everyone) if rule == "fixed"
                     else moved(room, x, slope, walk.share * room.eps, step.everyone))
    return torch.stack(losses)


def escapes(model: Classifier, examples: Examples, eps: float, walk: Walk) -> Iterator[Row]:
    """For each rule: the median over examples of the share of the way up at `places`; the step by which half of the
    examples, or more, have come half of the way (steps + 1: not within them); and the share of those that ever did."""
    device = next(model.module.parameters()).device
    step = step_for(model, examples.x.to(device), examples.y.to(device), 0, Threatened(eps, 2.0, None))
    start = bottoms(step, walk.search)
    top = ascend(step, steps=walk.search, step_size=0.1, restarts=3)
    climb = cross_entropy_of(step)
    with torch.no_grad():
        highest = climb(model(top), step.everyone)
    paths = {rule: climbed(step, start, rule, walk) for rule in RULES}
    highest = torch.stack([highest, *(path.amax(0) for path in paths.values())]).amax(0)
    for rule, path in paths.items():
        low = path[0]
        share = ((path - low) / (highest - low).clamp(min=torch.finfo(path.dtype).tiny)).clamp(0, 1).cpu()
        over = share >= HALF
        first = torch.where(over.any(0), over.long().argmax(0), walk.steps + 1).double()
        yield {"rule": rule, "steps": float(first.median()), "escaped": float(over.any(0).double().mean()),
               "middle": [round(v, 3) for v in share[list(walk.places)].quantile(0.5, 1).tolist()]}


def at_initialisation(data: TrainingData, *, scales: list[float], ratios: list[float], seeds: int, images: int,
                      walk: Walk, device: str | None) -> list[Row]:
    """Figure 2: Xavier weights, every scale and ratio."""
    rows = []
    for seed in range(seeds):
        for scale in scales:
            model = untrained(data, seed, xavier=True, device=device)
            part = scaled(data, scale).test.take(slice(0, images))
            for ratio in ratios:
                rows += [{"scale": scale, "ratio": ratio, "seed": seed, **row}
                         for row in escapes(model, part, radius(part, ratio), walk)]
    return rows


def in_training(data: TrainingData, *, scale: float, ratios: list[float], seed: int, images: int, epochs: list[int],
                train_ratio: float, lr: float, batch_size: int, walk: Walk, device: str | None) -> list[Row]:
    """Figure 3: after so many epochs (from 0) of adversarial training at one scale, with l_2 radius `train_ratio`. By
    Adam at one rate: plain gradient descent does not leave the first plateau at the smallest scale."""
    data = scaled(data, scale)
    part, eps = data.test.take(slice(0, images)), radius(data.train, train_ratio)
    rows: list[Row] = []

    def look(epoch: int, model: Classifier) -> None:
        if epoch not in epochs:
            return
        worth = measure(model, data.test, Threatened(eps, 2.0, None), ["clean", "pgd"])
        for ratio in ratios:
            rows.extend({"scale": scale, "ratio": ratio, "seed": seed, "epoch": epoch, **worth, **row}
                        for row in escapes(model, part, radius(part, ratio), walk))

    look(0, untrained(data, seed, xavier=False, device=device))
    train({"method": "pgd", "model": MODEL, "eps": eps, "norm": "2", "epochs": max(epochs), "seed": seed,
           "batch_size": batch_size, "optimiser": "adam", "lr": lr, "milestones": (), "weight_decay": 0.0,
           "keep": "last", "validation": 0}, data=data, device=device, look=look, worth=())
    return rows
