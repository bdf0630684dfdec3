"""The defence networks of Wang et al., On the Convergence and Robustness of Adversarial Training (ICML 2019).

Four layers for MNIST and eight for CIFAR-10, each convolution with batch normalisation, max pooling after each block;
widths as in the authors' code (github.com/YisenWang/dynamic_adv_training), where the eight-layer network also
normalises its dense layer. Initialisation as in Keras: Glorot's uniform rule, He's normal one for the dense layer
before the logits (not truncated here), biases 0. Left out: the code's l_2 penalty of that dense layer in the
eight-layer network, which belongs to the optimiser, and Keras' constants of batch normalisation (PyTorch's are used).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from certify.models.layers import at_least_one, channels_of, conv_block, dense_block, features


def wang4(shape: Sequence[int], classes: int, *, width: int = 32, hidden: int = 128) -> nn.Sequential:
    """3 x 3 convolutions with `width` and 2 `width` channels, pooling after each; one dense layer."""
    at_least_one(width=width, hidden=hidden)
    layers = [*conv_block(channels_of(shape), width, 3, norm=True), nn.MaxPool2d(2),
              *conv_block(width, 2 * width, 3, norm=True), nn.MaxPool2d(2), nn.Flatten()]
    network = nn.Sequential(*layers, *dense_block(features(layers, shape), hidden, norm=False),
                            nn.Linear(hidden, classes))
    _initialise(network)
    return network


def wang8(shape: Sequence[int], classes: int, *, widths: Sequence[int] = (64, 128, 196), hidden: int = 256
          ) -> nn.Sequential:
    """Blocks of two 3 x 3 convolutions and pooling, one a width; one dense layer."""
    at_least_one(blocks=len(widths), hidden=hidden, **{f"widths[{k}]": w for k, w in enumerate(widths)})
    layers: list[nn.Module] = []
    before = channels_of(shape)
    for width in widths:
        layers += [*conv_block(before, width, 3, norm=True), *conv_block(width, width, 3, norm=True), nn.MaxPool2d(2)]
        before = width
    layers.append(nn.Flatten())
    network = nn.Sequential(*layers, *dense_block(features(layers, shape), hidden, norm=True),
                            nn.Linear(hidden, classes))
    _initialise(network)
    return network


def _initialise(network: nn.Sequential) -> None:
    weighty = [layer for layer in network if isinstance(layer, (nn.Conv2d, nn.Linear))]
    for layer in weighty:
        if layer is weighty[-2]:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        else:
            nn.init.xavier_uniform_(layer.weight)
        assert layer.bias is not None, "every layer here has one"
        nn.init.zeros_(layer.bias)
