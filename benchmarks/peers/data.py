"""The images of a comparison: the first test images that a network gives the right label.

    python benchmarks/peers/data.py --net NET.onnx --data-dir ../shared/datasets/mnist --count 100 --out DATA.npz

Run by our own Python: the labels, and the logits stored beside the images, are onnxruntime's.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the checkout that this file lies in, installed or not

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402

from benchmarks.golden import read_images  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description="Store the first test images that a network gets right.")
    parser.add_argument("--net", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, default=ROOT.parent / "shared" / "datasets" / "mnist",
                        help="folder with MNIST's test files, or an .npz with x and y [%(default)s]")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    x, y = read_images(args.data_dir)
    session = onnxruntime.InferenceSession(args.net, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: x})
    chosen = np.flatnonzero(logits.argmax(1) == y)[:args.count]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(args.out, x=x[chosen], y=y[chosen], index=chosen, logits=logits[chosen])
    print(f"{len(chosen)} images, the last is number {chosen[-1]}; clean accuracy {(logits.argmax(1) == y).mean():.2%}")


if __name__ == "__main__":
    main()
