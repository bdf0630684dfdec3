"""`train`: settings in, a network with its record out."""

from __future__ import annotations

import dataclasses
import json
import logging
import platform
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bounds.files import trouble
from certify.cascade import Certifier, run_cascade, uncertified
from certify.checkpoint import load as load_checkpoint
from certify.classifier import Classifier
from certify.data.dataset import TrainingData
from certify.distributed import Processes, processes
from certify.journal import TensorBoard, draw_curves, write_csv
from certify.measure import KINDS, measure
from certify.registry import method_named
from certify.settings import TrainSettings, read_settings, resolve
from certify.trainer import CHECKPOINT, Look, Meet, Tell, Trainer, check_settings
from verifier.run_folder import only_user
from verifier.threads import threads_for

log = logging.getLogger(__name__)

CARD, LOG, CURVES, NETWORK, SETTINGS = "card.json", "log.csv", "curves.png", "model.onnx", "settings.yaml"
PARTS = ("", "stage1")  # of a run's folder in which it begins: its own, or that of a cascade's first network
SLOW = {"crown": 1000}  # examples of the test set on which a slow measure looks
WORTH = ("clean", "pgd-20", "ibp", "crown")  # what a card says of the test set


@dataclass(frozen=True, eq=False)
class Trained:
    """The network in evaluation mode, what it was trained with, what it is worth, and where its files lie; of a cascade
    the first network, and behind it the others."""

    model: Classifier
    settings: TrainSettings
    card: dict[str, Any]
    folder: Path | None
    later: tuple[Trained, ...] = ()


def train(settings: TrainSettings | Mapping[str, Any], *, data: TrainingData | None = None,
          data_dir: str | Path | None = None, out: str | Path | None = None, resume: bool = False,
          device: str | None = None, tell: Tell | None = None, look: Look | None = None, meet: Meet | None = None,
          worth: Sequence[str] = WORTH) -> Trained:
    """Train a network. settings: a record, or names and values (the rest from the recipe of the method and data set).

    data: instead of the data set that the settings name. out: a folder for checkpoints, log, curves, card and ONNX
    file; with `resume` a run that lies there goes on, exactly as if it had not stopped. look: called with (epoch from
    1, network in evaluation mode) after each epoch of this process; meet: with a function as well, from examples to
    where a method that trains on adversarial points would take its loss next. worth: what is measured on the test set
    at the end, of KINDS in `certify.measure`; CROWN of a wide network takes longer than its training. Under
    `torchrun` the processes share the work. Raises ValueError for wrong settings, FileNotFoundError for data that are
    not there, `Diverged`.
    """
    watched = _Watched(tell, look, meet, tuple(worth))
    if not isinstance(settings, TrainSettings):
        settings = resolve(settings if data is None else {"data": data.name, **settings})
    settings = said(settings, data)
    if data is None:
        from certify.data.registry import load
        data = load(settings.data, data_dir)
    folder = None if out is None else Path(out)
    with processes(device) as group, ExitStack() as held:
        if folder is not None and group.is_first:
            held.enter_context(_begun(folder, settings, resume))
        group.wait()
        if settings.cascade == 1:
            return _train_one(settings, data, folder, resume, group, watched)
        return _train_cascade(settings, data, folder, resume, group, watched)


@dataclass(frozen=True)
class _Watched:
    """What a caller wants to be told, and of what."""

    tell: Tell | None
    look: Look | None
    meet: Meet | None
    worth: tuple[str, ...]

    def __post_init__(self) -> None:
        if unknown := [kind for kind in self.worth if kind not in KINDS]:
            raise ValueError(f"worth: expected some of {', '.join(KINDS)}, got {unknown[0]!r}")


def said(settings: TrainSettings, data: TrainingData | None) -> TrainSettings:
    """The settings with every setting of the method and the name of the data that are handed over: the record of a run
    depends neither on what recipes and defaults say nor on what was not used."""
    method = method_named(settings.method, **settings.method_settings)
    assert dataclasses.is_dataclass(method), "methods are"
    if data is not None and data.name != Path(settings.data).name:
        settings = replace(settings, data=data.name)
    return replace(settings, method_settings=dataclasses.asdict(method))


@contextmanager
def _begun(folder: Path, settings: TrainSettings, resume: bool) -> Iterator[None]:
    """The folder, made and held for this process alone, its settings in it. Raises ValueError where it holds another
    run, or one that cannot go on; nothing is written then."""
    import yaml
    with ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(only_user(folder))
            # Settings alone are no run: one that was refused or killed before its first checkpoint left them.
            found = [file for name in (CHECKPOINT, NETWORK, CARD) for part in PARTS
                     if (file := folder / part / name).exists()]
            if found and not resume:
                raise ValueError(f"{folder} already holds a run ({found[0].relative_to(folder)}): use --resume or "
                                 "another --out")
            if found and found[0].name != CHECKPOINT:
                raise ValueError(f"{folder} holds {found[0].relative_to(folder)} of a run and no checkpoint from which "
                                 "it could go on: choose another --out")
            if found:
                check_settings(found[0], stored_settings(folder), settings)
            if not (found and (folder / SETTINGS).exists()):
                _write(folder / SETTINGS, yaml.safe_dump(settings.as_dict(), sort_keys=False))
        except OSError as error:
            raise ValueError(f"{folder}: no files can be written there ({trouble(error)})") from error
        yield


def stored_settings(folder: Path) -> dict[str, Any]:
    """With which the run in a folder was begun: those of the YAML file, without it those of its first checkpoint; none
    where there is no run. Raises OSError, or ValueError with a sentence."""
    if (folder / SETTINGS).exists():
        return read_settings(folder / SETTINGS)
    for part in PARTS:
        if (folder / part / CHECKPOINT).exists():
            settings: dict[str, Any] = load_checkpoint(folder / part / CHECKPOINT)["settings"]
            return settings
    return {}


