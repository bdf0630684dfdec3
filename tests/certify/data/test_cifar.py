"""CIFAR-10 in all its forms gives the same images, and its pickles run nothing."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from certify.data import cifar
from certify.data.registry import load
from tests.certify.data.files import archive, cifar_arrays, cifar_files, lay, pickled

PY, BIN = cifar.VERSIONS
COUNT = 3


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar, "BATCH", COUNT)


@pytest.mark.parametrize("inside", ["", "cifar10", "cifar-10", "CIFAR10"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("version", "protocol"), [(BIN, 0), (PY, 1), (PY, 2), (PY, 4)])
def test_every_form_gives_the_same_images(version: str, protocol: int, packed: bool, inside: str, tmp_path: Path
                                          ) -> None:
    arrays = cifar_arrays(COUNT)
    files = cifar_files(arrays, version, protocol)
    if packed:
        archive(tmp_path / inside / cifar.VERSIONS[version][0], files, version)
    else:
        lay(tmp_path / inside / version, files)
    data = load("cifar10", tmp_path)
    expected_x = np.concatenate([x for x, _ in arrays[:5]]).reshape(-1, 3, 32, 32)
    assert torch.equal((data.train.x * 255).round().to(torch.uint8), torch.from_numpy(expected_x))
    assert data.train.y.tolist() == [int(k) for _, y in arrays[:5] for k in y]
    assert torch.equal((data.test.x * 255).round().to(torch.uint8).view(-1, 3072), torch.from_numpy(arrays[5][0]))
    assert data.test.y.tolist() == arrays[5][1].tolist()
    assert data.clip == (0.0, 1.0) and len(data.mean) == len(data.std) == 3 and data.augmentation == "flip-crop"


def test_the_folder_of_batches_itself_may_be_named(tmp_path: Path) -> None:
    lay(tmp_path / BIN, cifar_files(cifar_arrays(COUNT), BIN))
    assert len(load("cifar10", tmp_path / BIN).train) == 5 * COUNT


def test_a_pickle_as_python_2_wrote_it(tmp_path: Path) -> None:
    """Of the official files: names of globals from before numpy 2, text of bytes, keys of bytes."""
    pixels = bytes(range(256)) * 36
    assert len(pixels) == COUNT * 3072
    data = (b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85"
            b"U\x01b\x87Rq\x05(K\x01K\x03M\x00\x0c\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNN"
            b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" + len(pixels).to_bytes(4, "little") + pixels
            + b"tbU\x06labelsq\x08]q\t(K\x01K\x02K\x09eu.")
    lay(tmp_path / PY, dict.fromkeys((*cifar.TRAIN, cifar.TEST), data))
    loaded = load("cifar10", tmp_path)
    assert loaded.test.y.tolist() == [1, 2, 9]
    assert (loaded.test.x.flatten() * 255).round().to(torch.uint8).numpy().tobytes() == pixels


class Runs:
    """A pickle of this calls os.mkdir."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_would_run_something_is_refused(protocol: int, tmp_path: Path) -> None:
    evil = pickled({"data": Runs(tmp_path / "ran"), "labels": []}, protocol)
    lay(tmp_path / PY, dict.fromkeys((*cifar.TRAIN, cifar.TEST), evil))
    with pytest.raises(ValueError, match=r"data_batch_1: not a batch of CIFAR-10 \(it asks for posix.mkdir"):
        load("cifar10", tmp_path)
    assert not (tmp_path / "ran").exists()
    pickle.loads(evil)
    assert (tmp_path / "ran").exists(), "an ordinary unpickler runs it"


