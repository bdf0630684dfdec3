"""The checker's arithmetic against slow oracles: rationals, fifty digits, matrices, onnxruntime, points of the set. The
last tests plant faults in it and see these oracles notice."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, getcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.verifier.models import save_network
from tests.verifier.test_proof import layered, random_network, residual, smooth
from verifier import check as checker
from verifier.check import Bounds, Stated, below_sigmoid, intercepts, part_for_ball, sigmoid
from verifier.check_input import Activation, Affine, Network, Numbers, read_network, read_vnnlib

getcontext().prec = 50


def precise_sigmoid(z: float) -> Decimal:
    return 1 / (1 + (-Decimal(z)).exp())


def points() -> np.ndarray:
    r = np.random.default_rng(0)
    special = [0.0, -0.0, 1e-300, 5e-324, 36.9, -36.9, 699.9, -699.9, 701.0, -701.0, 745.2, -745.2, 1e300, -1e300]
    return np.concatenate([r.standard_normal(300), 30 * r.standard_normal(300), special])


def test_sigmoids_are_enclosed() -> None:
    low, high = sigmoid(points())
    for z, a, b in zip(points().tolist(), low.tolist(), high.tolist(), strict=True):
        exact = precise_sigmoid(max(min(z, 2000.0), -2000.0))
        assert Decimal(a) <= exact <= Decimal(b), z
        assert b - a <= 1e-13 * b or z < -700, z


def random_intervals(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r = np.random.default_rng(1)
    ends = np.sort(r.standard_normal((2, count)) * 10 ** r.uniform(-6, 1.5, (2, count)), 0)
    slopes = np.where(r.random(count) < 0.7, r.random(count) / 4, r.standard_normal(count))
    return ends[0], ends[1], slopes


def test_lines_below_sigmoids_hold_and_touch() -> None:
    low, high, slope = random_intervals(3000)
    bound = below_sigmoid(slope, low, high)
    grid = np.linspace(low, high, 2001)
    value = (sigmoid(grid)[0] - slope * grid).min(0)
    assert (bound <= value + 1e-15 * (1 + np.abs(slope * low) + np.abs(slope * high))).all()
    assert (bound >= value - 1e-6 * (1 + high - low) ** 2 - 1e-12).all(), "no looser than the grid is coarse"


@pytest.mark.parametrize("kind", ["Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh"])
def test_lines_hold_on_grids(kind: str) -> None:
    low, high, slope = random_intervals(2000)
    step = Activation(kind, alpha=np.full(2000, 0.1), low=-0.5, high=0.75)
    c, d = intercepts(step, slope, -slope, low, high, 2.0**-53)
    z = np.linspace(low, high, 501)
    f = {"Relu": np.maximum(z, 0), "LeakyRelu": np.where(z > 0, z, 0.1 * z), "Clip": np.clip(z, -0.5, 0.75),
         "Sigmoid": 1 / (1 + np.exp(-z)), "Tanh": np.tanh(z)}[kind]
    slack = 1e-14 * (1 + np.abs(slope) * np.abs(z).max(0))
    assert (slope * z + c <= f + slack).all() and (-slope * z + d >= f - slack).all()


# ---------------------------------------------------------------------- the network


def every_operator(path: Path) -> Path:
    """Convolutions with groups, dilations, strides, uneven padding; moves; arithmetic on either side."""
    r, make = np.random.default_rng(5), helper.make_node
    weights = {"k": r.standard_normal((4, 1, 2, 3)).astype(np.float32), "kb": r.standard_normal(4).astype(np.float32),
               "one": np.float32([1.5]), "half": np.float32(0.3), "w": r.standard_normal((15, 3)).astype(np.float32),
               "shape": np.int64([1, -1, 5]), "starts": np.int64([1]), "ends": np.int64([4]), "axes": np.int64([1]),
               "which": np.int64([2, 0, 2]), "c": r.standard_normal((1, 3)).astype(np.float32), "low": np.float32(-0.4),
               "high": np.float32(0.9)}
    nodes = [make("Conv", ["x", "k", "kb"], ["z"], group=2, dilations=[2, 1], strides=[1, 2], pads=[1, 0, 2, 1]),
             make("LeakyRelu", ["z"], ["a"], alpha=0.1), make("Transpose", ["a"], ["t"], perm=[0, 2, 3, 1]),
             make("Reshape", ["t", "shape"], ["s"]), make("Slice", ["s", "starts", "ends", "axes"], ["sl"]),
             make("Gather", ["sl", "which"], ["g"], axis=1), make("Mul", ["half", "g"], ["m"]),
             make("Sub", ["one", "m"], ["u"]), make("Clip", ["u", "low", "high"], ["v"]), make("Flatten", ["v"], ["f"]),
             make("MatMul", ["f", "w"], ["p"]), make("Add", ["c", "p"], ["q"]), make("Tanh", ["q"], ["th"]),
             make("Sub", ["th", "q"], ["o"]), make("Concat", ["o", "f", "th"], ["y"], axis=1)]
    return layered(path, [1, 2, 4, 6], nodes, weights, 21)


def networks(folder: Path) -> list[Path]:
    return [every_operator(folder / "every.onnx"), residual(folder / "residual.onnx", 1),
            random_network(folder / "dense.onnx", [5, 9, 9, 3], 0),
            smooth(folder / "smooth.onnx", ["Sigmoid", "Relu"], 0),
            save_network(folder / "linear.onnx", [(np.ones((4, 3)), np.ones(4))], last="Sigmoid")]


def bounds_over(net: Network, low: np.ndarray, high: np.ndarray) -> Bounds:
    """The bounds of boxes "B n" with rows for every neuron, and lines of slope 0 or the like."""
    count = 0
    for step in net.steps:
        if isinstance(step, Activation):
            net.neurons.setdefault(step.inputs[0], (sum(c for _, c in net.neurons.values()), net.sizes[step.inputs[0]]))
            step.at, count = count, count + net.sizes[step.out] * (1 if step.kind == "Relu" else 2)
    net.slopes = count
    neurons = sum(c for _, c in net.neurons.values())
    of = net.numbers.of
    none = np.full((len(low), neurons), np.inf)
    lines = of(np.full((len(low), count), 0.25))
    return Bounds(net, of(low), of(high), None, (-none, none), Stated(lines, np.full((len(low), neurons), 3)))


def replayed(net: Path, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(net, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    return np.stack([session.run(None, {entry.name: p.reshape(entry.shape)})[0].ravel() for p in x.astype(np.float32)])


@pytest.mark.parametrize("which", range(5))
def test_values_are_those_of_onnxruntime(tmp_path: Path, which: int) -> None:
    path = networks(tmp_path)[which]
    net = read_network(path.read_bytes(), Numbers())
    x = np.random.default_rng(0).standard_normal((5, net.sizes[0])).astype(np.float32).astype(float)
    bounds = bounds_over(net, x, x)
    low, high = bounds.low[net.output], bounds.high[net.output]
    assert (high - low <= 1e-11 * (1 + np.abs(low))).all()
    assert np.allclose(low, replayed(path, x), atol=1e-5)


OPERATORS: dict[str, tuple[list[int], dict[str, Any], list[np.ndarray]]] = {   # shape of x, attributes, constants
    "Gemm": ([1, 6], {"transB": 1}, [np.ones((4, 6)), np.ones(4)]), "MatMul": ([1, 6], {}, [np.ones((6, 4))]),
    "Conv strided": ([1, 2, 5, 6], {"strides": [2, 3], "pads": [1, 0, 2, 1]}, [np.ones((4, 2, 3, 2)), np.ones(4)]),
    "Conv in groups": ([1, 4, 5, 4], {"group": 2, "pads": [1, 1, 1, 1]}, [np.ones((6, 2, 3, 3))]),
    "Conv dilated": ([1, 1, 7, 6], {"dilations": [3, 2], "strides": [1, 2]}, [np.ones((2, 1, 2, 3)), np.ones(2)]),
    "Conv that jumps": ([1, 1, 7, 6], {"strides": [3, 2], "pads": [0, 1, 1, 0]}, [np.ones((2, 1, 2, 2))]),
    "Conv of a border": ([1, 1, 1, 1], {"strides": [2, 2], "pads": [1, 1, 0, 0]}, [np.ones((1, 1, 1, 1)), np.ones(1)]),
    "Add a row": ([1, 3, 4], {}, [np.ones((1, 4))]), "Sub": ([1, 3, 4], {}, [np.ones((3, 4))]),
    "Mul": ([1, 3, 4], {}, [np.ones((3, 1))]), "Div": ([1, 3, 4], {}, [np.ones((1,))]),
    "BatchNormalization": ([1, 2, 3], {"epsilon": 0.01}, [np.ones(2) for _ in range(4)]),
    "Transpose": ([1, 2, 3, 2], {"perm": [0, 3, 1, 2]}, []), "Flatten": ([1, 2, 3], {}, []),
    "Slice": ([1, 5, 6], {}, [np.int64([1, 0]), np.int64([5, 6]), np.int64([1, -1]), np.int64([2, 3])]),
    "Gather repeatedly": ([1, 4, 2], {"axis": 1}, [np.int64([3, 0, 3, 3])]),
    "Squeeze": ([1, 1, 4], {}, [np.int64([1])]), "Unsqueeze": ([1, 4], {}, [np.int64([1])]),
    "Reshape": ([1, 2, 6], {}, [np.int64([0, -1, 3])]),
    "Concat with itself": ([1, 3, 2], {"axis": 2}, []), "Add itself": ([1, 3], {}, [])}


@pytest.fixture(params=OPERATORS)
def operator(request: Any, tmp_path: Path) -> Path:
    """A network of one operator, its constants in place of ones at random (positive, as variances are)."""
    shape, attributes, constants = OPERATORS[request.param]
    r = np.random.default_rng(0)
    weights = {f"c{k}": c if c.dtype == np.int64 else (c * r.uniform(0.5, 2, c.shape)).astype(np.float32)
               for k, c in enumerate(constants)}
    inputs = ["x", "x"] if request.param.endswith("itself") else ["x", *weights]
    node = helper.make_node(request.param.split()[0], inputs, ["y"], **attributes)
    graph = helper.make_graph([node], "one", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
                              [numpy_helper.from_array(w, name) for name, w in weights.items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), tmp_path / "n.onnx")
    return tmp_path / "n.onnx"


def test_operators_compute_what_onnxruntime_does(operator: Path) -> None:
    net = read_network(operator.read_bytes(), Numbers())
    x = np.random.default_rng(1).standard_normal((4, net.sizes[0])).astype(np.float32).astype(float)
    bounds = bounds_over(net, x, x)
    low, high = bounds.low[net.output], bounds.high[net.output]
    assert (high - low <= 1e-12 * (1 + np.abs(low))).all() and np.allclose(low, replayed(operator, x), atol=1e-5)


def check_adjoint(step: Affine, numbers: Numbers) -> None:
    """<A, W x> = <A W, x> for whole numbers, where nothing is rounded but W; its rows; |W| and what bounds it."""
    r = np.random.default_rng(2)
    matrix = step.apply([numbers.of(np.eye(sum(step.sizes))[:, sum(step.sizes[:k]):][:, :n])
                         for k, n in enumerate(step.sizes)], step.weights).T
    A = numbers.of(r.integers(-9, 9, (3, len(step.bias))).astype(float))
    back = np.concatenate(step.pull(A), 1)
    index, sign = r.integers(len(matrix), size=6), r.choice([-1, 1], 6)
    rows = np.concatenate(step.units(index, sign), 1)
    assert matrix.any() or step.bias.any()
    if numbers.exact:
        assert (back == A @ matrix).all() and (rows == matrix[index] * sign[:, None]).all()
    assert np.allclose((back - A @ matrix).astype(float), 0) and np.array_equal(rows, matrix[index] * sign[:, None])
    xs = [numbers.of(r.uniform(0, 1, (2, n))) for n in step.sizes]
    moduli = np.concatenate(xs, 1) @ np.abs(matrix).T
    assert np.allclose((step.apply(xs, step.moduli) - moduli).astype(float), 0)
    assert (step.apply(xs, step.reach) >= (1 - 1e-12) * moduli.astype(float)).all()


@pytest.mark.parametrize("exact", [False, True])
def test_operators_pull_back_by_their_transpose(operator: Path, exact: bool) -> None:
    if exact and b"BatchNormalization" in operator.read_bytes():
        pytest.skip("has a root")
    net = read_network(operator.read_bytes(), Numbers(exact))
    for step in net.steps:
        check_adjoint(step, net.numbers)


@pytest.mark.parametrize("which", range(5))
def test_maps_pull_back_by_their_transpose(tmp_path: Path, which: int) -> None:
    net = read_network(networks(tmp_path)[which].read_bytes(), Numbers())
    for step in net.steps:
        if isinstance(step, Affine):
            check_adjoint(step, net.numbers)


def test_matrices_in_a_row_become_one(tmp_path: Path) -> None:
    """Their product keeps account of what cancels in it."""
    big = 1e6 * np.ones((1, 3))
    path = layered(tmp_path / "n.onnx", [1, 3], [
        helper.make_node("MatMul", ["x", "a"], ["z"]), helper.make_node("Add", ["z", "b"], ["u"]),
        helper.make_node("MatMul", ["u", "c"], ["y"])],
        {"a": np.float32(np.concatenate([big, big]).T), "b": np.float32([[1, 2]]), "c": np.float32([[1], [-1]])}, 1)
    net = read_network(path.read_bytes(), Numbers())
    step, = net.steps
    assert step.is_matrix and not step.weights[0].any() and step.bias == [-1]
    assert (step.reach[0] == 2e6).all() and step.size >= 3


# ---------------------------------------------------------------------- bounds


@pytest.mark.parametrize("which", range(5))
def test_intervals_hold_all_points(tmp_path: Path, which: int) -> None:
    path = networks(tmp_path)[which]
    net, r = read_network(path.read_bytes(), Numbers()), np.random.default_rng(2)
    centre = r.standard_normal((4, net.sizes[0]))
    radius = np.array([[1e-6], [0.01], [0.2], [1.0]])
    bounds = bounds_over(net, centre - radius, centre + radius)
    for k in range(4):
        x = centre[k] + radius[k] * np.sign(r.standard_normal((200, net.sizes[0]))) * r.choice([1, 0.5], (200, 1))
        inside = bounds_over(read_network(path.read_bytes(), Numbers()), x, x)
        for tensor in bounds.low:
            assert (inside.high[tensor] >= bounds.low[tensor][k]).all()
            assert (inside.low[tensor] <= bounds.high[tensor][k]).all()


def cancelling(folder: Path) -> Path:
    """Layers whose terms are 1e9 times what is left of them."""
    r = np.random.default_rng(0)
    big = 1e6 * r.standard_normal((4, 6))
    first = np.concatenate([big, big + r.standard_normal((4, 6))])
    second = np.concatenate([np.eye(4) * 1e3, -np.eye(4) * 1e3], 1)
    last = r.standard_normal((2, 4))
    return save_network(folder / "cancel.onnx", [(first, np.zeros(8)), (second, np.zeros(4)), (last, np.zeros(2))])


def cancelling_products(folder: Path) -> Path:
    """Convolutions in a row, which are not joined: W2 W1 is 1e-9 of |W2| |W1|, and its rounding far above what is left
    for the rows before the first to be charged by."""
    r = np.random.default_rng(0)
    big = 1e6 * r.standard_normal((4, 6))
    weights = {"a": np.concatenate([big, big + 1e-3 * r.standard_normal((4, 6))]),
               "b": np.concatenate([np.eye(4), -np.eye(4)], 1) / 3, "w": r.standard_normal((4, 4))}
    make = helper.make_node
    nodes = [make("Conv", ["x", "a"], ["p"]), make("Conv", ["p", "b"], ["q"]), make("Conv", ["q", "w"], ["r"]),
             make("Flatten", ["r"], ["y"])]
    return layered(folder / "products.onnx", [1, 6, 1, 1], nodes, {
        name: w[..., None, None].astype(np.float64) for name, w in weights.items()}, 4)


def rounding_holds(path: Path) -> bool:
    """Exact values at corners lie within all intervals, and above all rows, over boxes down to single points."""
    r = np.random.default_rng(3)
    x, radius = r.standard_normal((6, 6)), np.array([[0.0], [0.0], [0.0], [1e-12], [1e-9], [1e-3]])
    low, high = x - radius, x + radius
    net = read_network(path.read_bytes(), Numbers())
    bounds = bounds_over(net, low, high)
    rows = np.tile(np.concatenate([np.eye(net.sizes[net.output]), -np.eye(net.sizes[net.output])]), (6, 1))
    node = np.repeat(np.arange(6), len(rows) // 6)
    A, b = bounds.pull({net.output: rows}, np.zeros(len(node)), np.zeros(len(node)), node)
    value = bounds.minimum(A, b, node)
    for _ in range(5):
        corner = np.where(r.random(x.shape) < 0.5, low, high)
        exact = bounds_over(read_network(path.read_bytes(), Numbers(exact=True)), corner, corner)
        for tensor in bounds.low:
            if not ((bounds.low[tensor] <= exact.low[tensor]) & (bounds.high[tensor] >= exact.high[tensor])).all():
                return False
        y = exact.low[net.output][node]
        if not (value <= (rows * y).sum(1)).all():
            return False
    return True


def test_bounds_account_for_all_rounding(tmp_path: Path) -> None:
    assert rounding_holds(cancelling(tmp_path))
    assert rounding_holds(cancelling_products(tmp_path))
    assert rounding_holds(random_network(tmp_path / "n.onnx", [6, 7, 5, 2], 0))


@pytest.mark.parametrize("p", [1, 2])
def test_balls_are_bounded_below_all_of_their_points(tmp_path: Path, p: int) -> None:
    net = read_network(random_network(tmp_path / "n.onnx", [8, 2], 0).read_bytes(), Numbers())
    r = np.random.default_rng(0)
    centre, radius = r.random(8), 0.3
    low, high = np.maximum(centre - radius, 0), np.minimum(centre + radius, 1)
    none = np.zeros((1, 0))
    bounds = Bounds(net, low[None], high[None], (centre, radius, p), (none, none), Stated(none))
    A = r.standard_normal((20, 8))
    value = bounds.minimum(A, np.zeros(20), np.zeros(20, int))
    z = r.standard_normal((200_000, 8)) * r.choice([1, 0.1], (200_000, 8))
    z *= radius / np.linalg.norm(z, ord=p, axis=1, keepdims=True)
    x = centre + z
    x = x[((x >= low) & (x <= high)).all(1)]
    seen = (A @ x.T).min(1)
    assert (value <= seen).all() and (seen - value < 0.35 * radius * np.abs(A).max(1)).all()
    assert (value > Bounds(net, low[None], high[None], None, (none, none), Stated(none)).minimum(
        A, np.zeros(20), np.zeros(20, int))).all()
    assert part_for_ball(A, low - centre, high - centre, radius, p).shape == A.shape


def test_balls_are_bounded_in_rationals(tmp_path: Path) -> None:
    """The part for the ball is found in floats, what it proves is not computed in them."""
    net = read_network(random_network(tmp_path / "n.onnx", [8, 2], 0).read_bytes(), Numbers(exact=True))
    r, of = np.random.default_rng(0), net.numbers.of
    centre, none = of(r.random(8)), np.zeros((1, 0), object)
    bounds = Bounds(net, centre[None] - Fraction(1, 3), centre[None] + Fraction(1, 3), (centre, Fraction(1, 3), 1),
                    (none, none), Stated(none))
    A, node = of(r.standard_normal((5, 8))), np.zeros(5, int)
    value = bounds.minimum(A, of(np.zeros(5)), node)
    assert all(isinstance(v, Fraction) for v in value)
    least = A @ centre - np.abs(A).max(1) / 3
    assert (value <= least).all() and np.allclose((least - value).astype(float), 0)


# ---------------------------------------------------------------------- properties


def test_specifications_read_like_those_of_the_engine(tmp_path: Path) -> None:
    from verifier import read_vnnlib as engine
    head = "".join(f"(declare-const {v}_{i} Real)\n" for v in "XY" for i in range(3)) + "; a comment (\n" \
        + "".join(f"(assert (>= X_{i} -0.1))(assert (<= X_{i} 1e-1))\n" for i in range(3))
    for asserts in ("(assert (<= Y_0 Y_1))", "(assert (or (and (<= Y_0 1.5) (>= Y_1 Y_2)) (and (> Y_2 0.25))))",
                    "(assert (and (<= Y_0 Y_1) (or (<= Y_1 0) (<= Y_2 X_0))))(assert (>= Y_1 Y_0))",
                    "(assert (or (and (<= X_0 0.0) (>= Y_0 1)) (and (>= X_1 0.05) (<= (+ Y_0 (* -2 Y_1) 3) X_2))))",
                    "(assert (or (and (<= X_0 -0.5) (>= Y_0 1)) (= Y_1 0.125)))(assert (< X_2 0.1))",
                    "(assert (or (<= Y_0 0) (<= Y_1 0)))(assert (or (<= Y_2 0) (<= Y_2 -1)))(assert (<= Y_2 5))"):
        path = tmp_path / "p.vnnlib"
        path.write_text(head + asserts)
        ours, theirs = read_vnnlib(path.read_bytes(), 3, 3), engine(path).branches
        assert len(ours) == len(theirs), asserts
        for a, b in zip(ours, theirs, strict=True):
            assert a.low == [Fraction(v) for v in b.region.exact_lower]
            assert a.high == [Fraction(v) for v in b.region.exact_upper]
            assert [(r.y, r.x, r.bound, r.strict) for r in a.rows] == [(r.y, r.x, r.bound, r.strict) for r in b.rows]


# ---------------------------------------------------------------------- planted faults


def no_charge(self: Bounds, n: int) -> float:
    return 0.0


def swapped(step: Activation, s: Any, t: Any, low: Any, high: Any, u: Any) -> Any:
    c, d = intercepts(step, s, t, low, high, u)
    return d, c


def narrow_box(self: Bounds, A: Any, b: Any, node: Any) -> Any:
    centre = (self.low[0][node] + self.high[0][node]) / 2
    return b + (A * centre).sum(1) - 0.98 * (np.abs(A) * (self.high[0][node] - centre)).sum(1)


def test_a_dropped_charge_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bounds, "charge", no_charge)
    assert not rounding_holds(cancelling(tmp_path))


def test_a_dropped_charge_of_products_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = Bounds.pull

    def uncharged(self: Bounds, rows: Any, c: Any, e: Any, node: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(Bounds, "charge", no_charge)
            return exact(self, rows, c, e, node)
    monkeypatch.setattr(Bounds, "pull", uncharged)
    assert not rounding_holds(cancelling_products(tmp_path))


@pytest.mark.parametrize(("where", "name", "fault"), [(checker, "intercepts", swapped),
                                                      (Bounds, "minimum", narrow_box)])
def test_other_faults_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: Any, name: str,
                                  fault: Callable[..., Any]) -> None:
    monkeypatch.setattr(where, name, fault)
    with pytest.raises(AssertionError):
        test_intervals_hold_all_points(tmp_path, 1)


def test_a_sharper_tangent_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = below_sigmoid

    def sharp(s: Any, a: Any, b: Any) -> Any:
        return exact(s, a, b) + 0.02 * np.minimum(b - a, 1)
    monkeypatch.setitem(test_lines_below_sigmoids_hold_and_touch.__globals__, "below_sigmoid", sharp)
    with pytest.raises(AssertionError):
        test_lines_below_sigmoids_hold_and_touch()
