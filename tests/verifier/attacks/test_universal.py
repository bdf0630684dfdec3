"""One perturbation for all: the same everywhere, inside its limits, better than noise, exact on a linear net."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.verifier.attacks.problems import Linear
from verifier.attack_data import attack_data
from verifier.attacks.criterion import Deviates, Misclassified
from verifier.attacks.draws import Draws
from verifier.attacks.guap import CombinedUniversal, _slopes
from verifier.attacks.losses import loss_named
from verifier.attacks.model import as_model
from verifier.attacks.pgd import Pgd
from verifier.attacks.run import Run
from verifier.attacks.threat import Threat
from verifier.attacks.universal import Change, Universal, UniversalAttack, train_universal, useful
from verifier.attacks.warp import variation
from verifier.data import DataSet
from verifier.deadline import Deadline
from verifier.demo import EXAMPLES
from verifier.network import NetworkCache


def two_classes(count: int = 40, features: int = 8) -> tuple[nn.Module, Tensor, Tensor]:
    """All inputs are of class 0 by a margin w x in (0, 1), ||w||_1 = 4."""
    g = torch.Generator().manual_seed(0)
    w = torch.randn(features, generator=g, dtype=torch.float64)
    w = 4 * w / w.abs().sum()
    x = torch.randn(count, features, generator=g, dtype=torch.float64)
    wanted = torch.rand(count, generator=g, dtype=torch.float64)
    x = x + ((wanted - x @ w) / w.square().sum()).unsqueeze(1) * w
    return Linear(torch.stack([w, torch.zeros_like(w)]), torch.zeros(2, dtype=torch.float64)), x, wanted


def conv(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 64, 4)).double()


def images(count: int = 60, seed: int = 1) -> tuple[Tensor, Tensor, nn.Module]:
    x = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    model = conv()
    return x, model(x).argmax(1), model


@pytest.mark.parametrize("norm", [math.inf, 2.0, 1.0])
def test_linear_net_falls_where_the_best_perturbation_reaches(norm: float) -> None:
    """An input falls exactly when its margin is less than eps ||w||_dual: known in closed form."""
    model, x, margin = two_classes()
    w = model.weight[0]
    dual = {math.inf: w.abs().sum(), 2.0: w.norm(), 1.0: w.abs().max()}[norm]
    eps = 0.5 / float(dual)
    result = Universal(steps=60, loss="margin").run(model, x, Misclassified(torch.zeros(40, dtype=torch.long)),
                                                    Threat(norm, eps))
    clear = (margin - 0.5).abs() > 0.02
    assert torch.equal(result.success[clear], (margin < 0.5)[clear])
    assert 5 < int(result.success.sum()) < 35
    moves = (result.last - x)[~result.success]
    torch.testing.assert_close(moves, moves[:1].expand_as(moves))
    assert float(torch.linalg.vector_norm(moves[0], ord=norm)) <= eps


def test_one_perturbation_for_all_clipped_and_masked() -> None:
    x, label, model = images()
    mask = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(3)) < 0.7
    threat = Threat(math.inf, 0.1, (0.0, 1.0), mask)
    result = Universal().run(model, x, Misclassified(label), threat, batch=7)  # batch does not split it
    move = result.last - x
    noise = torch.where(move.abs().amax(0) > 0, move.gather(0, move.abs().argmax(0, keepdim=True))[0], 0)
    torch.testing.assert_close((x + noise).clamp(0, 1), result.last, rtol=0, atol=1e-12)
    assert torch.equal(result.last[:, ~mask], x[:, ~mask])
    assert float(move.abs().max()) <= 0.1
    assert int(result.backward_calls.max()) == 10
    assert int(result.forward_calls.max()) == 12


@pytest.mark.parametrize("attack", [Universal(), CombinedUniversal(eps=0.1, tau=0.2)])
def test_beats_random_noise_and_carries_over(attack: UniversalAttack) -> None:
    x, label, model = images(200)
    threat = Threat(math.inf, 0.1 if attack.additive else math.inf, (0.0, 1.0))
    signs = torch.randint(0, 2, (50, 1, 8, 8), generator=torch.Generator().manual_seed(0)) * 0.2 - 0.1
    noise = max(float((model((x + s).clamp(0, 1)).argmax(1) != label).double().mean()) for s in signs)
    trained = train_universal(attack, model, x[:100], Misclassified(label[:100]), threat,
                              held_out=(x[100:], Misclassified(label[100:])))
    assert trained.fooling_rate > noise + 0.1
    assert trained.held_out_rate > noise + 0.05
    fell = model(trained.change(x[100:]).clamp(0, 1)).argmax(1) != label[100:]
    assert trained.held_out_rate == pytest.approx(float(fell.double().mean()))
    again = train_universal(attack, model, x[:100], Misclassified(label[:100]), threat)
    assert torch.equal(again.change.noise, trained.change.noise)
    assert math.isnan(again.held_out_rate)
    same = attack.run(model, x[:100], Misclassified(label[:100]), threat)
    assert float(same.success.double().mean()) == pytest.approx(trained.fooling_rate)


@pytest.mark.parametrize("attack", [Universal(), CombinedUniversal()])
def test_towards_one_class(attack: UniversalAttack) -> None:
    x, label, model = images()
    x, label = x[label != 2], label[label != 2]
    wanted = Misclassified(label, torch.full_like(label, 2))
    if isinstance(attack, CombinedUniversal):
        attack = CombinedUniversal(eps=0.4, tau=0.2)
    result = attack.run(model, x, wanted, Threat(math.inf, 0.4 if attack.additive else math.inf, (0.0, 1.0)))
    assert float(result.success.double().mean()) > 0.6
    assert (model(result.x[result.success]).argmax(1) == 2).all()


def test_training_is_no_proposal() -> None:
    """An input that fell on the way counts only if the finished perturbation makes it fall."""
    x, label, model = images()
    result = Universal().run(model, x, Misclassified(label), Threat(math.inf, 0.1, (0.0, 1.0)))
    fell = model(result.last).argmax(1) != label
    assert fell.any()
    assert torch.equal(result.success, fell)


def test_inputs_wrong_from_the_start_neither_train_nor_count() -> None:
    x, label, model = images()
    mixed = label.clone()
    mixed[:20] = (label[:20] + 1) % 4
    threat = Threat(math.inf, 0.1, (0.0, 1.0))
    result = Universal().run(model, x, Misclassified(mixed), threat)
    assert (result.forward_calls[:20] == 1).all()
    assert (result.distance[:20] == 0).all()
    rest = Universal().run(model, x[20:], Misclassified(label[20:]), threat, ids=torch.arange(20, 60))
    torch.testing.assert_close(rest.last, result.last[20:])


    trained = train_universal(Universal(), model, x, Misclassified(mixed), threat)
    assert trained.fooling_rate == pytest.approx(float(result.success[20:].double().mean()))


def test_pinned_features_get_no_share_of_the_ball() -> None:
    x, label, model = images()
    mask = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(3)) < 0.7
    change = train_universal(Universal(), model, x, Misclassified(label), Threat(2.0, 0.5, (0.0, 1.0), mask)).change
    assert (change.noise[~mask] == 0).all()
    assert float(change.noise.norm()) == pytest.approx(0.5)


def test_inputs_beyond_the_ceiling_stop_pulling() -> None:
    """One input pulls ten times as hard along one feature as three others along another; the ball has room for all."""

    class Kinds(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            margin = torch.where(x[:, 0] > 0, 0.1 - 30 * x[:, 1], 0.3 - x[:, 2])
            return torch.stack([margin, torch.zeros_like(margin)], 1)

    x = torch.zeros(4, 3, dtype=torch.float64)
    x[:, 0] = torch.tensor([1.0, -1.0, -1.0, -1.0])
    label, threat = Misclassified(torch.zeros(4, dtype=torch.long)), Threat(2.0, 0.4, mask=torch.tensor([0, 1, 1]))
    low = Universal(loss="margin", ceiling=0.05, steps=40).run(Kinds(), x, label, threat)
    high = Universal(loss="margin", ceiling=100.0, steps=40).run(Kinds(), x, label, threat)
    assert low.success.tolist() == [True] * 4
    assert high.success.tolist() == [True] + [False] * 3


def test_useful_slopes() -> None:
    """At a cut-off feature only the way back counts, in the ball every pull does, on pinned features none."""
    x0 = torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.5, 0.5]], dtype=torch.float64)
    mask = torch.tensor([1, 1, 1, 1, 1, 0])
    threat = Threat(math.inf, 0.1, (0.0, 1.0), mask)
    anywhere = Threat(math.inf, math.inf, (0.0, 1.0), mask).around(x0)
    run = Run(as_model(nn.Linear(6, 2).double()), threat.around(x0), Misclassified(torch.zeros(1, dtype=torch.long)),
              Draws(0, torch.arange(1)), anywhere=anywhere)
    x = x0 + torch.tensor([-0.1, -0.1, 0.1, 0.1, -0.1, -0.1])
    slope = torch.tensor([[-1.0, 1.0, -1.0, 1.0, -1.0, -1.0]], dtype=torch.float64)
    assert useful(run, slope, x, torch.zeros(1, dtype=torch.long)).tolist() == [[0.0, 1.0, -1.0, 0.0, -1.0, 0.0]]


def test_queries_and_time_end_the_training() -> None:
    x, label, model = images()
    threat = Threat(math.inf, 0.1, (0.0, 1.0))
    short = Universal().run(model, x, Misclassified(label), threat, queries=5)
    assert int(short.forward_calls.max()) == 5
    assert int(short.backward_calls.max()) == 3
    assert not torch.equal(short.last, x)
    begin = time.monotonic()
    cut = Universal(steps=100_000, minibatch=10).run(model, x, Misclassified(label), threat,
                                                     deadline=Deadline.starting_now(0.6))
    assert time.monotonic() - begin < 3
    assert any("time ended" in note for note in cut.notes)
    assert not torch.equal(cut.last, x)


def test_regression_is_followed_by_its_margin() -> None:
    model, x, _ = two_classes()
    result = Universal().run(model, x, Deviates(model(x), 0.3), Threat(math.inf, 0.1))
    assert result.success.all()  # 0.1 * 4 moves the output by 0.4
    assert any("margin" in note for note in result.notes)


def test_slopes_of_the_combined_change_by_finite_differences() -> None:
    x, label, model = images(5)
    criterion = Misclassified(label)
    room = Threat(math.inf, math.inf, (-9.0, 9.0)).around(x)
    run = Run(as_model(model), room, criterion, Draws(0, torch.arange(5)), early_stop=False)
    run.begin()
    loss, _ = loss_named("ce", criterion, 4)
    owner = torch.tensor([0, 2, 3])
    g = torch.Generator().manual_seed(2)
    noise = 0.1 * torch.randn(1, 8, 8, generator=g, dtype=torch.float64)
    flow = 0.3 * torch.randn(1, 2, 8, 8, generator=g, dtype=torch.float64)
    in_noise, in_flow = _slopes(run, noise, flow, owner, loss)

    def value(n: Tensor, f: Tensor) -> float:
        changed = Change(n, f[0])(x[owner])
        return float(loss(model(changed), changed, owner).mean().detach())

    step = 1e-6
    for place in [(0, 0, 0), (0, 3, 5), (0, 7, 2)]:
        bump = torch.zeros_like(noise)
        bump[place] = step
        rise = (value(noise + bump, flow) - value(noise - bump, flow)) / (2 * step)
        assert float(in_noise[place]) == pytest.approx(rise, abs=1e-6)
    for spot in [(0, 0, 2, 2), (0, 1, 5, 1), (0, 0, 7, 7)]:
        bump = torch.zeros_like(flow)
        bump[spot] = step
        rise = (value(noise, flow + bump) - value(noise, flow - bump)) / (2 * step)
        assert float(in_flow[spot]) == pytest.approx(rise, abs=1e-6)


@pytest.mark.parametrize("mode", ["combined", "flow", "noise"])
def test_modes_and_limits_of_the_combined_change(mode: str) -> None:
    x, label, model = images()
    attack = CombinedUniversal(mode=mode, eps=0.05, tau=0.3)
    change = train_universal(attack, model, x, Misclassified(label), Threat(math.inf, math.inf, (0.0, 1.0))).change
    assert float(change.noise.abs().max()) == pytest.approx(0.0 if mode == "flow" else 0.05)
    if mode == "noise":
        assert change.flow is None
    else:
        assert change.flow is not None
        assert 0.05 < float(variation(change.flow.unsqueeze(0))) <= 0.3 * (1 + 1e-9)


def test_flow_and_noise_together_fool_more_than_either() -> None:
    """On this net, with these limits; the paper's finding on its own."""
    x, label, model = images(150)
    rate = {mode: train_universal(CombinedUniversal(mode=mode, eps=0.05, tau=0.2), model, x, Misclassified(label),
                                  Threat(math.inf, math.inf, (0.0, 1.0))).fooling_rate
            for mode in ("combined", "flow", "noise")}
    assert rate["combined"] > max(rate["flow"], rate["noise"]), rate
    assert min(rate.values()) > 0, rate


