"""The networks of Wong and Kolter: small and large (arXiv:1711.00851, arXiv:1805.12514), and the residual one.

Sizes are those of the second paper and its code (github.com/locuslab/convex_adversarial). Small and large keep PyTorch's
initialisation, as there for MNIST; the residual network draws its convolutions by He's rule over outputs, as there.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from certify.models.layers import at_least_one, channels_of, conv_block, dense_block, features, he_normal_by_outputs


def wk_small(shape: Sequence[int], classes: int, *, width: int = 16, hidden: int = 100) -> nn.Sequential:
    """Two 4 x 4 convolutions of stride 2 with `width` and 2 `width` channels, a dense layer. On MNIST 166,406
    parameters and 4,804 ReLUs: the golden network's."""
    at_least_one(width=width, hidden=hidden)
    layers = [*conv_block(channels_of(shape), width, 4, 2, norm=False),
              *conv_block(width, 2 * width, 4, 2, norm=False), nn.Flatten()]
    return nn.Sequential(*layers, *dense_block(features(layers, shape), hidden, norm=False), nn.Linear(hidden, classes))


def wk_large(shape: Sequence[int], classes: int, *, width: int = 32, hidden: int = 512) -> nn.Sequential:
    """Twice a 3 x 3 convolution and a 4 x 4 one of stride 2, with `width` and then 2 `width` channels; two dense
    layers."""
    at_least_one(width=width, hidden=hidden)
    layers = [*conv_block(channels_of(shape), width, 3, norm=False), *conv_block(width, width, 4, 2, norm=False),
              *conv_block(width, 2 * width, 3, norm=False), *conv_block(2 * width, 2 * width, 4, 2, norm=False),
              nn.Flatten()]
    return nn.Sequential(*layers, *dense_block(features(layers, shape), hidden, norm=False),
                         *dense_block(hidden, hidden, norm=False), nn.Linear(hidden, classes))


class SkipBlock(nn.Module):
    """`relu(second(relu(first(x))) + skip(x))`; skip is a convolution too: 1 x 1, or 2 x 2 where the map is halved."""

    def __init__(self, before: int, after: int, *, halve: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 4 if halve else 3, 2 if halve else 1, 1)
        self.second = nn.Conv2d(after, after, 3, 1, 1)
        self.skip = nn.Conv2d(before, after, 2 if halve else 1, 2 if halve else 1)
        self.inner, self.outer = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.outer(self.second(self.inner(self.first(x))) + self.skip(x))
        return result


def wk_resnet(shape: Sequence[int], classes: int, *, width: int = 16, hidden: int = 1000) -> nn.Sequential:
    """A 3 x 3 convolution, blocks of `width`, `width`, 2 `width` and 4 `width` channels, of which the last two halve
    the map, and a dense layer. Height and width have to be multiples of 4."""
    at_least_one(width=width, hidden=hidden)
    channels = channels_of(shape)
    if any(n % 4 for n in shape[1:]):
        raise ValueError(f"wk-resnet halves images twice: height and width must be multiples of 4, got {tuple(shape)}")
    layers = [*conv_block(channels, width, 3, norm=False), SkipBlock(width, width, halve=False),
              SkipBlock(width, width, halve=False), SkipBlock(width, 2 * width, halve=True),
              SkipBlock(2 * width, 4 * width, halve=True), nn.Flatten()]
    network = nn.Sequential(*layers, *dense_block(features(layers, shape), hidden, norm=False),
                            nn.Linear(hidden, classes))
    he_normal_by_outputs(network)
    return network
