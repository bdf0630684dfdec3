"""`rmax attack`: an attack over a data set, told as it goes."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from verifier.attacks.registry import ATTACKS, BEYOND
from verifier.cli.data_run import (
    ProgressLine,
    check_clip,
    check_run,
    chosen_data,
    out_lines,
    print_lines,
    write_csv,
)
from verifier.cli.errors import BadInput, reading, writing
from verifier.cli.question import check_device, check_writable, read_mask, read_network
from verifier.cli.startup import load_torch
from verifier.cli.verify import SEED

if TYPE_CHECKING:
    from verifier.attacks.base import Attack
    from verifier.data import DataSet
    from verifier.example_store import Finished
    from verifier.network import Network

NORMS = {"inf": math.inf, "2": 2.0, "1": 1.0, "0": 0.0}
COUNTED = {"proved": "proved to stand", "unconfirmed": "not confirmed by onnxruntime",
           "not_finite": "with NaN or infinity", "incomplete": "cut short", "left": "not begun"}


def _listing() -> str:
    lines = ["\b", "Attacks (norms; source)"]
    for kind in dict.fromkeys(entry.kind for entry in ATTACKS.values()):
        lines.append(f"  {kind}")
        lines += [f"    {name:12s} {e.summary} ({' '.join(e.norms)}; {e.source})"
                  for name, e in ATTACKS.items() if e.kind == kind]
    return "\n".join(lines)


@click.command(epilog=f"""{_listing()}

\b
Examples
  rmax attack net.onnx test.npz --attack pgd --eps 0.1 --clip 0 1
  rmax attack net.onnx test.npz --attack autoattack --eps 0.1 --clip 0 1 --out out/aa --resume
  rmax attack net.onnx test.npz --attack fmn --norm 2 --clip 0 1 --picture found.png --json found.jsonl
  rmax attack net.onnx test.npz --attack square --eps 0.1 --clip 0 1 --queries 1000 --onnxruntime

