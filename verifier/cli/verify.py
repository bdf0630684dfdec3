"""`rmax verify`: one question, one answer, an exit code."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from milp.solvers.registry import MIXED_SOLVERS, QUADRATIC
from verifier.branch_and_bound.branching import BRANCHING
from verifier.cli import EXIT_UNKNOWN
from verifier.cli.errors import BadInput, writing
from verifier.cli.question import (
    PropertyFlags,
    check_device,
    check_solver,
    check_writable,
    proof_target,
    property_flags,
    read_network,
    read_property,
)
from verifier.cli.startup import load_torch

if TYPE_CHECKING:
    from verifier.strategy import Result

BOUND_METHODS = ("ibp", "zonotope", "fastlin", "crown-ibp", "crown", "alpha-crown", "meet", "lp-last", "lp", "sdp")
METHODS = ("auto", "attack", *BOUND_METHODS, "bab", "milp")
SEED = click.IntRange(0, 2**63 - 1)
EXIT_CODES = {"verified": 0, "falsified": 1, "unknown": EXIT_UNKNOWN}


@click.command(epilog="""\b
Examples
  rmax verify net.onnx property.vnnlib
  rmax verify net.onnx property.vnnlib.gz --time-limit 300 --json result.json
  rmax verify net.onnx --input digit.npy --label 7 --eps 0.03 --clip 0 1
  rmax verify net.onnx --input digit.npy --label 7 --eps 1.5 --norm 2 --witness found.npz

\b
Exit codes: 0 verified, 1 falsified, 2 wrong use or unreadable input, 3 unknown.""")
@click.argument("net", metavar="NET.onnx")
@property_flags
@click.option("--time-limit", type=float, default=60.0, show_default=True, metavar="S",
              help="Seconds from process start.")
@click.option("--method", type=click.Choice(METHODS), default="auto", show_default=True,
              help="auto: attack, ever tighter bounds, then branch and bound; attack: only look for counterexamples, "
                   "until the time is up; else that method alone.")
@click.option("--branching", type=click.Choice(BRANCHING), default=BRANCHING[0], show_default=True,
              help="How branch and bound chooses splits; babsr and kfsb split neurons only.")
@click.option("--solver", type=click.Choice(MIXED_SOLVERS), default=MIXED_SOLVERS[0], show_default=True,
              help="Of --method milp; cbc comes with PuLP, the others where they are installed.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Where to compute [cpu].")
@click.option("--claim", type=click.Choice(["real", "float32"]), default="real", show_default=True,
              help="About the stored network over the reals, or about what IEEE float32 makes of it node by node, sums "
                   "in any order: a smaller margin, and the answer holds for the network as it runs.")
@click.option("--evidence", type=click.Choice(["float", "rounded"]),
              help="rounded: every rounding error of what is verified must be accounted for, or the answer is unknown; "
                   "float: account for none.  [default: as much as is known, and the answer says so]")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of the attack's random starts.")
@click.option("--proof", metavar="OUT", help="Write a proof file for rmax check, of either verdict.")
@click.option("--witness", metavar="OUT", help="Write the counterexample: .npz with x and y, or .npy with x.")
@click.option("--vnncomp", metavar="OUT", help="Write the competition's result file.")
@click.option("--json", "json_out", metavar="OUT|-", help="Write the result as JSON; - for stdout alone.")
@click.pass_context
def command(ctx: click.Context, net: str, time_limit: float, method: str, branching: str, solver: str,
            device: str | None, claim: str, evidence: str | None, seed: int, proof: str | None, witness: str | None,
            vnncomp: str | None, json_out: str | None, **flags: Any) -> None:
    """Prove that no input of a set reaches the unsafe outputs, or find one that does.

    The property is a VNN-LIB file, which describes the unsafe set, or a ball around an input in which the
    label must not change.
    """
    asked = PropertyFlags(**flags)
    asked.check()
    if not time_limit > 0:
        raise BadInput(f"--time-limit must be positive, got {time_limit}")
    if method == "milp":
        check_solver(solver)
        if asked.norm == "2" and solver not in QUADRATIC:
            raise BadInput(f"--norm 2 --method milp: {solver} has no quadratic rows; use --solver scip "
                           "(`pip install pyscipopt`)")
    for flag, path in (("--witness", witness), ("--vnncomp", vnncomp), ("--json", json_out), ("--proof", proof)):
        check_writable(flag, path)

    logging.getLogger("verifier.progress").setLevel(logging.INFO)  # one line now and then, on stderr
    load_torch()
    from verifier.deadline import Deadline
    from verifier.strategy import HARD_LIMIT_GRACE_S, Result
    from verifier.verdict import Reason, Unknown
    from verifier.watchdog import TimeUp, hard_limit
    check_device(device)
    deadline = Deadline(time_limit)
    try:
        with hard_limit(deadline.left() + HARD_LIMIT_GRACE_S):
            network = read_network(net)
            property = read_property(asked, network)
    except TimeUp:
        result = Result(Unknown(Reason.TIME_LIMIT, detail="the time was up while the files were read"), method,
                        deadline.elapsed())
    else:
        result = _answer(network, property, method, branching, solver, device, seed, deadline,
                         None if proof is None else proof_target(asked, net, proof), evidence, claim)
    _write(result, net=net, spec=asked.spec, witness=witness, vnncomp=vnncomp, json_out=json_out)
    if proof is not None and not result.choices.get("proof", {}).get("written"):
        why = result.choices.get("proof", {}).get("reason", "the property is not verified")
        click.echo(f"proof not recorded: {why}", err=True)
    if result.detail or result.reason:
        remedy = f" ({result.reason.remedy})" if result.reason else ""
        click.echo(f"{result.detail or 'undecided'}{remedy}", err=True)
    ctx.exit(EXIT_CODES[result.name])


def _answer(network: Any, property: Any, method: str, branching: str, solver: str, device: str | None, seed: int,
            deadline: Any, proof: Any = None, evidence: str | None = None, claim: str = "real") -> Result:
    """The verification, with errors that show the input to be at fault told apart from its outcomes."""
    from bounds.graph import UnsupportedOperator
    from verifier.strategy import verify
    from verifier.verdict import Claim, Evidence
    from verifier.witness import ReplayError
    try:
        return verify(network.graph, property, replayer=network.replayer, method=method, device=device, seed=seed,
                      deadline=deadline, simplified=network.simplified, proof=proof, branching=branching, solver=solver,
                      evidence=None if evidence is None else Evidence[evidence.upper()], claim=Claim(claim))
    except (UnsupportedOperator, ValueError, ReplayError) as error:  # of the input, never of the work
        raise BadInput(" ".join(str(error).split())) from error


def _write(result: Result, *, net: str, spec: str | None, witness: str | None, vnncomp: str | None,
           json_out: str | None) -> None:
    from verifier.output import competition_result, save_witness
    from verifier.strategy import as_json
    if witness is not None:
        with writing("--witness", witness):
            written = save_witness(result, Path(witness))
        if not written:
            click.echo(f"--witness {witness}: not written, there is no counterexample", err=True)
    if vnncomp is not None:
        with writing("--vnncomp", vnncomp):
            Path(vnncomp).write_text(competition_result(result), encoding="ascii")
    if json_out is not None:
        text = json.dumps({"network": net, "property": spec, **as_json(result)}, allow_nan=False)
        if json_out == "-":
            click.echo(text)
        else:
            with writing("--json", json_out):
                Path(json_out).write_text(text + "\n", encoding="utf-8")
    if json_out != "-":
        click.echo(str(result))
