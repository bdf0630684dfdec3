"""The one gate for counterexamples: only `confirm` makes a `Witness`.

A candidate becomes a witness when, rounded to float32 and put into the float32 input set (the float32 inside the ball
of a robustness question; [RN(lower), RN(upper)] of a specification's decimals), it is replayed through the original
network and the values that come back satisfy the unsafe set as written. Floats are rationals, rows are rationals: the
comparison is exact and there is no tolerance. A closed row may be met with equality, an open one may not.

The replay runs one point at a time in onnxruntime with its default optimisations, as a user's
session does, on a single thread. What it shows is the float32 behaviour of the deployed file (of the
file as stored, node by node, without optimisations); `real_agrees` says whether an enclosure of the
real-valued output confirms the point too (None: not asked, or not decided).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bounds.files import read_bytes
from verifier.exact import near_float
from verifier.property import Property, Region

if TYPE_CHECKING:
    import onnxruntime
    from torch import Tensor, nn

LONGEST_REASON = 400  # characters of the runtime's own words
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"  # known to onnxruntime since 1.21
PULLS = 24  # steps of doubling size from one ulp, to draw a rounded point back into its ball


class ReplayError(RuntimeError):
    """The original network could not be run."""


@dataclass(frozen=True, eq=False)
class Witness:
    """A confirmed counterexample. Made by `confirm` only.

    x: float32 in the network's input shape (without batch axis); y: what the replay returned, flat.
    branch: the branch of the property that holds. margin: the largest violation over its rows
    (<= 0; -inf for a branch without rows). excess: how far x leaves the decimal box at most, because
    a specification's decimal need not be a float32.
    """

    x: NDArray[np.float32]
    y: NDArray[Any]
    branch: int
    margin: float
    excess: float
    real_agrees: bool | None = None


class Replayer(Protocol):
    """Runs the original network on "N *shape" float32, giving "N m"; each point by itself."""

    def run(self, x: NDArray[np.float32]) -> NDArray[Any]: ...


class OnnxReplayer:
    """onnxruntime on the original file (plain or gzip, a path or its bytes). `unpacked`: the file's bytes, if they are
    at hand. Weights in other files are those beside it. The session starts on first use."""

    def __init__(self, source: str | Path | bytes, *, unpacked: bytes | None = None, optimised: bool = True) -> None:
        self.name = "network" if isinstance(source, bytes) else str(source)
        self.source = source
        self.unpacked = unpacked
        self.optimised = optimised
        self._session: onnxruntime.InferenceSession | None = None

    def node_by_node(self) -> OnnxReplayer:
        """The same file, run as it is stored: no operators fused, none computed beforehand."""
        return OnnxReplayer(self.source, unpacked=self.unpacked, optimised=False)

    def run(self, x: NDArray[np.float32]) -> NDArray[Any]:
        name, dtype, declared = self._entry()
        shape = _input_shape(declared, x.shape[1:], self.name)
        answers = [self._asked(name, np.ascontiguousarray(point, dtype).reshape(shape)).reshape(-1) for point in x]
        return np.stack(answers)

    def run_together(self, x: NDArray[np.float32]) -> NDArray[Any]:
        """All points in one call: "N *shape" -> "N m", as fast as the file allows. No replay: in a batch sums may be
        formed in another order. Raises ReplayError where the file declares no free batch axis, or gives other rows."""
        name, dtype, declared = self._entry()
        if not declared or (isinstance(declared[0], int) and declared[0] > 0):
            raise ReplayError(f"{self.name}: its batch axis is not free: it declares {declared}")
        shape = _input_shape(declared, x.shape[1:], self.name)
        answer = self._asked(name, np.ascontiguousarray(x, dtype).reshape(len(x), *shape[1:]))
        if answer.shape[:1] != (len(x),):
            raise ReplayError(f"{self.name}: {len(x)} points gave an output of shape {answer.shape}")
        return answer.reshape(len(x), -1)

    def _entry(self) -> tuple[str, Any, list[Any]]:
        """The input's name, type and declared shape."""
        session = self._session = self._session or self._start()
        (entry,) = session.get_inputs()
        return entry.name, np.float64 if entry.type == "tensor(double)" else np.float32, entry.shape

    def _asked(self, name: str, x: NDArray[Any]) -> NDArray[Any]:
        assert self._session is not None, "`_entry` starts it"
        try:
            return np.asarray(self._session.run(None, {name: x})[0])
        except Exception as error:  # onnxruntime raises types of its own for each failure
            raise ReplayError(f"{self.name}: onnxruntime failed: {_first_line(error)}") from error

    def _start(self) -> onnxruntime.InferenceSession:
        import onnxruntime

        from bounds.graph.from_onnx.file import external_files

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        if not self.optimised:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4  # its errors are raised as well, and told once
        try:
            data = read_bytes(self.source) if self.unpacked is None else self.unpacked
            if external_files(data, self.name):  # which it would look for in the working directory
                if isinstance(self.source, bytes):
                    raise ReplayError("its weights are stored in other files; pass the path instead of the bytes")
                options.add_session_config_entry(WEIGHTS_FOLDER, str(Path(self.source).absolute().parent))
            session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # as above
            raise ReplayError(f"{self.name}: onnxruntime cannot load it: {_first_line(error)}") from error
        if len(session.get_inputs()) != 1:
            raise ReplayError(f"{self.name}: expected one input, it has {len(session.get_inputs())}")
        return session


