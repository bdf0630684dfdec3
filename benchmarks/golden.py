"""What is the exact adversarial error of a network with a published answer? Every image of a test set is decided.

    python benchmarks/golden.py                       # MNIST, l_inf eps 0.1 in [0, 1]
    python benchmarks/golden.py --clip none           # the whole ball: published exact error 4.38 %
    python benchmarks/golden.py --limit 500 --jobs 1

The network and its answers: convex outer polytope training (arXiv:1711.00851), decided by MIP in arXiv:1711.07356. An
image counts as an error when some point of its set, itself for a clean error, is given another label (a tie counts):
each such point is a witness confirmed on the original file. Images run in batches as long as that pays:

    clean         one forward pass
    ibp, crown    bounds of the margins y_label - y_j of all images at once, for the pairs (image, j) still open
    pgd           projected gradient descent on the open pairs at once
    alpha-crown   the slopes of the open pairs optimised, of the margins alone and then of the neurons too
    alone         what is left, image by image and with its open classes only, by `verify(..., method="auto")`

A finished image is a line of a file beside the JSON, so a killed run can be resumed. Verified means in floating point.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import math
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # measure the checkout that this file lies in, installed or not

import numpy as np  # noqa: E402

from benchmarks.lines import Entry, Lines  # noqa: E402
from benchmarks.machine import available_cores, calibration, commit, environment, hardware, markdown  # noqa: E402
from milp.workers import workers  # noqa: E402

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from verifier.network import Network
    from verifier.problem import Problem, State
    from verifier.property import Property
    from verifier.witness import OnnxReplayer, Witness

NAME = "wk17a_mnist_eps0.1.onnx"
# Of NAME, all 10,000 images, eps 0.1. The exact error is that of the whole ball: inside [0, 1] every image was decided
# as well, with 4.30 % (see README.md).
PUBLISHED = {"clean": 0.0180, "attacked": 0.0411, "exact": 0.0438}
EPS, CLIP = "0.1", (0.0, 1.0)
CHUNK = 1000          # images a batch; the bound methods make smaller ones of it by memory
NEAR = 1e-4           # candidates this close to unsafe are replayed as well
PGD = {"restarts": 8, "steps": 50, "rounds": 1, "samples": 32, "branches": 1 << 30, "time_limit_s": math.inf}
LOUD = "!" * 20


# ---------------------------------------------------------------------- data


def read_images(path: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(x "N *shape" float32, label "N"): an .npz with x and y, or a folder with MNIST's test files (k / 255)."""
    if path.is_dir():
        from certify.data import idx
        try:
            return idx.read_images(path, "test")
        except ValueError as error:
            raise SystemExit(str(error)) from error
    with np.load(path) as data:
        return data["x"].astype(np.float32), data["y"].astype(np.int64)


# ---------------------------------------------------------------------- one process that decides


@dataclass(frozen=True)
class Question:
    """A network, images, and the box around each: l_inf `eps` inside `clip` (None: everywhere)."""

    net: str
    data: str
    eps: str = EPS
    clip: tuple[float, float] | None = CLIP
    time_limit_s: float = 120.0
    method: str = "auto"
    device: str | None = None
    seed: int = 0
    claim: str = "real"


