"""Images moved in space: bilinear sampling at other places, rotations and shifts, flow fields and their roughness.

Images are "P C H W"; angles are degrees, distances pixels, rows before columns.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

SMOOTHING = 1e-8  # pixels squared under the square root of the roughness, whose slope is infinite at equal neighbours


def check_images(name: str, x: Tensor) -> None:
    if x.dim() != 4:
        raise ValueError(f"{name} moves images: inputs must have shape (N, channels, height, width), got "
                         f"{tuple(x.shape)}")


def sample(x: Tensor, place: Tensor, *, border: bool) -> Tensor:
    """Bilinear values of images "P C H W" at places "P H W 2" that stand as `grid_sample` wants them (`_scaled`).

    border: what lies outside equals the nearest pixel, else it is zero. Up to rounding: a place is right to a few
    millionths of the width in float32. Differentiable in the place; at whole pixels the slope is that towards a
    neighbour, one of two.
    """
    return functional.grid_sample(x, place, padding_mode="border" if border else "zeros", align_corners=False)


def _scaled(pixel: Tensor, size: int) -> Tensor:
    """Pixel numbers as shares: the image goes from -1 to 1, so that an image one pixel wide works too."""
    return pixel * (2 / size) + (1 / size - 1)


def _axes(x: Tensor) -> tuple[Tensor, Tensor]:
    """The pixel numbers of rows "H 1" and columns "1 W"."""
    height, width = x.shape[2:]
    rows = torch.arange(height, dtype=x.dtype, device=x.device).unsqueeze(1)
    return rows, torch.arange(width, dtype=x.dtype, device=x.device).unsqueeze(0)


def rotated(x: Tensor, angle: Tensor, shift: Tensor, *, border: bool) -> Tensor:
    """Images turned about their centre by `angle` "P" (degrees, counter-clockwise) and then moved by `shift` "P 2"
    (pixels down and right)."""
    height, width = x.shape[2:]
    turn = torch.deg2rad(angle.double()).view(-1, 1, 1)
    cos, sin = turn.cos().to(x.dtype), turn.sin().to(x.dtype)
    middle_row, middle_column = (height - 1) / 2, (width - 1) / 2
    rows, columns = _axes(x)
    down = rows - middle_row - shift[:, 0].to(x.dtype).view(-1, 1, 1)         # "P H 1"
    right = columns - middle_column - shift[:, 1].to(x.dtype).view(-1, 1, 1)  # "P 1 W"
    place = x.new_empty(x.shape[0], height, width, 2)
    # Scaled before they are added: only two operations go over whole images.
    torch.add(cos * right * (2 / width), _scaled(middle_column - sin * down, width), out=place[..., 0])
    torch.add(sin * right * (2 / height), _scaled(middle_row + cos * down, height), out=place[..., 1])
    return sample(x, place, border=border)


def flowed(x: Tensor, flow: Tensor) -> Tensor:
    """Images whose pixel at p shows what was at p + flow(p): flow "P 2 H W" in pixels, down and right. Outside the
    image lies its border."""
    rows, columns = _axes(x)
    right, down = _scaled(columns + flow[:, 1], x.shape[3]), _scaled(rows + flow[:, 0], x.shape[2])
    return sample(x, torch.stack([right, down], -1), border=True)


def roughness(flow: Tensor) -> Tensor:
    """The sum, over pixels and their four neighbours, of how far the two flows differ: "P 2 H W" -> "P".

    L_flow of Xiao et al. (arXiv:1801.02612); every pair of neighbours counts twice, as each is the other's.
    """
    pairs = [flow[:, :, 1:] - flow[:, :, :-1], flow[..., 1:] - flow[..., :-1]]
    smooth = [(d.square().sum(1) + SMOOTHING).sqrt() - math.sqrt(SMOOTHING) for d in pairs]
    return 2 * (smooth[0].flatten(1).sum(1) + smooth[1].flatten(1).sum(1))


def variation(flow: Tensor) -> Tensor:
    """The root mean square, over pixels, of how far the flow differs from a neighbour's, for the worst of the four
    directions: "P 2 H W" -> "P". Outside the image the flow is zero, so this is a norm. What Zhang et al. limit by tau
    (arXiv:2010.07788)."""
    padded = functional.pad(flow, (1, 1, 1, 1))
    downward = (padded[:, :, 1:, 1:-1] - padded[:, :, :-1, 1:-1]).square().sum(1)
    sideways = (padded[:, :, 1:-1, 1:] - padded[:, :, 1:-1, :-1]).square().sum(1)
    towards = [downward[:, 1:], downward[:, :-1], sideways[..., 1:], sideways[..., :-1]]
    return torch.stack([t.flatten(1).mean(1) for t in towards], 1).amax(1).sqrt()
