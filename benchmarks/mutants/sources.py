"""What is mutated: small real benchmark files of several families, the bundled examples, and generated networks."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.mutants.small_networks import ORDERED, SMALL
from bounds.files import existing, read_bytes

EXAMPLES = Path(__file__).resolve().parents[2] / "verifier" / "examples"
FAMILIES = ("acasxu", "cersyve", "reach_prob_density", "rl_benchmarks", "safenlp", "sat_relu", "tllverifybench",
            "verivital_2021", "nn4sys", "collins_rul_cnn", "marabou_cifar10_2021", "traffic_signs_recognition", "lsnc",
            "ml4acopf")
LARGEST_NETWORK, LARGEST_SPEC = 400_000, 250_000  # bytes: a larger file tells no more, and each mutant is written out
SAMPLES = 64


@dataclass(frozen=True)
class Source:
    """A network and a property of it, both decompressed."""

    name: str
    network: bytes
    spec: bytes


def families(root: Path) -> list[Source]:
    """The first instance of each family whose files are small."""
    found = []
    for family in FAMILIES:
        table = root / family / "instances.csv"
        if not table.is_file():
            continue
        with table.open(newline="") as file:
            for onnx, vnnlib, *_ in csv.reader(file):
                network, spec = (read_bytes(existing(root / family / name)) for name in (onnx, vnnlib))
                if len(network) <= LARGEST_NETWORK and len(spec) <= LARGEST_SPEC:
                    found.append(Source(family, network, spec))
                    break
    return found


def examples() -> list[Source]:
    return [Source(f"digits_{kind}", (EXAMPLES / f"digits_{kind}.onnx").read_bytes(),
                   (EXAMPLES / f"{kind}_image0_middle.vnnlib").read_bytes()) for kind in ("mlp", "cnn")]


def generated() -> list[Source]:
    """Each with a box and an output bound a little outside of what some points reach."""
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    sources = []
    for build in SMALL:
        data = build()
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        (entry,) = session.get_inputs()
        draw = np.random.default_rng(0)
        points = draw.uniform(-1, 1, (SAMPLES, *entry.shape)).astype(np.float32)
        outputs = np.stack([session.run(None, {entry.name: x})[0].ravel() for x in points])
        spread = float(np.ptp(outputs[:, 0])) + 0.1
        unsafe = "(>= Y_0 Y_1)" if build in ORDERED else f"(>= Y_0 {outputs[:, 0].max() + 0.2 * spread:.6f})"
        sources.append(Source(build.__name__, data,
                              box_spec(int(np.prod(entry.shape)), outputs.shape[1], unsafe).encode()))
    return sources


def box_spec(inputs: int, outputs: int, unsafe: str) -> str:
    """The box [-1, 1] and an unsafe set."""
    lines = [f"(declare-const {letter}_{i} Real)" for letter, n in (("X", inputs), ("Y", outputs)) for i in range(n)]
    lines += [f"(assert (>= X_{i} -1.0))\n(assert (<= X_{i} 1.0))" for i in range(inputs)]
    return "\n".join([*lines, f"(assert {unsafe})"]) + "\n"


def all_sources(shared: Path) -> list[Source]:
    return [*families(shared / "vnncomp"), *examples(), *generated()]
