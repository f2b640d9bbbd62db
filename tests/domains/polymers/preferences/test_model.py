"""The neural Bradley-Terry model: what counts of a sequence, gradients, and the loss against torch's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

from constrained_diffusion.domains.polymers.preferences.bradley_terry import fit_merits
from constrained_diffusion.domains.polymers.preferences.model import TYPICAL, MeritCNN, PairLoss, load_merits
from constrained_diffusion.runtime.stored_networks import save_network

TOKENS = ["C", "N", "O"]


def model(**settings: Any) -> MeritCNN:
    torch.manual_seed(0)
    return MeritCNN(TOKENS, **{"width": 6, "depth": 1, "kernel": 3, **settings}).double().eval()


def shares(*shape: int, seed: int = 0) -> Tensor:
    """Return shares of the four tokens, END among them, `(*shape, 4, 8)`."""
    draws = torch.randn(*shape, 4, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return draws.softmax(-2)


def sequence(text: str, length: int) -> Tensor:
    """Return one-hot tokens `(1, 4, length)` of a string, END behind it and where it has a dot."""
    numbers = torch.tensor([[".CNO".index(letter) for letter in text.ljust(length, ".")]])
    return one_hot(numbers, 4).mT.double()


@torch.no_grad()
def test_pairs_get_the_merits_of_their_sequences() -> None:
    network, clean = model(), shares(5, 2)
    merits = network(clean)
    assert merits.shape == (5, 2)
    one_by_one = [[float(network(clean[row, side][None])) for side in range(2)] for row in range(5)]
    torch.testing.assert_close(merits, torch.tensor(one_by_one, dtype=torch.float64))


@torch.no_grad()
def test_a_place_counts_by_its_share_of_being_there() -> None:
    """Without blocks and with one place to a kernel the sums over places can be written out."""
    network, clean = model(depth=0, kernel=1), shares(3)
    weight, bias = network.into.weight[:, :, 0], network.into.bias
    total, there = torch.zeros(3, 6, dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64)
    for place in range(8):
        share = 1 - clean[:, 0, place, None]
        total += share * (clean[:, :, place] @ weight.T + bias)
        there += share
    assert bool((there > 1).all())
    expected = network.out(torch.cat([total / TYPICAL, total / there], dim=1))[:, 0]
    torch.testing.assert_close(network(clean), expected)


@torch.no_grad()
def test_end_places_count_nothing() -> None:
    bag = model(depth=0, kernel=1)
    merit = bag(sequence("CCON", 4))
    for other in ("CCON....", "C.CO..N", "NOCC", ".NOCC"):
        torch.testing.assert_close(bag(sequence(other, 9)), merit)
    assert not torch.allclose(bag(sequence("CCOO", 9)), merit)
    wide = model(depth=0, kernel=5)  # which sees two places further, and there END or nothing
    torch.testing.assert_close(wide(sequence("CCON", 6)), wide(sequence("CCON", 30)))
    assert not torch.allclose(wide(sequence("NOCC", 6)), wide(sequence("CCON", 6)))
    nothing = model().out(torch.zeros(1, 12, dtype=torch.float64))[:, 0]
    torch.testing.assert_close(model()(sequence("", 7)), nothing)


def test_the_gradient_reaches_every_share_of_every_token() -> None:
    network, clean = model(), shares(2).requires_grad_(True)
    assert torch.autograd.gradcheck(network, (clean,))
    (gradient,) = torch.autograd.grad(network(clean)[0], clean)
    assert bool((gradient[0] != 0).all())
    assert bool((gradient[1] == 0).all())


def test_dropout_is_for_training_alone() -> None:
    network, clean = model(dropout=0.5), shares(4)
    assert torch.equal(network(clean), network(clean))
    network.train()
    assert not torch.equal(network(clean), network(clean))


def test_the_loss_is_the_cross_entropy_of_the_difference() -> None:
    generator = torch.Generator().manual_seed(0)
    merits = 3 * torch.randn(50, 2, generator=generator, dtype=torch.float64)
    outcomes = torch.randint(3, (50,), generator=generator) / 2  # ties too; float32, as a batch has them
    expected = binary_cross_entropy_with_logits(merits[:, 0] - merits[:, 1], outcomes.double())
    loss = PairLoss(level=0)
    torch.testing.assert_close(loss(merits, outcomes), expected)
    torch.testing.assert_close(loss(merits + 7, outcomes), expected)
    torch.testing.assert_close(loss(merits.flip(1), 1 - outcomes), expected)
    assert float(loss(torch.tensor([[4000.0, 0.0]]), torch.tensor([0.0]))) == 4000
    checked = merits[:5].requires_grad_(True)
    assert torch.autograd.gradcheck(lambda given: PairLoss()(given, outcomes[:5]), (checked,))


def test_the_loss_is_least_at_the_most_likely_merits() -> None:
    pairs = torch.tensor([[0, 1], [1, 2], [2, 0], [0, 2], [1, 0]])
    outcomes = torch.tensor([1.0, 1.0, 0.5, 1.0, 0.5])
    merits = fit_merits(pairs, outcomes, 3, regularization=0).log_merits.requires_grad_(True)
    PairLoss(level=0)(merits[pairs], outcomes).backward()
    assert merits.grad is not None
    assert float(merits.grad.abs().max()) < 1e-9


def test_the_level_pulls_the_mean_merit_alone_to_zero() -> None:
    merits, outcomes = torch.tensor([[3.0, 1.0], [0.0, 2.0]]), torch.tensor([1.0, 1.0])
    gaps = [float(PairLoss(level)(merits, outcomes) - PairLoss(0)(merits, outcomes)) for level in (0.5, 0.01)]
    assert gaps == pytest.approx([0.5 * 1.5**2, 0.01 * 1.5**2], rel=1e-4)
    assert float(PairLoss(0.5)(merits - 1.5, outcomes)) == pytest.approx(float(PairLoss(0)(merits, outcomes)))


def test_it_learns_which_has_more_of_a_token() -> None:
    torch.manual_seed(0)
    network, generator = MeritCNN(TOKENS, width=8, depth=1, kernel=3, dropout=0.0), torch.Generator().manual_seed(0)
    numbers = torch.randint(1, 4, (600, 2, 10), generator=generator)
    clean, oxygens = one_hot(numbers, 4).mT.float(), (numbers == 3).sum(2)
    outcomes = ((oxygens[:, 0] - oxygens[:, 1]).sign() + 1) / 2
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        PairLoss()(network(clean[:400]), outcomes[:400]).backward()
        optimizer.step()
    merits, decided = network(clean[400:]), outcomes[400:] != 0.5
    right = (merits[:, 0] > merits[:, 1]) == (outcomes[400:] > 0.5)
    assert right[decided].double().mean() > 0.95


@pytest.mark.parametrize("shape", [(4, 8), (1, 5, 8), (2, 8, 4)])
def test_samples_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expects samples of 4 channels, one per token .* got the shape \("):
        model()(torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize(
    ("tokens", "kernel", "message"),
    [
        ([], 3, "at least one token and an odd kernel, got 0 and 3"),
        (["C"], 4, "an odd kernel, got 1 and 4"),
        (["C", "C"], 3, "each token of a vocabulary once"),
    ],
)
def test_bad_settings(tokens: list[str], kernel: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MeritCNN(tokens, kernel=kernel)


def test_a_model_is_read_frozen_and_in_eval_mode(tmp_path: Path) -> None:
    network = model(dropout=0.5).float()
    save_network(network, tmp_path)
    again = load_merits(str(tmp_path))
    assert again.vocabulary.tokens[1:] == TOKENS
    assert not any(module.training for module in again.modules())
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert torch.equal(again(shares(3).float()), network(shares(3).float()))


def test_damaged_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a preference model is a zoo name or a folder .* 'none' is neither"):
        load_merits("none")
    with pytest.raises(FileNotFoundError, match="a preference model's folder holds config.json and model.safetensors"):
        load_merits(tmp_path)
    save_network(model(), tmp_path)
    whole, config = (tmp_path / "model.safetensors").read_bytes(), json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(whole[:-8])
    with pytest.raises(ValueError, match="no complete safetensors file"):
        load_merits(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(whole)
    config["init_args"]["tokens"] = TOKENS[:2]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"does not hold the weights of MeritCNN\(.*Export both"):
        load_merits(tmp_path)
