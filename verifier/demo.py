"""The bundled example: prove and attack small digit networks, and show what an attack does to a digit."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from verifier.network import NetworkCache
from verifier.strategy import Result, verify
from verifier.verdict import Falsified, Reason
from verifier.vnnlib import read_vnnlib

EXAMPLES = Path(__file__).parent / "examples"
TIME_LIMIT_S = 5.0  # a question; all of them together stay below a minute on a busy machine too


@dataclass(frozen=True, eq=False)
class Answer:
    """One question of the demo: is digit `image` safe within `eps` of itself for this network?"""

    network: str
    image: int
    label: int
    eps: str
    result: Result


def run_demo(on_answer: Callable[[Answer], None] = lambda answer: None, *, seed: int = 0) -> list[Answer]:
    """Answer every bundled question, in the order of its instances.csv."""
    networks = NetworkCache()
    digits = np.load(EXAMPLES / "digits.npz", allow_pickle=False)
    answers = []
    with (EXAMPLES / "instances.csv").open(newline="") as file:
        for onnx, spec, _ in csv.reader(file):
            network = networks.get(EXAMPLES / onnx)
            property = read_vnnlib(EXAMPLES / spec)
            start = time.monotonic()
            result = verify(network.graph, property, replayer=network.replayer, simplified=network.simplified,
                            time_limit_s=TIME_LIMIT_S, seed=seed)
            assert time.monotonic() - start < TIME_LIMIT_S + 5, "the deadline holds"
            if result.reason is Reason.INTERRUPTED:
                raise KeyboardInterrupt
            image = int(spec.split("_image")[1].split("_")[0])
            answers.append(Answer(onnx, image, int(digits["y"][image]), _eps(EXAMPLES / spec), result))
            on_answer(answers[-1])
    return answers


def _eps(spec: Path) -> str:
    """The radius, as the file's first line says it."""
    with spec.open() as file:
        return file.readline().split("distance ")[1].split(",")[0]


def save_picture(answers: list[Answer], path: Path) -> bool:
    """An original digit, its counterexample and the difference, for the smallest radius that was falsified
    with each network; False where nothing was falsified."""
    import matplotlib
    matplotlib.use("Agg")  # a file is written; no display is needed
    import matplotlib.pyplot as plt
    digits = np.load(EXAMPLES / "digits.npz", allow_pickle=False)
    chosen: dict[str, tuple[Answer, Falsified]] = {}
    for answer in sorted(answers, key=lambda a: float(a.eps)):
        if isinstance(answer.result.verdict, Falsified):
            chosen.setdefault(answer.network, (answer, answer.result.verdict))
    if not chosen:
        return False
    figure, axes = plt.subplots(len(chosen), 3, figsize=(7.2, 2.7 * len(chosen)), squeeze=False, layout="constrained")
    for row, (answer, verdict) in zip(axes, chosen.values(), strict=True):
        original = digits["x"][answer.image].reshape(8, 8)
        changed = verdict.witness.x.reshape(8, 8)
        winner = int(np.argmax(np.where(np.arange(10) == answer.label, -np.inf, verdict.witness.y.ravel())))
        difference = changed - original
        extent = float(answer.eps)
        row[0].imshow(original, cmap="gray", vmin=0, vmax=1)
        row[0].set_title(f"{answer.network.removesuffix('.onnx')}: seen as {answer.label}", fontsize=9)
        row[1].imshow(changed, cmap="gray", vmin=0, vmax=1)
        row[1].set_title(f"counterexample: seen as {winner}", fontsize=9)
        shown = row[2].imshow(difference, cmap="RdBu", vmin=-extent, vmax=extent)
        row[2].set_title(f"difference, at most {answer.eps}", fontsize=9)
        figure.colorbar(shown, ax=row[2], shrink=0.8)
        for axis in row:
            axis.set_xticks([])
            axis.set_yticks([])
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True
