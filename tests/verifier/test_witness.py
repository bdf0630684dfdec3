"""The gate: what becomes a witness and what does not, to the last ulp."""

from __future__ import annotations

import gzip
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from verifier.property import Branch, Property, Region, Row, robustness
from verifier.witness import ModuleReplayer, OnnxReplayer, ReplayError, confirm

ONE = Fraction(1)


class Identity:
    """A replayer that returns its input and remembers what it was asked."""

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def run(self, x: np.ndarray) -> np.ndarray:
        self.seen.append(x.copy())
        return x.reshape(len(x), -1)


def prop_of(rows: tuple[Row, ...], low: str = "0.1", high: str = "0.3") -> Property:
    return Property((Branch(Region((low, low), (high, high)), rows),), 2, 2)


def at_most(i: int, bound: str, *, strict: bool = False) -> Row:
    return Row(((i, ONE),), (), Fraction(bound), strict)


def step(value: float, towards: float) -> np.float32:
    return np.nextafter(np.float32(value), np.float32(towards))


def test_a_candidate_one_ulp_outside_is_clipped_and_replayed_at_the_edge() -> None:
    replayer = Identity()
    candidate = np.array([step(0.1, -1), step(0.3, 1)])
    witness = confirm(candidate, prop_of((at_most(0, "1"),)), replayer)
    assert witness is not None
    assert replayer.seen[0].tolist() == [[np.float32(0.1), np.float32(0.3)]]
    assert witness.x.tolist() == [np.float32(0.1), np.float32(0.3)]
    assert witness.x.dtype == np.float32


def test_the_gate_never_confirms_a_point_outside_its_set() -> None:
    """The row asks for an output that only a point one ulp outside the float32 box would give."""
    inside = np.float32(0.3)
    outside = step(0.3, 1)
    wanted = Row(((0, -ONE),), (), -Fraction(float(outside)))  # Y_0 >= the float above the box
    assert confirm(np.array([outside, 0.2]), prop_of((wanted,)), Identity()) is None
    reachable = Row(((0, -ONE),), (), -Fraction(float(inside)))
    assert confirm(np.array([outside, 0.2]), prop_of((reachable,)), Identity()) is not None


def test_rows_are_exact_to_the_ulp() -> None:
    x = np.array([0.25, 0.25], dtype=np.float32)
    assert confirm(x, prop_of((at_most(0, "0.25"),)), Identity()) is not None, "a closed row accepts equality"
    assert confirm(x, prop_of((at_most(0, "0.25", strict=True),)), Identity()) is None, "an open one does not"
    up = np.array([step(0.25, 1), 0.25], dtype=np.float32)
    assert confirm(up, prop_of((at_most(0, "0.25"),)), Identity()) is None
    down = np.array([step(0.25, 0), 0.25], dtype=np.float32)
    strict = confirm(down, prop_of((at_most(0, "0.25", strict=True),)), Identity())
    assert strict is not None
    assert -1e-7 < strict.margin < 0


def test_all_rows_of_one_branch_must_hold() -> None:
    x = np.array([0.25, 0.125], dtype=np.float32)
    rows = (at_most(0, "0.25"), at_most(1, "0.12"))
    assert confirm(x, prop_of(rows), Identity()) is None
    region = Region(("0.1", "0.1"), ("0.3", "0.3"))
    either = Property(tuple(Branch(region, (row,)) for row in reversed(rows)), 2, 2)
    witness = confirm(x, either, Identity())
    assert witness is not None
    assert witness.branch == 1


def test_excess_is_the_distance_beyond_the_decimal_box() -> None:
    prop = prop_of((at_most(0, "1"),))
    witness = confirm(np.array([0.2, 0.4]), prop, Identity())
    assert witness is not None
    beyond = Fraction(float(np.float32(0.3))) - Fraction("0.3")
    assert beyond > 0
    assert witness.excess == pytest.approx(float(beyond), rel=1e-12)
    inner = confirm(np.array([0.2, 0.2]), prop, Identity())
    assert inner is not None
    assert inner.excess == 0.0


def test_witnesses_of_a_ball_stay_within_its_decimal_radius() -> None:
    """The float32 next to 0.1 lies beyond it: the network may change its mind there, and the ball be safe."""
    prop = robustness(np.zeros(2, np.float32), 1, 0.1, classes=2)  # unsafe where Y_1 <= Y_0
    witness = confirm(np.array([0.1, -0.1]), prop, Identity())
    assert witness is not None
    assert witness.x.tolist() == [step(0.1, 0), step(-0.1, 0)]
    assert witness.excess == 0.0
    beyond = Property((Branch(prop.regions[0], (Row(((0, -ONE),), (), -Fraction("0.1")),)),), 2, 2)
    assert confirm(np.array([0.1, 0.0]), beyond, Identity()) is None


