"""Wide residual networks (Zagoruyko and Komodakis, arXiv:1605.07146), the usual networks of adversarial training.

Pre-activation blocks in three groups, the average over the map, one dense layer; WRN-34-10 is `depth` 34 and `width` 10.
As in the code of TRADES and its successors, a block that changes the shape takes both of its branches from the
activated input, and convolutions have no bias. Convolutions are drawn by He's rule over outputs, the bias of the dense
layer is 0. Left out: dropout, which none of them uses.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from certify.models.layers import at_least_one, channels_of, he_normal_by_outputs

FIRST = 16  # channels of the first convolution


class PreActivationBlock(nn.Module):
    """`x + branch(relu(norm(x)))`, or `skip(a) + branch(a)` of a = relu(norm(x)) where the shape changes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.BatchNorm2d(before), nn.ReLU())
        self.branch = nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after),
                                    nn.ReLU(), nn.Conv2d(after, after, 3, 1, 1, bias=False))
        self.same = stride == 1 and before == after
        self.skip: nn.Module = nn.Identity() if self.same else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.enter(x)
        result: Tensor = self.branch(activated) + self.skip(x if self.same else activated)
        return result


def wide_resnet(shape: Sequence[int], classes: int, *, depth: int = 16, width: int = 4) -> nn.Sequential:
    """depth: 6 n + 4, for n blocks a group; width: the factor of their channels (16, 32, 64)."""
    at_least_one(width=width)
    blocks, rest = divmod(depth - 4, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth must be 10, 16, 22, ... (6 n + 4), got {depth}")
    layers: list[nn.Module] = [nn.Conv2d(channels_of(shape), FIRST, 3, 1, 1, bias=False)]
    before = FIRST
    for group in range(3):
        after = FIRST * width * 2**group
        for k in range(blocks):
            layers.append(PreActivationBlock(before, after, 2 if group and not k else 1))
            before = after
    last = nn.Linear(before, classes)
    network = nn.Sequential(*layers, nn.BatchNorm2d(before), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)
    he_normal_by_outputs(network)
    nn.init.zeros_(last.bias)
    return network
