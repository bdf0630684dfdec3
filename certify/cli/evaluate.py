"""`rmax evaluate`: what is a network worth? Clean, attacked and certified accuracy of a data set."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from certify.evaluation.asked import METHODS, Asked
from verifier.cli import EXIT_WRONG_USE
from verifier.cli.attack import NORMS
from verifier.cli.data_run import check_clip, check_run, write_csv
from verifier.cli.data_work import DataWork
from verifier.cli.errors import BadInput, reading
from verifier.cli.question import check_device, check_writable, read_network
from verifier.cli.startup import load_torch
from verifier.cli.sweep import LOUD
from verifier.cli.verify import SEED

if TYPE_CHECKING:
    from certify.evaluation.jobs import Piece
    from certify.evaluation.smoothed import AskedSmoothed
    from verifier.data import DataSet
    from verifier.example_store import Finished
    from verifier.network import Network

NOT_SMOOTHED = ("clip", "no_clip", "attacks", "method", "transfer_from", "time_limit", "claim", "evidence")


def _listing() -> str:
    return "\n".join(["\b", "Methods of certification", *(f"  {name:12s} {m.summary}" for name, m in METHODS.items())])


@click.command(short_help="Clean, attacked and certified accuracy of a network on a data set.", epilog=f"""{_listing()}

\b
Examples
  rmax evaluate net.onnx --data mnist --eps 0.1
  rmax evaluate net.onnx --data test.npz --eps 0.1 --clip 0 1 --attacks fgsm,pgd-20,autoattack --count 500
  rmax evaluate net.onnx --data mnist --eps 0.1 --out out/mnist --resume --time-limit 300 --jobs 2
  rmax evaluate net.onnx --data mnist --eps 0.1 --method none --transfer-from surrogate.onnx
  rmax evaluate net.onnx --data mnist --eps 0.5 --smoothing 0.25 --samples 10000