class Decider:
    """Answers a question: `batched` for many images at once, `alone` for one of what is left."""

    def __init__(self, question: Question) -> None:
        self.question = question
        self.x, self.label = read_images(Path(question.data))
        self._properties: dict[int, Property] = {}

    @cached_property
    def network(self) -> Network:
        from verifier.network import Network
        return Network.read(self.question.net)

    @property
    def classes(self) -> int:
        return math.prod(self.network.graph.output_shape)

    def property_of(self, index: int) -> Property:
        from verifier.property import robustness
        if index not in self._properties:
            q = self.question
            self._properties[index] = robustness(self.x[index], int(self.label[index]), q.eps, classes=self.classes,
                                                 clip=q.clip)
        return self._properties[index]

    def targets(self, index: int) -> list[int]:
        """The class of each branch of an image's property."""
        return [j for j in range(self.classes) if j != self.label[index]]

    def confirmed(self, index: int, x: Any) -> Witness | None:
        from verifier.witness import confirm
        return confirm(x, self.property_of(index), self.replayer)

    @cached_property
    def replayer(self) -> OnnxReplayer:
        replayer = self.network.replayer
        return replayer if self.question.claim == "real" else replayer.node_by_node()

    # ------------------------------------------------------------------ many images

    def batched(self, indices: Sequence[int]) -> list[Entry]:
        """An entry for each image decided, and one that says what every step left."""
        from bounds.precision import full_precision
        try:
            with full_precision():
                return Batch(self, indices).run()
        finally:
            self._properties.clear()

    # ------------------------------------------------------------------ one image

    def alone(self, index: int, targets: Sequence[int]) -> list[Entry]:
        """One image by the strategy, over the classes that are open; `lower` is of their margins."""
        from verifier.deadline import Deadline
        from verifier.property import Property
        from verifier.strategy import verify
        from verifier.verdict import Claim
        whole = self.property_of(index)
        branches = tuple(b for b, j in zip(whole.branches, self.targets(index), strict=True) if j in targets)
        open_part = Property(branches, whole.inputs, whole.outputs, whole.source)
        q = self.question
        result = verify(self.network.graph, open_part, replayer=self.network.replayer, method=q.method, device=q.device,
                        deadline=Deadline.starting_now(q.time_limit_s), seed=q.seed, simplified=self.network.simplified,
                        claim=Claim(q.claim))
        self._properties.clear()
        witness = getattr(result.verdict, "witness", None)
        return [entry_of(index, int(self.label[index]), result.name, f"alone: {result.method}", lower=result.lower,
                         witness=witness, reason=result.detail or (result.reason.value if result.reason else ""),
                         seconds=result.time_s, domains=result.domains, open=list(targets))]


