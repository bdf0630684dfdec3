"""Networks by name. Nothing is imported before it is used."""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from certify.data.dataset import TrainingData

MODELS = {
    "mlp": "certify.models.mlp:mlp",
    "wk-small": "certify.models.wong_kolter:wk_small",
    "wk-large": "certify.models.wong_kolter:wk_large",
    "wk-resnet": "certify.models.wong_kolter:wk_resnet",
    "wang4": "certify.models.wang:wang4",
    "wang8": "certify.models.wang:wang8",
    "cnn5": "certify.models.cnn:cnn5",
    "cnn7": "certify.models.cnn:cnn7",
    "resnet": "certify.models.resnet:resnet",
    "wrn": "certify.models.wide_resnet:wide_resnet",
}


def build(name: str, data: TrainingData, **settings: Any) -> nn.Module:
    """A network for the inputs and classes of a data set, its normalisation inside; initialised by PyTorch's generator.

    Raises ValueError for an unknown name or setting, or inputs that the network does not take.
    """
    from torch import nn

    from certify.models.normalise import Normalise
    if name not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, got {name!r}")
    module, _, attribute = MODELS[name].partition(":")
    make = getattr(importlib.import_module(module), attribute)
    known = [p for p in inspect.signature(make).parameters if p not in ("shape", "classes")]
    if unknown := set(settings) - set(known):
        raise ValueError(f"model {name} has no setting {', '.join(sorted(unknown))}; it has "
                         f"{', '.join(known) or 'none'}")
    network: nn.Module = make(data.shape, data.classes, **settings)
    if not data.mean:
        return network
    return nn.Sequential(Normalise(data.mean, data.std, len(data.shape)), network)