def test_combined_change_keeps_clip_range_and_mask() -> None:
    x, label, model = images()
    mask = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(3)) < 0.7
    result = CombinedUniversal(eps=0.2, tau=0.5).run(model, x, Misclassified(label),
                                                     Threat(math.inf, math.inf, (0.0, 1.0), mask))
    assert torch.equal(result.last[:, ~mask], x[:, ~mask])
    assert float(result.last.min()) >= 0
    assert float(result.last.max()) <= 1


@pytest.mark.parametrize(("cls", "settings", "words"), [
    (Universal, {"steps": 0}, "steps"), (Universal, {"step_size": 0.0}, "step_size"),
    (CombinedUniversal, {"mode": "both"}, "mode"), (CombinedUniversal, {"tau": -1.0}, "tau"),
    (CombinedUniversal, {"learning_rate": 0.0}, "learning_rate")])
def test_bad_settings(cls: type[UniversalAttack], settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        cls(**settings)  # type: ignore[arg-type]


def test_flat_inputs_have_no_flow() -> None:
    model, x, _ = two_classes()
    with pytest.raises(ValueError, match="guap moves images"):
        CombinedUniversal().run(model, x, Misclassified(torch.zeros(40, dtype=torch.long)), Threat(math.inf, math.inf))


def test_a_data_set_is_one_piece() -> None:
    """One change for all examples, however small the pieces that other attacks hand on."""
    network = NetworkCache().get(EXAMPLES / "digits_cnn.onnx")
    digits = np.load(EXAMPLES / "digits.npz", allow_pickle=False)
    shape = network.graph.input_shape
    data = DataSet(digits["x"].reshape(-1, *shape), digits["y"], np.arange(6), digits["x"].reshape(-1, *shape))
    threat = Threat(math.inf, 0.2, (0.0, 1.0))
    assert len(list(attack_data(network, data, Pgd(steps=2), threat, piece=2))) == 3
    (piece,) = attack_data(network, data, Universal(), threat, piece=2)
    assert [record["index"] for record, _ in piece.finished] == list(range(6))
