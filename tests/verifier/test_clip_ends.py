"""Every command takes an input that is stored as the float32 next to an end of the clip range, and none further out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from verifier.cli import run
from verifier.demo import EXAMPLES

NET = str(EXAMPLES / "digits_mlp.onnx")
BLACK = (0.0 - 0.1307) / 0.3081  # of normalised images: no float32
ANSWERED = (0, 1)  # done, verified or falsified; 2 stands for bad input
COMMANDS = {
    "verify": ["--input", "x.npy", "--label", "7", "--eps", "0.0001"],
    "radius": ["data.npz", "--time-limit", "2", "--method", "crown"],
    "attack": ["data.npz", "--attack", "fgsm", "--eps", "0.1"],
    "lipschitz": ["data.npz", "--eps", "0.02"],
    "evaluate": ["--data", "data.npz", "--eps", "0.01", "--attacks", "fgsm", "--time-limit", "2"],
}


@pytest.fixture
def ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[float, np.ndarray]:
    """(the end of a range, an input that lies beyond it by rounding alone)."""
    monkeypatch.chdir(tmp_path)
    low = next(v for v in (BLACK, BLACK - 0.001, BLACK - 0.002, BLACK - 0.003) if float(np.float32(v)) < v)
    x = np.full((1, 8, 8), 0.5, np.float32)
    x[0, 0, :4] = low
    assert float(x.min()) < low
    return low, x


def stored(x: np.ndarray) -> None:
    np.save("x.npy", x)
    np.savez("data.npz", x=x[None], y=np.array([7]))


@pytest.mark.parametrize("command", COMMANDS)
def test_the_float32_of_an_end_stands_for_it(command: str, ends: tuple[float, np.ndarray]) -> None:
    low, x = ends
    stored(x)
    assert run([command, NET, *COMMANDS[command], "--clip", repr(low), "1"]) in ANSWERED


@pytest.mark.parametrize("command", COMMANDS)
def test_what_lies_further_out_is_refused(command: str, ends: tuple[float, np.ndarray],
                                          capsys: pytest.CaptureFixture[str]) -> None:
    low, x = ends
    stored(np.where(x == x.min(), np.nextafter(x, np.float32(-1)), x))
    assert run([command, NET, *COMMANDS[command], "--clip", repr(low), "1"]) == 2
    assert "outside the clip range" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["radius", "attack", "lipschitz", "verify"])
def test_a_feature_that_cannot_move_may_lie_anywhere(command: str, ends: tuple[float, np.ndarray]) -> None:
    low, x = ends
    stored(np.where(x == x.min(), np.float32(-3), x))
    np.save("mask.npy", x != x.min())
    assert run([command, NET, *COMMANDS[command], "--clip", repr(low), "1", "--mask", "mask.npy"]) in ANSWERED
