"""Recorded proofs evaluate again, and what was tampered with is refused."""

from __future__ import annotations

import io
import itertools
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bounds import Graph
from bounds.files import read_bytes
from tests.verifier.models import save_network, spec
from verifier import read_vnnlib, verify
from verifier.certificate import ProofError, ProofReader, ProofWriter, pack_codes, sha256, unpack_codes
from verifier.reevaluate import Evaluated, reevaluate
from verifier.strategy import Result
from verifier.verdict import Verified

Columns = dict[str, dict[str, np.ndarray]]


def random_network(path: Path, sizes: list[int], seed: int) -> Path:
    generator = np.random.default_rng(seed)
    return save_network(path, [(generator.standard_normal((b, a)) * (2 / a) ** 0.5, generator.standard_normal(b) * 0.3)
                               for a, b in itertools.pairwise(sizes)])


def sampled_range(net: Path, inputs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    import torch
    graph = Graph.from_onnx(net)
    x = (torch.rand(20_000, inputs, generator=torch.Generator().manual_seed(seed)) * 4 - 2).clamp(-1, 1)  # and corners
    y = graph(x).numpy()
    return y.min(0), y.max(0)


def check(proof: Path, net: Path, text: Path) -> Evaluated:
    return reevaluate(proof, net, read_vnnlib(text), property_identity={"sha256": sha256(read_bytes(text))})


def proved(folder: Path, net: Path, text: str, method: str = "auto") -> tuple[Result, Path, Path]:
    property = folder / "property.vnnlib"
    property.write_text(text)
    proof = folder / "proof"
    result = verify(Graph.from_onnx(net), read_vnnlib(property), replayer=net, proof=proof, method=method)
    assert isinstance(result.verdict, Verified), result
    assert result.choices["proof"]["written"], result.choices["proof"]
    assert not list(folder.glob("*.partial"))
    return result, proof, property


def upper_spec(net: Path, inputs: int, outputs: int, slack: float) -> str:
    """Y_0 stays below its sampled maximum and a share of its range."""
    low, high = sampled_range(net, inputs)
    return spec([(-1.0, 1.0)] * inputs, outputs, f"(>= Y_0 {high[0] + slack * (high[0] - low[0])})")


@pytest.mark.parametrize("seed", range(6))
def test_input_splits_evaluate_again(tmp_path: Path, seed: int) -> None:
    net = random_network(tmp_path / "n.onnx", [3, 14, 14, 2], seed)
    _, proof, text = proved(tmp_path, net, upper_spec(net, 3, 2, 0.02))
    assert check(proof, net, text).least > 0


@pytest.mark.parametrize("seed", range(6))
def test_neuron_splits_evaluate_again(tmp_path: Path, seed: int) -> None:
    net = random_network(tmp_path / "n.onnx", [24, 10, 8, 2], seed)
    _, proof, text = proved(tmp_path, net, upper_spec(net, 24, 2, 0.35))
    evaluated = check(proof, net, text)
    assert evaluated.least > 0


@pytest.mark.parametrize("inputs", [3, 24])
def test_many_regions_and_conjunctions_evaluate_again(tmp_path: Path, inputs: int) -> None:
    net = random_network(tmp_path / "n.onnx", [inputs, 10, 10, 3], 7)
    low, high = sampled_range(net, inputs)
    reach = high + (0.05 if inputs == 3 else 0.4) * (high - low)
    boxes = " ".join(f"(and (>= X_0 {a}) (<= X_0 {b}) (>= Y_0 {reach[0]}) (>= Y_1 {low[1]}))"
                     for a, b in ((-1.0, -0.4), (-0.2, 0.3), (0.5, 1.0)))
    asserts = f"(or {boxes} (and (>= Y_1 {reach[1]}) (<= Y_2 {high[2]})))"
    _, proof, text = proved(tmp_path, net, spec([(-1.0, 1.0)] * inputs, 3, asserts))
    assert check(proof, net, text).closings >= 4


@pytest.mark.parametrize("method", ["ibp", "crown", "alpha-crown", "bab"])
def test_what_bound_methods_decide_is_proved_by_a_tree(tmp_path: Path, method: str) -> None:
    net = random_network(tmp_path / "n.onnx", [24, 10, 8, 2], 1)
    _, proof, text = proved(tmp_path, net, upper_spec(net, 24, 2, 30.0), method)
    assert check(proof, net, text).least > 0


def rewritten(proof: Path, out: Path, change: Callable[[Columns], None]) -> Path:
    """The proof with changed tables, and a digest that fits."""
    with ProofReader(proof) as reader:
        writer = ProofWriter(out)
        writer.header({k: v for k, v in reader.header.items() if k not in ("format", "version")})
        for chunk in reader.chunks():
            change(chunk)
            for table, columns in chunk.items():
                writer.add(table, **columns)
            writer.flush()
        writer.finish({"trees": reader.end["trees"]})
    return out


def drop_leaf(chunk: Columns) -> None:
    table = chunk["groups"]
    last = int(np.flatnonzero(table["kind"] == 0)[-1])
    table["kind"][last] = 1  # the plane stays, but it closes nothing


def flip_side(chunk: Columns) -> None:
    table = chunk["splits"]
    table["lower"][0] = table["upper"][0]


def perturb_multiplier(chunk: Columns) -> None:
    chunk["groups"]["m_value"][:] *= 40


def forget_region(chunk: Columns) -> None:
    chunk["clips"]["high"][:] -= 0.2


def cut_split(chunk: Columns) -> None:
    for column in chunk["splits"]:
        chunk["splits"][column] = chunk["splits"][column][:-1]


@pytest.fixture(scope="module", params=["inputs", "neurons"])
def case(request: Any, tmp_path_factory: Any) -> tuple[str, Path, Path, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    net = random_network(folder / "n.onnx", [3, 14, 14, 2] if request.param == "inputs" else [24, 12, 10, 2], 3)
    slack = 0.02 if request.param == "inputs" else 0.3
    result, proof, text = proved(folder, net, upper_spec(net, 3 if request.param == "inputs" else 24, 2, slack))
    assert result.domains > 4, "the case needs splits"
    return request.param, net, proof, text


@pytest.mark.parametrize("change", [drop_leaf, flip_side, perturb_multiplier, forget_region, cut_split])
def test_tampered_trees_are_refused(case: tuple[str, Path, Path, Path], tmp_path: Path,
                                    change: Callable[[Columns], None]) -> None:
    kind, net, proof, text = case
    if change is perturb_multiplier and kind == "inputs":
        pytest.skip("no neuron is split here")
    changed = rewritten(proof, tmp_path / "changed", change)
    with pytest.raises(ProofError):
        check(changed, net, text)


def test_unchanged_rewriting_is_accepted(case: tuple[str, Path, Path, Path], tmp_path: Path) -> None:
    _, net, proof, text = case
    assert check(rewritten(proof, tmp_path / "same", lambda chunk: None), net, text).least > 0


def test_other_network_property_or_bytes_are_refused(case: tuple[str, Path, Path, Path], tmp_path: Path) -> None:
    _, net, proof, text = case
    other = tmp_path / "other.vnnlib"
    other.write_text(text.read_text() + "\n")
    with pytest.raises(ProofError, match="another property"):
        check(proof, net, other)
    second = random_network(tmp_path / "n.onnx", [3, 14, 14, 2], 99)
    with pytest.raises(ProofError, match="another network"):
        check(proof, second, text)
    damaged = tmp_path / "damaged"
    with zipfile.ZipFile(proof) as old, zipfile.ZipFile(damaged, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("splits.point.npy"):
                points = np.load(io.BytesIO(data)) + 0.125
                buffer = io.BytesIO()
                np.save(buffer, points)
                data = buffer.getvalue()
            new.writestr(name, data)
    with pytest.raises(ProofError, match="digest"):
        check(damaged, net, text)
    with pytest.raises(ProofError, match="not a proof file"):
        check(text, net, text)


def test_a_proof_reads_as_npz(case: tuple[str, Path, Path, Path]) -> None:
    _, _, proof, _ = case
    with np.load(proof) as archive:
        names = archive.files
        header = json.loads(archive["header.json"])
        assert header["format"] == "rmax-proof"
        assert archive[next(n for n in names if "visits.node" in n)].dtype == np.int64


def test_nothing_is_written_unless_verified(tmp_path: Path) -> None:
    net = random_network(tmp_path / "n.onnx", [3, 14, 14, 2], 3)
    low, _ = sampled_range(net, 3)
    text = tmp_path / "p.vnnlib"
    text.write_text(spec([(-1.0, 1.0)] * 3, 2, f"(>= Y_0 {low[0]})"))
    result = verify(Graph.from_onnx(net), read_vnnlib(text), replayer=net, proof=tmp_path / "proof")
    assert result.name == "falsified"
    assert not list(tmp_path.glob("proof*"))


def test_codes_pack_and_unpack() -> None:
    codes = np.random.default_rng(0).integers(0, 4, (5, 13)).astype(np.uint8)
    assert (unpack_codes(pack_codes(codes), 13) == codes).all()