class Batch:
    """The batched steps over some images. K pairs (image, class) are the branches of one property, whose regions are
    the images' boxes; `problem` and `state` hold what is open, in the form every stage of the strategy takes."""

    def __init__(self, decider: Decider, indices: Sequence[int]) -> None:
        self.decider, self.asked = decider, list(indices)
        self.entries: list[Entry] = []
        self.steps: list[Entry] = []
        self.left: dict[int, list[int]] = {i: decider.targets(i) for i in self.asked}
        self.lower: dict[int, float] = dict.fromkeys(self.asked, math.inf)  # of the margins to the classes closed

    def run(self, *, optimise: bool = True) -> list[Entry]:
        """All steps; without `optimise` those up to the attack."""
        from verifier.attacks.falsifier import Falsifier
        from verifier.stages import BoundStage
        self._step("clean", self._clean)
        if self.left:
            self._open()
            for stage in (BoundStage("ibp"), BoundStage("crown", keep=True)):
                self._step(stage.name, lambda stage=stage: self._bound(stage))
            self._step("pgd", lambda: self._attack(Falsifier(**PGD)))
        if self.left and optimise:
            for stage in (BoundStage("alpha-crown-rows", {"neuron_iterations": 0}, method="alpha-crown", inherit=True),
                          BoundStage("alpha-crown")):
                self._step(stage.name, lambda stage=stage: self._bound(stage))
        summary = {"asked": self.asked, "steps": self.steps, "open": {str(i): self.left[i] for i in sorted(self.left)}}
        return [*self.entries, summary]

    def _step(self, name: str, work: Callable[[], None]) -> None:
        before, start = len(self.entries), time.monotonic()
        if self.left:
            work()
        for entry in self.entries[before:]:
            entry["step"] = name
            self.left.pop(entry["index"])
        self.steps.append({"step": name, "seconds": round(time.monotonic() - start, 3),
                           "decided": len(self.entries) - before, "images": len(self.left),
                           "pairs": sum(len(targets) for targets in self.left.values())})

    def _decided(self, index: int, verdict: str, **more: Any) -> None:
        self.entries.append(entry_of(index, int(self.decider.label[index]), verdict, "", **more))

    # ------------------------------------------------------------------ the steps

    def _clean(self) -> None:
        """Images that already have another label: all at once, those in doubt confirmed as witnesses."""
        import torch
        d = self.decider
        graph = d.network.simplified
        with torch.no_grad():
            y = graph(torch.from_numpy(d.x[self.asked]).to(graph.dtype)).flatten(1)
        label = torch.from_numpy(d.label[self.asked]).unsqueeze(1)
        margin = y.gather(1, label).squeeze(1) - y.scatter(1, label, -math.inf).amax(1)
        for at in torch.nonzero(margin <= NEAR).flatten().tolist():
            index = self.asked[at]
            if (witness := d.confirmed(index, d.x[index])) is not None:
                self._decided(index, "falsified", witness=witness)

    def _open(self) -> None:
        """All open pairs as one problem: an OR over the images' branches."""
        from verifier.deadline import Deadline
        from verifier.problem import State, make_problem
        from verifier.property import Property
        from verifier.verdict import Claim
        d = self.decider
        images = list(self.left)
        parts = [d.property_of(i) for i in images]
        whole = Property(tuple(b for p in parts for b in p.branches), parts[0].inputs, parts[0].outputs,
                         f"{len(images)} images")
        self.problem: Problem = make_problem(
            d.network.graph, whole, replayer=d.replayer, deadline=Deadline.starting_now(), seed=d.question.seed,
            device=d.question.device, simplified=d.network.simplified, claim=Claim(d.question.claim))
        self.state: State = State.of(self.problem)
        self.pairs = [(i, j) for i in images for j in d.targets(i)]

    def _bound(self, stage: Any) -> None:
        """One bound method over the open pairs; pairs it decides close, unless sampled points contradict it."""
        from verifier.problem import State
        from verifier.stages import contradiction
        stage.run(self.problem, self.state)
        still_open = self.state.open_branches(self.problem.tensors)
        if bool(still_open.all()):
            return
        if self.state.numerical or contradiction(*self._narrowed(~still_open)):
            self.state = State.of(self.problem)  # nothing of this step is trusted: its images stay open
            return
        margins = self.state.branch_lower(self.problem.tensors).tolist()
        for (i, j), is_open, margin in zip(self.pairs, still_open.tolist(), margins, strict=True):
            if not is_open:
                self.lower[i] = min(margin, self.lower[i])
                self.left[i].remove(j)
        for i in [i for i, targets in self.left.items() if not targets]:
            self._decided(i, "verified", lower=self.lower[i])
        self._close(still_open)

    def _attack(self, attack: Any) -> None:
        """The best point of every open pair; those of an image are offered to the gate, least margin first."""
        found = attack.best_of_each(self.problem.graph, self.problem.tensors, generator=self.problem.generator)
        order = found.margin.argsort(stable=True).tolist()
        margins = found.margin.tolist()
        falsified: set[int] = set()
        for k in order:
            index = self.pairs[k][0]
            if margins[k] > NEAR or index in falsified:
                continue
            if (witness := self.decider.confirmed(index, found.x[k])) is not None:
                falsified.add(index)
                self._decided(index, "falsified", witness=witness)
        import torch
        self._close(torch.tensor([i not in falsified for i, _ in self.pairs], dtype=torch.bool,
                                 device=found.margin.device))

    def _narrowed(self, kept: Tensor) -> tuple[Problem, State]:
        """Problem and state of some pairs (bool "K") and of their images; the property stays the whole one."""
        import torch

        from bounds.interval import Interval
        from verifier.problem import State
        from verifier.stages import only_branches
        rows = kept[self.problem.tensors.branch]
        tensors = only_branches(self.problem.tensors, kept)
        regions, place = torch.unique(tensors.branch_region, return_inverse=True)
        tensors = replace(tensors, sets=tensors.sets.index(regions), replay_sets=tensors.replay_sets.index(regions),
                          region=place[tensors.branch], branch_region=place)
        intervals = {n: Interval(v.lower[regions], v.upper[regions]) for n, v in self.state.intervals.items()}
        return replace(self.problem, tensors=tensors), State(
            row_lower=self.state.row_lower[rows], branch_proved=self.state.branch_proved[kept],
            branch_closed=self.state.branch_closed[kept], rounded=self.state.rounded[kept], intervals=intervals)

    def _close(self, kept: Tensor) -> None:
        self.problem, self.state = self._narrowed(kept)
        self.pairs = [pair for pair, keep in zip(self.pairs, kept.tolist(), strict=True) if keep]