def _train_cascade(settings: TrainSettings, data: TrainingData, folder: Path | None, resume: bool, group: Processes,
                   watched: _Watched) -> Trained:
    """One network after the other, each on what those before do not certify (arXiv:1805.12514)."""
    certifier = Certifier(settings.eps, settings.p, data.clip)
    stages: list[Trained] = []
    rest = data.train
    for k in range(settings.cascade):
        if stages and len(rest) < settings.batch_size + max(0, settings.validation):
            log.warning("%d examples are left for stage %d: the cascade ends before it", len(rest), k + 1)
            break
        own = None if folder is None else folder / f"stage{k + 1}"
        if own is not None and group.is_first:
            own.mkdir(exist_ok=True)
        group.wait()
        stages.append(_train_one(settings, replace(data, train=rest), own, resume, group, watched))
        left = uncertified([stages[-1].model.graph], certifier, rest.x.to(group.device))
        rest = rest.take(left.cpu())
    answers = run_cascade([stage.model.graph for stage in stages], certifier, data.test.x.to(group.device),
                          data.test.y.to(group.device))
    first = stages[0]
    worth = {"clean": round(1 - answers.clean_error, 6), "stage_certified": round(1 - answers.robust_error, 6),
             "answered": [int((answers.stage == k).sum()) for k in range(len(stages))]}
    card = {**first.card, "parameters": sum(stage.card["parameters"] for stage in stages),
            "seconds": round(sum(stage.card["seconds"] for stage in stages), 1), "cascade": worth,
            "stages": [stage.card["test"] for stage in stages], "uncertified_training_examples": len(rest)}
    if folder is not None and group.is_first:
        _write_card(folder, card)
    return Trained(first.model, settings, card, folder, tuple(stages[1:]))


def _write_card(folder: Path, card: dict[str, Any]) -> None:
    _write(folder / CARD, json.dumps(card, indent=1) + "\n")


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    beside = path.with_name(f"{path.name}.part")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def _train_one(settings: TrainSettings, data: TrainingData, folder: Path | None, resume: bool, group: Processes,
               watched: _Watched) -> Trained:
    trainer = Trainer(settings, data, folder, group, watched.tell if group.is_first else None)
    if group.is_first:
        trainer.look, trainer.meet = watched.look, watched.meet
    if resume and folder is not None and (folder / CHECKPOINT).exists():
        trainer.restore(folder / CHECKPOINT)
    writes = folder is not None and group.is_first
    board = TensorBoard(folder / "tensorboard", trainer.epoch + 1) if writes and folder is not None else None

    def record() -> None:
        if board is not None and folder is not None:
            write_csv(trainer.rows, folder / LOG)
            board.add(trainer.rows[-1])
    trainer.after_epoch = record
    try:
        # Threads that meet after each small operation cost small networks more than they gain.
        with threads_for(trainer.model.graph) if group.device.type == "cpu" else nullcontext():
            model = trainer.run()
            card = _card(trainer, model, data, watched.worth)
    finally:
        if board is not None:
            board.close()
    if writes and folder is not None:
        from certify.export import export_onnx
        export_onnx(model.module, data.shape, folder / NETWORK)
        _write_card(folder, card)
        if trainer.rows:
            draw_curves(trainer.rows, folder / CURVES, _title(settings))
    return Trained(model, settings, card, folder)


def _title(settings: TrainSettings) -> str:
    return f"{settings.method}, {settings.model}, {settings.data}, l_{settings.norm} eps {settings.eps:g}, " \
           f"seed {settings.seed}"


def _card(trainer: Trainer, model: Classifier, data: TrainingData, kinds: Sequence[str]) -> dict[str, Any]:
    """What the network is, how it was made, and what it is worth on the test set."""
    s = trainer.settings
    test = data.test
    worth: dict[str, Any] = {}
    for kind in kinds:
        part = test.take(slice(0, SLOW.get(kind, len(test))))
        name = kind if len(part) == len(test) else f"{kind} (first {len(part)})"
        worth[name] = round(measure(model, part, trainer.threat, [kind], trainer.say)[kind], 6)
    return {
        "name": _title(s), "command": command_of(s), "settings": s.as_dict(),
        "parameters": sum(p.numel() for p in model.module.parameters()),
        "seconds": round(trainer.seconds, 1), "chosen_epoch": trainer.chosen_epoch, "epochs": s.epochs,
        "test": {"examples": len(test), "eps": s.eps, "norm": s.norm, **worth},
        "evidence": "float: ordinary floating point; rmax evaluate gives answers with evidence",
        "machine": {"torch": torch.__version__, "python": platform.python_version(), "processor": platform.machine(),
                    "threads": torch.get_num_threads(), "processes": trainer.processes.world,
                    "device": str(trainer.processes.device)},
    }


def command_of(settings: TrainSettings) -> str:
    """A command that trains the same network, whatever recipes say by then: every setting, since a recipe may have
    another value where a default was asked for."""
    named = ("method", "model", "data")
    values = {k: v for k, v in settings.as_dict().items() if k not in (*named, "method_settings", "model_settings")}
    values |= {f"method.{k}": v for k, v in settings.method_settings.items()}
    values |= {f"model.{k}": v for k, v in settings.model_settings.items()}
    words = [w for name in named for w in (f"--{name}", getattr(settings, name))]
    return shlex.join(["rmax", "train", *words, *(w for k, v in values.items() for w in ("--set", f"{k}={_plain(v)}"))])


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(_plain(v) for v in value)}]"
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
