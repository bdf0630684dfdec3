"""Train the three bundled digit networks and write them with their properties to `verifier/examples`.

    python benchmarks/make_examples.py

Data: scikit-learn's digits (1,797 images, 8 x 8, scaled to [0, 1]). Training of `digits_mlp` and `digits_cnn`: cross
entropy on PGD adversarial examples (arXiv:1706.06083) whose radius grows during the first half, so that the networks
are robust enough to prove something and weak enough to attack. `digits_certified` has the layers of the first, is what
`rmax train` makes of CERTIFIED, and is asked the same questions. One fixed seed; some seconds on two cores.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the checkout that this file lies in, installed or not

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from certify.data.digits import load_digits  # noqa: E402
from certify.export import export_onnx  # noqa: E402

SEED = 0
EPOCHS = 60
TRAIN_EPS = 0.12
ATTACK_STEPS = 5
BATCH = 64
SHOWN = 6  # images shipped with the package
EPS = {"small": "0.02", "middle": "0.06", "large": "0.2"}
QUESTIONS = (("mlp", 0), ("mlp", 1), ("mlp", 2), ("cnn", 0), ("cnn", 3), ("cnn", 4))
TIMEOUT_S = 20
IO_NAMES = ("image", "scores")
CERTIFIED = {"method": "mtl-ibp", "model": "mlp", "model.hidden": [64, 32], "data": "digits", "eps": 0.1, "seed": SEED}


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x, y) for training and (x, y) for testing; x "N 1 8 8" in [0, 1]."""
    data = load_digits()
    return data.train.x, data.train.y, data.test.x, data.test.y


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


def certified() -> nn.Module:
    """The network that is trained to be proved."""
    from certify import train as train_certified
    trained = train_certified(CERTIFIED)
    print(f"digits_certified: {trained.card['parameters']} parameters, trained in {trained.card['seconds']:.0f} s, "
          f"{trained.card['test']}\n  {trained.card['command']}")
    return trained.model.module


def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((net(x).argmax(1) == y).float().mean())


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
    parser.add_argument("--out", type=Path, default=ROOT / "verifier" / "examples")
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
        export_onnx(net, tuple(x.shape[1:]), out / f"digits_{name}.onnx", ends=IO_NAMES,
                    producer="benchmarks/make_examples.py")

    export_onnx(certified(), tuple(x.shape[1:]), out / "digits_certified.onnx", ends=IO_NAMES,
                producer="benchmarks/make_examples.py")

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
    rows += [("digits_certified.onnx", file, seconds) for net, file, seconds in rows if net == "digits_mlp.onnx"]
    with (out / "instances.csv").open("w", newline="") as file_:
        csv.writer(file_).writerows(rows)


if __name__ == "__main__":
    main()
