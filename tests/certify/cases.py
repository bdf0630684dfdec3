"""Small training problems that the tests of methods share, and the checks that every loss must pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from certify.classifier import Classifier
from certify.inner import ascend
from certify.method import Method
from certify.terms import LossTerms, Progress, Step

SHAPE, CLASSES = (1, 6, 6), 4


def network(kind: str = "conv", seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """conv, mlp, norm (batch normalisation) or residual."""
    torch.manual_seed(seed)
    if kind == "mlp":
        net: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(),
                                       nn.Linear(12, CLASSES))
    elif kind == "residual":
        net = Residual()
    else:
        norm = [nn.BatchNorm2d(4)] if kind == "norm" else []
        net = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), *norm, nn.ReLU(), nn.Conv2d(4, 6, 3, 1, 1), nn.ReLU(),
                            nn.Flatten(), nn.Linear(54, 10), nn.ReLU(), nn.Linear(10, CLASSES))
    return net.to(dtype).train()


class Residual(nn.Module):
    """A branch that meets again."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1)
        self.last = nn.Linear(36, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.first(x))
        x = functional.relu(self.second(x) + x)
        return self.last(x.flatten(1))


def examples(count: int = 12, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Inputs in [0, 1] near one prototype a class, and labels."""
    generator = torch.Generator().manual_seed(seed)
    prototypes = torch.rand(CLASSES, *SHAPE, generator=torch.Generator().manual_seed(99), dtype=dtype)
    y = torch.randint(0, CLASSES, (count,), generator=generator)
    noise = torch.randn(count, *SHAPE, generator=generator, dtype=dtype)
    return (prototypes[y] + 0.1 * noise).clamp(0, 1), y


def step_of(net: nn.Module, *, eps: float = 0.05, natural: float = 0.0, norm: float = math.inf, update: int = 0,
            count: int = 12, seed: int = 0, clip: tuple[float, float] | None = (0.0, 1.0),
            target_eps: float | None = None, memory: dict[str, Any] | None = None,
            progress: Progress | None = None) -> Step:
    dtype = next(net.parameters()).dtype
    x, y = examples(count, seed, dtype)
    return Step(Classifier(net, SHAPE), x, y, torch.arange(count), eps, target_eps or eps, natural, norm, clip,
                progress or Progress(0.5, 1.0, update), 0, {} if memory is None else memory)


def short_run(method: Method, net: nn.Module, *, updates: int = 20, eps: float = 0.05, natural: float = 0.5,
              look: Callable[[Step, LossTerms], None] | None = None, **settings: Any) -> list[LossTerms]:
    """A few steps of Adam with the method; `look` sees each step and its terms, before the optimiser moves."""
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    memory: dict[str, Any] = {}
    x, y = examples(64, 5, next(net.parameters()).dtype)
    model = Classifier(net, SHAPE)
    method.prepare(model, x, y, memory, 0)
    done: list[LossTerms] = []
    for k in range(updates):
        part = torch.arange(16 * (k % 4), 16 * (k % 4) + 16)
        step = Step(model, x[part], y[part], part, eps, eps, natural, settings.get("norm", math.inf), (0.0, 1.0),
                    Progress(k / 4, updates / 4, k), 0, memory)
        for update in method.updates(step):
            optimiser.zero_grad()
            terms = update()
            if look is not None:
                look(step, terms)
            terms.total.backward()
            optimiser.step()
            done.append(terms)
    return done


def attacked_loss(step: Step) -> Tensor:
    """The cross-entropy "B" at the best points that a PGD attack finds, in the module's mode."""
    x = ascend(step, steps=10, step_size=0.25)
    with torch.no_grad():
        return functional.cross_entropy(step.model(x), step.y, reduction="none")


def attacked_bounded_loss(step: Step) -> Tensor:
    """The same of the function that is bounded: batch normalisation with the statistics of the clean minibatch."""
    x = ascend(step, steps=10, step_size=0.25)
    with torch.no_grad():
        _, graph = step.model.clean(step.x)
        return functional.cross_entropy(graph(x), step.y, reduction="none")


def assert_gradients_agree(total: Callable[[], Tensor], net: nn.Module, *, entries: int = 6, h: float = 1e-6,
                           rtol: float = 1e-4, atol: float = 1e-7) -> None:
    """Gradients of a loss (float64) by every parameter against central differences, at some entries of each."""
    net.zero_grad()
    total().backward()
    generator = torch.Generator().manual_seed(0)
    checked = 0
    for p in net.parameters():
        assert p.dtype == torch.float64 and p.grad is not None, "the loss depends on every parameter, in float64"
        flat, slope = p.data.view(-1), p.grad.reshape(-1)
        for k in torch.randperm(flat.numel(), generator=generator)[:entries].tolist():
            before = float(flat[k])
            ends = []
            for side in (h, -h):
                flat[k] = before + side
                ends.append(float(total().detach()))
            flat[k] = before
            assert abs((ends[0] - ends[1]) / (2 * h) - float(slope[k])) <= atol + rtol * abs(float(slope[k]))
            checked += 1
    assert checked
