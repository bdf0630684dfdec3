"""Hand-made, damaged and altered proof files: the checker accepts what follows and refuses everything else."""

from __future__ import annotations

import hashlib
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bounds import Graph
from bounds.files import read_bytes
from tests.verifier.models import absolute_value, save_network, spec
from tests.verifier.test_proof import random_network, sampled_range, upper_spec
from verifier import read_vnnlib, verify
from verifier.branch_and_bound import plan
from verifier.certificate import MAGIC, ProofWriter, sha256
from verifier.check import MOST_BLOCK, Bounds, Proof, Refused, Unreadable, blocks, check
from verifier.check_input import Numbers

Blocks = list[tuple[dict[str, Any], dict[str, np.ndarray]]]


def sealed(out: Path, content: Blocks) -> Path:
    """A file of these blocks whose digest is right."""
    writer = ProofWriter(out)
    for head, columns in content:
        rest = {name: value for name, value in head.items() if name != "block"}
        writer.block(head["block"], rest, columns)
    writer.finish()
    return out


def opened(proof: Path) -> Blocks:
    return [(dict(head), {name: values.copy() for name, values in columns.items()})
            for head, columns in blocks(str(proof))]


def about(net: Path, text: Path) -> dict[str, Any]:
    return {"claim": "real", "network": {"sha256": sha256(read_bytes(net))},
            "property": {"sha256": sha256(read_bytes(text))}, "verdict": "verified"}


# ---------------------------------------------------------------------- by hand


class ByHand:
    """A proof about |x| on [-1, 1]: chords (x + 1) / 2 and (1 - x) / 2 add up to 1, so that Y_0 <= 1 follows from them
    exactly."""

    def __init__(self, folder: Path, asserts: str, *nodes: dict[str, Any], cuts: bool = False, branches: int = 1
                 ) -> None:
        self.net, self.text = absolute_value(folder / "n.onnx"), folder / "p.vnnlib"
        self.text.write_text(spec([(-1.0, 1.0)], 2, asserts))
        i4, head = np.int32, {"block": "header", **about(self.net, self.text), "neurons": [["z0", 2]],
                              "activations": ["a0"]}
        told = [({"block": "nodes"}, {name: np.array(values, kind) for name, (kind, values) in block.items()})
                for block in nodes]
        self.proof = sealed(folder / "proof", [
            (head, {"region": np.zeros(branches, i4)}),
            ({"block": "tree", "cuts": cuts},
             {"region": np.zeros(1, i4), "count": np.array([branches], i4), "branch": np.arange(branches, dtype=i4)}),
            *told, ({"block": "closed"}, {}), ({"block": "end"}, {})])

    def check(self, exact: bool = False) -> str:
        return check(str(self.net), str(self.text), str(self.proof), exact=exact)


def certificates(at: list[int], m: list[tuple[int, int, float]] | None = None) -> dict[str, Any]:
    """Columns of visits `at` (nodes) with default lines of slope 0 and a certificate each; m: (visit, neuron, s)."""
    m = m or []
    counts = [sum(v == k for v, _, _ in m) for k in range(len(at))]
    return {"visit.node": (np.int32, at), "visit.lines": (np.uint8, [0] * len(at)),
            "certificate.at": (np.int32, range(len(at))), "certificate.branch": (np.int32, [0] * len(at)),
            "certificate.kind": (np.uint8, [0] * len(at)), "certificate.weights": (np.float64, [1.0] * len(at)),
            "certificate.m_count": (np.int32, counts), "certificate.m_neuron": (np.int32, [n for _, n, _ in m]),
            "certificate.m_value": (np.float64, [s for _, _, s in m]),
            "certificate.mask": (np.uint8, [0] * len(at)), "certificate.slopes": (np.uint8, [])}


@pytest.mark.parametrize("exact", [False, True])
def test_chords_of_an_absolute_value_prove_what_they_should(tmp_path: Path, exact: bool) -> None:
    assert ByHand(tmp_path, "(>= Y_0 1.000001)", certificates([0])).check(exact).startswith("verified")
    with pytest.raises(Refused, match="proves 0 only" if exact else "node 0, branch 0"):
        ByHand(tmp_path, "(>= Y_0 1.0)", certificates([0])).check(exact)


