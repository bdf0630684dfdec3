"""The training loop: schedules, steps, measurements after each epoch, checkpoints from which a run goes on exactly.

Whatever is random in a run is a function of its seed and of where it is (epoch, minibatch, example), so that a run that
was killed and resumed ends with the same weights as one that was not.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from certify.adversarial.attacked import AttackedMethod
from certify.averaging import WeightAverage
from certify.checkpoint import load, save
from certify.classifier import Classifier
from certify.data.batches import Batches
from certify.data.dataset import Examples, TrainingData
from certify.distributed import Processes
from certify.measure import Threatened, measure, step_for
from certify.method import EpochEnd, Method
from certify.models.registry import build
from certify.registry import method_named
from certify.schedules import Ramp
from certify.settings import TrainSettings
from certify.statistics import recompute_statistics
from certify.terms import LossTerms, Progress, Step, Update
from certify.weights import l1

log = logging.getLogger(__name__)

CHECKPOINT_S = 60.0   # seconds of training that a kill may cost
HELD_OUT = 256        # examples on which methods measure after an epoch
MOST_VALIDATION = 1000
CHECKPOINT = "checkpoint.pt"

State = dict[str, Tensor]


class Diverged(RuntimeError):
    """The loss is no longer a number."""


@dataclass
class Sums:
    """What an epoch adds up, weighted by examples; on the device, so that nothing waits for it."""

    totals: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, value: Tensor, weight: int) -> None:
        more = value.detach().double() * weight
        self.totals[name] = self.totals[name] + more if name in self.totals else more
        self.weights[name] = self.weights.get(name, 0) + weight

    def means(self) -> dict[str, float]:
        return {name: float(total) / self.weights[name] for name, total in self.totals.items()}


@dataclass(frozen=True)
class Told:
    """What a progress line shows. means: of the epoch so far, when called."""

    epoch: float
    epochs: float
    eps: float
    means: Callable[[], dict[str, float]]
    elapsed_s: float
    left_s: float
    doing: str = ""
    """What is done beside training, where it takes long."""


Tell = Callable[[Told], None]
Look = Callable[[int, Classifier], None]
"""Is shown the network after each epoch (numbered from 1), in evaluation mode and as it would be kept."""
Points = Callable[[Examples], Tensor]
Meet = Callable[[int, Classifier, Points], None]
"""Is shown after each epoch, beside the network, where an adversarial method would take its loss next: a function of
examples, as one minibatch, to points "B *shape"."""


@dataclass(eq=False)
class Trainer:
    """One network in training. folder: where checkpoints lie (None: nowhere); tell: is shown the progress; look: the
    network after each epoch; meet: also the points of a method that trains on such."""

    settings: TrainSettings
    data: TrainingData
    folder: Path | None = None
    processes: Processes = field(default_factory=Processes)
    tell: Tell | None = None
    after_epoch: Callable[[], None] | None = None
    look: Look | None = None
    meet: Meet | None = None

    def __post_init__(self) -> None:
        s = self.settings
        self.method: Method = method_named(s.method, **s.method_settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(s.seed)
            module = build(s.model, self.data, **s.model_settings)
        self.module: nn.Module = module.to(self.processes.device).train()
        self.model = Classifier(self.module, self.data.shape)
        device = self.processes.device
        self.train, self.validation = (Examples(part.x.to(device), part.y.to(device))  # the sets here fit any device
                                       for part in held_out(self.data.train, s.validation, s.seed))
        self.batches = Batches(self.train, s.batch_size, s.seed, self._augmentation, self.processes.rank,
                               self.processes.world)
        if self.batches.smallest == 1 and self.model.normalises_single_numbers:
            raise ValueError(f"batch_size {s.batch_size} and {len(self.train)} training examples make minibatches of "
                             "one example each, over which batch normalisation behind a dense layer has no statistics: "
                             "take a larger batch_size, or a model without it")
        self.optimiser = self._optimiser()
        self.losses = self.processes.wrapped(self.module)
        self.eps = Ramp(s.eps_first * s.eps, s.train_eps * s.eps, s.ramp_begin, s.ramp_end, s.ramp)
        self.natural = Ramp(s.natural_first, s.natural_last, s.ramp_begin, s.ramp_end, "linear")
        self.memory: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []
        self.sums = Sums()
        self.epoch, self.batch, self.update, self.seconds = 0, 0, 0, 0.0
        self.best: dict[str, float] = {}
        self.best_state: State = {}
        self.average = None if s.average == "none" else WeightAverage(self.module, s.average, s.average_from,
                                                                      decay=s.average_decay)
        self._since = self._saved = time.monotonic()

    # ------------------------------------------------------------------ what settings say

    @property
    def _augmentation(self) -> str:
        return self.data.augmentation if self.settings.augment == "auto" else self.settings.augment

    @property
    def epochs(self) -> int:
        """Epochs begun: the last may be cut short."""
        return math.ceil(self.settings.epochs)

    @property
    def threat(self) -> Threatened:
        """What is measured: the radius that was asked for, not the one of training."""
        return Threatened(self.settings.eps, self.settings.p, self.data.clip)

    def _optimiser(self) -> torch.optim.Optimizer:
        s = self.settings
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        if s.optimiser == "sgd":
            return torch.optim.SGD(parameters, s.lr, momentum=s.momentum, weight_decay=s.weight_decay)
        return torch.optim.Adam(parameters, s.lr, weight_decay=s.weight_decay)

    def learning_rate(self, epoch: float) -> float:
        """At a fractional epoch."""
        s = self.settings
        up = min(1.0, epoch / s.lr_warmup) if s.lr_warmup > 0 else 1.0
        if s.lr_schedule == "steps":
            return s.lr * up * s.lr_factor ** sum(epoch >= m for m in s.milestones)
        if epoch < s.lr_warmup:
            return s.lr * up
        share = min(1.0, (epoch - s.lr_warmup) / max(1e-9, s.epochs - s.lr_warmup))
        return s.lr * ((1 + math.cos(math.pi * share)) / 2 if s.lr_schedule == "cosine" else 1 - share)

    # ------------------------------------------------------------------ the run

    def run(self) -> Classifier:
        """Train to the end; the network that `keep` chooses, in evaluation mode."""
        self._since = self._saved = time.monotonic()
        if self.update == 0:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.settings.seed)
                self.method.prepare(self.model, self.train.x, self.train.y, self.memory, self.settings.seed)
        while self.epoch < self.epochs:
            self._run_epoch()
            self._end_epoch()
        self.module.load_state_dict(self.best_state)
        self.module.eval()
        return self.model

    def _run_epoch(self) -> None:
        count = len(self.batches)
        self.module.train()
        for x, y, number in self.batches.epoch(self.epoch, skip=self.batch):
            at = self.epoch + self.batch / count
            if at >= self.settings.epochs:
                break
            self._run_batch(self.step(x, y, number, at))
            self.batch += 1
            self.update += 1
            now = time.monotonic()
            if self.folder is not None and now - self._saved > CHECKPOINT_S:
                self.save()
            if self.tell is not None:
                self.tell(self._told(at + 1 / count))

    def step(self, x: Tensor, y: Tensor, number: Tensor, epoch: float) -> Step:
        """A minibatch with what the schedules say at a fractional epoch."""
        s = self.settings
        return Step(self.model, x, y, number, self.eps.at(epoch), s.train_eps * s.eps, self.natural.at(epoch), s.p,
                    self.data.clip, Progress(epoch, s.epochs, self.update), s.seed, self.memory)

    def points(self, examples: Examples) -> Tensor:
        """Where the method would take its loss next, of examples as one minibatch: "B *shape". The run stays as it is.

        Raises ValueError where a method does not train on adversarial points alone.
        """
        if not isinstance(self.method, AttackedMethod):
            raise ValueError(f"{self.method.name} does not train on adversarial points alone: it has none to show")
        x, y = examples.x.to(self.processes.device), examples.y.to(self.processes.device)
        next_epoch = min(self.epoch + 1.0, self.settings.epochs)
        step = self.step(x, y, torch.arange(len(y), device=y.device), next_epoch)
        return self.method.points(replace(step, memory=copy.deepcopy(self.memory)))

    def _run_batch(self, step: Step) -> None:
        rate = self.learning_rate(step.progress.epoch)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        for update in self.method.updates(step):
            self.optimiser.zero_grad(set_to_none=True)
            terms: LossTerms = self.losses(self._penalised(update))
            terms.total.backward()
            if not bool(torch.isfinite(terms.total.detach())):
                raise self._diverged(f"the loss is {float(terms.total.detach())}")
            if self.settings.clip_gradient > 0:
                nn.utils.clip_grad_norm_(self.module.parameters(), self.settings.clip_gradient)
            self.optimiser.step()
            self._note(step, terms)
        if self.average is not None and self.settings.average == "ema":
            self.average.update(self.module, step.progress.epoch)

    def _diverged(self, what: str) -> Diverged:
        return Diverged(f"{what} in epoch {self.epoch + 1}: try a smaller lr or clip_gradient, or a longer ramp")

    def _penalised(self, update: Update) -> Update:
        """The loss with the penalty on weights, which every method may have."""
        if not self.settings.l1:
            return update

        def penalised() -> LossTerms:
            terms = update()
            penalty = self.settings.l1 * l1(self.module)
            return replace(terms, total=terms.total + penalty, parts={**terms.parts, "l1": penalty.detach()})
        return penalised

    def _note(self, step: Step, terms: LossTerms) -> None:
        count = len(step.y)
        self.sums.add("loss", terms.total, count)
        for name, value in terms.parts.items():
            self.sums.add(name, value, count)
        if terms.logits is not None:
            right = terms.logits.argmax(1) == step.y
            self.sums.add("accuracy", right.double().mean(), count)
            if terms.margins is not None:
                self.sums.add("certified", (right & (terms.margins > 0)).double().mean(), count)

    def _told(self, epoch: float) -> Told:
        elapsed = self.seconds + time.monotonic() - self._since
        share = min(1.0, epoch / self.settings.epochs)
        return Told(epoch, self.settings.epochs, self.eps.at(epoch), self.sums.means, elapsed,
                    elapsed * (1 - share) / share if share > 0 else math.inf)

    def say(self, doing: str) -> None:
        """Show what is done after an epoch."""
        if self.tell is not None:
            self.tell(replace(self._told(min(self.epoch + 1.0, self.settings.epochs)), doing=doing))

    # ------------------------------------------------------------------ after an epoch

    def _end_epoch(self) -> None:
        if not all(bool(torch.isfinite(p).all()) for p in self.module.parameters()):
            raise self._diverged("weights are no numbers")  # of the last step: no loss has seen them yet
        end = min(self.epoch + 1.0, self.settings.epochs)
        notes: list[str] = []
        # Where nothing is held out methods look at what they train on, rather than not at all.
        part = (self.validation if len(self.validation) else self.train).take(slice(0, HELD_OUT))
        step = step_for(self.model, part.x, part.y, 0, self.threat)
        self.method.after_epoch(EpochEnd(step, self.memory, notes))
        if self.average is not None and self.settings.average == "swa":
            self.average.update(self.module, end)
        measured: dict[str, float] = {}
        with self._as_kept():
            if len(self.validation):
                kinds = dict.fromkeys(("clean", "pgd", self.settings.validate_with))
                measured = measure(self.model, self.validation, self.threat, list(kinds), self.say)
            if self.look is not None:
                self.module.eval()
                self.look(self.epoch + 1, self.model)
            if self.meet is not None:
                self.module.eval()
                self.meet(self.epoch + 1, self.model, self.points)
            score = measured.get(self.settings.validate_with)
            late = end >= self.settings.ramp_end
            if score is not None and late and score >= self.best.get("score", -1.0):
                self.best, self.best_state = {"score": score, "epoch": self.epoch + 1}, self._state()
            if self.epoch + 1 == self.epochs and not (self.settings.keep == "best" and self.best):
                self.best, self.best_state = {"epoch": self.epoch + 1}, self._state()
        self.seconds += time.monotonic() - self._since
        self._since = time.monotonic()
        row = {"epoch": self.epoch + 1, "update": self.update, "eps": self.eps.at(end),
               "natural_weight": self.natural.at(end), "lr": self.learning_rate(end - 1e-9), **self.sums.means(),
               **{f"validation_{kind}": share for kind, share in measured.items()},
               "seconds": round(self.seconds, 3), "note": "; ".join(notes)}
        self.rows.append(row)
        log.info("%s", row)
        self.epoch, self.batch, self.sums = self.epoch + 1, 0, Sums()
        if self.after_epoch is not None:
            self.after_epoch()
        if self.folder is not None:
            self.save()

    @property
    def chosen_epoch(self) -> int:
        """The epoch whose weights are kept, from 1."""
        return int(self.best["epoch"])

    def _state(self) -> State:
        return {name: value.detach().cpu().clone() for name, value in self.module.state_dict().items()}

    @contextmanager
    def _as_kept(self) -> Iterator[None]:
        """The module as it would be kept after this epoch: with averaged weights, where there are any, and statistics
        of the whole training set; afterwards as before, so that looking at it changes nothing in the run."""
        before = self._state()
        if self.average is not None:
            self.average.apply(self.module)
        size = self.settings.batch_size
        full = len(self.train) // size * size if len(self.train) >= size else len(self.train)
        recompute_statistics(self.module, (self.train.x[i:i + size] for i in range(0, full, size)))
        try:
            yield
        finally:
            self.module.load_state_dict(before)

    # ------------------------------------------------------------------ checkpoints

    def save(self) -> None:
        """Everything that the rest of the run depends on."""
        if self.folder is None or not self.processes.is_first:
            return
        now = time.monotonic()
        self.seconds += now - self._since
        self._since = self._saved = now
        save({"settings": self.settings.as_dict(), "data": self.data.facts, "module": self.module.state_dict(),
              "optimiser": self.optimiser.state_dict(), "memory": self.memory, "rows": self.rows,
              "sums": [self.sums.totals, self.sums.weights], "epoch": self.epoch, "batch": self.batch,
              "update": self.update, "seconds": self.seconds, "best": self.best,
              "best_state": self.best_state, "average": {} if self.average is None else self.average.state_dict()},
             self.folder / CHECKPOINT)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint. Raises OSError, UnusableCheckpoint, or ValueError where it is another run's."""
        state = load(path, self.processes.device)
        check_settings(path, state["settings"], self.settings)
        for name, now in self.data.facts.items():
            if (before := state["data"].get(name)) != now:
                raise ValueError(f"{path} was made with other {name} than {self.data.name} holds now"
                                 if name.endswith("examples") else f"{path} was made with {name} {before}, not {now}")
        self.module.load_state_dict(state["module"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.memory.update(state["memory"])
        self.rows, self.sums = state["rows"], Sums(*state["sums"])
        self.epoch, self.batch, self.update = state["epoch"], state["batch"], state["update"]
        self.seconds, self.best, self.best_state = state["seconds"], state["best"], state["best_state"]
        if self.average is not None:
            self.average.load_state_dict(state["average"])


def check_settings(path: Path, before: Mapping[str, Any], settings: TrainSettings) -> None:
    """Raises ValueError where what lies there was trained with other settings."""
    now = settings.as_dict()
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            raise ValueError(f"{path} was trained with {name} {before.get(name)}, not {now.get(name)}")


def held_out(examples: Examples, count: int, seed: int) -> tuple[Examples, Examples]:
    """(for training, for validation): the latter chosen by the seed, `count` of them (-1: a tenth, at most 1,000)."""
    wanted = min(MOST_VALIDATION, len(examples) // 10) if count < 0 else count
    if wanted >= len(examples):
        raise ValueError(f"validation {wanted}: there are only {len(examples)} examples")
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
    chosen = torch.zeros(len(examples), dtype=torch.bool)
    chosen[order[:wanted]] = True
    return examples.take(~chosen), examples.take(chosen)