def test_values_that_are_not_finite_are_refused() -> None:
    class Broken(Identity):
        def run(self, x: np.ndarray) -> np.ndarray:
            return np.array([[-np.inf, np.nan]], dtype=np.float32)

    prop = prop_of((at_most(0, "1"),))
    assert confirm(np.array([0.2, 0.2]), prop, Broken()) is None
    assert confirm(np.array([np.nan, 0.2]), prop, Identity()) is None
    with pytest.raises(ValueError, match="expected 2 inputs"):
        confirm(np.zeros(3), prop, Identity())


@pytest.mark.parametrize("norm", [1.0, 2.0])
def test_candidates_outside_a_ball_are_drawn_inside_exactly(norm: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.random(30).astype(np.float32)
    prop = robustness(x, 0, 0.1, classes=30, norm=norm, clip=(0.0, 1.0))
    for _ in range(5):
        move = rng.standard_normal(30)
        move *= 0.1 * (1 + 1e-7) / np.linalg.norm(move, ord=norm)
        witness = confirm(x + move, prop, Identity())
        if witness is not None:
            assert prop.regions[0].contains(witness.x)
        replayer = Identity()
        confirm(x + move, prop, replayer)
        assert prop.regions[0].contains(replayer.seen[0][0])


def test_a_candidate_goes_to_the_nearest_region() -> None:
    near, far = Region(("0", "0"), ("1", "1")), Region(("5", "5"), ("6", "6"))
    row = at_most(0, "9")
    prop = Property((Branch(near, (row,)), Branch(far, (row,))), 2, 2)
    replayer = Identity()
    witness = confirm(np.array([4.9, 5.5]), prop, replayer)
    assert witness is not None
    assert witness.branch == 1
    assert replayer.seen[0].tolist() == [[5.0, 5.5]]


def linear_onnx(shape: list[int | str], dtype: int = TensorProto.FLOAT) -> bytes:
    """y = 2 x over the last axis (3 entries), flattened."""
    weight = numpy_helper.from_array((2 * np.eye(3)).astype(helper.tensor_dtype_to_np_dtype(dtype)), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", dtype, shape)], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


@pytest.mark.parametrize("shape", [[1, 3], ["batch", 3], [1, 1, 3], [3], ["n", 1, 3], ["n", "m"]])
def test_onnx_replay_runs_one_point_at_a_time(shape: list[int | str], tmp_path: Path) -> None:
    data = linear_onnx(shape)
    (tmp_path / "net.onnx").write_bytes(data)
    (tmp_path / "other.onnx.gz").write_bytes(gzip.compress(data))
    x = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.float32)
    for source in (data, gzip.compress(data), tmp_path / "net.onnx", tmp_path / "other.onnx"):
        assert OnnxReplayer(source).run(x).tolist() == (2 * x).tolist()


def test_double_networks_are_fed_doubles() -> None:
    answer = OnnxReplayer(linear_onnx([1, 3], TensorProto.DOUBLE)).run(np.full((1, 3), 0.1, dtype=np.float32))
    assert answer.dtype == np.float64
    assert answer[0, 0] == 2 * float(np.float32(0.1))


def test_replay_failures_are_named() -> None:
    with pytest.raises(ReplayError, match="cannot load"):
        OnnxReplayer(b"not a network").run(np.zeros((1, 3), dtype=np.float32))
    with pytest.raises(ReplayError, match="expects inputs of shape"):
        OnnxReplayer(linear_onnx([1, 3])).run(np.zeros((1, 4), dtype=np.float32))
    with pytest.raises(ReplayError, match="gzip"):
        OnnxReplayer(gzip.compress(linear_onnx([1, 3]))[:-9]).run(np.zeros((1, 3), dtype=np.float32))


def test_module_replay_is_in_evaluation_mode_and_leaves_the_mode_alone() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5))
    module.train()
    x = np.ones((4, 3), dtype=np.float32)
    answer = ModuleReplayer(module).run(x)
    assert module.training
    assert module[1].training
    with torch.no_grad():
        assert answer[0].tolist() == pytest.approx(module[0](torch.ones(3)).tolist())
    witness = confirm(np.zeros(3), robustness(np.zeros(3, np.float32), 0, 1.0, classes=2), ModuleReplayer(module))
    bias = module[0].bias.detach()
    assert (witness is not None) == bool(bias[0] <= bias[1])


def test_the_real_check_is_reported() -> None:
    witness = confirm(np.array([0.2, 0.2]), prop_of((at_most(0, "1"),)), Identity(),
                      real_check=lambda x, branch: bool(x[0] > 0) and branch == 0)
    assert witness is not None
    assert witness.real_agrees is True