def test_zero_suffices_for_open_rows_without_rounding_only(tmp_path: Path) -> None:
    hand = ByHand(tmp_path, "(> Y_0 1.0)", certificates([0]))
    assert hand.check(exact=True).startswith("verified")
    with pytest.raises(Refused):
        hand.check()


SPLIT = {"split.parent": (np.int32, [0]), "split.variable": (np.int32, [0]), "split.point": (np.float64, [0.5])}


def test_input_splits_prove_both_halves(tmp_path: Path) -> None:
    """On [0.5, 1] Y_0 = x, which exceeds 0.9; on [-1, 0.5] the chords give 1."""
    assert ByHand(tmp_path, "(>= Y_0 1.000001)", {**SPLIT, **certificates([1, 2])}).check().startswith("verified")
    for missing in ([1], [2]):
        with pytest.raises(Refused, match=f"node {3 - missing[0]} is neither"):
            ByHand(tmp_path, "(>= Y_0 1.000001)", {**SPLIT, **certificates(missing)}).check()


def test_all_branches_of_a_root_must_be_closed(tmp_path: Path) -> None:
    asserts = "(or (and (>= Y_0 1.000001)) (and (<= Y_0 -0.5)))"
    for closed in ([0, 1], [0], [1]):
        columns = {**certificates([0] * len(closed)), "visit.node": (np.int32, [0]), "visit.lines": (np.uint8, [0]),
                   "certificate.at": (np.int32, [0] * len(closed)), "certificate.branch": (np.int32, closed)}
        hand = ByHand(tmp_path, asserts, columns, branches=2)
        if len(closed) == 2:
            assert hand.check().startswith("verified: 2 branches")
        else:
            with pytest.raises(Refused, match="node 0 is neither split nor closed"):
                hand.check()


def test_neuron_splits_use_multipliers(tmp_path: Path) -> None:
    """Y_0 <= 0.4 + X_0 would fail at x = -1 only: there neuron 0 is split at 0, and of its lower child (x <= 0)..."""
    split = {"split.parent": (np.int32, [0]), "split.variable": (np.int32, [1]), "split.point": (np.float64, [0.0])}
    asserts = "(>= Y_0 1.2)"
    assert ByHand(tmp_path, asserts, {**split, **certificates([1, 2])}).check().startswith("verified")
    # -Y_0 + 0.9 >= 0 fails at x = -1, whatever multipliers claim: z <= 0 below the split, z >= 0 above.
    for s in (-1.0, 0.5, 3.0):
        with pytest.raises(Refused):
            ByHand(tmp_path, "(>= Y_0 0.9)", {**split, **certificates([1, 2], [(0, 0, s), (1, 0, -s)])}).check()


def test_multipliers_on_a_split_prove_a_contradiction(tmp_path: Path) -> None:
    """z0 >= 0.25 and z1 = -z0 >= 0.25 exclude each other: s = (1, 1) gives 0 >= s l = 0.5 > 0."""
    columns = {"split.parent": (np.int32, [0, 2]), "split.variable": (np.int32, [1, 2]),
               "split.point": (np.float64, [0.25, 0.25]), **certificates([1, 3, 4], [(2, 0, 1.0), (2, 1, 1.0)])}
    columns["certificate.branch"] = (np.int32, [0, 0, -1])
    columns["certificate.weights"] = (np.float64, [1.0, 1.0])
    assert ByHand(tmp_path, "(>= Y_0 1.000001)", columns).check().startswith("verified")
    columns["certificate.m_value"] = (np.float64, [1.0, -1.0])
    with pytest.raises(Refused, match="node 4, branch -1"):
        ByHand(tmp_path, "(>= Y_0 1.000001)", columns).check()


