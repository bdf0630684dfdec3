"""Rotation and translation on nets that look at one pixel or at the four sides."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from verifier.attacks.criterion import Misclassified
from verifier.attacks.model import as_model
from verifier.attacks.spatial import Spatial
from verifier.attacks.threat import Threat

ANYWHERE = Threat(math.inf, math.inf, (0.0, 1.0))


class OnePixel(nn.Module):
    """Class 0 while pixel (row, column) is brighter than a half."""

    def __init__(self, row: int, column: int) -> None:
        super().__init__()
        self.row, self.column = row, column

    def forward(self, x: Tensor) -> Tensor:
        bright = x[:, 0, self.row, self.column] - 0.5
        return torch.stack([bright, -bright], 1)


class Sides(nn.Module):
    """Class 0, 1, 2, 3: most light in a window above, left, below, right of the centre of a 9 x 9 image."""

    def forward(self, x: Tensor) -> Tensor:
        windows = [(0, 3), (3, 0), (6, 3), (3, 6)]
        return torch.stack([x[:, 0, r : r + 3, c : c + 3].sum((1, 2)) for r, c in windows], 1)


def block(size: int = 9, width: int = 3, count: int = 1) -> Tensor:
    """A bright square of odd width about the centre."""
    x = torch.zeros(count, 1, size, size)
    low = (size - width) // 2
    x[:, :, low : low + width, low : low + width] = 1.0
    return x


def test_falls_exactly_when_the_pixel_can_be_moved_away() -> None:
    """The middle of a square of width 3 keeps (2 - s)^2 of its light in a diagonal shift by s in [1, 2]."""
    x, label = block(), Misclassified(torch.zeros(1, dtype=torch.long))
    for shift, falls in ((1.0, False), (1.25, False), (1.35, True), (2.0, True)):
        result = Spatial(angle=0.0, shift=shift).run(OnePixel(4, 4), x, label, ANYWHERE)
        assert bool(result.success) is falls, shift


def test_nothing_to_try_and_no_way_to_turn() -> None:
    x, label = block(), Misclassified(torch.zeros(1, dtype=torch.long))
    still = Spatial(angle=0.0, shift=0.0).run(OnePixel(4, 4), x, label, ANYWHERE)
    assert int(still.forward_calls) == 1
    assert torch.equal(still.x, x)
    turned = Spatial(angle=180.0, shift=0.0).run(OnePixel(4, 4), x, label, ANYWHERE)  # the centre stays where it is
    assert not turned.success
    assert int(turned.forward_calls) == 31


def test_turns_alone_reach_a_target() -> None:
    """Light above moves to the left by a quarter turn counter-clockwise, and hardly by 20 degrees."""
    x = torch.zeros(1, 1, 9, 9)
    x[:, :, :3, 3:6] = 1.0
    wanted = Misclassified(torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.long))
    found = Spatial(angle=100.0, shift=0.0).run(Sides(), x, wanted, ANYWHERE)
    assert found.success
    assert int(Sides()(found.x).argmax(1)) == 1
    assert not Spatial(angle=20.0, shift=0.0).run(Sides(), x, wanted, ANYWHERE).success


def test_small_moves_come_first_and_all_are_tried() -> None:
    x, label = block(), Misclassified(torch.zeros(1, dtype=torch.long))
    attack = Spatial(angle=0.0, shift=4.0, shifts=9)
    early = attack.run(OnePixel(4, 4), x, label, ANYWHERE)
    assert float(early.x[0, 0, 4].sum()) > 1.5  # one of the sixteen nearest shifts: at most two pixels
    every = attack.run(OnePixel(4, 4), x, label, ANYWHERE, early_stop=False)
    assert int(every.forward_calls) == 81
    assert int(early.forward_calls) < 40


def test_the_fill_decides_where_the_image_is_bright_to_its_edge() -> None:
    x, label = torch.ones(1, 1, 5, 5), Misclassified(torch.zeros(1, dtype=torch.long))
    zero, border = (Spatial(angle=0.0, shift=2.0, fill=f).run(OnePixel(0, 0), x, label, ANYWHERE)
                    for f in ("zero", "border"))
    assert zero.success
    assert not border.success


def test_random_search_draws_for_the_example_and_not_for_the_batch() -> None:
    x = torch.rand(4, 1, 9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    label = Sides()(x).argmax(1)
    attack = Spatial(search="random", draws=37)
    batch, again = (attack.run(Sides().double(), x, Misclassified(label), ANYWHERE, seed=3) for _ in range(2))
    assert torch.equal(batch.x, again.x)
    other = attack.run(Sides().double(), x, Misclassified(label), ANYWHERE, seed=4)
    assert not torch.equal(batch.last, other.last)
    for i in range(4):
        alone = attack.run(Sides().double(), x[i : i + 1], Misclassified(label[i : i + 1]), ANYWHERE, seed=3,
                           ids=torch.tensor([i]))
        torch.testing.assert_close(alone.x[0], batch.x[i])
        assert int(alone.forward_calls) == int(batch.forward_calls[i])


@pytest.mark.parametrize("side", [1, 3])
def test_random_search_turns_both_ways(side: int) -> None:
    x = torch.zeros(1, 1, 9, 9)
    x[:, :, :3, 3:6] = 1.0
    wanted = Misclassified(torch.zeros(1, dtype=torch.long), torch.full((1,), side))
    assert Spatial(search="random", draws=100, angle=100.0).run(Sides(), x, wanted, ANYWHERE).success


def test_clip_range_mask_and_eps_hold() -> None:
    x = 0.5 + 0.5 * torch.rand(3, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(1, 9, 9, generator=torch.Generator().manual_seed(1)) < 0.5
    label = Misclassified(Sides()(x).argmax(1))
    result = Spatial().run(Sides(), x, label, Threat(2.0, math.inf, (0.4, 1.0), mask), early_stop=False)
    assert torch.equal(result.last[:, ~mask], x[:, ~mask])
    assert float(result.last.min()) >= 0.4  # the fill is zero
    free = Spatial().run(Sides(), x, label, Threat(2.0, math.inf, (0.0, 1.0)))
    assert free.success.any()
    strict = Spatial().run(Sides(), x, label, Threat(2.0, 0.5 * float(free.distance.min()), (0.0, 1.0)))
    assert not strict.success.any()
    assert torch.equal(strict.distance, free.distance)


def test_decisions_are_enough() -> None:
    model = as_model(lambda x: OnePixel(4, 4)(torch.as_tensor(x)).argmax(1).numpy(), shape=(1, 9, 9), classes=2)
    label = Misclassified(torch.zeros(1, dtype=torch.long))
    assert Spatial(angle=0.0).run(model, block(), label, ANYWHERE).success


def test_queries_are_limited() -> None:
    label = Misclassified(torch.zeros(1, dtype=torch.long))
    assert int(Spatial(shift=1.0).run(OnePixel(4, 4), block(), label, ANYWHERE, queries=20).forward_calls) == 20


@pytest.mark.parametrize(("settings", "words"), [({"angle": -1.0}, "angle"), ({"search": "line"}, "search"),
                                                 ({"fill": "mean"}, "fill"), ({"shifts": 0}, "shifts")])
def test_bad_settings(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Spatial(**settings)  # type: ignore[arg-type]


def test_flat_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="moves images"):
        Spatial().run(nn.Linear(4, 2), torch.zeros(2, 4), Misclassified(torch.zeros(2, dtype=torch.long)), ANYWHERE)
