"""The reward of a Bradley-Terry model: a frozen copy of it, and nothing else."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from constrained_diffusion.domains.polymers.merit import BradleyTerryMerit
from constrained_diffusion.domains.polymers.preferences.bradley_terry import log_likelihood
from constrained_diffusion.domains.polymers.preferences.model import MeritCNN
from constrained_diffusion.objectives import RewardAtLeast
from constrained_diffusion.runtime.stored_networks import save_network


def model() -> MeritCNN:
    torch.manual_seed(0)
    return MeritCNN(["C", "O"], width=6, depth=1, kernel=3, dropout=0.5)


def shares() -> Tensor:
    return torch.rand(5, 3, 9, generator=torch.Generator().manual_seed(0)).softmax(1)


def tokens() -> Tensor:
    """What `shares` are read as, by a loop."""
    read = torch.zeros(5, 3, 9)
    for row, place in itertools.product(range(5), range(9)):
        read[row, max(range(3), key=lambda token: float(shares()[row, token, place])), place] = 1
    return read


def test_the_network_is_a_frozen_copy_in_eval_mode() -> None:
    network = model().train()
    reward = BradleyTerryMerit(network).train()
    assert reward.training
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not any(module.training for module in reward.model.modules())
    assert not any(parameter.requires_grad for parameter in reward.parameters())
    expected = network.eval()(tokens())
    torch.testing.assert_close(reward(shares()), expected)  # so without dropout
    with torch.no_grad():
        network.into.weight.zero_()
    torch.testing.assert_close(reward(shares()), expected)


def test_a_folder_gives_the_same_reward(tmp_path: Path) -> None:
    save_network(model(), tmp_path)
    torch.testing.assert_close(BradleyTerryMerit(str(tmp_path))(shares()), BradleyTerryMerit(model())(shares()))
    with pytest.raises(ValueError, match="a preference model is a zoo name or a folder .* 'polymer_taste' is neither"):
        BradleyTerryMerit("polymer_taste")


def test_any_network_of_samples_will_do() -> None:
    counts = nn.Sequential(nn.Flatten(), nn.Linear(27, 1), nn.Flatten(0))
    torch.testing.assert_close(BradleyTerryMerit(counts)(shares()), counts(tokens()))
    BradleyTerryMerit(nn.Flatten(0)).check_data((1,))  # without a parameter


def test_differences_are_log_odds() -> None:
    merits = BradleyTerryMerit(model()).double()(shares().double())
    chance = log_likelihood(merits[:1], merits[1:2], torch.ones(1)).exp()
    torch.testing.assert_close(chance / (1 - chance), (merits[:1] - merits[1:2]).exp())


def test_as_a_constraint_it_is_feasible_above_the_threshold() -> None:
    reward = BradleyTerryMerit(model())
    threshold = float(reward(shares()).median())
    constraint = RewardAtLeast(reward, threshold)
    torch.testing.assert_close(constraint(shares()), threshold - reward(shares()))
    assert constraint.holds(shares()).tolist() == (reward(shares()) >= threshold).tolist()
    assert constraint.holds(shares()).sum() == 3


def test_shares_of_other_tokens_do_not_please_it() -> None:
    reward = BradleyTerryMerit(model())
    others = (shares() / 3 + tokens()).clamp(0, 1)
    assert torch.equal(reward(others), reward(tokens()))


def test_the_gradient_is_that_at_the_tokens() -> None:
    clean, read = shares().requires_grad_(True), tokens().requires_grad_(True)
    (found,) = torch.autograd.grad(BradleyTerryMerit(model())(clean).sum(), clean)
    (expected,) = torch.autograd.grad(model().eval()(read).sum(), read)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("shape", [(4, 9), (9, 3), (1, 28, 28)])
def test_samples_of_another_kind_are_refused_before_work_starts(shape: tuple[int, ...]) -> None:
    constraint = RewardAtLeast(BradleyTerryMerit(model()), 0.0)
    constraint.check_data((3, 9))
    with pytest.raises(ValueError, match="MeritCNN expects samples of 3 channels, one per token of its vocabulary"):
        constraint.check_data(shape)
