"""Networks by name. Nothing is imported before it is used."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from certify.entry import Entry, fitted

if TYPE_CHECKING:
    from torch import nn

    from certify.data.dataset import TrainingData

MODELS = {
    "mlp": Entry("certify.models.mlp:mlp", "fully connected; hidden: widths of the layers"),
    "wk-small": Entry("certify.models.wong_kolter:wk_small", "two strided convolutions", "arXiv:1711.00851"),
    "wk-large": Entry("certify.models.wong_kolter:wk_large", "four convolutions", "arXiv:1805.12514"),
    "wk-resnet": Entry("certify.models.wong_kolter:wk_resnet", "residual", "arXiv:1805.12514"),
    "wang4": Entry("certify.models.wang:wang4", "four layers, for MNIST", "arXiv:2112.08304"),
    "wang8": Entry("certify.models.wang:wang8", "eight layers, for CIFAR-10", "arXiv:2112.08304"),
    "cnn5": Entry("certify.models.cnn:cnn5", "three convolutions with batch normalisation"),
    "cnn7": Entry("certify.models.cnn:cnn7", "five convolutions with batch normalisation; width", "arXiv:2406.04848"),
    "resnet": Entry("certify.models.resnet:resnet", "residual, readable by every bound method"),
    "wrn": Entry("certify.models.wide_resnet:wide_resnet", "wide residual; depth, width", "arXiv:1605.07146"),
}


def build(name: str, data: TrainingData, **settings: Any) -> nn.Module:
    """A network for the inputs and classes of a data set, its normalisation inside; initialised by PyTorch's generator.

    Raises ValueError for an unknown name or setting, or inputs that the network does not take.
    """
    from torch import nn

    from certify.models.normalise import Normalise
    if name not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, got {name!r}")
    make = MODELS[name].load()
    kinds = {p.name: str(p.annotation) for p in inspect.signature(make).parameters.values()
             if p.name not in ("shape", "classes")}
    network: nn.Module = make(data.shape, data.classes, **fitted(f"model {name}", settings, kinds))
    if not data.mean:
        return network
    return nn.Sequential(Normalise(data.mean, data.std, len(data.shape)), network)