def entry_of(index: int, label: int, verdict: str, step: str, *, lower: float = -math.inf,
             witness: Witness | None = None, **more: Any) -> Entry:
    """The line of an image; a witness is kept as little-endian float32 bytes, exactly as it was replayed."""
    entry: Entry = {"index": index, "label": label, "verdict": verdict, "step": step,
                    "lower": lower if math.isfinite(lower) else None, **more}
    if witness is not None:
        entry |= {"margin": witness.margin, "given": int(np.argmax(witness.y)),
                  "witness": base64.b64encode(np.asarray(witness.x, "<f4").tobytes()).decode()}
    return entry


# ---------------------------------------------------------------------- several processes

Work = tuple[str, tuple[Any, ...]]  # a method of Decider and its arguments
_decider: Decider | None = None


def _start(question: Question, threads: int) -> None:
    """The beginning of a worker: what the command line does, and the images."""
    global _decider
    from verifier.cli.startup import load_torch
    load_torch()
    import torch
    torch.set_num_threads(threads)
    _decider = Decider(question)


def _work(work: Work) -> list[Entry]:
    assert _decider is not None, "a worker starts with _start"
    name, arguments = work
    entries: list[Entry] = getattr(_decider, name)(*arguments)
    return entries


def answers(question: Question, next_work: Callable[[], Work | None], *, jobs: int, threads: int
            ) -> Iterator[list[Entry]]:
    """The entries of each piece of work as they come, from `jobs` processes (1: this one).

    `next_work` says None while there is nothing to do; that ends it when no work is in progress either. Processes
    are stopped when the iterator is closed.
    """
    if jobs == 1:
        import torch
        before = torch.get_num_threads()
        try:
            _start(question, threads)
            while (work := next_work()) is not None:
                yield _work(work)
        finally:
            torch.set_num_threads(before)
        return
    os.environ.update(environment(threads))  # workers read it when they load the thread library
    with workers(jobs, _start, (question, threads)) as pool:
        running: set[Future[list[Entry]]] = set()
        while True:
            while len(running) < jobs and (work := next_work()) is not None:
                running.add(pool.submit(_work, work))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()


# ---------------------------------------------------------------------- what is known, and figures


@dataclass
class Known:
    """What the lines of a run say about the images asked for."""

    indices: Sequence[int]
    images: dict[int, Entry]       # the last line of each
    batched: set[int]              # images that went through the batched steps
    open: dict[int, list[int]]     # the classes these steps left open
    steps: dict[str, Counter[str]]

    @classmethod
    def of(cls, entries: Iterable[Entry], indices: Sequence[int]) -> Known:
        known = cls(indices, {}, set(), {}, {})
        for entry in entries:
            known.add(entry)
        return known

    def add(self, entry: Entry) -> None:
        if "index" in entry:
            self.images[entry["index"]] = entry
            return
        self.batched.update(entry["asked"])
        self.open |= {int(i): targets for i, targets in entry["open"].items()}
        for step in entry["steps"]:
            counts = self.steps.setdefault(step["step"], Counter())
            counts.update({k: v for k, v in step.items() if k != "step"})

    def is_decided(self, index: int) -> bool:
        return index in self.images and self.images[index]["verdict"] in ("verified", "falsified")

    def to_batch(self, chunk: int) -> list[list[int]]:
        rest = [i for i in self.indices if i not in self.batched]
        return [rest[k : k + chunk] for k in range(0, len(rest), chunk)]

    def to_ask_alone(self) -> list[tuple[int, list[int]]]:
        return [(i, self.open[i]) for i in self.indices if i in self.open and not self.is_decided(i)]

    def figures(self) -> Entry:
        """Shares of all images asked for. attacked: errors found by attacks; the exact error lies in [exact,
        exact + undecided]."""
        found = [self.images[i] for i in self.indices if self.is_decided(i)]
        errors = [e for e in found if e["verdict"] == "falsified"]
        total = len(self.indices)
        attacked = [e for e in errors if e["step"] in ("clean", "pgd") or e["step"].startswith("alone: pgd")]
        return {"images": total, "verified": len(found) - len(errors), "falsified": len(errors),
                "undecided": total - len(found), "clean": sum(e["step"] == "clean" for e in errors) / total,
                "attacked": len(attacked) / total, "exact": len(errors) / total,
                "by_step": dict(Counter(f"{e['verdict']} {e['step']}" for e in found))}

    def table(self) -> str:
        lines = [[name, str(c["decided"]), str(c["images"]), str(c["pairs"]), f"{c['seconds']:.1f}"]
                 for name, c in self.steps.items()]
        alone = [self.images[i] for i in self.indices if i in self.images and "seconds" in self.images[i]]
        if alone:
            left = [e for e in alone if not self.is_decided(e["index"])]
            lines.append(["alone", str(len(alone) - len(left)), str(len(left)),
                          str(sum(len(e["open"]) for e in left)), f"{sum(e['seconds'] for e in alone):.1f}"])
        return markdown(["step", "decided", "images left", "pairs left", "seconds of work"], lines, left=1)