@pytest.mark.parametrize(("column", "value"), [
    ("certificate.weights", [np.nan]), ("certificate.weights", [-1.0]), ("certificate.weights", [np.inf]),
    ("certificate.weights", [0.0]), ("certificate.at", [5]), ("certificate.branch", [1]), ("visit.node", [3]),
    ("visit.node", [-1]), ("visit.lines", []), ("certificate.weights", [])])
def test_numbers_that_make_no_sense_are_refused(tmp_path: Path, column: str, value: list[float]) -> None:
    columns = certificates([0])
    columns[column] = (columns[column][0], value)
    with pytest.raises(Refused):
        ByHand(tmp_path, "(>= Y_0 1.000001)", columns).check()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e308])
def test_multipliers_that_are_no_numbers_prove_nothing(tmp_path: Path, bad: float) -> None:
    columns = certificates([0], [(0, 0, bad), (0, 1, 1.0)])
    with pytest.raises(Refused):
        ByHand(tmp_path, "(>= Y_0 1.000001)", columns).check()


def test_branches_lie_in_the_box_of_their_root(tmp_path: Path) -> None:
    """Both are said to share a region, whose box is that of the first."""
    asserts = "(or (and (<= X_0 0.5) (>= Y_0 2.0)) (and (>= X_0 -1.0) (>= Y_0 2.0)))"
    columns = certificates([0, 0]) | {"certificate.branch": (np.int32, [0, 1])}
    with pytest.raises(Refused, match="does not lie in the box"):
        ByHand(tmp_path, asserts, columns, branches=2).check()


# ---------------------------------------------------------------------- recorded, then changed


@pytest.fixture(scope="module", params=["inputs", "neurons", "cuts"])
def case(request: Any, tmp_path_factory: Any) -> tuple[str, Path, Path, Path]:
    """(kind, network, specification, proof)"""
    folder = tmp_path_factory.mktemp(request.param)
    sizes, slack = {"inputs": ([3, 14, 14, 2], 0.02), "neurons": ([24, 10, 8, 2], 0.35),
                    "cuts": ([24, 16, 2], 0.4)}[request.param]
    net, text = random_network(folder / "n.onnx", sizes, 3), folder / "p.vnnlib"
    text.write_text(upper_spec(net, sizes[0], 2, slack))
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "neurons":
            patch.setattr(plan, "CUT_ENTRIES", 0)
        result = verify(Graph.from_onnx(net), read_vnnlib(text), replayer=net, proof=folder / "proof", method="bab")
    assert result.name == "verified" and result.choices["proof"]["written"] and result.domains > 4, "this needs splits"
    assert result.choices["branch-and-bound"]["cuts"] == (request.param == "cuts")
    return request.param, net, text, folder / "proof"


def small_proof(folder: Path) -> tuple[Path, Path, Path]:
    net, text = random_network(folder / "n.onnx", [2, 5, 1], 1), folder / "p.vnnlib"
    text.write_text(upper_spec(net, 2, 1, 0.05))
    result = verify(Graph.from_onnx(net), read_vnnlib(text), replayer=net, proof=folder / "proof")
    assert result.choices["proof"]["written"]
    return net, text, folder / "proof"


