"""The networks: the layers of their papers, readable by the bounds, and trainable on them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from certify.classifier import Classifier
from certify.losses.ibp import Ibp
from certify.models.normalise import Normalise
from certify.models.registry import MODELS, build
from certify.terms import Progress, Step
from tests.certify.models.tiny import CLASSES, SHAPE, TINY, data, network

MNIST, CIFAR = (1, 28, 28), (3, 32, 32)


def made(name: str, shape: tuple[int, ...], **settings: Any) -> nn.Module:
    """For ten classes, without memory for its weights."""
    with torch.device("meta"):
        net: nn.Module = MODELS[name].load()(shape, 10, **settings)
    return net


PUBLISHED = [  # counts of parameters: of papers and released networks, else of the layers that they state
    ("mlp", MNIST, {"hidden": (100, 100, 100)}, 99_710),
    ("wk-small", MNIST, {}, 166_406),
    ("wk-small", CIFAR, {}, 214_918),
    ("wk-large", MNIST, {}, 1_974_762),
    ("wk-large", CIFAR, {}, 2_466_858),
    ("wk-resnet", CIFAR, {}, 4_214_850),
    ("wang4", MNIST, {}, 421_834),
    ("wang8", CIFAR, {}, 1_639_794),
    ("cnn5", MNIST, {}, 822_106),
    ("cnn7", MNIST, {}, 13_259_338),
    ("cnn7", CIFAR, {}, 17_192_650),
    ("resnet", CIFAR, {}, 112_006),
    ("resnet", CIFAR, {"width": 16, "stages": (2, 2)}, 123_734),
    ("wrn", CIFAR, {"depth": 28, "width": 10}, 36_479_194),
    ("wrn", CIFAR, {"depth": 34, "width": 10}, 46_160_474),
]


@pytest.mark.parametrize(("name", "shape", "settings", "count"), PUBLISHED)
def test_networks_have_the_sizes_that_are_published(name: str, shape: tuple[int, ...], settings: dict[str, Any],
                                                    count: int) -> None:
    net = made(name, shape, **settings)
    assert sum(p.numel() for p in net.parameters()) == count
    assert net(torch.zeros(2, *shape, device="meta")).shape == (2, 10)


@pytest.mark.shared
@pytest.mark.parametrize(("file", "settings"), [("resnet_2b", {}), ("resnet_4b", {"width": 16, "stages": (2, 2)})])
def test_residual_networks_are_those_of_the_competition(file: str, settings: dict[str, Any], shared: Path) -> None:
    from bounds.graph import Graph
    theirs = Graph.from_onnx(shared / "vnncomp" / "cifar10_resnet_2021" / "onnx" / f"{file}.onnx")
    weights = [[tuple(n.op.weight.shape) for n in graph.nodes if hasattr(n.op, "weight")]
               for graph in (theirs, Graph.from_torch(build("resnet", data((), ()), **settings), SHAPE))]
    convolutions = [sorted(s for s in found if len(s) == 4) for found in weights]
    assert convolutions[0] == convolutions[1]
    assert [w[0] for w in weights[0][-2:]] == [100, 10]


def layers(net: nn.Module, kind: type[nn.Module] | tuple[type[nn.Module], ...]) -> list[Any]:
    return [layer for layer in net.modules() if isinstance(layer, kind)]


def test_layers_follow_each_other_as_in_the_papers() -> None:
    def told(layer: nn.Module) -> str:
        if isinstance(layer, nn.Conv2d):
            return f"conv{layer.kernel_size[0]}x{layer.out_channels}/{layer.stride[0]}"
        return f"dense{layer.out_features}" if isinstance(layer, nn.Linear) else type(layer).__name__.lower()[:9]

    def line(name: str, shape: tuple[int, ...] = MNIST, **settings: Any) -> str:
        return " ".join(told(layer) for layer in made(name, shape, **settings).children())

    assert line("wk-small") == "conv4x16/2 relu conv4x32/2 relu flatten dense100 relu dense10"
    assert line("wk-large") == ("conv3x32/1 relu conv4x32/2 relu conv3x64/1 relu conv4x64/2 relu flatten dense512 relu "
                                "dense512 relu dense10")
    assert line("wang4") == ("conv3x32/1 batchnorm relu maxpool2d conv3x64/1 batchnorm relu maxpool2d flatten dense128 "
                             "relu dense10")
    block = "conv3x{0}/1 batchnorm relu conv3x{0}/1 batchnorm relu maxpool2d "
    assert line("wang8", CIFAR) == ("".join(block.format(w) for w in (64, 128, 196))
                                    + "flatten dense256 batchnorm relu dense10")
    assert line("cnn5") == ("conv3x16/1 batchnorm relu conv4x16/2 batchnorm relu conv4x32/2 batchnorm relu flatten "
                            "dense512 batchnorm relu dense10")
    assert line("cnn7", width=8, hidden=32, norm=False) == (
        "conv3x8/1 relu conv3x8/1 relu conv3x16/2 relu conv3x16/1 relu conv3x16/1 relu flatten dense32 relu dense10")
    assert line("mlp", hidden=(20, 30)) == "flatten dense20 relu dense30 relu dense10"


def test_the_wide_network_halves_its_map_twice_and_has_two_norms_a_block() -> None:
    net = made("wrn", CIFAR, depth=16, width=2)
    assert [(c.out_channels, c.stride[0]) for c in layers(net, nn.Conv2d) if c.kernel_size == (3, 3)] \
        == [(16, 1), *[(32, 1)] * 4, (64, 2), *[(64, 1)] * 3, (128, 2), *[(128, 1)] * 3]
    assert len(layers(net, nn.BatchNorm2d)) == 2 * 6 + 1


def test_a_block_that_keeps_its_shape_adds_what_came_in() -> None:
    from certify.models.wide_resnet import PreActivationBlock
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 4)
    same, changed = PreActivationBlock(3, 3, 1).eval(), PreActivationBlock(3, 5, 2).eval()
    for block in (same, changed):
        nn.init.zeros_(layers(block.branch, nn.Conv2d)[-1].weight)
    assert torch.equal(same(x), x)
    assert torch.equal(changed(x), changed.skip(changed.enter(x)))


# ---------------------------------------------------------------------- initialisation


def spread(weight: Tensor) -> float:
    return float(weight.detach().double().square().mean().sqrt())


@pytest.mark.parametrize(("name", "settings"), [("wrn", {"depth": 10, "width": 2}), ("wk-resnet", {"width": 16})])
def test_residual_convolutions_are_drawn_by_the_rule_over_outputs(name: str, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    found = layers(build(name, data(), **settings), nn.Conv2d)
    for conv in found:
        expected = math.sqrt(2 / (conv.out_channels * math.prod(conv.kernel_size)))
        assert spread(conv.weight) == pytest.approx(expected, rel=5 / math.sqrt(conv.weight.numel()))
        assert conv.bias is None or not conv.bias.any()
    assert len(found) > 5


def test_networks_of_wang_are_drawn_as_in_keras() -> None:
    torch.manual_seed(0)
    for net in (build("wang4", data()), build("wang8", data(), widths=(16, 16, 16))):
        *convolutions, hidden, last = layers(net, (nn.Conv2d, nn.Linear))
        for layer in (*convolutions, last):
            size = math.prod(layer.weight.shape[2:])
            limit = math.sqrt(6 / (size * (layer.weight.shape[0] + layer.weight.shape[1])))
            assert 0.9 * limit < float(layer.weight.detach().abs().max()) <= limit
        assert spread(hidden.weight) == pytest.approx(math.sqrt(2 / hidden.in_features), rel=0.1)
        assert not any(layer.bias.any() for layer in (*convolutions, hidden, last))


@pytest.mark.parametrize("name", ["mlp", "wk-small", "wk-large", "cnn5", "cnn7", "resnet"])
def test_the_others_keep_the_initialisation_of_their_layers(name: str) -> None:
    torch.manual_seed(0)
    net = build(name, data(), **TINY[name] | ({} if name == "mlp" else {"width": 12}))
    for layer in layers(net, (nn.Conv2d, nn.Linear)):
        limit = 1 / math.sqrt(layer.weight[0].numel())
        assert 0.5 * limit < float(layer.weight.detach().abs().max()) <= limit * (1 + 1e-6)
        assert bool(layer.bias.any())


# ---------------------------------------------------------------------- bounds and training


@pytest.mark.parametrize("name", TINY)
def test_a_step_on_interval_bounds_reaches_every_parameter(name: str) -> None:
    net = network(name).train()
    model = Classifier(net, SHAPE)
    assert model.classes == CLASSES
    x, y = data().train.x, data().train.y
    step = Step(model, x, y, torch.arange(len(y)), 0.01, 0.01, 0.5, math.inf, (0.0, 1.0), Progress(0.5, 1.0, 0), 0)
    logits, _ = model.clean(x)
    with torch.no_grad():
        torch.testing.assert_close(logits, net(x), rtol=1e-4, atol=1e-5)
    terms = Ibp().loss(step)
    terms.total.backward()
    assert math.isfinite(float(terms.total.detach()))
    gradients = {key: p.grad for key, p in net.named_parameters()}
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in gradients.values())
    weights = [g for key, g in gradients.items() if key.endswith("weight")]
    assert weights and all(bool(g.any()) for g in weights if g is not None)


def test_normalisation_is_the_first_layer_and_takes_input_units() -> None:
    net = build("mlp", data(), hidden=(3,))
    first = net[0]  # type: ignore[index]
    assert isinstance(first, Normalise)
    x = torch.rand(2, *SHAPE)
    expected = torch.stack([(x[:, c] - m) / s for c, (m, s) in enumerate(zip(data().mean, data().std, strict=True))], 1)
    torch.testing.assert_close(first(x), expected)
    assert not any(isinstance(layer, Normalise) for layer in build("mlp", data((), ())).modules())


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", [n for n in MODELS if n != "mlp"])
def test_what_is_no_image_or_too_small_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"takes images .* got inputs of shape \(64,\)"):
        made(name, (64,))
    if name in ("wk-small", "wang4", "wang8"):
        with pytest.raises(ValueError, match="too small for this model"):
            made(name, (1, 1, 1))


@pytest.mark.parametrize(("name", "settings", "sentence"), [
    ("wk-small", {"width": 0}, "width must be at least 1"), ("cnn7", {"hidden": 0}, "hidden must be at least 1"),
    ("wang8", {"widths": ()}, "blocks must be at least 1"), ("wang8", {"widths": (4, 0)}, r"widths\[1\]"),
    ("resnet", {"stages": ()}, "stages must be at least 1"), ("resnet", {"stages": (1, 0)}, r"stages\[1\]"),
    ("wrn", {"depth": 12}, r"depth must be 10, 16, 22"), ("wrn", {"depth": 4}, "depth"),
    ("wrn", {"width": 0}, "width"), ("wk-resnet", {"width": 0}, "width")])
def test_settings_that_make_no_network_are_refused(name: str, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        made(name, CIFAR, **settings)


def test_images_that_cannot_be_halved_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        made("wk-resnet", (3, 30, 32))


def test_unknown_models_and_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"model must be one of mlp, wk-small, .*, wrn, got 'vgg'"):
        build("vgg", data())
    with pytest.raises(ValueError, match=r"model cnn7 has no setting depth; it has width, hidden, norm"):
        build("cnn7", data(), depth=3)


def test_every_model_has_a_tiny_form_for_the_tests() -> None:
    assert set(TINY) == set(MODELS)