def sentence(figures: Entry) -> str:
    exact = f"{figures['exact']:.2%}"
    if figures["undecided"]:
        exact += f" to {figures['exact'] + figures['undecided'] / figures['images']:.2%}"
    return (f"{figures['images']} images: clean error {figures['clean']:.2%}, "
            f"attacked error {figures['attacked']:.2%}, exact error {exact}, {figures['undecided']} undecided")


# ---------------------------------------------------------------------- command line


def parser() -> argparse.ArgumentParser:
    shared = Path(os.environ.get("RMAX_SHARED", ROOT.parent / "shared"))
    p = argparse.ArgumentParser(description="Decide every image of a test set.")
    p.add_argument("--net", type=Path, help=f"[{shared / 'golden' / NAME}]")
    p.add_argument("--data", type=Path, help=f".npz with x and y, or MNIST's folder [{shared / 'datasets/mnist'}]")
    p.add_argument("--eps", default=EPS, help=f"l_inf radius, a decimal [{EPS}]")
    p.add_argument("--clip", type=clip_range, default=CLIP, metavar="LOW,HIGH",
                   help="valid inputs, or none [0,1]")
    p.add_argument("--start", type=int, default=0, help="the first image [0]")
    p.add_argument("--limit", type=int, help="how many images [all]")
    p.add_argument("--time-limit", type=float, default=120.0, metavar="S", help="seconds an image asked alone [120]; "
                   "0 leaves these images open")
    p.add_argument("--method", default="auto", help="of the images asked alone [auto]")
    p.add_argument("--claim", choices=["real", "float32"], default="real", help="about which function [real]")
    p.add_argument("--device", choices=["cpu", "cuda"])
    p.add_argument("--chunk", type=int, default=CHUNK, help=f"images a batch [{CHUNK}]")
    p.add_argument("--jobs", type=int, help="processes [as many as cores; with --device cuda 1]")
    p.add_argument("--threads", type=int, help="of each process [all cores, shared out among the jobs]")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--resume", action="store_true", help="go on with a run; undecided images are asked again")
    p.add_argument("--out", type=Path, default=ROOT / "out" / "golden.json",
                   help="JSON; finished images lie beside it, one a line (.jsonl)")
    p.set_defaults(shared=shared)
    return p


def clip_range(text: str) -> tuple[float, float] | None:
    """LOW,HIGH or none."""
    if text == "none":
        return None
    low, _, high = text.partition(",")
    if not float(low) < float(high):
        raise argparse.ArgumentTypeError(f"expected LOW,HIGH with LOW < HIGH, or none, got {text}")
    return float(low), float(high)


