"""From flags to a question: the network, and the property from a file or from an input, a label and a radius."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from verifier.cli.errors import BadInput, not_built, reading

if TYPE_CHECKING:
    from verifier.branch_and_bound.recorder import ProofTarget
    from verifier.network import Network
    from verifier.property import Property

NORMS = {"inf": math.inf, "2": 2.0, "1": 1.0}


@dataclass(frozen=True)
class PropertyFlags:
    """The property as the command line gives it: a file, or an input with label and radius."""

    spec: str | None
    input: str | None
    label: int | None
    eps: float | None
    target: int | None
    norm: str | None
    clip: tuple[float, float] | None
    mask: str | None

    def check(self) -> None:
        """Exactly one of the two forms, complete; needs no file and no library."""
        flags = {"--label": self.label, "--eps": self.eps, "--target": self.target, "--norm": self.norm,
                 "--clip": self.clip, "--mask": self.mask}
        if self.spec is not None:
            given = ["--input"] if self.input is not None else []
            given += [name for name, value in flags.items() if value is not None]
            if given:
                raise click.UsageError(f"{given[0]} belongs to a property made from an input; "
                                       f"leave out either it or {self.spec}")
            return
        if self.input is None:
            raise click.UsageError("expected a property: SPEC.vnnlib, or --input X.npy --label K --eps E")
        for name in ("--label", "--eps"):
            if flags[name] is None:
                raise click.UsageError(f"--input needs {name}")
        if self.norm == "0":
            raise not_built("--norm 0")
        if self.eps is not None and not 0 <= self.eps < math.inf:
            raise BadInput(f"--eps must be a number >= 0, got {self.eps}")
        if self.clip is not None and not -math.inf < self.clip[0] <= self.clip[1] < math.inf:
            raise BadInput(f"--clip needs two numbers LO <= HI, got {self.clip[0]} {self.clip[1]}")

    def ball(self) -> dict[str, Any]:
        """The second form as plain values, with defaults filled in."""
        return {"input": self.input, "label": self.label, "eps": self.eps, "target": self.target,
                "norm": self.norm or "inf", "clip": None if self.clip is None else list(self.clip), "mask": self.mask}


def property_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """The flags that state a property; the command receives them as `flags: PropertyFlags`."""
    return click.argument("spec", required=False, metavar="[SPEC.vnnlib]")(ball_flags(command))


def ball_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """Those of a property that is made from an input."""
    for option in reversed((
        click.option("--input", metavar="X.npy", help="The input whose neighbourhood is asked about."),
        click.option("--label", type=int, metavar="K", help="Its class: the output that must stay largest."),
        click.option("--eps", type=float, metavar="E", help="The radius, in the network's input units."),
        click.option("--target", type=int, metavar="T", help="Ask only whether class T can win."),
        click.option("--norm", type=click.Choice(["inf", "2", "1", "0"]),
                     help="The norm of the ball [inf] (0: not built yet)."),
        click.option("--clip", type=(float, float), metavar="LO HI", help="The range of valid inputs."),
        click.option("--mask", metavar="M.npy", help="Which features may move (true = may move)."),
    )):
        command = option(command)
    return command


def read_network(path: str) -> Network:
    from verifier.network import Network
    with reading(path):
        return Network.read(path)


def read_property(flags: PropertyFlags, network: Network) -> Property:
    """The property over this network; `BadInput` names the file or the flag."""
    inputs, outputs = math.prod(network.graph.input_shape), math.prod(network.graph.output_shape)
    if flags.spec is not None:
        from verifier.vnnlib import read_vnnlib
        with reading(flags.spec):
            return read_vnnlib(flags.spec, inputs=inputs, outputs=outputs)
    from verifier.property import robustness
    assert flags.input is not None and flags.label is not None and flags.eps is not None, "checked before"
    for name, value in (("--label", flags.label), ("--target", flags.target)):
        if value is not None and not 0 <= value < outputs:
            raise BadInput(f"{name} {value} is out of range: {network.path} has {outputs} outputs, 0 to {outputs - 1}")
    if flags.target == flags.label:
        raise BadInput(f"--target must differ from --label, both are {flags.label}")
    x = read_array(flags.input, network.graph.input_shape)
    if not np.isfinite(x).all():
        raise BadInput(f"{flags.input}: holds NaN or infinite values")
    mask = None
    if flags.mask is not None:
        mask = read_mask(flags.mask, network.graph.input_shape)
    with reading(flags.input):
        return robustness(x, flags.label, flags.eps, norm=NORMS[flags.norm or "inf"], clip=flags.clip, mask=mask,
                          classes=outputs, target=flags.target)


def proof_target(flags: PropertyFlags, net: str, out: str) -> ProofTarget:
    """Where a proof goes, and what it is about: hashes of the files' decompressed bytes, and the property's flags."""
    from bounds.files import read_bytes
    from verifier.branch_and_bound.recorder import ProofTarget
    from verifier.certificate import sha256
    from verifier.network import digest_of
    if flags.spec is not None:
        about: dict[str, Any] = {"sha256": sha256(read_bytes(flags.spec))}
    else:
        about = flags.ball()
        for key in ("input", "mask"):
            path = about.pop(key)
            about[f"{key}_sha256"] = None if path is None else sha256(Path(path).read_bytes())
    return ProofTarget(Path(out), {"sha256": digest_of(net)}, about)


def read_array(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """One input of the network: an array of its input shape, with or without a batch axis of one."""
    from verifier.data import UNREADABLE_ARRAY
    with reading(path):
        try:
            array = np.load(path, allow_pickle=False, mmap_mode="r")  # a header may state any size
        except UNREADABLE_ARRAY as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"{path}: not a .npy file of numbers ({reason})") from error
    if not isinstance(array, np.ndarray):
        raise BadInput(f"{path}: holds several arrays (.npz), expected one (.npy)")
    if array.dtype.kind not in "fiub":
        raise BadInput(f"{path}: holds {array.dtype} values, expected numbers")
    if array.shape not in (shape, (1, *shape)):
        raise BadInput(f"{path}: has shape {array.shape}, the network expects {shape}")
    return array.reshape(shape)


def read_mask(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """Which features may move: bool, the network's input shape."""
    mask = read_array(path, shape)
    if not np.isin(mask, (0, 1)).all():
        raise BadInput(f"{path}: a mask holds true and false (or 1 and 0) only")
    return mask.astype(bool)


def check_device(device: str | None) -> str | None:
    """`--device cuda` on a machine without one is wrong use, not a reason to fall back silently."""
    if device == "cuda":
        import torch
        if not torch.cuda.is_available():
            raise BadInput("--device cuda: no CUDA device here")
    return device


def check_solver(name: str) -> None:
    """A solver that is not installed is told before the work."""
    from milp.solvers import SolverMissing, mixed_solver
    try:
        mixed_solver(name)
    except SolverMissing as error:
        raise BadInput(f"--solver {name}: {error}") from error


def check_writable(flag: str, path: str | None) -> None:
    """Complain about an output path before the work, not after it."""
    if path is None or path == "-":
        return
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise BadInput(f"{flag} {path}: the folder {folder} does not exist")
    if Path(path).is_dir():
        raise BadInput(f"{flag} {path}: is a directory")
    if not os.access(path if Path(path).exists() else folder, os.W_OK):
        raise BadInput(f"{flag} {path}: cannot be written (permission denied)")
