"""The benchmark that decides a whole test set: what a run says, stores and refuses. The answers themselves are tested
in tests/certify/evaluation."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import golden
from benchmarks.golden import data_set, figures, read_images
from benchmarks.tightness import EXAMPLES
from certify.evaluation.evaluate import evaluate
from tests.certify.evaluation.cases import noisy_digits

NET = EXAMPLES / "digits_mlp.onnx"
IMAGES = 12
EPS = "0.05"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("golden") / "digits.npz"
    x, y = noisy_digits(IMAGES)
    np.savez(path, x=x, y=y)
    return path


@pytest.fixture(autouse=True)
def no_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden, "calibration", lambda threads: {"threads": threads})


def run(data: Path, out: Path, *flags: str) -> int:
    return golden.main(["--net", str(NET), "--data", str(data), "--eps", EPS, "--jobs", "1", "--out", str(out), *flags])


# ---------------------------------------------------------------------- runs


def test_a_run_decides_and_can_be_resumed(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "golden"
    run(data, out, "--limit", "7", "--chunk", "4", "--time-limit", "0.4")
    first = json.loads((out / "golden.json").read_text())
    assert first["images"] == 7 and first["verified"] + first["falsified"] + first["undecided"] == 7
    with pytest.raises(SystemExit, match="already holds a run"):
        run(data, out)
    assert run(data, out, "--resume", "--time-limit", "20") == 0
    whole = json.loads((out / "golden.json").read_text())
    assert (whole["images"], whole["undecided"], whole["open"]) == (IMAGES, 0, {})
    assert whole["verified"] + whole["falsified"] == IMAGES == sum(whole["by_step"].values())
    assert f"{IMAGES} images: clean error" in capsys.readouterr().out
    run(data, out, "--resume", "--time-limit", "20")
    assert f"/{IMAGES}" not in capsys.readouterr().err, "nothing is asked twice"


def test_several_processes_answer_every_image(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "golden"
    run(data, out, "--limit", "6", "--chunk", "3", "--jobs", "2", "--method", "batched")
    stored = json.loads((out / "golden.json").read_text())
    alone = tmp_path / "alone"
    run(data, alone, "--limit", "6", "--chunk", "3", "--method", "batched")
    expected = json.loads((alone / "golden.json").read_text())
    assert stored["jobs"] == 2 and all(stored[k] == expected[k] for k in ("by_step", "open", "exact"))


def test_figures_of_a_run() -> None:
    def image(certified: bool, reason: str | None, by: str | None) -> dict[str, Any]:
        return {"certified": certified, "reason": reason, "by": by, "evidence": "rounded" if certified else None}
    records = [image(False, "misclassified", None), image(True, None, "crown"),
               image(False, "counterexample", "pgd"), image(True, None, "crown"),
               image(False, "time limit", None), image(False, "counterexample", "alone: bab"),
               image(True, None, "alone: bab")]
    found = figures(records, 10)
    assert (found["clean"], found["attacked"], found["exact"]) == (0.1, 0.2, 0.3)
    assert (found["verified"], found["falsified"], found["undecided"]) == (3, 3, 4)
    assert found["open"] == {"time limit": 1} and found["least_evidence"] == "rounded"
    assert found["by_step"]["verified crown"] == 2 and found["by_step"]["falsified alone: bab"] == 1
    assert golden.sentence(found).endswith("exact error 30.00% to 70.00%, 4 undecided")


# ---------------------------------------------------------------------- data and refusals


def test_idx_files_are_read(tmp_path: Path) -> None:
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(
        b"\x00\x00\x08\x03" + b"".join(n.to_bytes(4, "big") for n in pixels.shape) + pixels.tobytes()))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(b"\x00\x00\x08\x01\x00\x00\x00\x02\x07\x01")
    x, label = read_images(tmp_path)
    assert x.shape == (2, 1, 3, 3) and x.dtype == np.float32
    assert x.flatten().tolist() == [float(np.float32(k) / np.float32(255)) for k in range(18)]
    assert label.tolist() == [7, 1]
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(b"no idx file")
    with pytest.raises(SystemExit, match="not an IDX file"):
        read_images(tmp_path)


def test_images_keep_their_places(data: Path) -> None:
    x, y = read_images(data)
    some = data_set(data, 3, 5)
    assert some.index.tolist() == [3, 4, 5, 6, 7] and some.y.tolist() == y[3:8].tolist()
    np.testing.assert_array_equal(some.x, x[3:8])
    assert len(data_set(data, 10)) == 2


def test_without_the_data_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                     capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RMAX_SHARED", str(tmp_path / "absent"))
    assert golden.main(["--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().err.startswith("skipped: ")
    with pytest.raises(SystemExit, match=r"--net: .* not found"):
        golden.main(["--net", str(tmp_path / "absent.onnx"), "--out", str(tmp_path / "out")])


@pytest.mark.parametrize(("flags", "said"), [
    (["--chunk", "0"], "must be at least 1"), (["--start", "1000"], "has 12 images"),
    (["--limit", "-1"], "at least 1"), (["--time-limit", "-1"], "time limit must be a positive"),
    (["--eps", "-1"], "eps must be")])
def test_bad_arguments_are_refused_in_one_sentence(data: Path, tmp_path: Path, flags: list[str], said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        run(data, tmp_path / "out", *flags)


@pytest.mark.shared
def test_the_golden_network_begins_so(shared: Path) -> None:
    """Its first 50 images: one clean error, one found by the attack, and the rest is proved at once."""
    net = shared / "golden" / golden.NAME
    images = shared / "datasets" / "mnist"
    if not (net.is_file() and images.is_dir()):
        pytest.skip("no golden network or no MNIST in the shared folder")
    found = evaluate(net, data_set(images, 0, 50), eps=golden.EPS, clip=golden.CLIP, method="batched", attacks=())
    total = figures(found.records, 50)
    assert (total["clean"], total["attacked"], total["exact"], total["undecided"]) == (0.02, 0.04, 0.04, 0)
    assert found.summary["evidence"] == "rounded" and found.summary["certified"] == found.summary["attacked"] == 0.96


@pytest.mark.parametrize(("text", "expected"), [("0,1", (0.0, 1.0)), ("-0.5,2", (-0.5, 2.0)), ("none", None)])
def test_clip_ranges_are_read(text: str, expected: tuple[float, float] | None) -> None:
    assert golden.parser().parse_args([f"--clip={text}"]).clip == expected


@pytest.mark.parametrize("text", ["1,0", "0", "a,b"])
def test_other_clip_ranges_are_refused(text: str) -> None:
    with pytest.raises(SystemExit):
        golden.parser().parse_args([f"--clip={text}"])
