"""Residual networks (He et al., arXiv:1512.03385) small enough to be verified: ResNet-2B and 4B of VNN-COMP 2021.

The competition (arXiv:2109.00498) has them for CIFAR-10. The defaults are ResNet-2B; 4B has `width` 16 and `stages`
(2, 2). Batch normalisation is on request (`norm`): those two have none. PyTorch's initialisation, as there.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from certify.models.layers import at_least_one, channels_of, conv_block, dense_block, features


class BasicBlock(nn.Module):
    """`relu(branch(x) + skip(x))`: two 3 x 3 convolutions beside the identity, or beside a 1 x 1 convolution where
    the shape changes."""

    def __init__(self, before: int, after: int, stride: int, *, norm: bool) -> None:
        super().__init__()
        last = [nn.BatchNorm2d(after)] if norm else []
        self.branch = nn.Sequential(*conv_block(before, after, 3, stride, norm=norm), nn.Conv2d(after, after, 3, 1, 1),
                                    *last)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            own = [nn.BatchNorm2d(after)] if norm else []
            self.skip = nn.Sequential(nn.Conv2d(before, after, 1, stride), *own)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.relu(self.branch(x) + self.skip(x))
        return result


def resnet(shape: Sequence[int], classes: int, *, width: int = 8, stages: Sequence[int] = (2,), hidden: int = 100,
           norm: bool = False) -> nn.Sequential:
    """A 3 x 3 convolution of stride 2 with `width` channels; stages of so many blocks with 2 `width` channels, each
    stage of stride 2; a dense layer."""
    at_least_one(width=width, hidden=hidden, stages=len(stages), **{f"stages[{k}]": n for k, n in enumerate(stages)})
    layers, before = conv_block(channels_of(shape), width, 3, 2, norm=norm), width
    for blocks in stages:
        for k in range(blocks):
            layers.append(BasicBlock(before, 2 * width, 1 if k else 2, norm=norm))
            before = 2 * width
    layers.append(nn.Flatten())
    return nn.Sequential(*layers, *dense_block(features(layers, shape), hidden, norm=norm), nn.Linear(hidden, classes))
