"""Random streams: each example's own, whatever the batch, and as random as they should be."""

from __future__ import annotations

import math

import torch

from verifier.attacks.draws import Draws


def test_a_stream_is_known_by_seed_and_number_alone() -> None:
    batch, single = Draws(3, torch.tensor([5, 9, 2])), Draws(3, torch.tensor([9]))
    first = batch.uniform(torch.tensor([0, 1, 2]), (4,))
    second = batch.normal(torch.tensor([1]), (2, 3))
    assert torch.equal(first[1], single.uniform(torch.tensor([0]), (4,))[0])
    assert torch.equal(second[0], single.normal(torch.tensor([0]), (2, 3))[0])


def test_seeds_numbers_and_calls_differ() -> None:
    one = torch.arange(1)
    values = [Draws(s, torch.tensor([i])).uniform(one, (8,)) for s in range(4) for i in range(4)]
    draws = Draws(0, torch.tensor([0]))
    values += [draws.uniform(one, (8,)) for _ in range(3)][1:]
    flat = torch.cat([v.flatten() for v in values])
    assert flat.unique().numel() == flat.numel()


def test_moments_and_independence() -> None:
    draws = Draws(0, torch.arange(200))
    everyone = torch.arange(200)
    u = draws.uniform(everyone, (1000,), torch.float64)
    assert abs(float(u.mean()) - 0.5) < 5 / math.sqrt(12 * u.numel())
    assert float(u.min()) > 0
    assert float(u.max()) < 1
    counts = torch.histc(u, 50, 0, 1)
    assert float(((counts - 4000) ** 2 / 4000).sum()) < 100  # chi-squared, 49 degrees of freedom: 1e-5
    z = draws.normal(everyone, (1000,), torch.float64)
    assert abs(float(z.mean())) < 5 / math.sqrt(z.numel())
    assert abs(float(z.var()) - 1) < 5 * math.sqrt(2 / z.numel())
    assert abs(float((z[:, 1:] * z[:, :-1]).mean())) < 5 / math.sqrt(z.numel())
    assert abs(float((z[1:] * z[:-1]).mean())) < 5 / math.sqrt(z.numel())
    s = draws.sign(everyone, (1000,))
    assert set(s.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(s.mean())) < 5 / math.sqrt(s.numel())
    k = draws.integers(everyone, (1000,), 7)
    assert k.unique().tolist() == list(range(7))


def test_part_of_the_streams_goes_on_alike() -> None:
    draws = Draws(0, torch.arange(4))
    draws.uniform(torch.arange(4), (3,))
    part = draws.index(torch.tensor([2]))
    assert torch.equal(part.uniform(torch.tensor([0]), (5,))[0], draws.uniform(torch.tensor([2]), (5,))[0])
