"""IDX files: what they hold is what is loaded, wherever they lie, and damage is told in one sentence."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from certify.data.idx import read_idx, read_images
from certify.data.registry import FIRST_LABELS, load
from tests.certify.data.files import idx_bytes, mnist


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(("name", "inside"), [("mnist", ""), ("mnist", "mnist"), ("mnist", "MNIST/raw"),
                                              ("fashion-mnist", "fashion-mnist"), ("fashion-mnist", ""),
                                              ("fashion-mnist", "FashionMNIST/raw")])
def test_files_are_found_and_scaled(name: str, inside: str, zipped: bool, tmp_path: Path) -> None:
    held = mnist(tmp_path / inside, zipped=zipped)
    data = load(name, tmp_path)
    for part, (x, y) in zip((data.train, data.test), held.values(), strict=True):
        assert part.x.shape == (len(y), 1, 5, 4)
        assert torch.equal((part.x * 255).round().to(torch.uint8)[:, 0], torch.from_numpy(x))
        assert part.x.flatten().tolist() == [float(np.float32(k) / np.float32(255)) for k in x.ravel()]
        assert part.y.tolist() == y.tolist()
    assert (data.name, data.classes, data.clip, data.mean, data.augmentation) == (name, 10, (0.0, 1.0), (), "none")


def test_the_folder_of_the_name_comes_before_the_one_given(tmp_path: Path) -> None:
    mnist(tmp_path, seed=0)
    held = mnist(tmp_path / "fashion-mnist", seed=1)
    assert load("fashion-mnist", tmp_path).test.y.tolist() == held["test"][1].tolist()


@pytest.mark.parametrize(("asked", "held"), [("mnist", "fashion-mnist"), ("fashion-mnist", "mnist")])
def test_one_set_is_not_taken_for_the_other(asked: str, held: str, tmp_path: Path) -> None:
    mnist(tmp_path)
    labels = np.array([*FIRST_LABELS[held], 0, 1], np.uint8)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    with pytest.raises(ValueError, match=f"holds {held}, expected {asked}"):
        load(asked, tmp_path)
    assert load(held, tmp_path).test.y.tolist() == labels.tolist()


WHOLE = idx_bytes(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
DAMAGED = {
    "nothing": (b"", "not an IDX file"),
    "three bytes": (WHOLE[:3], "not an IDX file"),
    "text": (b"no idx file at all", "not an IDX file"),
    "wrong type of numbers": (b"\0\0\x0d" + WHOLE[3:], "not an IDX file"),
    "no axes": (b"\0\0\x08\0" + WHOLE[4:], "not an IDX file"),
    "five axes": (b"\0\0\x08\x05" + WHOLE[4:], "not an IDX file"),
    "half a header": (WHOLE[:10], "ends inside its header"),
    "cut off": (WHOLE[:-1], "says 2 x 3 x 4 bytes, it holds 23"),
    "too long": (WHOLE + b"\0", "says 2 x 3 x 4 bytes, it holds 25"),
    "huge": (b"\0\0\x08\x03" + b"\xff" * 12, "says 4294967295 x"),
    "half a gzip": (gzip.compress(WHOLE)[:-9], "damaged gzip"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damage_is_told_in_one_sentence(what: str, tmp_path: Path) -> None:
    data, sentence = DAMAGED[what]
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(ValueError, match=sentence) as caught:
        read_idx(tmp_path / "file")
    assert str(caught.value).startswith(str(tmp_path / "file")) and "\n" not in str(caught.value)


def test_labels_that_are_not_one_an_image_are_refused(tmp_path: Path) -> None:
    mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(29, np.uint8)))
    with pytest.raises(ValueError, match="expected N x H x W pixels and N labels"):
        read_images(tmp_path, "train")


@pytest.mark.shared
def test_the_real_mnist(shared: Path) -> None:
    folder = shared / "datasets" / "mnist"
    if not folder.is_dir():
        pytest.skip("MNIST not found beside the benchmark data")
    data = load("mnist", shared / "datasets")
    assert (data.train.x.shape, data.test.x.shape) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))
    assert data.test.y[:10].tolist() == FIRST_LABELS["mnist"]
    assert torch.bincount(data.train.y).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert float(data.train.x.mean()) == pytest.approx(0.1307, abs=5e-5)
    assert float(data.train.x.std()) == pytest.approx(0.3081, abs=5e-5)
