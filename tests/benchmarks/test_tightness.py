"""The tightness benchmark: its inputs, its figures, and what it says where it has none."""

from __future__ import annotations

import csv
import dataclasses
import json
import mmap
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import tightness
from benchmarks.tightness import Case, asked_rows, bundled_cases, input_sets, question, shared_cases
from bounds import crown_ibp, ibp
from bounds.compute import METHODS
from verifier.vnnlib import read_vnnlib

MLP, CNN = bundled_cases()
SETTINGS: dict[str, Any] = {"iterations": 3, "dtype": "float32", "threads": 1, "cap_s": 60.0}


def test_one_set_is_the_box_of_the_property() -> None:
    property = read_vnnlib(MLP.spec)
    (region,) = property.regions
    sets = input_sets(property, (1, 8, 8), batch=1, scale=1.0, dtype="float64")
    assert sets.lower.flatten().tolist() == region.lower.tolist()
    assert sets.upper.flatten().tolist() == region.upper.tolist()


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_batches_are_the_scaled_box_shifted_by_a_tenth_of_its_radius(scale: float) -> None:
    property = read_vnnlib(MLP.spec)
    (region,) = property.regions
    sets = input_sets(property, (1, 8, 8), batch=5, scale=scale, dtype="float64")
    lower, upper = torch.from_numpy(region.lower), torch.from_numpy(region.upper)
    centre, radius = (lower + upper) / 2, scale * (upper - lower) / 2
    noise = torch.rand(5, 64, generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    assert torch.allclose(sets.lower.flatten(1), centre + 0.1 * noise * radius - radius, rtol=0, atol=1e-12)
    assert torch.allclose(sets.upper.flatten(1), centre + 0.1 * noise * radius + radius, rtol=0, atol=1e-12)


def test_rounding_to_float32_loses_no_point() -> None:
    property = read_vnnlib(CNN.spec)
    single = input_sets(property, (1, 8, 8), batch=4, scale=0.3, dtype="float32")
    double = input_sets(property, (1, 8, 8), batch=4, scale=0.3, dtype="float64")
    assert bool((single.lower.double() <= double.lower).all())
    assert bool((single.upper.double() >= double.upper).all())


def test_every_row_is_asked_over_every_set() -> None:
    property = read_vnnlib(MLP.spec)
    sets = input_sets(property, (1, 8, 8), batch=3, scale=1.0, dtype="float64")
    rows = asked_rows(property, (1, 8, 8), sets)
    assert rows.owner is not None
    assert rows.owner.tolist() == [b for b in range(3) for _ in range(9)]
    margins = rows.C.view(3, 9, 10)
    assert torch.equal(margins[0], margins[2])
    label = int(margins[0, 0].argmax())
    others = sorted(int(row.argmin()) for row in margins[0])
    assert others == [j for j in range(10) if j != label]
    assert bool((margins.sum(2) == 0).all()) and bool((margins.abs().sum(2) == 2).all())


def test_several_input_sets_are_refused(tmp_path: Path) -> None:
    spec = tmp_path / "two.vnnlib"
    spec.write_text("(declare-const X_0 Real)(declare-const Y_0 Real)"
                    "(assert (or (and (>= X_0 0) (<= X_0 1)) (and (>= X_0 2) (<= X_0 3))))(assert (<= Y_0 0))")
    with pytest.raises(ValueError, match="2 input sets"):
        input_sets(read_vnnlib(spec), (1,), batch=1, scale=1.0, dtype="float32")


def test_unstable_neurons_are_those_around_zero_on_relu_networks() -> None:
    graph, sets, rows = question(MLP, 3, "float64")
    answer = ibp.bound(graph, sets, rows)
    unstable, neurons = tightness.unstable_neurons(graph, sets, answer)
    before_relu = [answer.intervals[n.inputs[0]] for n in graph.nodes if n.op.kind == "Relu"]
    assert neurons == 3 * (64 + 32)
    assert unstable == sum(int(((x.lower < 0) & (x.upper > 0)).sum()) for x in before_relu)


def _hold(size: int) -> None:
    """Use fresh pages for a moment: the C library's blocks may be old ones that it kept."""
    with mmap.mmap(-1, size) as pages:
        for page in range(0, size, mmap.PAGESIZE):
            pages[page] = 1


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak can be reset on Linux only")
def test_the_peak_sees_what_was_held_since_it_was_reset() -> None:
    _hold(96 << 20)
    tightness.reset_peak()
    before = tightness.memory_mib("VmRSS")
    _hold(64 << 20)
    assert 60 < tightness.memory_mib("VmHWM") - before < 90


def test_a_run_prints_a_table_and_stores_json_and_a_picture(
        tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tightness, "calibration", lambda threads: {"threads": threads})
    out = tmp_path / "new" / "tightness.json"
    assert tightness.main(["--cases", "digits_mlp", "--methods", "ibp", "alpha-crown", "--batch", "2", "--threads", "1",
                           "--iterations", "3", "--dtype", "float64", "--out", str(out)]) == 0
    stored = json.loads(out.read_text())
    assert stored["calibration"] == {"threads": 1}
    assert stored["seed"] == 0
    first, second = stored["rows"]
    graph, sets, rows = question(MLP, 2, "float64")
    expected = ibp.bound(graph, sets, rows).lower.view(2, 9)
    assert first["worst"] == pytest.approx(float(expected.amin(1).mean()))
    assert first["mean"] == pytest.approx(float(expected.mean()))
    assert first["neurons"] == 96
    assert first["peak_mib"] > first["peak_over_start_mib"] >= 0
    assert first["thread_waiting"]["OMP_WAIT_POLICY"] or first["thread_waiting"]["GOMP_SPINCOUNT"]
    assert len(first["all_seconds"]) == tightness.REPEATS
    assert (first["iterations"], second["iterations"]) == (None, 3)
    assert second["unstable"] <= first["unstable"]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
    assert "alpha-crown-3" in lines[3]
    assert out.with_suffix(".png").stat().st_size > 5_000


def test_a_row_over_its_cap_is_skipped_with_the_reason() -> None:
    row = tightness.measured(MLP, 1, "ibp", {**SETTINGS, "cap_s": 0.05})
    assert row["skipped"] == "a warm-up and one timed call did not end within 0.05 s"
    assert "failed" not in row
    assert tightness.table([row]).splitlines()[-1].startswith("skipped: digits_mlp, batch 1, ibp: a warm-up")


def test_a_row_that_fails_says_why(tmp_path: Path) -> None:
    spec = tmp_path / "broken.vnnlib"
    spec.write_text("(declare-const X_0 Real)\n(assert (<= X_9 1))\n")
    row = tightness.measured(dataclasses.replace(MLP, spec=spec), 1, "ibp", SETTINGS)
    assert row["failed"]
    assert "X_9" in row["skipped"]


def peer_row(**changes: Any) -> dict[str, Any]:
    return {"case": "net", "batch": 4, "method": "CROWN", "median_s": 0.5, "mean_worst_margin_lower": -2.0,
            "mean_margin_lower": 1.0, **changes}


def test_peers_are_matched_by_case_batch_and_method(tmp_path: Path) -> None:
    path = tmp_path / "lirpa_bounds.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, peer_row())
        writer.writeheader()
        writer.writerows([peer_row(), peer_row(method="alpha-CROWN-20", median_s=8.0)])
    peers = tightness.read_peers(path)
    ours: dict[str, Any] = {"case": "net", "batch": 4, "method": "crown", "iterations": None, "seconds": 0.25,
                            "worst": -1.0, "mean": 1.5}
    compared = tightness.compare(ours, peers)
    assert compared["time_ratio"] == 0.5
    assert (compared["worst_gain"], compared["worst_gain_relative"]) == (1.0, 0.5)
    assert (compared["mean_gain"], compared["mean_gain_relative"]) == (0.5, 0.5)
    alpha = {**ours, "method": "alpha-crown"}
    assert tightness.compare({**alpha, "iterations": 20}, peers)["time_ratio"] == 0.25 / 8
    for other in ({**alpha, "iterations": 10}, {**ours, "batch": 1}, {**ours, "method": "meet"}):
        assert "peer" not in tightness.compare(other, peers)


def test_without_the_file_of_peers_nothing_is_compared(tmp_path: Path) -> None:
    assert tightness.read_peers(tmp_path / "absent.csv") == {}


@pytest.mark.parametrize(("flags", "said"), [
    (["--cases", "nothing"], "expected names of digits_mlp"),
    (["--methods", "guess"], "expected names of " + ", ".join(METHODS)),
    (["--net", "net.onnx"], "--net and --spec belong together"),
    (["--net", "absent.onnx", "--spec", "absent.vnnlib"], "absent.onnx not found"),
    (["--batch", "0"], "must be at least 1"),
])
def test_bad_arguments_are_refused_in_one_sentence(flags: list[str], said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        tightness.main(flags)


def test_json_has_no_words_for_infinities() -> None:
    assert tightness.finite({"a": [1.0, float("-inf")], "b": float("nan"), "c": "x"}) == {
        "a": [1.0, None], "b": None, "c": "x"}


@pytest.mark.shared
@pytest.mark.parametrize("name", ["mnist_fc_256x6", "oval21_base", "sri_resnet_a"])
def test_inputs_and_rows_are_those_of_the_peers(shared: Path, name: str) -> None:
    """CROWN-IBP leaves nothing to choose: on the same inputs it gives the same bounds up to rounding."""
    case: Case = next(c for c in shared_cases(shared) if c.name == name)
    peers = tightness.read_peers(shared / "peers" / "lirpa_bounds.csv")
    if not peers:
        pytest.skip("no peers/lirpa_bounds.csv in the shared folder")
    assert {b for c, b, _ in peers if c == name} == set(case.batches)
    for batch in case.batches:
        peer = peers[name, batch, "CROWN-IBP"]
        assert str(case.spec).endswith(peer["vnnlib"])
        graph, sets, rows = question(case, batch, "float32")
        assert bool((rows.C[:, int(peer["label"])] == 1).all())
        lower = crown_ibp.bound(graph, sets, rows).lower.view(batch, -1)
        assert float(lower.amin(1).mean()) == pytest.approx(float(peer["mean_worst_margin_lower"]), rel=1e-4)
        assert float(lower.mean()) == pytest.approx(float(peer["mean_margin_lower"]), rel=1e-4)