def _first_line(error: Exception) -> str:
    text = (str(error).splitlines() or [""])[0]
    return text if len(text) <= LONGEST_REASON else text[:LONGEST_REASON] + "..."


class ModuleReplayer:
    """The original `nn.Module` in float32 and evaluation mode."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def run(self, x: NDArray[np.float32]) -> NDArray[Any]:
        import torch

        training = self.module.training
        first = next(self.module.parameters(), None)
        where: dict[str, Any] = {} if first is None else {"device": first.device, "dtype": first.dtype}
        try:
            self.module.eval()
            with torch.no_grad():
                points = torch.from_numpy(np.ascontiguousarray(x)).to(**where)
                answers = [self.module(point.unsqueeze(0)).flatten() for point in points]
                return torch.stack(answers).cpu().numpy()
        finally:
            self.module.train(training)


def confirm(candidate: Tensor | NDArray[Any], prop: Property, replayer: Replayer, *,
            real_check: Callable[[NDArray[np.float32], int], bool | None] | None = None) -> Witness | None:
    """The candidate as a witness, or None. candidate: one point, "*shape".

    It is rounded to float32 and moved into the float32 set of its region (the one it lies in or the
    nearest). real_check(x, branch) may say whether a sound enclosure of the real output agrees.
    """
    given = np.asarray(candidate.detach().cpu().numpy() if hasattr(candidate, "detach") else candidate)
    if given.size != prop.inputs:
        raise ValueError(f"expected {prop.inputs} inputs, got shape {given.shape}")
    flat = given.reshape(-1).astype(np.float32)
    if not np.isfinite(flat).all():
        return None
    region = _nearest_region(flat, prop)
    x = _into(flat, region)
    if x is None:
        return None
    y = replayer.run(x.reshape(1, *given.shape))[0]
    branch = prop.unsafe_branch(x, y)
    if branch is None:
        return None
    rows = prop.branches[branch].rows
    margin = max((near_float(row.violation(x, y)) for row in rows), default=float("-inf"))
    shaped = x.reshape(given.shape)
    return Witness(shaped, y, branch, margin, prop.branches[branch].region.excess(x),
                   None if real_check is None else real_check(shaped, branch))


def _nearest_region(x: NDArray[np.float32], prop: Property) -> Region:
    """The region with the least l_inf distance in its float32 box."""
    def distance(region: Region) -> float:
        return float(np.maximum(np.maximum(region.lower32 - x, x - region.upper32), 0).max(initial=0.0))
    return prop.regions[0] if len(prop.regions) == 1 else min(prop.regions, key=distance)


def _into(x: NDArray[np.float32], region: Region) -> NDArray[np.float32] | None:
    """x in the region's float32 set: clipped to the box and drawn towards the centre of a ball."""
    clipped = np.clip(x, region.lower32, region.upper32)
    if region.centre is None or region.contains(clipped):
        return clipped
    move = clipped.astype(np.float64) - region.centre
    for k in range(-1, PULLS):
        shrunk = region.centre + move * (1 - min(1.0, 2.0**(k - 24)))
        point = np.clip(shrunk.astype(np.float32), region.lower32, region.upper32)
        if region.contains(point):
            return point
    return None


def _input_shape(declared: list[Any], shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    """The declared shape with unknown axes filled in: the first is the batch (1), one more is inferred."""
    axes = [d if isinstance(d, int) and d > 0 else None for d in declared]
    if axes and axes[0] is None:
        axes[0] = 1
    known = int(np.prod([d for d in axes if d is not None], dtype=np.int64))
    size = int(np.prod(shape, dtype=np.int64))
    unknown = [i for i, d in enumerate(axes) if d is None]
    if len(unknown) > 1 and len(axes) == len(shape) + 1:
        return (1, *shape)
    if len(unknown) > 1 or size % max(known, 1) or (not unknown and known != size):
        raise ReplayError(f"{name}: expects inputs of shape {declared}, got {size} numbers of shape {shape}")
    return tuple(size // known if d is None else d for d in axes)