def test_every_changed_byte_is_refused(tmp_path: Path) -> None:
    net, text, proof = small_proof(tmp_path)
    data = proof.read_bytes()
    assert check(str(net), str(text), str(proof)).startswith("verified")
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        proof.write_bytes(damaged)
        with pytest.raises(Refused, match="digest" if place >= len(MAGIC) else "not a proof file"):
            check(str(net), str(text), str(proof))
    for end in (0, 5, len(MAGIC), len(data) // 2, len(data) - 1):
        proof.write_bytes(data[:end])
        with pytest.raises(Refused):
            check(str(net), str(text), str(proof))


def nodes_block(content: Blocks) -> dict[str, np.ndarray]:
    return next(columns for head, columns in content if head["block"] == "nodes" and "certificate.at" in columns)


def drop_certificate(content: Blocks) -> None:
    nodes_block(content)["certificate.branch"][-1] = 7


def drop_block(content: Blocks) -> None:
    """The last of those with nodes: what was found at the root, which comes first, the others need not rest on."""
    content.pop(max(k for k, (head, _) in enumerate(content) if head["block"] == "nodes"))


def drop_end(content: Blocks) -> None:
    content.pop()


def drop_tree(content: Blocks) -> None:
    del content[next(k for k, (head, _) in enumerate(content) if head["block"] == "tree"):-1]


def split_later(content: Blocks) -> None:
    columns = next(c for head, c in content if "split.parent" in c)
    columns["split.parent"][0] = 50_000


def split_nowhere(content: Blocks) -> None:
    next(c for head, c in content if "split.parent" in c)["split.point"][0] = np.nan


def split_variable(content: Blocks) -> None:
    next(c for head, c in content if "split.parent" in c)["split.variable"][0] = 40_000


def drop_split(content: Blocks) -> None:
    columns = next(c for head, c in content if "split.parent" in c)
    for name in ("split.parent", "split.variable", "split.point"):
        columns[name] = columns[name][1:]


def visit_elsewhere(content: Blocks) -> None:
    for _, columns in content:
        if "visit.node" in columns:
            columns["visit.node"][:] = 1


def slope_too_steep(content: Blocks) -> None:
    columns = nodes_block(content)
    columns["certificate.slopes"][:] = 200  # of 128


def slope_missing(content: Blocks) -> None:
    columns = nodes_block(content)
    columns["certificate.slopes"] = columns["certificate.slopes"][1:]


def weight_negative(content: Blocks) -> None:
    nodes_block(content)["certificate.weights"][:] *= -1


def weight_nan(content: Blocks) -> None:
    nodes_block(content)["certificate.weights"][:] = np.nan


def other_neurons(content: Blocks) -> None:
    content[0][0]["neurons"][0][0] = content[0][0]["activations"][0]


def other_activations(content: Blocks) -> None:
    content[0][0]["activations"][0] = content[0][0]["activations"][-1] + "x"


def other_network(content: Blocks) -> None:
    content[0][0]["network"] = {"sha256": "0" * 64}


def other_property(content: Blocks) -> None:
    content[0][0]["property"] = {"sha256": "0" * 64}


def other_claim(content: Blocks) -> None:
    content[0][0]["claim"] = "float32"


def other_verdict(content: Blocks) -> None:
    content[0][0].update({"verdict": "falsified", "x": ["0"] * 24, "branch": 0})


def other_region(content: Blocks) -> None:
    next(c for head, c in content if head["block"] == "tree")["region"][:] = 1


def abandoned(content: Blocks) -> None:
    for head, _ in content:
        if head["block"] == "closed":
            head["block"] = "abandoned"


ALTERATIONS = [drop_certificate, drop_block, drop_end, drop_tree, split_later, split_nowhere, split_variable,
               drop_split, visit_elsewhere, slope_too_steep, slope_missing, weight_negative, weight_nan, other_neurons,
               other_activations, other_network, other_property, other_claim, other_verdict, other_region, abandoned]


@pytest.mark.parametrize("change", ALTERATIONS)
def test_altered_and_sealed_files_are_refused(case: tuple[str, Path, Path, Path], tmp_path: Path,
                                              change: Callable[[Blocks], None]) -> None:
    _, net, text, proof = case
    content = opened(proof)
    change(content)
    with pytest.raises(Refused):
        check(str(net), str(text), str(sealed(tmp_path / "changed", content)))


def test_rewritten_files_are_accepted(case: tuple[str, Path, Path, Path], tmp_path: Path) -> None:
    _, net, text, proof = case
    assert check(str(net), str(text), str(sealed(tmp_path / "same", opened(proof)))).startswith("verified")


def test_rationals_stay_rational(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No float slips into what is computed without rounding, cuts included."""
    net, text, proof = small_proof(tmp_path)
    minimum, seen = Bounds.minimum, []

    def noted(*arguments: Any) -> Any:
        value = minimum(*arguments)
        seen.extend(type(v) for v in (*value, *(v for end in arguments[0].low.values() for v in end.ravel())))
        return value
    monkeypatch.setattr(Bounds, "minimum", noted)
    assert check(str(net), str(text), str(proof), exact=True).startswith("verified")
    assert set(seen) <= {Fraction, int}
    A, b, g = (Numbers(exact=True).of(np.random.default_rng(k).standard_normal((3, 4))) for k in range(3))
    proof_of = SimpleNamespace(net=SimpleNamespace(numbers=Numbers(exact=True)))
    value = Proof.behind(proof_of, A, b[:, 0], g[0], Fraction(1, 3), A[0] - 1, A[0] + 1)
    assert all(isinstance(v, Fraction) for v in value)


def keeps_what_nodes_hold(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From now on cuts are compared with sampled points: those of a node that lie behind its plane stay within what is
    left of the intervals. The numbers of points seen."""
    cut, r, seen = Proof.cut, np.random.default_rng(0), []

    def sampled(self: Proof, nodes: np.ndarray, low: np.ndarray, high: np.ndarray, *ends: np.ndarray) -> None:
        before = [end.copy() for end in ends]
        cut(self, nodes, low, high, *ends)
        neurons, A, b = self.planes
        for k, node in enumerate(nodes.tolist()):
            x = r.uniform(low[k], high[k], (4000, self.inputs))
            z = x @ A[0].T + b[0]
            inside = ((z >= before[0][k, neurons]) & (z <= before[1][k, neurons])).all(1)
            source = node if node in self.known or node < self.roots else int(self.parent[(node - self.roots) // 2])
            if (plane := self.known.get(source, (0, 0, None))[2]) is not None:
                inside &= x @ plane[0] + plane[1] <= 0
            z = z[inside]
            seen.append(len(z) if (ends[0] > before[0])[k].any() or (ends[1] < before[1])[k].any() else 0)
            assert ((z >= ends[0][k, neurons] - 1e-9) & (z <= ends[1][k, neurons] + 1e-9)).all()
    monkeypatch.setattr(Proof, "cut", sampled)
    return seen


def test_cuts_keep_what_nodes_hold(case: tuple[str, Path, Path, Path], tmp_path: Path,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    kind, net, text, proof = case
    if kind != "cuts":
        pytest.skip("no cuts")
    seen = keeps_what_nodes_hold(monkeypatch)
    assert check(str(net), str(text), str(proof)).startswith("verified")
    assert sum(seen) > 100


@pytest.mark.parametrize("point", [0.25, -0.4])
def test_cuts_by_splits_beside_zero_keep_what_nodes_hold(tmp_path: Path, point: float,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """z0 = x and z1 = -x: where z0 is split at a point, z1 is bounded by minus the point."""
    split = {"split.parent": (np.int32, [0]), "split.variable": (np.int32, [1]), "split.point": (np.float64, [point])}
    root = {"visit.node": (np.int32, [0]), "visit.lines": (np.uint8, [0])}
    hand = ByHand(tmp_path, "(>= Y_0 1.2)", root, {**split, **certificates([1, 2])}, cuts=True)
    seen = keeps_what_nodes_hold(monkeypatch)
    assert hand.check().startswith("verified")
    assert min(seen[1:]) > 100


def test_certificates_close_their_branch_alone(tmp_path: Path) -> None:
    """Y_0 >= 2 and Y_0 >= 3 cannot be, each needs its own certificate; Y_0 >= 0.5 can, and has none."""
    both = "(or (>= Y_0 2.0) (>= Y_0 3.0))"
    columns = certificates([0, 0])
    columns |= {"certificate.branch": (np.int32, [0, 1]), "certificate.at": (np.int32, [0, 0])}
    assert ByHand(tmp_path, both, columns, branches=2).check().startswith("verified")
    for asserts in (both, "(or (>= Y_0 2.0) (>= Y_0 0.5))"):
        with pytest.raises(Refused, match="node 0 is neither"):
            ByHand(tmp_path, asserts, certificates([0]), branches=2).check()
        with pytest.raises(Refused, match="node 1 is neither"):   # below a node with one branch closed
            ByHand(tmp_path, asserts, {**SPLIT, **certificates([0])}, branches=2).check()


@pytest.mark.parametrize("seed", range(6))
def test_no_alteration_proves_what_is_false(case: tuple[str, Path, Path, Path], tmp_path: Path, seed: int) -> None:
    """The proof of a true property, made out for one that a sampled point breaks, its columns changed at random."""
    kind, net, _, proof = case
    inputs = 3 if kind == "inputs" else 24
    _, high = sampled_range(net, inputs)
    false = tmp_path / "false.vnnlib"
    false.write_text(spec([(-1.0, 1.0)] * inputs, 2, f"(>= Y_0 {high[0] - 1e-4})"))
    random = np.random.default_rng(seed)
    for _ in range(15):
        content = opened(proof)
        content[0][0]["property"] = {"sha256": sha256(read_bytes(false))}
        for _, columns in content:
            for values in columns.values():
                if values.size and random.random() < 0.2:
                    at = random.integers(values.size, size=1 + values.size // 8)
                    if values.dtype.kind == "f":
                        values[at] = random.choice([np.nan, np.inf, -1e300, 0.0, -1.0, 1e8], len(at))
                    else:
                        values[at] = random.integers(0, 4, len(at))
        with pytest.raises(Refused):
            check(str(net), str(false), str(sealed(tmp_path / "forged", content)))


def raw(out: Path, *packed: bytes) -> Path:
    data = MAGIC + b"".join(struct.pack("<I", len(p)) + p for p in packed)
    out.write_bytes(data + hashlib.sha256(data).digest())
    return out


@pytest.mark.parametrize("block", [
    b"not zlib", zlib.compress(b"no json\n"), zlib.compress(b"[]\n"), zlib.compress(b'{"block": "header"}\n'),
    zlib.compress(b'{"block": "header", "columns": {"a": ["O", 1]}}\n' + bytes(8)),
    zlib.compress(b'{"block": "header", "columns": {"a": ["<f8", 1000000000000]}}\n' + bytes(8)),
    zlib.compress(b'{"block": "header", "columns": {"a": ["<f8", -1]}}\n' + bytes(8)),
    zlib.compress(b'{"block": "header", "columns": {}}\n' + bytes(8)),
    zlib.compress(b"[" * 100_000 + b"\n"), zlib.compress(b'{"block": "end", "columns": {}}\n'),
], ids=range(10))
def test_blocks_that_are_none_are_refused(tmp_path: Path, block: bytes) -> None:
    net, text, _ = small_proof(tmp_path)
    with pytest.raises(Refused):
        check(str(net), str(text), str(raw(tmp_path / "bad", block)))


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    net, text, _ = small_proof(tmp_path)
    packer = zlib.compressobj(9)
    zeros = bytes(1 << 24)
    bomb = b"".join(packer.compress(zeros) for _ in range(2 * MOST_BLOCK // len(zeros))) + packer.flush()
    with pytest.raises(Refused, match="cannot be read"):
        check(str(net), str(text), str(raw(tmp_path / "bomb", bomb)))


# ---------------------------------------------------------------------- witnesses


def witness_file(folder: Path, x: list[str], asserts: str = "(>= Y_0 0.5)", branch: int = 0) -> tuple[str, str, str]:
    net, text = absolute_value(folder / "n.onnx"), folder / "p.vnnlib"
    text.write_text(spec([(-1.0, 1.0)], 2, asserts))
    head = {"block": "header", **about(net, text), "verdict": "falsified", "x": x, "branch": branch}
    return str(net), str(text), str(sealed(folder / "proof", [(head, {}), ({"block": "end"}, {})]))


@pytest.mark.parametrize("x", ["0.75", "-1", "2/3", "0.51"])
def test_witnesses_are_accepted(tmp_path: Path, x: str) -> None:
    assert check(*witness_file(tmp_path, [x])) == "falsified: the witness is unsafe"


@pytest.mark.parametrize(("x", "why"), [(["0.25"], "met up to"), (["1.0000001"], "input set"), (["nan"], "malformed"),
                                    ([], "input set"), (["0.75", "0.75"], "input set"), (["0.5"], "met up to")])
def test_points_that_are_no_witness_are_refused(tmp_path: Path, x: list[str], why: str) -> None:
    """At 0.5 the row is met with equality, which an enclosure cannot show."""
    with pytest.raises(Refused, match=why):
        check(*witness_file(tmp_path, x))


def test_equality_is_shown_exactly(tmp_path: Path) -> None:
    assert check(*witness_file(tmp_path, ["1/2"]), exact=True).startswith("falsified")


# ---------------------------------------------------------------------- as a command


def rmax(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "verifier.cli", *arguments], capture_output=True, text=True)


def test_the_command_tells_accepted_refused_and_unreadable_apart(tmp_path: Path) -> None:
    net, text, proof = map(str, small_proof(tmp_path))
    done = rmax("check", net, text, proof)
    assert (done.returncode, done.stdout.split()[:2]) == (0, ["accepted", "verified:"])
    other = save_network(tmp_path / "other.onnx", [(np.ones((1, 2)), np.zeros(1))])
    done = rmax("check", str(other), text, proof)
    assert done.returncode == 1 and "another network" in done.stdout
    for arguments in ((text, text, proof), (net, net, proof), (net, text, str(tmp_path / "none")), (net, proof)):
        done = rmax("check", *arguments)
        assert done.returncode == 2 and not done.stdout and "Traceback" not in done.stderr, arguments


def test_properties_made_from_an_input_are_checked(tmp_path: Path) -> None:
    net = random_network(tmp_path / "n.onnx", [6, 8, 3], 2)
    x = np.random.default_rng(0).random(6).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    label = int(Graph.from_onnx(net)(__import__("torch").from_numpy(x[None])).argmax())
    for norm in ("inf", "2", "1"):
        flags = ["--input", str(tmp_path / "x.npy"), "--label", str(label), "--eps", "0.01", "--clip", "0", "1",
                 "--norm", norm]
        assert rmax("verify", str(net), *flags, "--proof", str(tmp_path / "proof")).returncode == 0
        done = rmax("check", str(net), *flags, str(tmp_path / "proof"))
        assert done.returncode == 0, done.stdout + done.stderr
        flags[5] = "0.02"
        assert "another property" in rmax("check", str(net), *flags, str(tmp_path / "proof")).stdout


def test_checking_loads_neither_torch_nor_the_search(tmp_path: Path) -> None:
    net, text, proof = map(str, small_proof(tmp_path))
    code = ("import sys; from verifier.cli import cli; cli(['check', *sys.argv[1:]], standalone_mode=False);"
            "own = {m for m in sys.modules if m.split('.')[0] in ('bounds', 'milp', 'certify')"
            " or m.startswith('verifier.') and not m.startswith(('verifier.check', 'verifier.cli'))};"
            "print(sorted(own), 'torch' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code, net, text, proof], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "['bounds', 'bounds.files'] False", done.stdout + done.stderr


def test_the_checker_imports_nothing_of_the_project() -> None:
    for name in ("check", "check_input"):
        text = (Path(__file__).parents[2] / "verifier" / f"{name}.py").read_text()
        imported = {line.split()[1] for line in text.splitlines() if line.startswith(("import ", "from "))}
        assert not {m for m in imported if m.split(".")[0] in ("bounds", "milp", "certify", "torch", "scipy")}
        assert {m for m in imported if m.startswith("verifier")} <= {"verifier.check_input"}
        assert len(text.splitlines()) < 800


def test_unreadable_questions_are_told(tmp_path: Path) -> None:
    net, text, proof = small_proof(tmp_path)
    good = text.read_text()
    for bad in ("(assert", good.replace("<= X_0", "<= X_7", 1), good.replace("Y_0", "(* X_0 X_1)"),
                good.replace("assert", "assume", 1),
                good.replace("(assert (>= X_0", "(assert (and) (>= X_0", 1),
                good + "(declare-const X_2 Real)", "(" * 3000,
                good.replace("(assert (>= X_0", "; ", 1)):
        text.write_text(bad)
        with pytest.raises(Unreadable):
            check(str(net), str(text), str(proof))
