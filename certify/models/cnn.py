"""The convolutional networks of certified training: CNN5 and CNN7 with batch normalisation.

CNN7 is that of Shi et al. (arXiv:2103.17268), on which records are measured; both as in CTBench
(github.com/eth-sri/CTBench). PyTorch's initialisation, as there; that of fast IBP belongs to its method.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from certify.models.layers import at_least_one, channels_of, conv_block, dense_block, features


def cnn5(shape: Sequence[int], classes: int, *, width: int = 16, hidden: int = 512, norm: bool = True) -> nn.Sequential:
    """A 3 x 3 convolution and two 4 x 4 ones of stride 2, with `width`, `width` and 2 `width` channels; a dense
    layer."""
    at_least_one(width=width, hidden=hidden)
    layers = [*conv_block(channels_of(shape), width, 3, norm=norm), *conv_block(width, width, 4, 2, norm=norm),
              *conv_block(width, 2 * width, 4, 2, norm=norm), nn.Flatten()]
    return nn.Sequential(*layers, *dense_block(features(layers, shape), hidden, norm=norm), nn.Linear(hidden, classes))


def cnn7(shape: Sequence[int], classes: int, *, width: int = 64, hidden: int = 512, norm: bool = True) -> nn.Sequential:
    """Five 3 x 3 convolutions, two with `width` channels and three with 2 `width`, the third of stride 2; a dense
    layer. A narrow one has a `width` of 16 or so."""
    at_least_one(width=width, hidden=hidden)
    layers = conv_block(channels_of(shape), width, 3, norm=norm)
    for before, after, stride in ((1, 1, 1), (1, 2, 2), (2, 2, 1), (2, 2, 1)):
        layers += conv_block(before * width, after * width, 3, stride, norm=norm)
    layers.append(nn.Flatten())
    return nn.Sequential(*layers, *dense_block(features(layers, shape), hidden, norm=norm), nn.Linear(hidden, classes))
