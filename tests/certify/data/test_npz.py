"""Data of one's own: what is stored is what is used, and its split never changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from certify.data.registry import load
from verifier.data import read_data


def stored(path: Path, **arrays: Any) -> str:
    np.savez(path / "own.npz", **arrays)
    return str(path / "own.npz")


RNG = np.random.default_rng(0)
X, Y = RNG.random((23, 2, 3)).astype(np.float32), np.arange(23) % 3


def test_without_a_test_part_a_fifth_is_kept_for_it_and_nothing_is_lost(tmp_path: Path) -> None:
    data = load(stored(tmp_path, x=X, y=Y))
    assert (len(data.train), len(data.test), data.classes, data.shape) == (19, 4, 3, (2, 3))
    together = torch.cat([data.train.x, data.test.x])
    assert sorted(map(tuple, together.flatten(1).tolist())) == sorted(map(tuple, X.reshape(23, -1).tolist()))
    for x, y in zip(together, torch.cat([data.train.y, data.test.y]), strict=True):
        (place,) = np.flatnonzero((x.numpy() == X).all((1, 2)))
        assert int(y) == Y[place]
    again = load(stored(tmp_path, x=X, y=Y))
    assert torch.equal(again.test.x, data.test.x)


def test_a_stored_test_part_is_used(tmp_path: Path) -> None:
    data = load(stored(tmp_path, x=X, y=Y, x_test=X[:2] + 1, y_test=np.array([3, 0])))
    assert torch.equal(data.train.x, torch.from_numpy(X)) and torch.equal(data.test.x, torch.from_numpy(X[:2] + 1))
    assert data.test.y.tolist() == [3, 0] and data.classes == 4


@pytest.mark.parametrize(("arrays", "clip"), [
    ({}, (0.0, 1.0)), ({"x": X * 2}, None), ({"x": -X}, None), ({"clip": np.array([-1.0, 3.0])}, (-1.0, 3.0)),
    ({"x": (X * 9).astype(np.uint8)}, (0.0, 255.0))])
def test_the_range_is_the_stored_one_or_what_inputs_allow(arrays: dict[str, Any], clip: Any, tmp_path: Path) -> None:
    assert load(stored(tmp_path, **{"x": X, "y": Y} | arrays)).clip == clip


def test_an_end_that_is_no_float32_is_still_an_end(tmp_path: Path) -> None:
    end = float(np.float32(0.1))
    assert end > 0.1
    for top in (np.full((23, 2, 3), 0.1), np.full((23, 2, 3), 0.1, np.float32), np.full((23, 2, 3), end)):
        x = np.where(X < 0.5, top, -top)
        data = load(stored(tmp_path, x=x, y=Y, clip=np.array([-0.1, 0.1])))
        assert data.clip == (-0.1, 0.1)
        for part in (data.train.x, data.test.x):
            inside = np.nextafter(np.float32(0.1), np.float32(0))
            assert set(part.abs().flatten().tolist()) == {float(inside)} and float(inside) < 0.1
    with pytest.raises(ValueError, match=r"clip is \[0.0, 0.1\], and inputs lie between 0.0 and 0.10000001"):
        load(stored(tmp_path, x=np.minimum(X, np.nextafter(np.float32(0.1), np.float32(1))) * (X > 0.05), y=Y,
                    clip=np.array([0.0, 0.1])))


def test_labels_need_not_be_dense(tmp_path: Path) -> None:
    assert load(stored(tmp_path, x=X, y=(Y * 4).astype(np.uint64))).classes == 9


def test_bytes_stay_bytes_and_the_model_divides(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (10, 2, 3), dtype=np.uint8)
    path = stored(tmp_path, x=pixels, y=Y[:10])
    data = load(path)
    assert (data.mean, data.std) == ((0.0, 0.0), (255.0, 255.0))
    of_commands = read_data(path, (2, 3), 3)
    assert sorted(map(tuple, torch.cat([data.train.x, data.test.x]).flatten(1).tolist())) \
        == sorted(map(tuple, of_commands.x.reshape(10, -1).tolist()))


def test_stored_normalisation_is_used(tmp_path: Path) -> None:
    data = load(stored(tmp_path, x=X, y=Y, mean=np.array([0.5, 0.25]), std=np.array([2.0, 4.0])))
    assert (data.mean, data.std) == ((0.5, 0.25), (2.0, 4.0))


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no labels": ({"x": X}, "holds x and no y"),
    "half a test part": ({"x": X, "y": Y, "x_test": X}, "no y_test"),
    "a test part of another shape": ({"x": X, "y": Y, "x_test": X[:, :1], "y_test": Y}, r"x_test has inputs of shape"),
    "labels of text": ({"x": X, "y": np.array(["a"] * 23)}, "integer labels"),
    "a label below 0": ({"x": X, "y": Y - 1}, "label -1 of example 0 is out of range"),
    "a label too few": ({"x": X, "y": Y[1:]}, "expected one label an input"),
    "a label beyond int64": ({"x": X, "y": Y.astype(np.uint64) + np.uint64(2**63)},
                             f"label {2**63} of example 0 is out of range"),
    "a label that no model has room for": ({"x": X, "y": Y << 40}, f"label {2 << 40} is out of range"),
    "one class": ({"x": X, "y": Y * 0}, "one class only"),
    "one class that is not the first": ({"x": X, "y": Y * 0 + 3}, "one class only"),
    "bytes to train with alone": ({"x": (X * 9).astype(np.uint8), "y": Y, "x_test": X, "y_test": Y},
                                  "x holds uint8 and x_test float32, expected uint8 in both or in neither"),
    "bytes to test with alone": ({"x": X, "y": Y, "x_test": (X * 9).astype(np.uint8), "y_test": Y,
                                  "clip": np.array([0.0, 9.0])}, "expected uint8 in both or in neither"),
    "clip upside down": ({"x": X, "y": Y, "clip": np.array([1.0, 0.0])}, "expected LO <= HI"),
    "too few": ({"x": X[:4], "y": Y[:4]}, "expected at least 5"),
    "nothing": ({"x": X[:0], "y": Y[:0]}, "no examples"),
    "one number": ({"x": np.float32(1), "y": np.int64(1)}, "expected one label an input"),
    "no axis for features": ({"x": X[:, 0, 0], "y": Y}, r"expected \(N, \*input shape\)"),
    "NaN": ({"x": np.where(X < 0.1, np.nan, X), "y": Y}, "NaN"),
    "clip of one number": ({"x": X, "y": Y, "clip": np.array([1.0])}, "expected 2 finite numbers"),
    "clip beyond": ({"x": X, "y": Y, "clip": np.array([0.0, 0.5])}, "inputs lie between"),
    "mean alone": ({"x": X, "y": Y, "mean": np.zeros(2)}, "expected both or none"),
    "std of 0": ({"x": X, "y": Y, "mean": np.zeros(2), "std": np.zeros(2)}, "expected numbers > 0"),
    "mean of another size": ({"x": X, "y": Y, "mean": np.zeros(3), "std": np.ones(3)}, "expected 2 finite numbers"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_told_in_one_sentence(what: str, tmp_path: Path) -> None:
    arrays, sentence = WRONG[what]
    path = stored(tmp_path, **arrays)
    with pytest.raises(ValueError, match=sentence) as caught:
        load(path)
    assert str(caught.value).startswith(path) and "\n" not in str(caught.value)


def test_a_file_that_is_none_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no arrays")
    with pytest.raises(ValueError, match=r"not an \.npz file"):
        load(str(tmp_path / "text.npz"))
    with pytest.raises(FileNotFoundError, match=r"gone.npz: no such file"):
        load(str(tmp_path / "gone.npz"))