def main(argv: list[str] | None = None) -> int:
    """0 if every image is decided and, for the whole published question, as often an error as published; else 1."""
    arguments = parser().parse_args(argv)
    counts = (arguments.chunk, arguments.jobs, arguments.threads, arguments.limit)
    if any(n is not None and n < 1 for n in counts) or min(arguments.start, arguments.time_limit) < 0:
        raise SystemExit("--chunk, --jobs, --threads and --limit must be at least 1, "
                         "--start and --time-limit at least 0")
    net = arguments.net or arguments.shared / "golden" / NAME
    data = arguments.data or arguments.shared / "datasets" / "mnist"
    for path, flag, given in ((net, "--net", arguments.net), (data, "--data", arguments.data)):
        if not path.exists():
            if given is not None:
                raise SystemExit(f"{flag}: {path} not found")
            print(f"skipped: {path} not found; {flag} names another", file=sys.stderr)
            return 0
    question = Question(str(net.resolve()), str(data.resolve()), arguments.eps, arguments.clip,
                        arguments.time_limit or 120.0, arguments.method, arguments.device, arguments.seed,
                        arguments.claim)
    x, _ = read_images(data)
    indices = range(arguments.start, min(len(x), arguments.start + (arguments.limit or len(x))))
    if not indices:
        raise SystemExit(f"--start: {data} has {len(x)} images")
    jobs = arguments.jobs or (1 if arguments.device == "cuda" else available_cores())
    threads = arguments.threads or max(1, available_cores() // jobs)
    settings = {"net": net.name, "data": data.name, "eps": arguments.eps,
                "clip": arguments.clip and list(arguments.clip), "seed": arguments.seed, "claim": arguments.claim}
    before, version = hardware(), commit()
    with Lines(arguments.out.with_suffix(".jsonl"), settings, resume=arguments.resume) as lines:
        machine = calibration(threads)
        start = time.monotonic()
        known = Known.of(lines.entries, indices)
        interrupted = False
        try:
            run(question, known, lines, chunk=arguments.chunk, jobs=jobs, threads=threads,
                ask_alone=arguments.time_limit > 0)
        except KeyboardInterrupt:
            interrupted = True
        seconds = time.monotonic() - start
    figures = known.figures()
    print(known.table() + "\n\n" + sentence(figures) + f", {seconds:.0f} s on {jobs} x {threads} threads")
    is_published = (net.name == NAME and arguments.eps == EPS and arguments.clip is None and arguments.claim == "real"
                    and len(indices) == len(x) == 10_000 and not figures["undecided"])
    agrees = not is_published or round(figures["exact"], 6) == PUBLISHED["exact"]
    if is_published:
        print(f"published: clean {PUBLISHED['clean']:.2%}, attacked {PUBLISHED['attacked']:.2%}, "
              f"exact {PUBLISHED['exact']:.2%}" + ("" if agrees else f"  {LOUD} DIFFERS"))
    answer = {"when": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "commit": version, "settings": settings,
              "time_limit_s": arguments.time_limit, "method": arguments.method, "jobs": jobs, "threads": threads,
              "hardware": before, "calibration": machine, "interrupted": interrupted, "seconds": round(seconds, 1),
              "steps": {name: dict(c) for name, c in known.steps.items()}, **figures}
    arguments.out.write_text(json.dumps(answer, indent=1, allow_nan=False) + "\n")
    print(f"{'interrupted; --resume goes on  ' if interrupted else ''}{arguments.out}", file=sys.stderr)
    return 0 if agrees and not figures["undecided"] else 1


def run(question: Question, known: Known, lines: Lines, *, chunk: int, jobs: int, threads: int,
        ask_alone: bool) -> None:
    """The batched steps for the images without them, then what they left, image by image."""
    start = time.monotonic()
    chunks = known.to_batch(chunk)
    handed: set[int] = set()

    def next_work() -> Work | None:
        if chunks:
            return "batched", (chunks.pop(0),)
        for index, targets in known.to_ask_alone() if ask_alone else ():
            if index not in handed:
                handed.add(index)
                return "alone", (index, targets)
        return None

    with contextlib.closing(answers(question, next_work, jobs=jobs, threads=threads)) as arriving:
        for entries in arriving:
            if any(e.get("reason") == "interrupted" for e in entries):
                raise KeyboardInterrupt
            lines.add(*entries)
            for entry in entries:
                known.add(entry)
            f = known.figures()
            print(f"{f['images'] - f['undecided']}/{f['images']}  verified {f['verified']}  falsified {f['falsified']}"
                  f"  left by the batches {len(known.to_ask_alone())}  {time.monotonic() - start:.0f} s",
                  file=sys.stderr, flush=True)


def _as_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _as_interrupt)
    sys.exit(main())
