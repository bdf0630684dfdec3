"""Names, missing files, downloads on request only, and what is printed of a data set."""

from __future__ import annotations

import hashlib
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from certify.cli.train import command
from certify.data import fetch
from certify.data.dataset import Examples, TrainingData, describe
from certify.data.registry import NAMES, load
from tests.certify.data.files import mnist


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"digits, mnist, fashion-mnist, cifar10, or a path that ends in .npz"):
        load("imagenet")


@pytest.mark.parametrize("name", [n for n in NAMES if n != "digits"])
def test_missing_files_are_named_with_their_places_and_their_source(name: str, tmp_path: Path,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("nothing is downloaded unasked"))
    with pytest.raises(FileNotFoundError) as caught:
        load(name, tmp_path)
    sentence = str(caught.value)
    assert all(word in sentence for word in (name, str(tmp_path), fetch.SOURCES[name].url))
    for file in fetch.SOURCES[name].files:
        assert file.removesuffix(".gz") in sentence
    assert "\n" not in sentence


def test_digits_are_split_as_always() -> None:
    from sklearn.datasets import load_digits
    data, raw = load("digits"), load_digits()
    order = np.random.default_rng(0).permutation(1797)
    assert (len(data.train), len(data.test)) == (1437, 360)
    assert torch.equal(data.test.x[:, 0], torch.tensor(raw.images[order[:360]] / 16, dtype=torch.float32))
    assert data.train.y.tolist() == raw.target[order[360:]].tolist()


def published(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """MNIST as a publisher would lay it, and the source that states its sums."""
    mnist(folder, zipped=True)
    files = {name: (folder / name).read_bytes() for name in fetch.SOURCES["mnist"].files}
    sums = {name: hashlib.md5(data).hexdigest() for name, data in files.items()}
    monkeypatch.setitem(fetch.SOURCES, "mnist", fetch.Source(folder.as_uri() + "/", sums))
    return files


def test_a_download_fetches_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = published(tmp_path / "there", monkeypatch)
    here = tmp_path / "here"
    data = load("mnist", here, download=True)
    assert len(data.train) == 30
    assert {path.name: path.read_bytes() for path in (here / "mnist").iterdir()} == files
    asked: list[str] = []
    really = urllib.request.urlopen
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, **kw: asked.append(url) or really(url, **kw))
    for gone in ([], ["t10k-labels-idx1-ubyte.gz"]):
        for name in gone:
            (here / "mnist" / name).unlink()
        assert torch.equal(load("mnist", here, download=True).test.y, data.test.y)
        assert [url.rpartition("/")[2] for url in asked] == gone


def test_a_file_with_another_checksum_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(tmp_path / "there", monkeypatch)
    (tmp_path / "there" / "t10k-images-idx3-ubyte.gz").write_bytes(b"something else")
    with pytest.raises(ValueError, match="MD5"):
        load("mnist", tmp_path / "here", download=True)
    kept = {path.name for path in (tmp_path / "here" / "mnist").iterdir()}
    assert kept == {"train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"}, "those before it, whole"


def test_a_source_that_does_not_answer_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = fetch.Source((tmp_path / "gone").as_uri() + "/", {"train-images-idx3-ubyte.gz": "0"})
    monkeypatch.setitem(fetch.SOURCES, "mnist", nowhere)
    with pytest.raises(OSError, match=r"train-images-idx3-ubyte.gz: cannot be fetched .* by hand"):
        load("mnist", tmp_path, download=True)


def test_the_train_command_tells_of_missing_files_and_fetches_them_when_asked(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(tmp_path / "there", monkeypatch)
    flags = ["--data", "mnist", "--data-dir", str(tmp_path / "here"), "--epochs", "1", "--batch-size", "10",
             "--set", "model.hidden=[4]", "--set", "ramp_begin=0", "--set", "ramp_end=1", "--set", "milestones=[]",
             "--out", str(tmp_path / "run")]
    refused = CliRunner().invoke(command, flags)
    assert refused.exit_code == 2 and "--download" in refused.output and not (tmp_path / "here").exists()
    done = CliRunner().invoke(command, [*flags, "--download"])
    assert done.exit_code == 0, done.output
    assert "mnist: 30 training and 12 test inputs of shape 1 x 5 x 4" in done.output


def test_a_description_says_what_a_reader_needs() -> None:
    x, y = torch.tensor([[[0.0]], [[0.5]], [[1.0]]]), torch.tensor([0, 1, 1])
    data = TrainingData("toy", Examples(x, y), Examples(x[:1], y[:1]), 3)
    assert describe(data) == (
        "toy: 3 training and 1 test inputs of shape 1 x 1, 3 classes with 0 to 2 training inputs each. Values lie "
        "between 0 and 1; perturbed inputs stay in [0, 1]. The network takes them as they are, without normalisation. "
        "eps is in units of the inputs, before any normalisation. Augmentation in training: none.")
    other = describe(TrainingData("toy", Examples(x, y), Examples(x, y), 2, None, (0.5,), (0.25,), "flip-crop"))
    assert "no range is known" in other and "subtracts 0.5 and divides by 0.25" in other and "flip-crop" in other
    several = describe(replace(data, mean=(0.5, 0.4, 0.3), std=(1.0, 2.0, 3.0)))
    assert "subtracts (0.5, 0.4, 0.3) and divides by (1, 2, 3)" in several
    flat = describe(replace(data, mean=tuple(map(float, range(9))), std=(1.0,)))
    assert "subtracts (0, 1, 2, 3, ...)" in flat