\b
A line of JSON an example: index, clean, attacked, certified (true: the network stands), reason, time_s, ...; the last
line is the summary, with shares of 1. The robust accuracy lies between certified and attacked.""")
@click.argument("net", metavar="NET.onnx")
@click.option("--data", required=True, metavar="NAME|DATA.npz", help="A data set by name (its test set), or a file.")
@click.option("--data-dir", metavar="D", help="Where data sets known by name lie.")
@click.option("--eps", type=float, required=True, metavar="E", help="The radius, in the network's input units.")
@click.option("--norm", type=click.Choice(["inf", "2", "1"]), help="Of the ball [inf; 2 with --smoothing].")
@click.option("--clip", type=(float, float), metavar="LO HI",
              help="The range of valid inputs [that of a named data set, or stored in the file].")
@click.option("--no-clip", is_flag=True, help="The whole ball, whatever range comes with the data.")
@click.option("--index", type=int, multiple=True, metavar="I", help="Only this example; may be repeated.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="Only the first N examples.")
@click.option("--attacks", default="pgd-20", show_default=True, metavar="A[,A..]",
              help="pgd-N (N steps), fgsm, cw-inf, autoattack, others of `rmax attack`, or none. With "
              "--transfer-from also transfer-pgd-10, transfer-fgsm, ...: worked out on that network.")
@click.option("--transfer-from", metavar="SURROGATE.onnx", help="Also try adversarial examples of this network.")
@click.option("--method", type=click.Choice(tuple(METHODS)), default="cascade", show_default=True, metavar="M",
              help="Of certification, one of those below.")
@click.option("--time-limit", type=float, default=60.0, show_default=True, metavar="S",
              help="Seconds of certification an example.")
@click.option("--claim", type=click.Choice(["real", "float32"]), default="real", show_default=True,
              help="About which function what is certified speaks.")
@click.option("--evidence", type=click.Choice(["float", "rounded"]), help="Certify with no less, or with no more.")
@click.option("--smoothing", type=float, metavar="SIGMA",
              help="Evaluate the classifier smoothed with this noise (l_2).")
@click.option("--samples", type=click.IntRange(1), default=10_000, show_default=True, help="Noises an example.")
@click.option("--alpha", type=float, default=0.001, show_default=True,
              help="How often such a certificate may be wrong.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Where to compute [cpu].")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="Processes.")
@click.option("--batch", type=click.IntRange(1), metavar="N", help="Examples bounded and attacked together.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of everything random.")
@click.option("--out", metavar="RUN", help="Folder that keeps results as they come.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out; with a longer time limit undecided examples "
              "are asked again.")
@click.option("--json", "json_out", metavar="OUT|-", help="One JSON object a line, as they come; - for stdout alone.")
@click.option("--csv", "csv_out", metavar="OUT", help="The same as a table, at the end.")
@click.pass_context
def command(ctx: click.Context, net: str, data: str, data_dir: str | None, eps: float, norm: str | None,
            clip: tuple[float, float] | None, no_clip: bool, index: tuple[int, ...], count: int | None, attacks: str,
            transfer_from: str | None, method: str, time_limit: float, claim: str, evidence: str | None,
            smoothing: float | None, samples: int, alpha: float, device: str | None, jobs: int, batch: int | None,
            seed: int, out: str | None, resume: bool, json_out: str | None, csv_out: str | None) -> None:
    """What is a network worth? Clean, attacked and certified accuracy of a data set, with evidence.

    Attacks give what is at most left of the accuracy within eps, certificates what is surely left.
    """
    check_clip(clip)
    check_run(out, resume, index, count)
    if clip is not None and no_clip:
        raise BadInput("--clip and --no-clip exclude each other")
    for flag, path in (("--json", json_out), ("--csv", csv_out)):
        check_writable(flag, path)
    _check_smoothing(ctx, smoothing, norm)

    load_torch()
    check_device(device)
    network = read_network(net)
    from certify.evaluation.data import examples_of
    with reading(data):
        examples, known, part = examples_of(data, network.graph.input_shape, math.prod(network.graph.output_shape),
                                            data_dir)
        total = len(examples)
        chosen = examples.chosen(sorted(set(index)) if index else list(range(min(count or total, total))))
    work: _Work
    try:
        if smoothing is not None:
            from certify.evaluation.smoothed import AskedSmoothed
            work = _Smoothed(network, chosen, AskedSmoothed(eps, smoothing, samples, alpha=alpha, seed=seed))
        else:
            names = () if attacks == "none" else tuple(a.strip() for a in attacks.split(",") if a.strip() != "clean")
            asked = Asked(eps, NORMS[norm or "inf"], clip or (None if no_clip else known), method, names,
                          transfer_from, time_limit, claim, evidence or "", seed)
            surrogate = None if transfer_from is None else _surrogate(transfer_from, network)
            work = _Certified(network, chosen, asked, surrogate)
            part += f", {_range(asked.clip)}"
    except ValueError as error:
        raise BadInput(str(error)) from error
    click.echo(f"{data}: {len(chosen)} of {total} examples of {part}", err=True)
    work.how = {"device": device, "jobs": jobs, **({} if batch is None else {"batch": batch})}
    work.run(json_out, out=out, resume=resume)
    records = [record for record, _ in work.done]
    write_csv(csv_out, records)
    for note in dict.fromkeys(work.notes):
        click.echo(f"note: {note}", err=True)
    if clashes := [r for r in records if r["reason"] == "contradiction"]:
        for record in clashes:
            click.echo(f"{LOUD} CONTRADICTION  example {record['index']}: {record['detail']}", err=True)
        ctx.exit(EXIT_WRONG_USE)


def _check_smoothing(ctx: click.Context, smoothing: float | None, norm: str | None) -> None:
    """A flag that the question at hand has no use for is wrong use."""
    def given(name: str) -> bool:
        return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    if smoothing is None:
        for name in ("samples", "alpha"):
            if given(name):
                raise BadInput(f"--{name} belongs to --smoothing")
        return
    if norm not in (None, "2"):
        raise BadInput(f"--smoothing certifies radii in the norm 2, not {norm}")
    for name in NOT_SMOOTHED:
        if given(name):
            raise BadInput(f"--{name.replace('_', '-')} does not go with --smoothing")


def _range(clip: Sequence[float] | None) -> str:
    return "no clip" if clip is None else f"clip [{clip[0]:g}, {clip[1]:g}]"


def _surrogate(path: str, network: Network) -> str:
    """The digest of a surrogate that fits."""
    surrogate = read_network(path)
    for what, theirs, ours in (("inputs", surrogate.graph.input_shape, network.graph.input_shape),
                               ("outputs", surrogate.graph.output_shape, network.graph.output_shape)):
        if theirs != ours:
            raise BadInput(f"--transfer-from {path}: has {what} of shape {theirs}, {network.path} of {ours}")
    return surrogate.digest


class _Work(DataWork):
    """One command under way: what is asked, what is finished, what is told."""

    columns: tuple[str, ...] = ()

    def __init__(self, network: Network, data: DataSet) -> None:
        self.network, self.data = network, data
        self.notes: list[str] = []
        self.how: dict[str, Any] = {}
        super().__init__(network.graph.input_shape, len(data))

    def asked_settings(self) -> dict[str, Any]:
        raise NotImplementedError

    def found(self, skip: set[int]) -> Iterator[Piece]:
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        return self.asked_settings() | {"data": self.data.digest, "network": self.network.digest}

    def pieces(self) -> Iterator[list[Finished]]:
        for piece in self.found(set(self.finished)):
            self.notes += piece.notes
            yield piece.finished
            self.tell()

    def results(self) -> Iterator[Finished]:
        for piece in self.pieces():
            yield from piece

    def tell(self) -> None:
        records = [record for record, _ in self.finished.values()]
        counts = "  ".join(f"{name} {sum(r[name] for r in records)}" for name in ("clean", "attacked", "certified")
                           if all(r[name] is not None for r in records))
        self.line.tell(f"done {len(records)} of {self.total}  {counts}")

    def summary(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        from certify.evaluation.records import summary
        return summary(records, self.columns, self.facts(), self.total - len(records))

    def row(self, record: dict[str, Any]) -> str:
        """Only what a person should look at: the others are counted."""
        from certify.evaluation.records import CONTRADICTION, FLOAT32_ONLY, TROUBLE
        if record["reason"] not in ("time limit", CONTRADICTION, FLOAT32_ONLY, *TROUBLE):
            return ""
        detail = f"  {record['detail']}" if record.get("detail") else ""
        return f"{record['index']:6d}  {record['reason']}{detail}  {record['time_s']:.1f} s"

    def sentence(self, total: dict[str, Any]) -> str:
        if not total["count"]:
            return f"none of {total['left']} examples done"
        from certify.evaluation.records import COUNTEREXAMPLE, MISCLASSIFIED, REASONS, table
        lines = [f"{total['left']} of {self.total} not done"] if total["left"] else []
        lines += table(total)
        if total["by"]:
            lines.append("certified by  " + "  ".join(f"{name} {n}" for name, n in total["by"].items()))
        rest = {r: n for r in REASONS if (n := total["counts"].get(r)) and r not in (MISCLASSIFIED, COUNTEREXAMPLE)}
        if rest:
            lines.append("not certified  " + "  ".join(f"{name} {n}" for name, n in rest.items()))
        words = [f"norm {total['norm']} eps {total['eps']:g}",
                 _range(total["clip"]),
                 f"{total['claim']}/{total['evidence']}" if total["evidence"] else ""]
        return "\n".join([*lines, "  ".join([*(w for w in words if w), f"{total['time_s']:.1f} s"])])


class _Certified(_Work):
    def __init__(self, network: Network, data: DataSet, asked: Asked, surrogate: str | None) -> None:
        self.asked, self.surrogate = asked, surrogate
        self.columns = asked.columns
        super().__init__(network, data)

    def asked_settings(self) -> dict[str, Any]:
        q = self.asked
        return {"eps": q.eps, "norm": str(q.norm), "clip": q.clip and list(q.clip), "method": q.method,
                "attacks": list(q.attacks), "surrogate": self.surrogate, "claim": q.claim, "evidence": q.evidence,
                "seed": q.seed}

    def keeps(self, record: dict[str, Any]) -> bool:
        from certify.evaluation.records import is_final
        return is_final(record, self.asked.time_limit_s)

    def check(self) -> None:
        self.data.within(self.asked.clip)

    def found(self, skip: set[int]) -> Iterator[Piece]:
        from certify.evaluation.evaluate import evaluate_data
        return evaluate_data(self.network, self.data, self.asked, skip=skip, **self.how)

    def facts(self) -> dict[str, Any]:
        from certify.evaluation.records import as_facts
        return as_facts(self.asked)


class _Smoothed(_Work):
    def __init__(self, network: Network, data: DataSet, asked: AskedSmoothed) -> None:
        self.asked = asked
        super().__init__(network, data)

    def asked_settings(self) -> dict[str, Any]:
        from dataclasses import asdict
        return asdict(self.asked)

    def keeps(self, record: dict[str, Any]) -> bool:
        from certify.evaluation.records import TROUBLE
        return record["reason"] not in TROUBLE

    def check(self) -> None:
        """Noise leaves every range: there is nothing to compare inputs with."""

    def found(self, skip: set[int]) -> Iterator[Piece]:
        from certify.evaluation.smoothed import evaluate_smoothed
        return evaluate_smoothed(self.network, self.data, self.asked, skip=skip, **self.how)

    def facts(self) -> dict[str, Any]:
        return self.asked.facts()
