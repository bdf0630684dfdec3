"""What do the attacks of other libraries find, and what do they ask of the network for it?

    python benchmarks/peers/run_attacks.py --net NET.onnx --data DATA.npz --library advlib --attacks fmn,ddn --norm 2 \
        --steps 200 --out OUT.npz
    python benchmarks/peers/run_attacks.py --list

Runs in an environment of its own (README.md) and imports nothing of rmax. All images are attacked untargeted, in one
batch unless the table says otherwise. What a library returns is clipped to [0, 1] and judged here, whatever the library
says of it: an image is a success if the network gives it another label (and, where the attack looks inside a ball, it
lies inside). One that misses by rounding may be moved by a ten-thousandth of its perturbation (`PUSH`). Seconds are
those of the attack alone: the network has run before, and what a library compiles at its first call is compiled.

DATA.npz has `x` (N, *shape) float32 in [0, 1] and `y` (N), and may have `logits` (N, K) of another runtime, which the
module read from the file must then give. OUT.npz has, with one row an attack (A):

    adversarial (A, N, *shape) float32, success (A, N), distance (A, N) float64 with inf where there is no success,
    seconds, cpu_seconds (A), forwards, backwards (A): calls an image, on average;  attacks, errors (A);  meta: JSON
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import importlib.metadata
import inspect
import json
import math
import os
import platform
import random
import sys
import time
import traceback
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # for benchmarks.peers alone

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.peers.network import Counted, check, sequential  # noqa: E402
from benchmarks.peers.table import LIBRARIES, NORMS, Budget, NoSuchAttack, Row, find, listed  # noqa: E402

PACKAGES = {"foolbox": "foolbox", "torchattacks": "torchattacks", "advlib": "adv-lib",
            "art": "adversarial-robustness-toolbox"}
BALL_RTOL = 1e-5  # of eps: projections in float32
# Of the perturbation. A nearest image lies on the boundary to the last bit, and a batch of another size is summed in
# another order: 5 of 10 results of Brendel and Bethge's attack lost their label to that.
PUSH = 1e-4
Driver = Callable[[Row, dict[str, Any], Counted, Tensor, Tensor, "Tensor | None"], Any]


# ---------------------------------------------------------------------- how each library is called


def by_foolbox(row: Row, settings: dict[str, Any], model: Counted, x: Tensor, y: Tensor, start: Tensor | None) -> Any:
    import foolbox
    eps = settings.pop("eps", None)
    more = {} if start is None else {"starting_points": start}
    attack = getattr(foolbox.attacks, row.call)(**settings)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
    return attack(wrapped, x, foolbox.criteria.Misclassification(y), epsilons=eps, **more)[1]


def by_torchattacks(row: Row, settings: dict[str, Any], model: Counted, x: Tensor, y: Tensor,
                    start: Tensor | None) -> Any:
    import torchattacks
    steps = settings.pop("steps_each", None)
    attack = getattr(torchattacks, row.call)(model, **settings)
    if steps is not None:
        for part in attack._autoattack.attacks:
            if hasattr(part, "steps"):
                part.steps = steps
    return attack(x, y)


def by_advlib(row: Row, settings: dict[str, Any], model: Counted, x: Tensor, y: Tensor, start: Tensor | None) -> Any:
    # Imported by every attack, for plots and a perceptual distance that nobody asks for here. One does not install
    # beside current tools, the other exists for one build of PyTorch only.
    for name in ("visdom", "torchvision"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["torchvision"].models = None  # type: ignore[attr-defined]
    return getattr(importlib.import_module("adv_lib.attacks"), row.call)(model, x, y, **settings)


def by_art(row: Row, settings: dict[str, Any], model: Counted, x: Tensor, y: Tensor, start: Tensor | None) -> Any:
    import art.attacks.evasion as evasion
    from art.estimators.classification import PyTorchClassifier
    with torch.no_grad():
        classes = model.net(x[:1]).shape[1]
    classifier = PyTorchClassifier(model, torch.nn.CrossEntropyLoss(), tuple(x.shape[1:]), classes,
                                   clip_values=(0.0, 1.0), device_type="cpu")
    kind = getattr(evasion, row.call)
    taken = inspect.signature(kind.__init__).parameters
    if "verbose" in taken:
        settings.setdefault("verbose", False)
    if "batch_size" in taken:
        settings.setdefault("batch_size", len(x))
    given = {} if start is None else {"x_adv_init" if row.attack == "hopskipjump" else "starting_points": start.numpy()}
    if row.attack != "jsma":  # labels would be targets there
        given["y"] = np.eye(classes, dtype=np.float32)[y.numpy()]
    return kind(classifier, **settings).generate(x.numpy(), **given)


DRIVERS: dict[str, Driver] = {"foolbox": by_foolbox, "torchattacks": by_torchattacks, "advlib": by_advlib,
                              "art": by_art}


# ---------------------------------------------------------------------- one attack, run and judged


def distances(a: Tensor, b: Tensor, norm: str) -> Tensor:
    """||a - b|| an image, float64; norm 0 counts the entries that differ at all."""
    d = (a.double() - b.double()).flatten(1).abs()
    if norm == "0":
        return (d > 0).sum(1).double()
    return d.amax(1) if norm == "inf" else d.sum(1) if norm == "1" else d.square().sum(1).sqrt()


def nearest(x: Tensor, y: Tensor, predicted: Tensor, norm: str) -> Tensor:
    """For each image the nearest of all images that the network gives another label than its own: a start."""
    starts = []
    for image, label in zip(x, y, strict=True):
        others = x[predicted != label]
        if not len(others):
            raise ValueError("the data have one class only: no image to start from")
        starts.append(others[int(distances(others, image.expand_as(others), norm).argmin())])
    return torch.stack(starts)


def seeded(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (the libraries draw from the global generators)
    torch.manual_seed(seed)


def settings_of(row: Row, budget: Budget, changes: dict[str, Any]) -> dict[str, Any]:
    settings = row.settings(budget) | changes
    if row.library == "foolbox" and row.ball:
        settings["eps"] = budget.eps
    if (row.library, row.attack) == ("torchattacks", "autoattack"):
        settings["steps_each"] = budget.steps
    return settings


def call(row: Row, budget: Budget, changes: dict[str, Any], model: Counted, x: Tensor, y: Tensor,
         start: Tensor | None) -> Tensor:
    """What the library returns for all images, in one call or in one an image."""
    parts = [slice(i, i + 1) for i in range(len(x))] if row.alone else [slice(None)]
    found = []
    for part in parts:
        begin = None if start is None else start[part].clone()
        settings = settings_of(row, budget, changes)
        result = DRIVERS[row.library](row, settings, model, x[part].clone(), y[part].clone(), begin)
        found.append(torch.as_tensor(result).detach().float())
    return torch.cat(found)


def run(row: Row, budget: Budget, changes: dict[str, Any], model: Counted, x: Tensor, y: Tensor) -> dict[str, Any]:
    with torch.no_grad():
        predicted = model.net(x).argmax(1)
    start = nearest(x, y, predicted, row.norm) if row.start else None
    if row.compiles:
        few = Budget(2, budget.eps, budget.classes, budget.pixels, budget.seed)
        call(row, few, {}, model, x[:1], y[:1], None if start is None else start[:1])
    seeded(budget.seed)
    model.reset()
    begun, worked = time.perf_counter(), time.process_time()
    raw = call(row, budget, changes, model, x, y, start)
    seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - worked
    if raw.shape != x.shape:
        raise ValueError(f"{row.library} {row.attack}: {tuple(raw.shape)} returned for {tuple(x.shape)}")

    moved = torch.where(raw.isfinite(), raw, x).clamp(0, 1)
    outside = float((raw - moved).abs().nan_to_num(math.inf).max())
    with torch.no_grad():
        success = model.net(moved).argmax(1) != y
        if not row.ball:
            further = (x + (moved - x) * (1 + PUSH)).clamp(0, 1)
            pushed = ~success & (model.net(further).argmax(1) != y)
            moved[pushed], success = further[pushed], success | pushed
    distance = distances(moved, x, row.norm)
    if row.ball:
        success &= distance <= budget.eps * (1 + BALL_RTOL)
    return {"adversarial": moved.numpy(), "success": success.numpy(),
            "distance": np.where(success.numpy(), distance.numpy(), math.inf), "seconds": seconds,
            "cpu_seconds": cpu_seconds, "forwards": model.forwards / len(x), "backwards": model.backwards / len(x),
            "error": "", "outside": outside}


def failed(x: Tensor, error: str) -> dict[str, Any]:
    n = len(x)
    return {"adversarial": x.numpy(), "success": np.zeros(n, bool), "distance": np.full(n, math.inf),
            "seconds": math.nan, "cpu_seconds": math.nan, "forwards": math.nan, "backwards": math.nan, "error": error,
            "outside": 0.0}


def summary(row: Row, result: dict[str, Any]) -> str:
    if result["error"]:
        return f"{row.library} {row.attack} {row.norm}: FAILED {result['error']}"
    return (f"{row.library} {row.attack} {row.norm}: success {result['success'].mean():.1%}  median distance "
            f"{np.median(result['distance']):.5g}  seconds {result['seconds']:.2f} "
            f"(cpu {result['cpu_seconds']:.2f})  forwards {result['forwards']:.1f}  "
            f"backwards {result['backwards']:.1f} an image")


# ---------------------------------------------------------------------- the command


def changed(text: str) -> tuple[str, Any]:
    name, sign, value = text.partition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"KEY=VALUE expected, got {text!r}")
    with contextlib.suppress(ValueError, SyntaxError):
        return name, ast.literal_eval(value)
    return name, value


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run attacks of one library on a sequential ONNX network.")
    parser.add_argument("--list", action="store_true", help="print the table of attacks as JSON and end")
    parser.add_argument("--net", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--attacks", help="names with commas between them")
    parser.add_argument("--library", choices=LIBRARIES)
    parser.add_argument("--norm", choices=NORMS)
    parser.add_argument("--steps", type=int, default=100, help="gradients (or queries) an image [%(default)s]")
    parser.add_argument("--eps", type=float, help="radius, for attacks that look inside a ball")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", type=changed, action="append", default=[], metavar="KEY=VALUE",
                        help="a setting of the library's own, in place of the table's")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    missing = [] if args.list else [f"--{name}" for name in ("net", "data", "attacks", "library", "norm", "out")
                                    if getattr(args, name) is None]
    if missing:
        parser.error(f"missing: {', '.join(missing)}")
    if args.steps < 1 or args.threads < 1 or (args.eps is not None and not 0 < args.eps < math.inf):
        parser.error("--steps and --threads must be at least 1, --eps positive")
    return args


def main() -> int:
    args = arguments()
    if args.list:
        print(json.dumps(listed(Budget(args.steps, args.eps or 0.1, 10, 784, args.seed)), indent=1, ensure_ascii=False))
        return 0
    try:
        rows = [find(name.strip(), args.library, args.norm) for name in args.attacks.split(",")]
    except NoSuchAttack as error:
        raise SystemExit(f"run_attacks: {error}") from None
    if args.eps is None and any(row.ball for row in rows):
        raise SystemExit(f"run_attacks: {', '.join(r.attack for r in rows if r.ball)} need --eps")
    warnings.filterwarnings("ignore")  # of the libraries: deprecations, compilation
    os.environ["TQDM_DISABLE"] = "1"   # their progress bars, which not all of them can be told to leave
    torch.set_num_threads(args.threads)
    with np.load(args.data) as data:
        x, y = torch.from_numpy(data["x"].astype(np.float32)), torch.from_numpy(data["y"].astype(np.int64))
        logits = data["logits"] if "logits" in data.files else None
    if x.ndim < 2 or len(x) != len(y) or not len(x) or not (float(x.min()) >= 0 and float(x.max()) <= 1):
        raise SystemExit(f"run_attacks: {args.data}: x (N, *shape) in [0, 1] and y (N) expected")
    net = sequential(args.net)
    difference = check(net, args.net, x, logits)
    model = Counted(net).eval()
    with torch.no_grad():
        scores = net(x)
    budget = Budget(args.steps, args.eps or math.nan, scores.shape[1], x[0].numel(), args.seed)
    warm = x.clone().requires_grad_(True)
    torch.autograd.grad(model(warm).sum(), warm)

    results = []
    for row in rows:
        try:
            results.append(run(row, budget, dict(args.set), model, x, y))
        except Exception as error:  # of a library, whatever it is: the others still run, the exit code says so
            traceback.print_exc()
            results.append(failed(x, f"{type(error).__name__}: {error}"))
        print(summary(row, results[-1]), flush=True)
    meta = {"net": args.net.name, "data": args.data.name, "library": args.library, "norm": args.norm,
            "steps": args.steps, "eps": args.eps, "seed": args.seed, "threads": args.threads, "set": dict(args.set),
            "accuracy": float((scores.argmax(1) == y).double().mean()), "largest_difference_of_logits": difference,
            "outside": [r["outside"] for r in results],
            "settings": [{k: str(v) for k, v in settings_of(row, budget, dict(args.set)).items()} for row in rows],
            "versions": {name: importlib.metadata.version(name) for name in (PACKAGES[args.library], "torch", "numpy")},
            "python": platform.python_version(), "cores": os.cpu_count()}
    stacked = {key: np.stack([r[key] for r in results])
               for key in ("adversarial", "success", "distance", "seconds", "cpu_seconds", "forwards", "backwards")}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(args.out, **stacked, attacks=np.array([row.attack for row in rows]),
                        errors=np.array([r["error"] for r in results]), meta=np.array(json.dumps(meta)))
    return 1 if any(r["error"] for r in results) else 0


if __name__ == "__main__":
    sys.exit(main())
