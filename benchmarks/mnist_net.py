"""Train an MNIST network the ordinary way, with no thought of robustness, and write it to `benchmarks/nets`.

    python benchmarks/mnist_net.py --data-dir ../shared/datasets/mnist

The attacks are compared on it beside the golden network (`golden.py`), which was trained to be certified: both have the
same layers, so what differs between their figures is training alone. Cross entropy, Adam, the learning rate falls
to zero along a cosine; no augmentation. One thread and one seed: the same file on one kind of machine. It ends with
an error, and writes nothing, if the file and the module disagree or too many test images are given a wrong label.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the checkout that this file lies in, installed or not

import numpy as np  # noqa: E402
import onnx  # noqa: E402
import onnxruntime  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from benchmarks.golden import read_images  # noqa: E402
from benchmarks.make_examples import accuracy  # noqa: E402
from bounds.graph import Graph  # noqa: E402
from certify.data import idx  # noqa: E402
from certify.export import to_onnx  # noqa: E402
from certify.models.wong_kolter import wk_small  # noqa: E402

BATCH = 128
LEARNING_RATE = 2e-3
ACCURACY = 0.985   # an ordinary network of this size reaches more; less is a fault of the run
AGREEMENT = 1e-4   # between onnxruntime and PyTorch, logits of size 10: float32 sums in another order


def network() -> nn.Sequential:
    """The layers of the golden network: 166,406 parameters, 4,804 ReLUs; x "N 1 28 28" in [0, 1] to 10 logits."""
    return wk_small((1, 28, 28), 10)


def training_images(folder: Path) -> tuple[Tensor, Tensor]:
    x, y = idx.read_images(folder, "train")
    return torch.from_numpy(x), torch.from_numpy(y)


def train(net: nn.Module, x: Tensor, y: Tensor, epochs: int, generator: torch.Generator, *,
          learning_rate: float = LEARNING_RATE, moved: Callable[[Tensor, Tensor], Tensor] | None = None) -> None:
    """moved(images, labels): what is trained on in place of the images themselves."""
    optimiser = torch.optim.Adam(net.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * -(-len(x) // BATCH))
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(x), generator=generator).split(BATCH):
            images = x[rows] if moved is None else moved(x[rows], y[rows])
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(net(images), y[rows])
            loss.backward()
            optimiser.step()
            schedule.step()
            total += float(loss.detach()) * len(rows)
        print(f"epoch {epoch + 1} of {epochs}: training loss {total / len(x):.4f}", file=sys.stderr)


def write(net: nn.Sequential, path: Path, x: Tensor, y: Tensor, *, least: float, producer: str, words: str) -> None:
    """Write the network as ONNX and say how many of the test images it gets right. SystemExit, with nothing written,
    where that is less than `least`, or where the file and the module disagree."""
    model = to_onnx(Graph.from_torch(net, (1, 28, 28)), name=path.stem, ends=("x", "logits"), producer=producer)
    difference = disagreement(model, net, x.numpy())
    share = accuracy(net, x, y)
    print(f"{sum(p.numel() for p in net.parameters())} parameters, {words}: clean accuracy {share:.2%} on {len(y)} "
          f"test images, largest difference to onnxruntime {difference:.1e}")
    if difference > AGREEMENT or share < least:
        raise SystemExit(f"nothing written: wanted a difference of at most {AGREEMENT} and accuracy {least:.2%}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())


def disagreement(model: onnx.ModelProto, net: nn.Module, x: NDArray[np.float32]) -> float:
    """The largest difference of logits between onnxruntime, on all images and on the first alone, and the module."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"x": x})
    (first,) = session.run(None, {"x": x[:1]})
    with torch.no_grad():
        here = net(torch.from_numpy(x)).numpy()
    return max(float(np.abs(logits - here).max()), float(np.abs(first - here[:1]).max()))


def data_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-dir", type=Path, default=ROOT.parent / "shared" / "datasets" / "mnist",
                        help="folder with MNIST's four IDX files, plain or .gz [%(default)s]")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train an ordinary MNIST network and write it as ONNX.")
    data_flag(parser)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "nets" / "mnist_cnn.onnx")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # the same sums on every machine with these versions
    x, y = training_images(args.data_dir)
    test_x, test_y = read_images(args.data_dir)
    net = network()
    start = time.perf_counter()
    train(net, x, y, args.epochs, torch.Generator().manual_seed(args.seed))
    seconds = time.perf_counter() - start
    write(net, args.out, torch.from_numpy(test_x), torch.from_numpy(test_y), least=ACCURACY,
          producer="benchmarks/mnist_net.py",
          words=f"{args.epochs} epochs in {seconds:.0f} s with seed {args.seed}")


if __name__ == "__main__":
    main()
