"""Train the two bundled digit networks and write them with their properties to `verifier/examples`.

    python benchmarks/make_examples.py

Data: scikit-learn's digits (1,797 images, 8 x 8, scaled to [0, 1]). Training: cross entropy on PGD adversarial
examples (arXiv:1706.06083) whose radius grows during the first half, so that the networks are robust enough to
prove something and weak enough to attack. One fixed seed; some seconds on two cores. The ONNX files are
written node by node with `onnx.helper`, which needs no exporter.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

SEED = 0
EPOCHS = 60
TRAIN_EPS = 0.12
ATTACK_STEPS = 5
BATCH = 64
TEST_IMAGES = 360
SHOWN = 6  # images shipped with the package
EPS = {"small": "0.02", "middle": "0.06", "large": "0.2"}
QUESTIONS = (("mlp", 0), ("mlp", 1), ("mlp", 2), ("cnn", 0), ("cnn", 3), ("cnn", 4))
TIMEOUT_S = 20
IO_NAMES = ("image", "scores")


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x, y) for training and (x, y) for testing, shuffled with the seed; x "N 1 8 8" in [0, 1]."""
    from sklearn.datasets import load_digits
    data = load_digits()
    order = np.random.default_rng(SEED).permutation(len(data.target))
    x = torch.tensor(data.images[order] / 16.0, dtype=torch.float32).unsqueeze(1)
    y = torch.tensor(data.target[order], dtype=torch.long)
    return x[TEST_IMAGES:], y[TEST_IMAGES:], x[:TEST_IMAGES], y[:TEST_IMAGES]


def networks() -> dict[str, nn.Sequential]:
    return {
        "mlp": nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(),
                             nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
        "cnn": nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(),
                             nn.Conv2d(8, 16, 4, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
                             nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 10)),
    }


def attack(net: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int, generator: torch.Generator) -> Tensor:
    """Projected gradient ascent of the cross entropy in the l_inf ball, from a random start."""
    moved = (x + eps * (2 * torch.rand(x.shape, generator=generator) - 1)).clamp(0, 1)
    for _ in range(steps):
        moved.requires_grad_(True)
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(net(moved), y), moved)
        moved = moved.detach() + 2.5 * eps / steps * gradient.sign()
        moved = torch.minimum(torch.maximum(moved, x - eps), x + eps).clamp(0, 1)
    return moved.detach()


def train(net: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> None:
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-3, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS)
    for epoch in range(EPOCHS):
        eps = TRAIN_EPS * min(1.0, (epoch + 1) / (EPOCHS / 2))
        for rows in torch.randperm(len(x), generator=generator).split(BATCH):
            moved = attack(net, x[rows], y[rows], eps, ATTACK_STEPS, generator)
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(moved), y[rows]).backward()
            optimiser.step()
        schedule.step()


def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((net(x).argmax(1) == y).float().mean())


def to_onnx(net: nn.Sequential, name: str, *, shape: tuple[int, ...] = (1, 8, 8), ends: tuple[str, str] = IO_NAMES,
            producer: str = "benchmarks/make_examples.py") -> onnx.ModelProto:
    """The module as ONNX: one node a layer, a named batch axis; `ends` names its input and its output of ten scores."""
    nodes, weights, current = [], [], ends[0]

    def stored(tensor: Tensor, label: str) -> str:
        weights.append(numpy_helper.from_array(tensor.detach().numpy(), label))
        return label

    for i, layer in enumerate(net):
        result = f"layer{i}" if i < len(net) - 1 else ends[1]
        if isinstance(layer, nn.Linear):
            inputs = [current, stored(layer.weight, f"weight{i}"), stored(layer.bias, f"bias{i}")]
            nodes.append(helper.make_node("Gemm", inputs, [result], f"gemm{i}", transB=1))
        elif isinstance(layer, nn.Conv2d):
            inputs = [current, stored(layer.weight, f"weight{i}"), stored(layer.bias, f"bias{i}")]
            nodes.append(helper.make_node("Conv", inputs, [result], f"conv{i}", kernel_shape=list(layer.kernel_size),
                                          strides=list(layer.stride), pads=list(layer.padding) * 2))
        elif isinstance(layer, nn.ReLU):
            nodes.append(helper.make_node("Relu", [current], [result], f"relu{i}"))
        elif isinstance(layer, nn.Flatten):
            nodes.append(helper.make_node("Flatten", [current], [result], f"flatten{i}", axis=1))
        else:
            raise TypeError(f"no ONNX node for {layer}")
        current = result
    graph = helper.make_graph(
        nodes, name,
        [helper.make_tensor_value_info(ends[0], TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info(ends[1], TensorProto.FLOAT, ["batch", 10])], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8,
                              producer_name=producer)
    onnx.checker.check_model(model, full_check=True)
    return model


def vnnlib_lines(image: np.ndarray, label: int, eps: str) -> Iterator[str]:
    """Unsafe: some other class scores at least as high, within eps of the image and within [0, 1]."""
    yield f"; digit with label {label}: no other class may win within l_inf distance {eps}, pixels in [0, 1]"
    yield from (f"(declare-const X_{i} Real)" for i in range(image.size))
    yield from (f"(declare-const Y_{j} Real)" for j in range(10))
    for i, pixel in enumerate(image.ravel()):
        value = Fraction(float(pixel))  # a multiple of 1/16: its decimals end
        yield f"(assert (>= X_{i} {float(max(Fraction(0), value - Fraction(eps)))!r}))"
        yield f"(assert (<= X_{i} {float(min(Fraction(1), value + Fraction(eps)))!r}))"
    others = " ".join(f"(and (>= Y_{j} Y_{label}))" for j in range(10) if j != label)
    yield f"(assert (or {others}))"


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and write the bundled digit networks.")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "verifier" / "examples")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # small layers; and the same sums on every machine with these versions
    generator = torch.Generator().manual_seed(SEED)
    x, y, test_x, test_y = digits()
    nets = networks()
    for name, net in nets.items():
        start = time.perf_counter()
        train(net, x, y, generator)
        seconds = time.perf_counter() - start
        attacked = accuracy(net, attack(net, test_x, test_y, 0.06, 40, generator), test_y)
        print(f"digits_{name}: {sum(p.numel() for p in net.parameters())} parameters, trained in {seconds:.0f} s, "
              f"accuracy {accuracy(net, test_x, test_y):.3f}, under PGD at 0.06 {attacked:.3f} "
              f"on {len(test_y)} test images")
        onnx.save(to_onnx(net, f"digits_{name}"), out / f"digits_{name}.onnx")

    right = torch.stack([net(test_x).argmax(1) == test_y for net in nets.values()]).all(0)
    chosen: list[int] = []
    for index in torch.nonzero(right).flatten().tolist():  # the first of each class: six different digits
        if len(chosen) < SHOWN and int(test_y[index]) not in [int(test_y[c]) for c in chosen]:
            chosen.append(index)
    np.savez_compressed(out / "digits.npz", x=test_x[chosen].numpy(), y=test_y[chosen].numpy())

    rows = []
    for name, image in QUESTIONS:
        for size, eps in EPS.items():
            label = int(test_y[chosen[image]])
            file = f"{name}_image{image}_{size}.vnnlib"
            (out / file).write_text("\n".join(vnnlib_lines(test_x[chosen[image]].numpy(), label, eps)) + "\n")
            rows.append((f"digits_{name}.onnx", file, TIMEOUT_S))
    with (out / "instances.csv").open("w", newline="") as file_:
        csv.writer(file_).writerows(rows)


if __name__ == "__main__":
    main()
