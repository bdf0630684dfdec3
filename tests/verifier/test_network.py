"""Networks as files: weights that are stored in files beside them."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from bounds import Graph
from tests.verifier.models import save_network
from verifier.network import Network, digest_of
from verifier.witness import OnnxReplayer, ReplayError

X = np.ones((1, 2), np.float32)


def stored_apart(folder: Path, factor: float) -> Path:
    """y = factor (x_0 + x_1, 0), the factor in `weights.bin`."""
    folder.mkdir(exist_ok=True)
    whole = save_network(folder / "whole.onnx", [(np.array([[factor, factor], [0.0, 0.0]]), np.zeros(2))])
    (folder / "weights.bin").unlink(missing_ok=True)  # else they are appended
    onnx.save(onnx.load(whole), folder / "net.onnx", save_as_external_data=True, location="weights.bin",
              size_threshold=0)
    return folder / "net.onnx"


def test_weights_are_those_beside_the_network_wherever_one_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                                                 ) -> None:
    net, elsewhere = stored_apart(tmp_path / "one", 1.0), stored_apart(tmp_path / "two", 2.0).parent
    packed = tmp_path / "one" / "packed.onnx"
    packed.with_suffix(".onnx.gz").write_bytes(gzip.compress(net.read_bytes()))
    monkeypatch.chdir(elsewhere)
    for path in (net, packed, Path("../one/net.onnx")):
        network = Network.read(path)
        for replayer in (OnnxReplayer(path), network.replayer, network.replayer.node_by_node()):
            assert replayer.run(X).tolist() == [[2.0, 0.0]]
    for data in (net.read_bytes(), gzip.compress(net.read_bytes())):
        with pytest.raises(ReplayError, match="pass the path"):
            OnnxReplayer(data).run(X)


def test_the_digest_counts_weights_in_other_files(tmp_path: Path) -> None:
    net, other = stored_apart(tmp_path / "one", 1.0), stored_apart(tmp_path / "two", 2.0)
    assert net.read_bytes() == other.read_bytes()
    assert Network.read(net).digest != Network.read(other).digest
    before = Network.read(net).digest
    stored_apart(net.parent, 2.0)
    assert Network.read(net).digest == Network.read(other).digest != before
    parts = [(net.parent / name).read_bytes() for name in ("net.onnx", "weights.bin")]
    assert digest_of(net) == hashlib.sha256(parts[0] + hashlib.sha256(parts[1]).digest()).hexdigest()


def test_the_digest_of_one_file_is_that_of_its_unpacked_bytes(tmp_path: Path) -> None:
    whole = stored_apart(tmp_path, 1.0).with_name("whole.onnx")
    data = whole.read_bytes()
    (tmp_path / "packed.onnx.gz").write_bytes(gzip.compress(data))
    expected = hashlib.sha256(data).hexdigest()
    for source in (whole, str(whole), data, tmp_path / "packed.onnx", tmp_path / "packed.onnx.gz"):
        assert digest_of(source) == expected
    assert Network.read(tmp_path / "packed.onnx").digest == expected


def test_constants_in_other_files_are_read_beside_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `Constant` node's value as well, and its file counts in the digest."""
    for name, factor in (("one", 1.0), ("two", 2.0)):
        model = onnx.load(stored_apart(tmp_path / name, factor).with_name("whole.onnx"))
        for tensor in model.graph.initializer:
            model.graph.node.insert(0, onnx.helper.make_node("Constant", [], [tensor.name], value=tensor))
        del model.graph.initializer[:]
        onnx.save(model, tmp_path / name / "net.onnx", save_as_external_data=True, location="constants.bin",
                  size_threshold=0, convert_attribute=True)
    monkeypatch.chdir(tmp_path / "two")
    network = Network.read(tmp_path / "one" / "net.onnx")
    assert network.graph(torch.from_numpy(X)).tolist() == [[2.0, 0.0]]
    assert network.digest != Network.read(tmp_path / "two" / "net.onnx").digest


def test_a_graph_is_made_of_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, elsewhere = stored_apart(tmp_path / "one", 1.0), stored_apart(tmp_path / "two", 2.0).parent
    monkeypatch.chdir(elsewhere)
    assert Graph.from_onnx(net)(torch.from_numpy(X)).tolist() == [[2.0, 0.0]]
