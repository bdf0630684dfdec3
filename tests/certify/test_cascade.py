"""Cascades: who answers, what counts, what is left to train on, and the published one."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bounds.graph import Graph
from certify.cascade import CascadeAnswers, Certifier, run_cascade, uncertified
from tests.certify.cases import SHAPE, examples, network


def _thresholds(low: float, high: float) -> Graph:
    """On one number: label 1 with margin x - high above it, label 0 with margin low - x below, label 2 between."""
    net = nn.Linear(1, 3)
    with torch.no_grad():
        net.weight[:] = torch.tensor([[-1.0], [1.0], [0.0]])
        net.bias[:] = torch.tensor([low, -high, 0.0])
    return Graph.from_torch(net.eval(), (1,))


def test_the_first_stage_that_certifies_its_prediction_answers() -> None:
    first, second = _thresholds(-1.0, 1.0), _thresholds(0.5, 0.5)
    # Certified with eps 0.2: the first stage from 1.2 on (label 1); 1.1 is not, and the second stage takes it.
    x = torch.tensor([[1.5], [1.1], [0.0], [0.55], [-2.0]])
    y = torch.tensor([1, 1, 2, 1, 1])
    answers = run_cascade([first, second], Certifier(0.2, clip=None), x, y)
    assert answers.stage.tolist() == [0, 1, 0, 0, 0]
    assert answers.prediction.tolist() == [1, 1, 2, 2, 0]
    assert answers.certified.tolist() == [True, True, True, False, False]
    assert answers.clean_error == pytest.approx(0.4)
    assert answers.robust_error == pytest.approx(0.4)


def test_where_no_stage_certifies_the_last_one_predicts() -> None:
    answers = run_cascade([_thresholds(-1.0, 1.0), _thresholds(0.9, 0.9)], Certifier(0.3, clip=None),
                          torch.tensor([[1.0]]), torch.tensor([1]))
    assert answers.stage.tolist() == [-1] and answers.prediction.tolist() == [1]
    assert answers.clean_error == 0.0 and answers.robust_error == 1.0


def test_examples_certified_for_a_wrong_label_leave_the_training_set_too() -> None:
    x = torch.tensor([[1.5], [1.1], [-2.0], [-0.9]])
    assert uncertified([_thresholds(-1.0, 1.0)], Certifier(0.2, clip=None), x).tolist() == [1, 3]
    stages = [_thresholds(-1.0, 1.0), _thresholds(0.5, 0.5)]
    assert uncertified(stages, Certifier(0.2, clip=None), x).tolist() == []
    assert uncertified([], Certifier(0.2), x).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("norm", [torch.inf, 2.0])
def test_what_is_certified_stands_at_every_sample(norm: float) -> None:
    graph = Graph.from_torch(network("mlp").eval(), SHAPE)
    x, _ = examples(40)
    certifier = Certifier(0.05 if norm == torch.inf else 0.3, norm, batch=7)
    prediction, proved = certifier.predicts(graph, x)
    assert 0 < int(proved.sum()) < 40
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        d = torch.randn(x.shape, generator=generator)
        d = d.sign() if norm == torch.inf else d / torch.linalg.vector_norm(d.flatten(1), 2, 1).view(-1, 1, 1, 1)
        z = (x + certifier.eps * d).clamp(0, 1)
        assert torch.equal(graph(z).argmax(1)[proved], prediction[proved])


def test_tighter_methods_prove_no_less_and_batches_do_not_matter() -> None:
    graph = Graph.from_torch(network("mlp").eval(), SHAPE)
    x, _ = examples(40)

    def proved(batch: int, *methods: str) -> Tensor:
        return Certifier(0.02, methods=methods, batch=batch).predicts(graph, x)[1]
    loose, tight = proved(40, "ibp"), proved(40, "ibp", "fastlin")
    assert bool((tight | ~loose).all()) and int(tight.sum()) > int(loose.sum())
    assert torch.equal(tight, proved(3, "ibp", "fastlin"))


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="eps"):
        Certifier(-0.1)
    with pytest.raises(ValueError, match="methods"):
        Certifier(0.1, methods=("crwon",))
    with pytest.raises(ValueError, match="methods"):
        Certifier(0.1, methods=())
    with pytest.raises(ValueError, match="stage"):
        run_cascade([], Certifier(0.1), torch.zeros(1, 1), torch.zeros(1, dtype=torch.long))


def golden_cascade(shared: Path, count: int) -> CascadeAnswers:
    """The published cascade on the first test images."""
    stages = [Graph.from_onnx(shared / f"golden/wk18_mnist_eps0.3_stage{k}.onnx") for k in (1, 2, 3)]
    with gzip.open(shared / "datasets/mnist/t10k-images-idx3-ubyte.gz") as f:
        images = np.frombuffer(f.read(), np.uint8, offset=16)[:count * 784].reshape(count, 1, 28, 28)
    with gzip.open(shared / "datasets/mnist/t10k-labels-idx1-ubyte.gz") as f:
        labels = np.frombuffer(f.read(), np.uint8, offset=8)[:count].astype(np.int64)
    x = torch.from_numpy(images.astype(np.float32) / 255)
    return run_cascade(stages, Certifier(0.3, methods=("fastlin",), batch=50), x, torch.from_numpy(labels))


@pytest.mark.shared
def test_the_published_cascade_has_its_published_error(shared: Path) -> None:
    """33.64 % over all images (stored with the weights), 14.77 % the clean error of the first stage alone."""
    answers = golden_cascade(shared, 100)
    assert abs(answers.robust_error - 0.3364) < 0.12  # two and a half standard deviations of 100 images
    assert answers.clean_error <= answers.robust_error
    assert len(set(answers.stage.tolist()) - {-1}) == 3, "every stage answers somewhere"
