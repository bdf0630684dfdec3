"""The networks of the DeepGo benchmark, and what it says about its searches."""

from __future__ import annotations

import torch

from benchmarks.deepgo import drawn, first_experiment, grid, moved, table


def test_networks_are_the_same_each_time_and_span_their_scale() -> None:
    first, again = drawn(3, (5, 5)), drawn(3, (5, 5))
    x = grid(0.5)
    with torch.no_grad():
        assert torch.equal(first(x), again(x))
        assert abs(float(first(x).min()) + 1) < 1e-9
        assert abs(float(first(x).max()) - 1) < 1e-9
        assert not torch.allclose(first(x), drawn(4, (5, 5))(x))


def test_only_chosen_pixels_move() -> None:
    x = torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    box = moved(x, torch.tensor([0, 5]))
    assert (box.lower < box.upper).flatten().nonzero().flatten().tolist() == [0, 5]
    still = torch.ones(16, dtype=torch.bool)
    still[[0, 5]] = False
    assert torch.equal(box.lower.flatten()[still], x.flatten()[still])


def test_rows_tell_whether_the_grid_lies_inside(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("benchmarks.deepgo.WIDTHS", ((4,),))
    monkeypatch.setattr("benchmarks.deepgo.STEP", 0.5)
    rows = first_experiment(2.0)
    assert len(rows) == 5
    assert all(row["holds_on_grid"] for row in rows if row["evidence"] != "ESTIMATE")
    assert {row["evidence"] for row in rows} == {"ROUNDED", "FLOAT", "ESTIMATE"}
    assert table(rows).count("inside") >= 4