OBJECTS = np.array([None] * 3072 * COUNT, dtype=object).reshape(COUNT, -1)
LABELS = [1] * COUNT
PIXELS = np.zeros((COUNT, 3072), np.uint8)
WRONG: dict[str, tuple[Any, str]] = {
    "a list": ([1, 2], "expected a dictionary"),
    "no labels": ({"data": PIXELS}, "expected a dictionary"),
    "labels of text": ({"data": PIXELS, "labels": ["1"] * COUNT}, "expected a dictionary"),
    "pixels as a list": ({"data": [1], "labels": LABELS}, "expected a dictionary"),
    "floats": ({"data": PIXELS.astype(np.float32), "labels": LABELS}, "expected one of bytes"),
    "objects": ({"data": OBJECTS, "labels": LABELS}, "expected one of bytes"),
    "column by column": ({"data": np.asfortranarray(np.ones((COUNT, 3072), np.uint8)), "labels": LABELS}, "row by row"),
    "another width": ({"data": PIXELS[:, :3071].copy(), "labels": LABELS}, r"expected \(N, 3072\)"),
    "a label beyond": ({"data": PIXELS, "labels": [1, 2, 10]}, "label out of range"),
    "a label below": ({"data": PIXELS, "labels": [1, 2, -1]}, "label out of range"),
    "a label less": ({"data": PIXELS, "labels": LABELS[1:]}, "3 images and 2 labels"),
    "an image less": ({"data": PIXELS[1:], "labels": LABELS[1:]}, "expected 3"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_pickle_of_something_else_is_refused(what: str, tmp_path: Path) -> None:
    content, sentence = WRONG[what]
    lay(tmp_path / PY, dict.fromkeys((*cifar.TRAIN, cifar.TEST), pickled(content)))
    with pytest.raises(ValueError, match=sentence) as caught:
        load("cifar10", tmp_path)
    assert str(tmp_path / PY) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("protocol", [1, 2, 4])
def test_damaged_pickles_are_refused_or_read_never_worse(protocol: int) -> None:
    """Cut off or with a few bytes changed, outside the pixels, where nothing tells."""
    whole = cifar_files([(PIXELS, np.ones(COUNT, np.uint8))] * 6, PY, protocol)["test_batch"]
    rng = np.random.default_rng(0)
    outside = [k for k in range(len(whole)) if k < 400 or k > len(whole) - 200]
    cut = [whole[:k] for k in (*outside[::7], len(whole) - 1)]
    changed = []
    for _ in range(300):
        data = bytearray(whole)
        for k in rng.choice(outside, 2):
            data[k] = rng.integers(0, 256)
        changed.append(bytes(data))
    refused = 0
    for data in (*cut, *changed):
        try:
            x, y = cifar._pickled(data)
        except ValueError:
            refused += 1
        else:
            assert x.shape == (COUNT, 3072) and len(y) == COUNT
    assert refused > len(cut)


def test_damaged_binary_files_are_refused(tmp_path: Path) -> None:
    files = cifar_files(cifar_arrays(COUNT), BIN)
    for damaged, sentence in ((files["data_batch_3.bin"][:-1], "expected 3 images of 3073"),
                              (files["data_batch_3.bin"][3073:], "expected 3 images of 3073"),
                              (b"\x0a" + files["data_batch_3.bin"][1:], "holds the label 10")):
        lay(tmp_path / BIN, files | {"data_batch_3.bin": damaged})
        with pytest.raises(ValueError, match=rf"data_batch_3.bin: .*{sentence}"):
            load("cifar10", tmp_path)


def test_a_missing_batch_is_named(tmp_path: Path) -> None:
    files = cifar_files(cifar_arrays(COUNT), BIN)
    del files["test_batch.bin"]
    lay(tmp_path / BIN, files)
    with pytest.raises(FileNotFoundError, match=r"test_batch\.bin"):
        load("cifar10", tmp_path)
    archive(tmp_path / "packed" / cifar.VERSIONS[BIN][0], files, BIN)
    with pytest.raises(ValueError, match=r"test_batch\.bin"):
        load("cifar10", tmp_path / "packed")


@pytest.mark.parametrize("kept", [0, 10, 1000, -20])
def test_a_damaged_archive_is_refused(kept: int, tmp_path: Path) -> None:
    path = tmp_path / cifar.VERSIONS[PY][0]
    archive(path, cifar_files(cifar_arrays(COUNT), PY), PY)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"cifar-10-python.tar.gz: ") as caught:
        load("cifar10", tmp_path)
    assert "\n" not in str(caught.value)