\b
test.npz holds x (N, *input shape) and labels y (N,); eps and clip are in the network's input units.
A line of JSON an example: index, attack, norm, eps, success, distance, calls (gradients), queries (evaluations), ...;
the last line is the summary. A success was confirmed by onnxruntime on the original file.""")
@click.argument("net", metavar="NET.onnx")
@click.argument("data", metavar="DATA.npz")
@click.option("--attack", "name", type=click.Choice(tuple(ATTACKS)), required=True, metavar="NAME",
              help="One of those listed below.")
@click.option("--eps", type=float, metavar="E", help="The radius; a minimum norm needs none (then: which successes "
              "count).")
@click.option("--norm", type=click.Choice(tuple(NORMS)), help="Of eps and distance [the attack's first].")
@click.option("--clip", type=(float, float), metavar="LO HI", help="The range of valid inputs.")
@click.option("--mask", metavar="M.npy", help="Which features may move (true = may move).")
@click.option("--target", type=int, metavar="T", help="Make it class T instead of any other class.")
@click.option("--index", type=int, multiple=True, metavar="I", help="Only this example; may be repeated.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="Only the first N examples.")
@click.option("--steps", type=click.IntRange(1), help="Gradients of one run [the attack's own].")
@click.option("--restarts", type=click.IntRange(1), help="Of attacks with random starts.")
@click.option("--queries", type=click.IntRange(1), metavar="N", help="Evaluations that an example may cost.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Any other setting of the attack.")
@click.option("--surrogate", metavar="NET.onnx", help="Of transfer: the network whose adversarial examples are tried.")
@click.option("--fosc", is_flag=True, help="Also report the stationarity gap of the cross-entropy at the end.")
@click.option("--onnxruntime", "through_onnx", is_flag=True,
              help="Evaluate the file through onnxruntime: no gradients, black-box attacks only.")
@click.option("--skip-proved", is_flag=True,
              help="Do not attack what bounds prove to stand inside eps: the same shares, sooner.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Where to compute [cpu].")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of everything random.")
@click.option("--time-limit", type=float, metavar="S", help="Seconds for all examples [none].")
@click.option("--out", metavar="RUN", help="Folder that keeps results as they come.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out.")
@click.option("--json", "json_out", metavar="OUT|-", help="One JSON object a line, as they come; - for stdout alone.")
@click.option("--csv", "csv_out", metavar="OUT", help="The same as a table, at the end.")
@click.option("--examples", metavar="OUT.npz", help="The points found: x, index, y, became, success.")
@click.option("--picture", metavar="OUT.png", help="Originals, perturbations and results.")
def command(net: str, data: str, name: str, eps: float | None, norm: str | None, clip: tuple[float, float] | None,
            mask: str | None, target: int | None, index: tuple[int, ...], count: int | None, steps: int | None,
            restarts: int | None, queries: int | None, settings: tuple[str, ...], surrogate: str | None, fosc: bool,
            through_onnx: bool,
            skip_proved: bool, device: str | None, seed: int, time_limit: float | None, out: str | None, resume: bool,
            json_out: str | None, csv_out: str | None, examples: str | None, picture: str | None) -> None:
    """Attack a network on every example of a data set, and say how robust it looks.

    What is found are upper bounds of the safe radius. That nothing is found proves nothing: `rmax verify` does.
    """
    if eps is not None and not 0 <= eps < math.inf:
        raise BadInput(f"--eps must be a number >= 0, got {eps}")
    check_clip(clip)
    if time_limit is not None and not time_limit > 0:
        raise BadInput(f"--time-limit must be positive, got {time_limit}")
    check_run(out, resume, index, count)
    norm = norm or ATTACKS[name].norms[0]
    if norm not in ATTACKS[name].norms:
        raise BadInput(f"--attack {name} works in the norms {', '.join(ATTACKS[name].norms)}, not {norm}")
    if skip_proved and (eps is None or norm == "0" or ATTACKS[name].kind == BEYOND):
        raise BadInput("--skip-proved needs --eps, a norm of inf, 2 or 1, and an attack that adds to the input")
    if fosc and (norm == "0" or through_onnx):
        raise BadInput("--fosc needs gradients, and a norm of inf, 2 or 1")
    for flag, path in (("--json", json_out), ("--csv", csv_out), ("--examples", examples), ("--picture", picture)):
        check_writable(flag, path)

    load_torch()
    import torch
    check_device(device)
    attack = _configured(name, settings, surrogate, steps=steps, restarts=restarts)
    network = read_network(net)
    if surrogate is not None and read_network(surrogate).graph.input_shape != network.graph.input_shape:
        raise BadInput(f"--surrogate {surrogate}: takes inputs of shape {read_network(surrogate).graph.input_shape}, "
                       f"{net} of {network.graph.input_shape}")
    chosen = chosen_data(data, network, index, count)
    if target is not None and not 0 <= target < math.prod(network.graph.output_shape):
        raise BadInput(f"--target {target} is out of range: {net} has {math.prod(network.graph.output_shape)} outputs")
    from verifier.attacks.threat import Threat
    free = None if mask is None else torch.from_numpy(read_mask(mask, network.graph.input_shape))
    threat = Threat(NORMS[norm], math.inf if eps is None else eps, clip, free)
    with reading(data):
        chosen = chosen.within(clip, None if free is None else free.numpy())
    work = _Work(network, chosen, attack, threat, target=target, seed=seed, queries=queries, fosc=fosc, device=device,
                 through_onnx=through_onnx, skip_proved=skip_proved)
    work.surrogate = None if surrogate is None else read_network(surrogate).digest
    work.run(json_out, out=out, resume=resume, time_limit_s=time_limit)
    _write(work, csv_out, examples, picture)


def _configured(name: str, settings: tuple[str, ...], surrogate: str | None, **given: int | None) -> Attack:
    """The attack with what the flags say. A flag that it has no setting for is wrong use."""
    from verifier.attacks.registry import attack_named
    values: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if surrogate is not None:
        values["surrogate"] = read_network(surrogate).simplified
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or key == "surrogate":
            raise BadInput(f"--set expects NAME=VALUE of a setting without a flag of its own, got {setting!r}")
        values[key.replace("-", "_")] = _value(text)
    try:
        return attack_named(name, **values)
    except (ValueError, TypeError) as error:  # a setting that is not there, or of the wrong kind
        raise BadInput(f"--attack {name}: {error}") from error


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


class _Work:
    """One command under way: what is asked, what is finished, what is told."""

    def __init__(self, network: Network, data: DataSet, attack: Attack, threat: Any, **asked: Any) -> None:
        self.network, self.data, self.attack, self.threat, self.asked = network, data, attack, threat, asked
        self.finished: dict[int, Finished] = {}
        self.stored = 0, 0  # examples, and fallen ones, of the run that is resumed
        self.notes: list[str] = []
        self.surrogate: str | None = None
        self.asked_about = int((data.y != asked["target"]).sum())  # examples of the target class are left out
        self.line = ProgressLine()

    def settings(self) -> dict[str, Any]:
        """What a resumed run must agree on."""
        mask = self.threat.mask
        asked = {k: v for k, v in self.asked.items() if k != "device"}
        attack = {f.name: str(getattr(self.attack, f.name)) for f in fields(self.attack) if f.name != "surrogate"}
        return {"attack": f"{self.attack.name} {attack}", "norm": str(self.threat.norm), "eps": str(self.threat.eps),
                "clip": self.threat.clip and list(self.threat.clip), "data": self.data.digest,
                "mask": None if mask is None else mask.numpy().tobytes().hex(),
                "network": self.network.digest, "surrogate": self.surrogate, **asked}

    def run(self, json_out: str | None, *, out: str | None, resume: bool, time_limit_s: float | None) -> None:
        from contextlib import nullcontext

        from verifier.attack_data import summary
        from verifier.example_store import ExampleStore
        from verifier.run_folder import UnusableStore
        try:
            store = None if out is None else ExampleStore(Path(out), self.settings(), resume=resume)
        except UnusableStore as error:
            raise BadInput(str(error)) from error
        interrupted = False
        with store or nullcontext(), out_lines(json_out) as lines:
            if store is not None:
                self.finished = store.finished(self.network.graph.input_shape)
                self.stored = len(self.finished), sum(record["success"] for record in self.records)
                print_lines(lines, [record for record, _ in self.finished.values()])
            try:
                self._work(store, lines, time_limit_s)
            except KeyboardInterrupt:
                interrupted = True
            self.line.end()
            total = summary(self.records) | {"attack": self.attack.name, "notes": self.notes,
                                             "interrupted": interrupted, "left": self.asked_about - len(self.finished),
                                             "time_s": round(self.line.elapsed, 3)}
            print_lines(lines, [total])
        for note in self.notes:
            click.echo(f"note: {note}", err=True)
        if json_out != "-":
            click.echo(self.sentence(total))

    def _work(self, store: Any, lines: TextIO | None, time_limit_s: float | None) -> None:
        from verifier.attack_data import attack_data
        from verifier.attacks.model import ModelError
        from verifier.deadline import Deadline
        deadline = Deadline.starting_now(time_limit_s or math.inf)
        try:
            for piece in attack_data(self.network, self.data, self.attack, self.threat, deadline=deadline,
                                     skip=set(self.finished), progress=self.tell, **self.asked):
                complete = [f for f in piece.finished if f[0]["complete"]]
                if self.attack.together and len(complete) < len(piece.finished):
                    complete = []  # one perturbation for all: a part of them would be resumed with another
                if store is not None:
                    store.record(complete)
                print_lines(lines, [record for record, _ in piece.finished])
                self.finished |= {record["index"]: (record, x) for record, x in piece.finished}
                self.notes += [note for note in piece.notes if note not in self.notes]
        except (ValueError, ModelError) as error:  # of what was asked, or of the model: told in a sentence each
            self.line.end()
            raise BadInput(" ".join(str(error).split())) from error

    @property
    def records(self) -> list[dict[str, Any]]:
        return [self.finished[i][0] for i in sorted(self.finished)]

    def tell(self, done: int, fallen: int) -> None:
        self.line.tell(f"{self.attack.name}  done {self.stored[0] + done} of {self.asked_about}  "
                       f"fallen {self.stored[1] + fallen}")

    def sentence(self, total: dict[str, Any]) -> str:
        """The result in one line for people."""
        from verifier.attacks.base import norm_name
        norm = norm_name(self.threat.norm)
        where = f"norm {norm}" if math.isinf(self.threat.eps) else f"norm {norm} eps {self.threat.eps:g}"
        if not total["count"]:
            return f"{self.attack.name}  {where}  no examples"
        parts = [f"{self.attack.name}  {where}", f"{total['count']} examples", f"clean {100 * total['clean']:.2f} %"]
        if math.isinf(self.threat.eps):
            median = total["median_distance"]
            parts.append(f"fell {total['fallen']}  median distance {'none' if median is None else f'{median:.6g}'}")
        else:
            parts.append(f"standing {100 * total['robust']:.2f} %  fell {total['fallen']}")
        parts.append(f"gradients {total['calls']}  evaluations {total['queries']}  {total['time_s']:.1f} s")
        for name, words in COUNTED.items():
            if total[name]:
                parts.append(f"{total[name]} {words}")
        return ("interrupted  " if total["interrupted"] else "") + "  ".join(parts)


def _write(work: _Work, csv_out: str | None, examples: str | None, picture: str | None) -> None:
    import numpy as np
    done = [work.finished[i] for i in sorted(work.finished)]
    write_csv(csv_out, [record for record, _ in done])
    if examples is not None and done:
        from verifier.attack_data import arrays
        with writing("--examples", examples), Path(examples).open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays(done))
    if picture is not None and done:
        from verifier.attacks.picture import save_picture
        places = {int(i): k for k, i in enumerate(work.data.index)}
        shown = [f for f in done if f[0]["success"]] or done
        with writing("--picture", picture):
            save_picture(Path(picture), work.data.x[[places[r["index"]] for r, _ in shown]],
                         np.stack([x for _, x in shown if x is not None]), [r["label"] for r, _ in shown],
                         [r["became"] for r, _ in shown],
                         [math.inf if r["distance"] is None else r["distance"] for r, _ in shown])
