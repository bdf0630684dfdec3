"""The benchmark that decides a whole test set: batches say what single questions say, and nothing is lost."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import golden
from benchmarks.golden import Decider, Known, Question, read_images
from benchmarks.tightness import EXAMPLES
from verifier import stages
from verifier.network import Network
from verifier.property import robustness
from verifier.strategy import verify

NET = EXAMPLES / "digits_cnn.onnx"
IMAGES = 24
EPS = "0.1"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled digits, plain and with noise of growing size, so that some are close; the last
    one has a wrong label."""
    with np.load(EXAMPLES / "digits.npz") as bundled:
        x, y = bundled["x"], bundled["y"]
    noise = np.random.default_rng(0).random((IMAGES, *x.shape[1:]), dtype=np.float32) - np.float32(0.5)
    size = np.linspace(0, 1.2, IMAGES, dtype=np.float32).reshape(-1, 1, 1, 1)
    more = np.clip(np.tile(x, (IMAGES // len(x), 1, 1, 1)) + size * noise, 0, 1)
    path = tmp_path_factory.mktemp("golden") / "digits.npz"
    label = np.tile(y, IMAGES // len(y))
    label[-1] = (label[-1] + 1) % 10
    np.savez(path, x=more, y=label)
    return path


@pytest.fixture(scope="module")
def question(data: Path) -> Question:
    return Question(str(NET), str(data), EPS, time_limit_s=20.0)


@pytest.fixture(scope="module")
def batched(question: Question) -> list[dict[str, Any]]:
    return Decider(question).batched(range(IMAGES))


@pytest.fixture(autouse=True)
def no_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden, "calibration", lambda threads: {"threads": threads})


def run(data: Path, out: Path, *flags: str) -> int:
    return golden.main(["--net", str(NET), "--data", str(data), "--eps", EPS, "--jobs", "1", "--threads", "1",
                        "--out", str(out), *flags])


def clean_margin(network: Network, x: np.ndarray, label: int) -> float:
    y = network.replayer.run(x[None])[0]
    return float(y[label] - np.delete(y, label).max()) + 1e-5


def asked_in(out: Path) -> list[int]:
    """The images that went through the batched steps."""
    lines = out.with_suffix(".jsonl").read_text().splitlines()
    return [i for line in lines for i in json.loads(line).get("asked", [])]


# ---------------------------------------------------------------------- batches


def test_batches_answer_as_single_questions_do(question: Question, batched: list[dict[str, Any]]) -> None:
    network = Network.read(NET)
    x, label = read_images(Path(question.data))
    seen = set()
    for entry in batched[:-1]:
        i = entry["index"]
        prop = robustness(x[i], int(label[i]), EPS, classes=10, clip=(0.0, 1.0))
        alone = verify(network.graph, prop, replayer=network.replayer, time_limit_s=10.0)
        assert alone.name in (entry["verdict"], "unknown"), i
        seen.add((entry["verdict"], entry["step"]))
        if entry["verdict"] == "verified":
            assert 0 < entry["lower"] <= clean_margin(network, x[i], int(label[i])) and "witness" not in entry
        else:
            witness = np.frombuffer(base64.b64decode(entry["witness"]), "<f4")
            y = network.replayer.run(witness.reshape(1, *x.shape[1:]))[0]
            assert prop.holds_unsafe(witness, y), "a stored witness stands"
            assert entry["given"] == int(y.argmax())
    assert {("falsified", "clean"), ("verified", "crown"), ("falsified", "pgd")} <= seen


def test_steps_add_up(batched: list[dict[str, Any]]) -> None:
    *entries, summary = batched
    assert summary["asked"] == list(range(IMAGES))
    left = IMAGES
    for step in summary["steps"]:
        left -= step["decided"]
        assert step["images"] == left and step["pairs"] >= left
        assert step["decided"] == sum(e["step"] == step["step"] for e in entries)
    assert sorted([e["index"] for e in entries] + [int(i) for i in summary["open"]]) == summary["asked"]
    assert all(summary["open"].values()), "an open image has an open class"


def test_bounds_that_samples_contradict_decide_nothing(question: Question, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "contradiction", lambda problem, state: "a point lies below its bound")
    *entries, summary = Decider(question).batched(range(IMAGES))
    assert {e["verdict"] for e in entries} == {"falsified"}
    assert all(len(targets) == 9 for targets in summary["open"].values())


def test_what_is_left_is_asked_alone_with_its_open_classes_only(question: Question) -> None:
    decider = Decider(question)
    label = int(decider.label[0])
    (entry,) = decider.alone(0, [j for j in decider.targets(0) if j > label])
    assert entry["index"] == 0 and entry["step"].startswith("alone: ")
    assert entry["verdict"] in ("verified", "falsified", "unknown")
    json.dumps(entry, allow_nan=False)


# ---------------------------------------------------------------------- runs


def test_a_run_decides_and_can_be_resumed(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "golden.json"
    run(data, out, "--limit", "9", "--chunk", "4", "--time-limit", "0")
    first = json.loads(out.read_text())
    assert first["images"] == 9 and first["steps"]["clean"]["images"] + first["steps"]["clean"]["decided"] == 9
    with pytest.raises(SystemExit, match="already holds a run"):
        run(data, out)
    code = run(data, out, "--resume", "--chunk", "10", "--time-limit", "0.3")
    whole = json.loads(out.read_text())
    assert code == (1 if whole["undecided"] else 0)
    assert whole["verified"] + whole["falsified"] + whole["undecided"] == whole["images"] == IMAGES
    assert sorted(asked_in(out)) == list(range(IMAGES)), "no image is batched twice"
    printed = capsys.readouterr().out
    assert f"{IMAGES} images: clean error" in printed and "| crown " in printed


def test_several_processes_answer_every_image(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "golden.json"
    run(data, out, "--limit", "6", "--chunk", "3", "--jobs", "2", "--time-limit", "0")
    stored = json.loads(out.read_text())
    assert sorted(asked_in(out)) == list(range(6)) and stored["jobs"] == 2


def test_figures_of_a_run() -> None:
    def image(index: int, verdict: str, step: str) -> dict[str, Any]:
        return {"index": index, "verdict": verdict, "step": step}
    chunk = {"asked": [0, 1, 2, 3, 4, 5, 6, 7], "open": {"4": [1], "5": [2, 3], "6": [0], "7": [1]},
             "steps": [{"step": "clean", "decided": 1, "images": 7, "pairs": 63, "seconds": 0.5}]}
    known = Known.of([image(0, "falsified", "clean"), image(1, "verified", "crown"), image(2, "falsified", "pgd"),
                      image(3, "verified", "crown"), chunk, image(4, "unknown", "alone: auto"),
                      image(5, "falsified", "alone: bab"), image(4, "verified", "alone: bab")], range(10))
    assert known.to_ask_alone() == [(6, [0]), (7, [1])]
    assert known.to_batch(1) == [[8], [9]]
    figures = known.figures()
    assert (figures["clean"], figures["attacked"], figures["exact"]) == (0.1, 0.2, 0.3)
    assert (figures["verified"], figures["falsified"], figures["undecided"]) == (3, 3, 4)
    assert golden.sentence(figures).endswith("exact error 30.00% to 70.00%, 4 undecided")


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


def test_without_the_data_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                     capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RMAX_SHARED", str(tmp_path / "absent"))
    assert golden.main(["--out", str(tmp_path / "out.json")]) == 0
    assert capsys.readouterr().err.startswith("skipped: ")
    with pytest.raises(SystemExit, match=r"--net: .* not found"):
        golden.main(["--net", str(tmp_path / "absent.onnx"), "--out", str(tmp_path / "out.json")])


@pytest.mark.parametrize(("flags", "said"), [
    (["--chunk", "0"], "must be at least 1"), (["--start", "1000"], "has 24 images"),
    (["--limit", "-1"], "at least 1"), (["--time-limit", "-1"], "at least 0")])
def test_bad_arguments_are_refused_in_one_sentence(data: Path, tmp_path: Path, flags: list[str], said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        run(data, tmp_path / "out.json", *flags)


@pytest.mark.shared
def test_the_golden_network_begins_so(shared: Path) -> None:
    """Its first 50 images: one clean error, one found by the attack, and the rest is proved at once."""
    net = shared / "golden" / golden.NAME
    images = shared / "datasets" / "mnist"
    if not (net.is_file() and images.is_dir()):
        pytest.skip("no golden network or no MNIST in the shared folder")
    *entries, summary = Decider(Question(str(net), str(images))).batched(range(50))
    assert sum(e["step"] == "clean" for e in entries) == 1
    assert sum(e["step"] == "pgd" for e in entries) == 1
    assert not summary["open"] and len(entries) == 50


@pytest.mark.parametrize(("text", "expected"), [("0,1", (0.0, 1.0)), ("-0.5,2", (-0.5, 2.0)), ("none", None)])
def test_clip_ranges_are_read(text: str, expected: tuple[float, float] | None) -> None:
    assert golden.parser().parse_args([f"--clip={text}"]).clip == expected


@pytest.mark.parametrize("text", ["1,0", "0", "a,b"])
def test_other_clip_ranges_are_refused(text: str) -> None:
    with pytest.raises(SystemExit):
        golden.parser().parse_args([f"--clip={text}"])
