"""Training of an autoencoder: the loss by hand, what is exported, exact resume of its draws."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from constrained_diffusion.batch import Batch
from constrained_diffusion.denoisers.autoencoder import Autoencoder, small_autoencoder
from constrained_diffusion.fine_tuning.autoencoding import LATENTS, Autoencoding
from constrained_diffusion.runtime.randomness import keyed_normal


def tiny(**settings: Any) -> Autoencoding:
    torch.manual_seed(0)
    return Autoencoding(small_autoencoder(1, [4, 8], 2, groups=4), **settings)


def test_the_loss_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    module, images = tiny(kl_weight=0.3, seed=5), torch.rand(3, 1, 8, 8)
    monkeypatch.setattr(module, "log_dict", lambda terms: None)
    with torch.no_grad():
        found = module.network.encode(2 * images - 1).latent_dist
        noise = keyed_normal([(5, LATENTS, 0, row) for row in range(3)], (2, 4, 4))
        decoded = module.network.decode(found.mean + found.std * noise).sample
        normal = torch.distributions.Normal(found.mean, found.std)
        kl = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).mean()
        expected = (decoded - (2 * images - 1)).square().mean() + 0.3 * kl
    torch.testing.assert_close(module.training_step(Batch(images), 0).detach(), expected)
    assert module.batches_seen == 1  # so that the next step draws other noise


def test_exported_latents_have_mean_0_and_deviation_1(tmp_path: Path, tiny_data: Any) -> None:
    """Of the last weights, though the last validation was two steps before."""
    module, data = tiny(), tiny_data(val_samples=0)
    trainer = Trainer(max_steps=6, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(module, datamodule=data)
    module.export(tmp_path / "export")
    held_out = data.data[1]
    latents = Autoencoder(str(tmp_path / "export")).encode(held_out.__getitems__(list(range(len(held_out)))).clean)
    assert latents.mean().item() == pytest.approx(0, abs=1e-4)
    assert latents.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    assert (tmp_path / "export" / "training.json").is_file()


def test_another_network_is_refused() -> None:
    with pytest.raises(TypeError, match="expects a diffusers.AutoencoderKL, got a Linear"):
        Autoencoding(nn.Linear(1, 1))
