"""Transforms of inputs against slow ones, and what an attack sees of a network behind them."""

from __future__ import annotations

import copy
import io
import sys
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor, nn

from certify.defences import DEFENCES, BitDepth, Jpeg, Median, Preprocessed, defended
from tests.certify.cases import examples, network
from verifier.attacks.criterion import Misclassified
from verifier.attacks.pgd import Pgd
from verifier.attacks.threat import Threat


def images(channels: int = 1, height: int = 7, width: int = 9, low: float = 0.0, high: float = 1.0) -> Tensor:
    x = torch.rand(3, channels, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return low + (high - low) * x


@pytest.mark.parametrize("clip", [(0.0, 1.0), (-2.0, 3.0)])
@pytest.mark.parametrize("bits", [1, 3, 8])
def test_bit_depth_picks_the_nearest_of_its_values(bits: int, clip: tuple[float, float]) -> None:
    x = images(low=clip[0], high=clip[1])
    levels = np.linspace(*clip, 2**bits)
    expected = levels[np.abs(x.numpy()[..., None] - levels).argmin(-1)]
    y = BitDepth(bits, clip)(x)
    np.testing.assert_allclose(y.numpy(), expected, atol=1e-12)
    assert y.dtype == x.dtype
    torch.testing.assert_close(BitDepth(bits, clip)(y), y)
    ends = torch.tensor([list(clip)])
    torch.testing.assert_close(BitDepth(bits, clip)(ends), ends)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("channels", [1, 3])
def test_median_equals_that_of_scipy(size: int, channels: int) -> None:
    x = images(channels, 4, 6)  # 9 wide: the mirror image is mirrored again
    expected = scipy.ndimage.median_filter(x.numpy(), size=(1, 1, size, size), mode="reflect")
    np.testing.assert_array_equal(Median(size)(x).numpy(), expected)


def test_jpeg_equals_pillow_image_by_image() -> None:
    image = pytest.importorskip("PIL.Image")
    for channels in (1, 3):
        x = images(channels, 16, 24)
        y = Jpeg(quality=60)(x)
        assert y.shape == x.shape and y.dtype == x.dtype
        for one, got in zip(x.numpy(), y.numpy(), strict=True):
            pixels = np.rint(one * 255).astype(np.uint8)
            picture = image.fromarray(pixels[0], "L") if channels == 1 else image.merge(
                "RGB", [image.fromarray(c, "L") for c in pixels])
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=60)
            read = np.asarray(image.open(file))
            expected = read[None] if channels == 1 else np.moveaxis(read, -1, 0)
            np.testing.assert_allclose(got, expected / 255, atol=1e-12)


def test_jpeg_keeps_smooth_images_and_forgets_noise() -> None:
    pytest.importorskip("PIL")
    ramp = torch.linspace(-1, 3, 32).expand(1, 1, 32, 32)
    fine = Jpeg(95, clip=(-1.0, 3.0))(ramp)
    assert float((fine - ramp).abs().max()) < 0.1
    noise = ramp + 0.2 * (torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(1)) - 0.5)
    rough = Jpeg(5, clip=(-1.0, 3.0))(noise.clamp(-1, 3))
    assert rough.unique().numel() < 300 and float((rough - noise).abs().max()) > 0.05


@pytest.mark.parametrize("name", list(DEFENCES))
def test_bpda_runs_the_transform_forward_and_nothing_backward(name: str) -> None:
    if name == "jpeg":
        pytest.importorskip("PIL")
    net, (x, y) = network("conv").eval(), examples(8)
    behind = copy.deepcopy(defended(net, name))
    changed = DEFENCES[name]()(x)
    assert not torch.equal(changed, x)
    torch.testing.assert_close(behind(x), net(changed))
    here, there = x.clone().requires_grad_(True), changed.clone().requires_grad_(True)
    nn.functional.cross_entropy(behind(here), y).backward()
    nn.functional.cross_entropy(net(there), y).backward()
    torch.testing.assert_close(here.grad, there.grad)


def test_without_bpda_the_true_derivative_is_passed() -> None:
    net, (x, _) = network("mlp", dtype=torch.float64).eval(), examples(4, dtype=torch.float64)
    x.requires_grad_(True)
    (g,) = torch.autograd.grad(defended(net, "bit-depth", bpda=False)(x).sum(), x)
    assert bool((g == 0).all())
    assert torch.autograd.gradcheck(defended(net, "median", bpda=False), x)


def test_an_attack_that_knows_of_the_rounding_finds_more() -> None:
    """The network behind it is no more robust: plain gradients are zero there, and only seem to say so."""
    net, (x, y) = network("mlp"), examples(64, 5)
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
    net.eval()
    found = []
    for bpda in (False, True):
        behind = defended(net, "bit-depth", bpda=bpda, bits=4)
        attack = Pgd(steps=20).run(behind, x, Misclassified(y), Threat(eps=0.3, clip=(0.0, 1.0)))
        found.append(int(np.asarray(attack.success).sum()))
    assert found[1] > found[0] + 20


@pytest.mark.parametrize(("name", "settings", "match"), [
    ("sharpen", {}, "bit-depth, median, jpeg"), ("bit-depth", {"bits": 0}, "bits"), ("median", {"size": 0}, "size"),
    ("bit-depth", {"clip": (1.0, 1.0)}, "clip"), ("jpeg", {"quality": 0}, "quality"), ("median", {"bits": 3}, "bits")])
def test_bad_settings_are_refused(name: str, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        defended(network("mlp"), name, **settings)


def test_what_cannot_be_done_is_refused_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="needs images"):
        Median()(torch.zeros(2, 5))
    jpeg = Jpeg()
    with pytest.raises(ValueError, match="one channel or three"):
        jpeg(torch.zeros(1, 2, 8, 8))
    with pytest.raises(ValueError, match="no derivative"):
        Preprocessed(network("mlp"), jpeg, bpda=False)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ValueError, match="pip install pillow"):
        Jpeg()
