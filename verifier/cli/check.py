"""`rmax check`: a proof file, accepted or refused by the independent checker."""

from __future__ import annotations

from typing import Any

import click

from verifier.cli.errors import BadInput
from verifier.cli.question import PropertyFlags, ball_flags

EXIT_REFUSED = 1


@click.command(epilog="""\b
Examples
  rmax verify net.onnx property.vnnlib --proof net.proof && rmax check net.onnx property.vnnlib net.proof
  rmax check net.onnx --input digit.npy --label 7 --eps 0.03 --clip 0 1 digit.proof

\b
Exit codes: 0 accepted, 1 refused (the sentence says why), 2 wrong use or unreadable input.""")
@click.argument("net", metavar="NET.onnx")
@click.argument("files", nargs=-1, required=True, metavar="[SPEC.vnnlib] PROOF")
@ball_flags
@click.option("--exact", is_flag=True, help="In rational arithmetic: slow, for small piecewise linear networks.")
@click.pass_context
def command(ctx: click.Context, net: str, files: tuple[str, ...], exact: bool, **flags: Any) -> None:
    """Check a proof file without trusting the search that wrote it.

    The checker reads the network, the property and the proof by itself and recomputes every bound with all rounding
    accounted for. It accepts that no input of the set is unsafe, or that the witness is; anything else it refuses. The
    property is a VNN-LIB file or the flags of `rmax verify`.
    """
    from verifier.check import Refused, Unreadable, check
    most = 1 if flags["input"] is not None else 2
    if len(files) != most:
        raise click.UsageError("expected NET.onnx SPEC.vnnlib PROOF, or NET.onnx PROOF with --input X.npy")
    asked = PropertyFlags(spec=files[0] if most == 2 else None, **flags)
    asked.check()
    try:
        click.echo(f"accepted  {check(net, asked.spec, files[-1], None if asked.spec else asked.ball(), exact)}")
    except Refused as refusal:
        click.echo(f"refused  {files[-1]}: {refusal}")
        ctx.exit(EXIT_REFUSED)
    except Unreadable as error:
        raise BadInput(str(error)) from error
