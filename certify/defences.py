"""Defences that change the input before the network sees it: rounding of colours, a median filter, JPEG.

They do not make a network robust against an attack that knows of them: rounding has no gradient and JPEG none that can
be computed here, so that plain gradients make them look strong. `Preprocessed` therefore passes gradients as if the
transform were the identity (backward pass differentiable approximation, BPDA: Athalye, Carlini and Wagner,
arXiv:1802.00420) unless told otherwise. Bit depth and median filter are those of feature squeezing (Xu, Evans and Qi,
arXiv:1704.01155), JPEG that of Dziugaite, Ghahramani and Roy (arXiv:1608.00853). Left out: the detector of feature
squeezing, which compares predictions, and differentiable versions of JPEG.
"""

from __future__ import annotations

import io
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class Transform(nn.Module):
    """Inputs "B *shape" to inputs of the same shape. differentiable: whether automatic derivatives exist, be they
    zero."""

    differentiable: ClassVar[bool] = True

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The inputs that the network gets."""


class BitDepth(Transform):
    """The nearest of `2 ** bits` evenly spaced values of the range `clip`."""

    def __init__(self, bits: int = 4, clip: tuple[float, float] = (0.0, 1.0)) -> None:
        super().__init__()
        if not 1 <= bits <= 16:
            raise ValueError(f"bits must be from 1 to 16, got {bits}")
        self.low, self.high = _range(clip)
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        steps, length = 2**self.bits - 1, self.high - self.low
        return ((x - self.low) / length * steps).round() / steps * length + self.low


class Median(Transform):
    """The median over a square window of each channel, `size` wide, the image mirrored at its edges (the edge itself
    twice). Of an even number of values the larger middle one; an even window reaches further up and left."""

    def __init__(self, size: int = 3) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"size must be >= 1, got {size}")
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() < 3:
            raise ValueError(f"the median filter needs images, got inputs of shape {tuple(x.shape[1:])}")
        for axis in (-2, -1):
            x = x.index_select(axis, self._mirrored(x.shape[axis], x.device))
        windows = x.unfold(-2, self.size, 1).unfold(-2, self.size, 1).flatten(-2)
        return windows.kthvalue(self.size**2 // 2 + 1, -1).values

    def _mirrored(self, length: int, device: torch.device) -> Tensor:
        """Which places a line is read at, `size - 1` more than it has."""
        first = -(self.size // 2)
        place = torch.arange(first, length + self.size - 1 + first, device=device) % (2 * length)
        return torch.minimum(place, 2 * length - 1 - place)


class Jpeg(Transform):
    """Compressed with a quality from 1 to 95 and read back, by Pillow: 8 bits a value, one channel or three."""

    differentiable: ClassVar[bool] = False

    def __init__(self, quality: int = 75, clip: tuple[float, float] = (0.0, 1.0)) -> None:
        super().__init__()
        if not 1 <= quality <= 95:
            raise ValueError(f"quality must be from 1 to 95, got {quality}")
        try:
            import PIL  # noqa: F401
        except ImportError as error:
            raise ValueError("the defence jpeg needs Pillow: pip install pillow") from error
        self.low, self.high = _range(clip)
        self.quality = quality

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] not in (1, 3):
            raise ValueError(f"jpeg takes images of one channel or three, got inputs of shape {tuple(x.shape[1:])}")
        length = self.high - self.low
        pixels = ((x.detach() - self.low) / length * 255).round().clamp(0, 255).to(torch.uint8).cpu()
        read = torch.stack([self._once(image) for image in pixels]) if len(pixels) else pixels
        return read.to(x) / 255 * length + self.low

    def _once(self, image: Tensor) -> Tensor:
        """uint8 "C H W" to the same."""
        import numpy as np
        from PIL import Image
        rows = image.permute(1, 2, 0).numpy()
        file = io.BytesIO()
        Image.fromarray(rows[:, :, 0] if len(image) == 1 else rows).save(file, "JPEG", quality=self.quality)
        decoded = torch.from_numpy(np.array(Image.open(file)))
        return decoded.view(*image.shape[1:], len(image)).permute(2, 0, 1)


class Preprocessed(nn.Module):
    """A network behind a transform. bpda: gradients by the input pass the transform unchanged."""

    def __init__(self, module: nn.Module, transform: Transform, *, bpda: bool = True) -> None:
        super().__init__()
        if not bpda and not transform.differentiable:
            raise ValueError(f"{type(transform).__name__.lower()} has no derivative: attack it with bpda, or without "
                             "gradients")
        self.module, self.transform, self.bpda = module, transform, bpda

    def forward(self, x: Tensor) -> Tensor:
        changed = _Straight.apply(x, self.transform) if self.bpda else self.transform(x)
        logits: Tensor = self.module(changed)
        return logits


class _Straight(torch.autograd.Function):
    """The transform forward, the identity backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, transform: Transform) -> Tensor:
        return transform(x)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        return slopes[0], None


DEFENCES: dict[str, type[Transform]] = {"bit-depth": BitDepth, "median": Median, "jpeg": Jpeg}


def defended(module: nn.Module, name: str, *, bpda: bool = True, **settings: Any) -> Preprocessed:
    """The network behind a transform by name. Raises ValueError for an unknown name or a bad setting."""
    if name not in DEFENCES:
        raise ValueError(f"defence must be one of {', '.join(DEFENCES)}, got {name!r}")
    try:
        transform = DEFENCES[name](**settings)
    except TypeError as error:
        raise ValueError(f"defence {name}: {error}") from error
    return Preprocessed(module, transform, bpda=bpda)


def _range(clip: tuple[float, float]) -> tuple[float, float]:
    low, high = clip
    if not low < high:
        raise ValueError(f"clip must be two numbers LO < HI, got {clip}")
    return low, high
