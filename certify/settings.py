"""The settings of a training run: one flat record that YAML files mirror and flags override.

Later sources win: the defaults of `TrainSettings`, the recipe of method and data set, a YAML file, flags. Keys
`method.X` and `model.X` (in YAML also as a mapping `method: {name: ibp, X: ..}`) are settings of the method and the
model themselves.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from certify.entry import as_number, read_number
from certify.schedules import KINDS

OPTIMISERS = ("adam", "sgd")
LR_SCHEDULES = ("steps", "cosine", "one-cycle")
AVERAGES = ("none", "swa", "ema")
MEASURES = ("pgd", "ibp", "crown-ibp", "crown")
NORMS = {"inf": math.inf, "2": 2.0}


@dataclass(frozen=True)
class TrainSettings:
    """Everything that decides the weights at the end. Epochs may be fractions; radii are in input units."""

    method: str = "ibp"
    model: str = "mlp"
    data: str = "digits"
    eps: float = 0.05
    """The radius for which the network is trained and measured."""
    train_eps: float = 1.0
    """The radius at the end of the ramp, as a multiple of eps."""
    norm: str = "inf"
    seed: int = 0

    epochs: float = 30
    batch_size: int = 100
    optimiser: str = "adam"
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    lr_schedule: str = "steps"
    """steps: times lr_factor at each milestone; cosine: to zero; one-cycle: up for lr_warmup epochs, then down to 0."""
    milestones: tuple[float, ...] = ()
    lr_factor: float = 0.2
    lr_warmup: float = 0.0
    """Epochs in which the learning rate grows from zero."""

    eps_first: float = 0.0
    """The radius where the ramp begins, as a multiple of eps."""
    ramp_begin: float = 0.0
    ramp_end: float = 0.0
    """Epochs between which the radius grows and the weight of the natural loss falls."""
    ramp: str = "linear"
    natural_first: float = 1.0
    natural_last: float = 0.5
    """The weight of the natural loss at both ends of the ramp, in methods that mix it with another."""

    l1: float = 0.0
    """The weight of the sum of absolute weights."""
    clip_gradient: float = 0.0
    """The largest l_2 norm of the gradient; 0: any."""
    average: str = "none"
    """none, swa (the mean of the weights after each epoch) or ema (a moving average after each step)."""
    average_from: float = 0.0
    """The epoch from which weights are averaged."""
    average_decay: float = 0.999
    augment: str = "auto"
    """auto: that of the data set; none; flip-crop."""

    validation: int = -1
    """Examples of the training set that are held out to choose the best epoch; -1: a tenth, at most 1,000."""
    validate_with: str = "pgd"
    """What the best epoch is chosen by, of those after the ramp: the share that withstands PGD, or is certified by a
    bound method."""
    keep: str = "best"
    """best: the epoch that did best in validation; last."""
    cascade: int = 1
    """Networks in a row, each trained on what those before do not certify (arXiv:1805.12514)."""

    method_settings: Mapping[str, Any] = field(default_factory=dict)
    model_settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("eps", "lr", "epochs", "batch_size", "cascade"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        for name in ("train_eps", "eps_first", "momentum", "weight_decay", "lr_factor", "l1", "clip_gradient",
                     "lr_warmup", "average_from", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        if not all(0 <= epoch < math.inf for epoch in self.milestones):
            raise ValueError(f"milestones must be epochs >= 0, got {list(self.milestones)}")
        for name, known in (("optimiser", OPTIMISERS), ("lr_schedule", LR_SCHEDULES), ("average", AVERAGES),
                            ("ramp", KINDS), ("norm", tuple(NORMS)), ("validate_with", MEASURES),
                            ("keep", ("best", "last"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name in ("natural_first", "natural_last", "average_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.validation < -1:
            raise ValueError(f"validation must be a number of examples, or -1 for a tenth, got {self.validation}")
        if not 0 <= self.ramp_begin <= self.ramp_end:
            raise ValueError(f"expected 0 <= ramp_begin <= ramp_end, got {self.ramp_begin} and {self.ramp_end}")

    @property
    def p(self) -> float:
        """The norm as a number."""
        return NORMS[self.norm]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as YAML and checkpoints hold them."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(v) for key, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


IN_EPOCHS = ("milestones", "ramp_begin", "ramp_end", "lr_warmup", "average_from")
"""Settings that a recipe gives for its own number of epochs: with another number they move in proportion."""
FIELDS = {f.name: f for f in dataclasses.fields(TrainSettings)}


def resolve(*sources: Mapping[str, Any]) -> TrainSettings:
    """The settings that several sources give together, later ones first in rank; the recipe of the method and data set
    that they name comes before all of them, stretched to the number of epochs that is asked for.

    Raises ValueError for unknown keys and values that do not fit.
    """
    from certify.recipes import recipe
    given: dict[str, Any] = {}
    for source in sources:
        _merge(given, source)
    named = {key: _fitted(key, given.get(key, FIELDS[key].default)) for key in ("method", "data")}
    whole: dict[str, Any] = {}
    _merge(whole, recipe(**named, eps=_fitted("eps", given.get("eps", FIELDS["eps"].default))))
    if "epochs" in given and "epochs" in whole:
        share = _fitted("epochs", given["epochs"]) / whole["epochs"]
        for key in IN_EPOCHS:
            if key in whole:
                value = whole[key]
                whole[key] = [share * v for v in value] if isinstance(value, list | tuple) else share * value
    _merge(whole, given)
    settings = TrainSettings(**{key: _fitted(key, value) for key, value in whole.items()})
    _check_schedules(settings)
    return settings


def _check_schedules(settings: TrainSettings) -> None:
    """Raises ValueError for an epoch that the run never reaches: what was to happen then would be left out in
    silence."""
    last = {key: getattr(settings, key) for key in ("ramp_end", "lr_warmup")}
    last |= {"average_from": settings.average_from} if settings.average != "none" else {}
    late = [(key, epoch) for key, epoch in last.items() if epoch > settings.epochs]
    late += [("milestones", epoch) for epoch in settings.milestones if epoch >= settings.epochs]
    if late:
        key, epoch = max(late, key=lambda pair: pair[1])
        raise ValueError(f"{key} is epoch {epoch:g}, and the run ends with epoch {settings.epochs:g}: only those of "
                         "recipes move with the number of epochs")


def _merge(into: dict[str, Any], source: Mapping[str, Any]) -> None:
    """Add a source to what is known, nested settings key by key."""
    for key, value in source.items():
        owner, dot, rest = key.partition(".")
        if key in ("method", "model") and isinstance(value, Mapping):
            value = dict(value)
            if "name" in value:
                into[key] = value.pop("name")
            _merge_settings(into, key, value)
        elif dot and owner in ("method", "model"):
            _merge(into, {owner: {rest: value}})
        elif key in ("method_settings", "model_settings"):
            _merge_settings(into, key.removesuffix("_settings"), value)
        elif key in FIELDS:
            into[key] = value
        else:
            raise ValueError(f"unknown setting {key!r}; there are {', '.join(FIELDS)}, method.X and model.X")


def _merge_settings(into: dict[str, Any], owner: str, more: Any) -> None:
    """Those of the method or the model themselves."""
    if not isinstance(more, Mapping):
        raise ValueError(f"{owner}_settings: expected names and values, got {more!r}")
    if wrong := [name for name in more if not isinstance(name, str)]:
        raise ValueError(f"{owner}: expected names of settings, got {wrong[0]!r}")
    if "name" in more:
        raise ValueError(f"{owner}_settings: its name belongs to {owner}")
    into[f"{owner}_settings"] = {**into.get(f"{owner}_settings", {}), **more}


def _fitted(key: str, value: Any) -> Any:
    """The value in the type of its field. Raises ValueError where it has another."""
    default = FIELDS[key].default
    if key.endswith("_settings"):
        return dict(value)
    if key == "milestones":
        if not isinstance(value, list | tuple):
            raise ValueError(f"milestones: expected a list of epochs, got {value!r}")
        return tuple(as_number(key, v, whole=False) for v in value)
    if isinstance(default, str):
        # YAML reads the norm 2 as a number.
        if not isinstance(value, str) and not (key == "norm" and _is_number(value)):
            raise ValueError(f"{key}: expected a word, got {value!r}")
        return str(value).replace(".0", "") if key == "norm" else value
    return as_number(key, value, whole=FIELDS[key].type == "int")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_settings(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises OSError, or ValueError with a sentence."""
    import yaml
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected names and values (method: ibp), got {type(found).__name__}")
    return {str(key): value for key, value in found.items()}


def parsed(text: str) -> Any:
    """A value from the command line, as YAML would read it (numbers, words, [lists]). Raises ValueError."""
    import yaml
    try:
        return read_number(yaml.safe_load(text))
    except yaml.YAMLError:
        raise ValueError(f"expected a number, a word or a [list], got {text!r}") from None
