"""What is attacked: callables and ONNX files, what they may return, and the sentences about what they may not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from tests.verifier.attacks.problems import linear
from verifier.attacks.base import AttackResult
from verifier.attacks.criterion import Deviates, Misclassified
from verifier.attacks.model import CallableModel, Gives, ModelError, OnnxModel, as_model
from verifier.attacks.pgd import Pgd
from verifier.attacks.square import Square
from verifier.attacks.threat import Threat
from verifier.witness import OnnxReplayer, ReplayError

X = torch.tensor([[0.2, 0.4, 0.9], [0.1, 0.9, 0.05]])
BALL = Threat(math.inf, 0.5)
WEIGHT = np.array([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]], dtype=np.float32)


def scores(x: np.ndarray) -> np.ndarray:
    return x @ WEIGHT.T


def labels(x: np.ndarray) -> np.ndarray:
    return scores(x).argmax(1)


LABEL = torch.from_numpy(labels(X.numpy()))


def square(model: object, **more: Any) -> AttackResult:
    return Square(steps=200).run(model, X, Misclassified(LABEL), BALL, **more)


def test_scores_of_a_callable_are_attacked_like_those_of_a_module() -> None:
    known = linear(math.inf)
    weight, bias = known.model.weight.numpy(), known.model.bias.numpy()
    where = Threat(math.inf, 1.2 * float(known.distance.max()))
    of_function, of_module = (Square(steps=300).run(model, known.x, known.criterion, where) for model in (
        lambda x: x.reshape(len(x), -1) @ weight.T + bias, known.model))
    assert of_function.success.all()
    assert torch.equal(of_function.success, of_module.success)
    torch.testing.assert_close(of_function.x, of_module.x)


def test_labels_become_rows_and_those_beyond_the_named_ones_count_as_one() -> None:
    model = as_model(lambda x: x[:, 0].astype(np.int64), classes=4)
    assert model(torch.tensor([[0.0], [3.0]])).tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]
    assert model.gives is Gives.LABELS
    model = as_model(lambda x: x.astype(np.uint8), named=2)
    assert model(torch.tensor([[0.0], [2.0], [7.0]])).tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 1]]


def test_scores_are_needed_where_labels_come_back() -> None:
    with pytest.raises(ValueError, match="square needs scores, the model gives labels only"):
        square(labels)


def test_gradients_are_refused_before_a_function_is_asked() -> None:
    def never(x: np.ndarray) -> np.ndarray:
        raise AssertionError("asked")

    with pytest.raises(ValueError, match="pgd needs gradients, the model gives scores only"):
        Pgd().run(never, X, Misclassified(LABEL), BALL)


def test_labels_cannot_deviate() -> None:
    with pytest.raises(ValueError, match=r"Deviates needs scores|needs scores, the model gives labels"):
        Square().run(as_model(labels, classes=2), X, Deviates(torch.zeros(2, 2), 0.5), BALL)


@pytest.mark.parametrize(("answer", "match"), [
    (lambda x: scores(x)[:1], r"expected 2 rows of scores or 2 labels, got float32 of shape \(1, 2\)"),
    (lambda x: None, "got object"),
    (lambda x: [["a", "b"]] * len(x), "got <U1"),
    (lambda x: scores(x) + 1j, "got complex"),
    (lambda x: scores(x)[0, 0], r"shape \(\)"),
    (lambda x: 1 / 0, "raised ZeroDivisionError: division by zero"),
    (lambda x: -labels(x) - 1, "labels must lie in 0, 1, .., got -2 to -1"),
])
def test_what_cannot_be_used_is_told(answer: Any, match: str) -> None:
    with pytest.raises(ModelError, match=match):
        square(answer)


def test_labels_must_be_as_many_as_stated() -> None:
    with pytest.raises(ModelError, match="labels must lie in 0 to 1, got 0 to 2"):
        as_model(lambda x: np.arange(3), classes=2)(torch.zeros(3, 1))
    with pytest.raises(ModelError, match=r"as_model\(function, classes=...\)"):
        as_model(labels)(X)


@pytest.mark.parametrize("first", [scores, labels])
def test_an_answer_of_another_kind_later_is_told(first: Any) -> None:
    model = CallableModel(first, classes=2)
    model(X)
    model.function = labels if first is scores else scores
    with pytest.raises(ModelError, match=r"expected scores, got int64|expected integer labels, got float32"):
        model(X)


def test_the_number_of_outputs_must_stay() -> None:
    calls = []

    def grows(x: np.ndarray) -> np.ndarray:
        calls.append(1)
        return np.pad(scores(x), ((0, 0), (0, len(calls) - 1)))

    with pytest.raises(ModelError, match="2 outputs first and 3 later"):
        square(grows)


@pytest.mark.parametrize(("model", "criterion", "match"), [
    (scores, Misclassified(LABEL + 5), "must lie in 0 to 1, as the model has 2 outputs; got 5 to 6"),
    (scores, Misclassified(LABEL, 3 - LABEL), "as the model has 2 outputs"),
    (scores, Misclassified(LABEL - 1), "got -1 to 0"),
    (lambda x: scores(x)[:, 0], Misclassified(LABEL * 0), "at least 2 outputs, the model has 1"),
    (scores, Deviates(torch.zeros(2, 3), 0.5), "the model 2 outputs"),
])
def test_the_criterion_must_fit_the_outputs(model: Any, criterion: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Square().run(model, X, criterion, BALL)


def test_nan_outputs_are_flagged_and_never_a_success() -> None:
    def partly(x: np.ndarray) -> np.ndarray:
        y = scores(x)
        y[x[:, 1] > 0.85] = np.nan  # the second example and what lies above it
        return y

    result = square(partly)
    assert bool(result.not_finite[1])
    assert bool(torch.isfinite(result.margin[0]))
    result = square(lambda x: np.full((len(x), 2), np.nan, np.float32))
    assert result.not_finite.all()
    assert not result.success.any()


def test_a_function_cannot_change_the_points() -> None:
    def spoils(x: np.ndarray) -> np.ndarray:
        y = scores(x)
        x[:] = 9.0
        return y

    x = X.clone()
    as_model(spoils)(x)
    assert torch.equal(x, X)


@pytest.mark.parametrize(("output", "match"), [(lambda x: (x, x), "got tuple"), (lambda x: x[:1], r"shape \(1, 3\)")])
def test_modules_must_return_rows(output: Any, match: str) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return output(x)

    with pytest.raises(ModelError, match=match):
        square(Odd())


# ---------------------------------------------------------------------- ONNX files


def onnx_file(nodes: list[Any], shape: list[int | str], output: int = TensorProto.FLOAT,
              **constants: np.ndarray) -> bytes:
    info = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "g", [info("x", TensorProto.FLOAT, shape)], [info("y", output, None)],
                              [numpy_helper.from_array(v, k) for k, v in constants.items()])
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return model.SerializeToString()  # type: ignore[no-any-return]


PRODUCT = helper.make_node("MatMul", ["x", "w"], ["y"])
W = {"w": WEIGHT.T.copy()}


class Counting(OnnxReplayer):
    """Counts the points run alone."""

    alone = 0

    def run(self, x: np.ndarray) -> np.ndarray:
        self.alone += len(x)
        return super().run(x)


@pytest.mark.parametrize(("shape", "together"), [(["n", 3], True), ([1, 3], False), (["n", "m"], True)])
def test_a_free_batch_axis_is_used(shape: list[int | str], together: bool) -> None:
    replayer = Counting(onnx_file([PRODUCT], shape, **W))
    model = as_model(replayer, shape=(3,))
    x = torch.rand(50, 3, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        np.testing.assert_allclose(model(x).numpy(), scores(x.numpy()), rtol=1e-6)
    assert replayer.alone == (2 if together else 100), "the first batch is compared at two points"


def test_a_file_that_mixes_its_rows_is_run_point_by_point() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("ReduceMax", ["x"], ["t"], axes=[0, 1]),
             helper.make_node("Add", ["z", "t"], ["y"])]
    model = as_model(OnnxReplayer(onnx_file(nodes, ["n", 3], **W)), shape=(3,))
    expected = scores(X.numpy()) + X.numpy().max(1, keepdims=True)
    np.testing.assert_allclose(model(X).numpy(), expected, rtol=1e-6)


def test_a_file_that_holds_for_one_point_only_is_run_point_by_point() -> None:
    nodes = [helper.make_node("Reshape", ["x", "s"], ["z"]), helper.make_node("MatMul", ["z", "w"], ["y"])]
    replayer = OnnxReplayer(onnx_file(nodes, ["n", 1, 3], s=np.array([1, 3]), **W))
    model = as_model(replayer, shape=(1, 3))
    assert isinstance(model, OnnxModel)
    np.testing.assert_allclose(model(X.unsqueeze(1)).numpy(), scores(X.numpy()), rtol=1e-6)


def test_a_file_that_ends_in_argmax_gives_labels() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("ArgMax", ["z"], ["y"], axis=1)]
    replayer = OnnxReplayer(onnx_file(nodes, ["n", 3], TensorProto.INT64, **W))
    with pytest.raises(ValueError, match="square needs scores, the model gives labels only"):
        square(replayer)


def test_onnxruntime_failures_are_told() -> None:
    with pytest.raises(ModelError, match="expects inputs of shape"):
        as_model(OnnxReplayer(onnx_file([PRODUCT], ["n", 3], **W)), shape=(4,))(torch.zeros(2, 4))
    with pytest.raises(ReplayError, match="batch axis is not free"):
        OnnxReplayer(onnx_file([PRODUCT], [1, 3], **W)).run_together(X.numpy())
    with pytest.raises(ValueError, match="needs the shape"):
        as_model(OnnxReplayer(b""))
    with pytest.raises(TypeError, match="got int"):
        as_model(3)
