"""`rmax lipschitz`: how fast can outputs change around each input, over the boxes of a property, or anywhere?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from verifier.cli.data_run import check_clip, check_run, chosen_data, write_csv
from verifier.cli.data_work import DataWork
from verifier.cli.errors import BadInput, reading
from verifier.cli.question import NORMS, check_writable, read_mask, read_network
from verifier.cli.startup import load_torch
from verifier.cli.verify import SEED

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from verifier.data import DataSet
    from verifier.example_store import Finished
    from verifier.lipschitz.data import Asked
    from verifier.network import Network
    from verifier.property import Property

LOCAL = ("fastlip", "recurjac", "jacobian", "exact", "best")
EVERYWHERE = ("norms", "eclipse-fast", "eclipse", "lipsdp", "lipsdp-layer", "global")
FUNCTIONS = ("margin", "logit", "confidence")
SPECS = (".vnnlib", ".vnnlib.gz")
EXAMPLES_ONLY = ("--eps", "--clip", "--mask", "--features", "--index", "--count", "--function")


@click.command(epilog="""\b
Examples
  rmax lipschitz net.onnx
  rmax lipschitz net.onnx --method lipsdp
  rmax lipschitz net.onnx test.npz --eps 0.02 --clip 0 1 --norm 2 --count 20
  rmax lipschitz net.onnx test.npz --eps 0.02 --function confidence --features 101,102,130 --error 0.001
  rmax lipschitz net.onnx property.vnnlib --method best --json constants.jsonl

