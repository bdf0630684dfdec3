"""Minibatches and augmentation: pure functions of seed, epoch and number."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from certify.data.augment import FlipCrop, Unchanged, augmentation_named
from certify.data.batches import Batches
from certify.data.dataset import Examples

COUNT, SHAPE = 22, (2, 5, 4)
EXAMPLES = Examples(torch.rand(COUNT, *SHAPE, generator=torch.Generator().manual_seed(0)), torch.arange(COUNT) % 3)
Minibatch = tuple[Tensor, Tensor, Tensor]


def made(**settings: object) -> Batches:
    return Batches(EXAMPLES, **{"batch_size": 6, "seed": 3, "augmentation": FlipCrop(1)} | settings)  # type: ignore


def equal(found: list[Minibatch], expected: list[Minibatch]) -> bool:
    return len(found) == len(expected) and all(torch.equal(a, b) for f, e in zip(found, expected, strict=True)
                                               for a, b in zip(f, e, strict=True))


def numbers(batches: Batches, epoch: int) -> list[list[int]]:
    return [number.tolist() for _, _, number in batches.epoch(epoch)]


@pytest.mark.parametrize(("drop_last", "sizes"), [(True, [6, 6, 6]), (False, [6, 6, 6, 4])])
def test_an_epoch_shows_each_example_once_under_its_number(drop_last: bool, sizes: list[int]) -> None:
    batches = made(drop_last=drop_last, augmentation="none")
    seen = []
    for x, y, number in batches.epoch(0):
        assert torch.equal(x, EXAMPLES.x[number]) and torch.equal(y, EXAMPLES.y[number])
        seen.append(number)
    assert [len(n) for n in seen] == sizes and len(batches) == len(sizes)
    assert len(set(torch.cat(seen).tolist())) == sum(sizes)


def test_orders_differ_between_epochs_and_seeds_and_repeat() -> None:
    runs = [numbers(made(seed=seed), epoch) for seed in (3, 4) for epoch in (0, 1)]
    assert all(a != b for a, b in itertools.combinations(runs, 2))
    assert runs == [numbers(made(seed=seed), epoch) for seed in (3, 4) for epoch in (0, 1)]


def test_over_many_epochs_nothing_is_always_dropped() -> None:
    seen = {n for epoch in range(10) for part in numbers(made(), epoch) for n in part}
    assert seen == set(range(COUNT))


@pytest.mark.parametrize("skip", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("drop_last", [True, False])
def test_a_resumed_epoch_goes_on_bit_by_bit(skip: int, drop_last: bool) -> None:
    batches = made(drop_last=drop_last)
    assert equal(list(made(drop_last=drop_last).epoch(5, skip)), list(batches.epoch(5))[skip:])


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_same_minibatches_evenly(world: int, drop_last: bool) -> None:
    alone = list(made(drop_last=drop_last).epoch(2))
    shards = [list(made(rank=rank, world=world, drop_last=drop_last).epoch(2)) for rank in range(world)]
    assert {len(made(rank=r, world=world, drop_last=drop_last)) for r in range(world)} == {len(alone)}
    for k, (x, _, number) in enumerate(alone):
        parts = [shard[k] for shard in shards]
        assert len({len(p[2]) for p in parts}) == 1, "equal shares, or a mean over processes is no mean over examples"
        together = {int(n): image for p in parts for n, image in zip(p[2], p[0], strict=True)}
        assert sum(len(p[2]) for p in parts) == len(together) == len(number) // world * world
        assert all(torch.equal(together[int(n)], image) for n, image in zip(number, x, strict=True)
                   if int(n) in together)


@pytest.mark.parametrize(("world", "sizes"), [(1, [22]), (4, [5])])
def test_fewer_examples_than_a_minibatch_are_one(world: int, sizes: list[int]) -> None:
    batches = made(batch_size=64, world=world)
    assert [len(part) for part in numbers(batches, 0)] == sizes and len(batches) == 1


@pytest.mark.parametrize(("settings", "sentence"), [
    ({"batch_size": 0}, "batch_size"), ({"batch_size": 7, "world": 2}, "multiple of the 2 processes"),
    ({"rank": 2, "world": 2}, "rank must be from 0 to 1"), ({"rank": -1}, "rank"), ({"seed": -1}, "seed"),
    ({"batch_size": 46, "world": 23}, "22 examples for 23 processes"),
    ({"augmentation": "mixup"}, "augmentation must be one of none, flip-crop")])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        made(**settings)


# ---------------------------------------------------------------------- augmentation


def slowly(image: Tensor, padding: int, flip: bool, down: int, right: int) -> Tensor:
    """Pad by repeating edges, cut out, mirror: pixel by pixel."""
    channels, height, width = image.shape
    out = torch.empty_like(image)
    for c, i, j in itertools.product(range(channels), range(height), range(width)):
        row = min(max(i + down - padding, 0), height - 1)
        column = min(max(j + right - padding, 0), width - 1)
        out[c, i, j] = image[c, row, width - 1 - column if flip else column]
    return out


@pytest.mark.parametrize("padding", [0, 1, 3])
def test_every_augmented_image_is_one_that_a_loop_over_pixels_makes(padding: int) -> None:
    number = torch.arange(COUNT)
    found = FlipCrop(padding)(EXAMPLES.x, number, seed=1, epoch=2)
    choices = list(itertools.product((False, True), range(2 * padding + 1), range(2 * padding + 1)))
    for image, result in zip(EXAMPLES.x, found, strict=True):
        assert any(torch.equal(result, slowly(image, padding, *choice)) for choice in choices)


def test_all_places_and_both_sides_are_as_likely() -> None:
    """Of an image whose pixels say where they are."""
    count, padding = 9000, 1
    image = torch.arange(25.0).view(1, 1, 5, 5)
    found = FlipCrop(padding)(image.expand(count, -1, -1, -1), torch.arange(count), seed=0, epoch=0)
    centre, right = found[:, 0, 2, 2], found[:, 0, 2, 3]
    kinds, counts = torch.stack([centre, right]).unique(dim=1, return_counts=True)
    assert kinds.shape[1] == 18, "three rows, three columns, two directions"
    assert (counts - count / 18).abs().max() < 5 * (count / 18) ** 0.5


def test_what_happens_to_an_example_depends_on_seed_epoch_and_number_alone() -> None:
    vary, number = FlipCrop(2), torch.arange(COUNT)
    whole = vary(EXAMPLES.x, number, seed=7, epoch=3)
    chosen = torch.tensor([20, 3, 11])
    assert torch.equal(vary(EXAMPLES.x[chosen], chosen, seed=7, epoch=3), whole[chosen])
    for other in (vary(EXAMPLES.x, number, seed=8, epoch=3), vary(EXAMPLES.x, number, seed=7, epoch=4),
                  vary(EXAMPLES.x, number + 1, seed=7, epoch=3)):
        assert not torch.equal(other, whole)
    assert torch.equal(vary(EXAMPLES.x.double(), number, seed=7, epoch=3), whole.double())


def test_none_leaves_inputs_alone_whatever_their_shape() -> None:
    x = torch.rand(4, 7)
    assert augmentation_named("none")(x, torch.arange(4), 0, 0) is x and augmentation_named("none") == Unchanged()


def test_flip_crop_refuses_what_is_no_image_and_settings_that_are_none() -> None:
    with pytest.raises(ValueError, match=r"needs images .* got inputs of shape \(7,\)"):
        FlipCrop()(torch.rand(4, 7), torch.arange(4), 0, 0)
    with pytest.raises(ValueError, match="padding must be >= 0"):
        FlipCrop(-1)
    with pytest.raises(ValueError, match="has no setting angle"):
        augmentation_named("flip-crop", angle=3)
    assert augmentation_named("flip-crop", padding=4) == FlipCrop(4)


@pytest.mark.gpu
def test_a_gpu_sees_the_same_minibatches() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    there = Examples(EXAMPLES.x.cuda(), EXAMPLES.y.cuda())
    found = [tuple(t.cpu() for t in part) for part in Batches(there, 6, 3, FlipCrop(1)).epoch(1)]
    assert equal(found, list(made().epoch(1)))  # type: ignore[arg-type]
