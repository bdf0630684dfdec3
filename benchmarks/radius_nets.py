"""Train the MNIST networks of the survey of certified robustness (arXiv:2009.04131), on which `radius.py` is measured.

    python benchmarks/radius_nets.py --net 2x20                          # trained the ordinary way
    python benchmarks/radius_nets.py --net 3x100 --training adversarial --out-dir out/nets

| --net | layers | survey |
|---|---|---|
| 2x20 | dense 20, 20, 10 | FCNNa |
| 3x100 | dense 100, 100, 100, 10 | FCNNb |
| 7x1024 | dense 1024 seven times, 10 | FCNNc |
| wk_small | those of `mnist_net.py` | CNNa |
| cnn7 | five 3 x 3 convolutions (64, 64, 128, 128, 128 channels, the third with stride 2), dense 512, 10 | CNNd |

Adversarial training is that of Madry and others (arXiv:1706.06083): cross entropy at the end of projected gradient
ascent inside an l_inf ball of radius 0.1, from a random start; the radius grows over the first half, without which the
smallest network learnt nothing (accuracy 11.35 %). Inputs lie in [0, 1]; the batch norms of cnn7 are folded into the
layers before them. One thread and one seed: the same file on one kind of machine.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the checkout that this file lies in, installed or not

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval  # noqa: E402

from benchmarks.golden import read_images  # noqa: E402
from benchmarks.make_examples import attack  # noqa: E402
from benchmarks.mnist_net import BATCH, data_flag, network, train, training_images, write  # noqa: E402
from certify.models.cnn import cnn7  # noqa: E402
from certify.models.mlp import mlp  # noqa: E402

EPS = 0.1
STEPS = 5          # of the attack in training, each 2.5 * EPS / STEPS long
LEARNING_RATE = 1e-3
LEAST = 0.9        # share of test images; less is a fault of the run


MNIST = ((1, 28, 28), 10)  # an image, and classes
NETS: dict[str, tuple[Callable[[], nn.Sequential], int]] = {  # and the epochs
    "2x20": (lambda: mlp(*MNIST, hidden=(20, 20)), 10),
    "3x100": (lambda: mlp(*MNIST, hidden=(100, 100, 100)), 10),
    "7x1024": (lambda: mlp(*MNIST, hidden=(1024,) * 7), 2),
    "wk_small": (network, 6),
    "cnn7": (lambda: cnn7(*MNIST), 5),
}


def folded(net: nn.Sequential) -> nn.Sequential:
    """The same function in evaluation mode, without batch norms."""
    layers: list[nn.Module] = []
    for layer in net.eval():
        if isinstance(layer, nn.BatchNorm2d):
            before = layers.pop()
            assert isinstance(before, nn.Conv2d), "a batch norm follows its convolution"
            layers.append(fuse_conv_bn_eval(before, layer))
        elif isinstance(layer, nn.BatchNorm1d):
            before = layers.pop()
            assert isinstance(before, nn.Linear), "a batch norm follows its dense layer"
            layers.append(fuse_linear_bn_eval(before, layer))
        else:
            layers.append(layer)
    return nn.Sequential(*layers)


def adversarial(net: nn.Module, batches: int, generator: torch.Generator) -> Callable[[Tensor, Tensor], Tensor]:
    """Images as the attack moves them, batch norms held still meanwhile; its radius grows over the first `batches`."""
    number = itertools.count(1)

    def moved(x: Tensor, y: Tensor) -> Tensor:
        net.eval()
        found = attack(net, x, y, EPS * min(1.0, next(number) / batches), STEPS, generator)
        net.train()
        return found

    return moved


def main() -> None:
    parser = argparse.ArgumentParser(description="Train one of the survey's MNIST networks and write it as ONNX.")
    data_flag(parser)
    parser.add_argument("--net", choices=NETS, required=True)
    parser.add_argument("--training", choices=("clean", "adversarial"), default="clean")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int,
                        help="[10 of the small dense ones, 2 of 7x1024, 6 of wk_small, 5 of cnn7]")
    parser.add_argument("--out-dir", type=Path, default=ROOT / "out" / "nets", metavar="FOLDER",
                        help="for mnist_NET.onnx or mnist_NET_adv.onnx [%(default)s]")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # the same sums on every machine with these versions
    make, epochs = NETS[args.net][0], args.epochs or NETS[args.net][1]
    net, generator = make(), torch.Generator().manual_seed(args.seed)
    start = time.perf_counter()
    x, y = training_images(args.data_dir)
    growing = max(1, epochs * len(x) // BATCH // 2)
    train(net, x, y, epochs, generator, learning_rate=LEARNING_RATE,
          moved=adversarial(net, growing, generator) if args.training == "adversarial" else None)
    seconds = time.perf_counter() - start
    x, y = (torch.from_numpy(t) for t in read_images(args.data_dir))
    name = f"mnist_{args.net}{'_adv' if args.training == 'adversarial' else ''}.onnx"
    write(folded(net), args.out_dir / name, x, y, least=LEAST, producer="benchmarks/radius_nets.py",
          words=f"{args.training} training, {epochs} epochs in {seconds:.0f} s with seed {args.seed}")


if __name__ == "__main__":
    main()