\b
With test.npz (x, y) and --eps: over the ball around each example, of a function of its label's logits: the margin
(label less runner-up), the logit, or the confidence. With property.vnnlib: over its input boxes, of every output.
Without --eps: of the whole network, for all inputs, one line a method; test.npz then only gives the estimate.
A certified constant is proved; an estimate is the largest gradient that was sampled and proves nothing; the slope
between two points is a proved lower bound. Ranges are proved from outside and seen from inside; where at most 8
features move (--mask, --features) a search brings both together.
A line of JSON each: index, label, norm, certified, evidence, estimate, slope, range_lower, range_upper, method, time_s
(null instead of a number: infinite, or not asked); the last line is the summary.""")
@click.argument("net", metavar="NET.onnx")
@click.argument("about", required=False, metavar="[SPEC.vnnlib|DATA.npz]")
@click.option("--norm", type=click.Choice(tuple(NORMS)), help="How inputs are measured [inf; without --eps: 2].")
@click.option("--eps", type=float, metavar="E", help="The radius of the balls, in the network's input units.")
@click.option("--clip", type=(float, float), metavar="LO HI", help="The range of valid inputs.")
@click.option("--mask", metavar="M.npy", help="Which features may move (true = may move).")
@click.option("--features", metavar="I,J,..", help="The same as numbers of flat features.")
@click.option("--index", type=int, multiple=True, metavar="I", help="Only this input; may be repeated.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="Only the first N inputs.")
@click.option("--function", type=click.Choice(FUNCTIONS), help="Of the logits, for the label [margin].")
@click.option("--method", type=click.Choice((*LOCAL, *EVERYWHERE)), metavar="M",
              help="Over sets: fastlip, recurjac, jacobian (default), exact, best. Everywhere: norms, eclipse-fast, "
                   "eclipse, lipsdp, lipsdp-layer, global (default without --eps).")
@click.option("--error", type=float, default=0.01, show_default=True, metavar="E", help="Of ranges that are searched.")
@click.option("--time-limit", type=float, default=60.0, show_default=True, metavar="S", help="Seconds a line.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of the sampled points.")
@click.option("--out", metavar="RUN", help="Folder that keeps results as they come.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out.")
@click.option("--json", "json_out", metavar="OUT|-", help="One JSON object a line, as they come; - for stdout alone.")
@click.option("--csv", "csv_out", metavar="OUT", help="The same as a table, at the end.")
def command(net: str, about: str | None, norm: str | None, eps: float | None, clip: tuple[float, float] | None,
            mask: str | None, features: str | None, index: tuple[int, ...], count: int | None, function: str | None,
            method: str | None, error: float, time_limit: float, seed: int, out: str | None, resume: bool,
            json_out: str | None, csv_out: str | None) -> None:
    """Lipschitz constants, certified and estimated, and the range of outputs."""
    given = dict(zip(EXAMPLES_ONLY, (eps, clip, mask, features, index or None, count, function), strict=True))
    is_spec = about is not None and about.endswith(SPECS)
    local = is_spec or eps is not None
    method = method or ("jacobian" if local else "global")
    _check_flags(about, given, method, is_spec)
    check_clip(clip)
    check_run(out, resume, index, count)
    if not 0 < time_limit < math.inf:
        raise BadInput(f"--time-limit must be a positive number of seconds, got {time_limit}")
    if not 0 <= error < math.inf:
        raise BadInput(f"--error must be a number >= 0, got {error}")
    for flag, path in (("--json", json_out), ("--csv", csv_out)):
        check_writable(flag, path)

    load_torch()
    network = read_network(net)
    data, property = None, None
    if is_spec:
        from verifier.vnnlib import read_vnnlib
        assert about is not None
        shapes = (network.graph.input_shape, network.graph.output_shape)
        inputs, outputs = (math.prod(shape) for shape in shapes)
        with reading(about):
            property = read_vnnlib(about, inputs=inputs, outputs=outputs)
    elif about is not None:
        data = chosen_data(about, network, index, count)
    from verifier.lipschitz.data import Asked
    asked = Asked(NORMS[norm or ("inf" if local else "2")], method, eps, clip, _free(mask, features, network),
                  function or "margin", error, time_limit, seed)
    work = _Work(network, asked, data, property)
    work.run(json_out, out=out, resume=resume)
    write_csv(csv_out, [record for record, _ in work.done])


def _check_flags(about: str | None, given: dict[str, Any], method: str, is_spec: bool) -> None:
    """What belongs together; needs no file and no library."""
    eps = given["--eps"]
    if is_spec or about is None:
        wrong = next((name for name, value in given.items() if value is not None), None)
        if wrong is not None:
            raise BadInput(f"{wrong} belongs to examples: give DATA.npz" + (
                f" instead of {about}, whose boxes are what is asked about" if is_spec else ""))
    if eps is not None and not 0 <= eps < math.inf:
        raise BadInput(f"--eps must be a number >= 0, got {eps}")
    if eps is None and not is_spec:
        wrong = next((n for n in ("--clip", "--mask", "--features", "--function") if given[n] is not None), None)
        if wrong is not None:
            raise BadInput(f"{wrong} needs --eps: without it the constant of the whole network is asked for")
        if method in LOCAL:
            raise BadInput(f"--method {method} needs --eps or a property: it bounds a constant over a set")
    if given["--mask"] is not None and given["--features"] is not None:
        raise BadInput("--mask and --features exclude each other")


def _free(mask: str | None, features: str | None, network: Network) -> NDArray[np.bool_] | None:
    """Which features may move, from either flag."""
    import numpy as np
    shape = network.graph.input_shape
    if mask is not None:
        return read_mask(mask, shape)
    if features is None:
        return None
    try:
        chosen = [int(part) for part in features.split(",")]
    except ValueError as error:
        raise BadInput(f"--features needs numbers with commas between them, got {features}") from error
    free = np.zeros(math.prod(shape), dtype=bool)
    beyond = [i for i in chosen if not 0 <= i < free.size]
    if beyond:
        raise BadInput(f"--features {beyond[0]} is out of range: the network has {free.size} inputs, "
                       f"0 to {free.size - 1}")
    free[chosen] = True
    return free.reshape(shape)


class _Work(DataWork):
    """One command under way: over examples, over boxes, or everywhere."""

    def __init__(self, network: Network, asked: Asked, data: DataSet | None, property: Property | None) -> None:
        self.network, self.asked, self.data, self.property = network, asked, data, property
        local = 0 if data is None or asked.eps is None else len(data)
        total = local if local else len(asked.methods) if property is None else len(
            property.regions) * property.outputs
        super().__init__(network.graph.input_shape, total)

    def check(self) -> None:
        if self.data is not None:
            self.data = self.data.within(self.asked.clip, self.asked.mask)

    def settings(self) -> dict[str, Any]:
        asked, mask = self.asked, self.asked.mask
        return {"norm": str(asked.norm), "method": asked.method, "eps": asked.eps,
                "clip": asked.clip and list(asked.clip), "mask": None if mask is None else mask.tobytes().hex(),
                "function": asked.function, "error": asked.error, "time_limit": asked.time_limit_s,
                "seed": asked.seed, "data": None if self.data is None else self.data.digest,
                "property": None if self.property is None else _digest(self.property), "network": self.network.digest}

    def results(self) -> Iterator[Finished]:
        from verifier.lipschitz.data import everywhere, over_boxes, over_examples
        skip = set(self.finished)
        if self.property is not None:
            records = over_boxes(self.network, self.property, self.asked, skip=skip)
        elif self.asked.eps is not None and self.data is not None:
            records = over_examples(self.network, self.data, self.asked, skip=skip)
        else:
            records = everywhere(self.network, self.asked, data=self.data, skip=skip)
        for record in records:
            yield record, None
            self.line.tell(f"done {len(self.finished)} of {self.total}")

    def summary(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        from verifier.lipschitz.data import summary
        return summary(records)

    def row(self, record: dict[str, Any]) -> str:
        parts = [f"{record['index']:6d}", f"constant {_shown(record['certified'])} ({record['method']}, "
                                          f"{record['evidence']})"]
        if record["estimate"] is not None:
            parts.append(f"estimate {_shown(record['estimate'])}")
        if record["function"] != "outputs":
            parts.append(f"range [{_shown(record['range_lower'], -1)}, {_shown(record['range_upper'])}]")
        return "  ".join([*parts, *filter(None, [record["note"]]), f"{record['time_s']:.1f} s"])

    def sentence(self, total: dict[str, Any]) -> str:
        if not total["count"]:
            return "no constants"
        parts = [f"{total['count']} constants"]
        if total["least_certified"] is not None:
            parts.append(f"from {total['least_certified']:.6g} to {total['largest_certified']:.6g}")
        if total["median_ratio"] is not None:
            parts.append(f"median {total['median_ratio']:.3g} times the estimate")
        for name, words in (("infinite", "infinite"), ("left", "not done")):
            if total[name]:
                parts.append(f"{total[name]} {words}")
        return "  ".join([*parts, f"{total['time_s']:.1f} s"])


def _digest(property: Property) -> str:
    """Of its regions: the rows do not matter here."""
    import hashlib
    ends = [(r.exact_lower, r.exact_upper, r.radius, r.p, None if r.centre is None else r.centre.tolist())
            for r in property.regions]
    return hashlib.sha256(repr(ends).encode()).hexdigest()


def _shown(value: float | None, sign: int = 1) -> str:
    return f"{value:.6g}" if value is not None else "infinite" if sign > 0 else "-infinite"
