"""`Autoencoding`: trains a small autoencoder of diffusers, the codec of a latent model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MeanMetric

from constrained_diffusion.batch import Batch
from constrained_diffusion.fine_tuning.trained import TrainedModule
from constrained_diffusion.runtime.randomness import keyed_normal

LATENTS = 7  # stream of random numbers


class Autoencoding(TrainedModule):
    """Fits decoded to given images: mean squared error + kl_weight KL(q(z | x) || N(0, 1)), both means over numbers.

    (Kingma and Welling 2013, arXiv 1312.6114.) What it exports has latents of mean 0 and deviation 1 over the held-out
    rows of its data module, by the autoencoder's own shift and scaling factor. Logs `loss/reconstruction`, `loss/kl`
    and `val/reconstruction`.

    Args:
        network: a `diffusers.AutoencoderKL`; images enter it as 2x - 1.
        kl_weight: of the second term.
        seed: keys the noise of the latents.
        optimizer, lr_scheduler: from the config; the schedule is stepped once per optimiser step.

    Raises:
        TypeError: the network is another one.
    """

    def __init__(
        self,
        network: nn.Module,
        kl_weight: float = 1e-4,
        seed: int = 0,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(seed, optimizer, lr_scheduler)
        if type(network).__name__ != "AutoencoderKL":
            raise TypeError(f"Autoencoding expects a diffusers.AutoencoderKL, got a {type(network).__name__}.")
        self.network: Any = network
        self.kl_weight = kl_weight
        self.error = MeanMetric()

    @property
    def trained(self) -> nn.Module:
        return self.network  # type: ignore[no-any-return]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images = 2 * batch.clean - 1
        found = self.network.encode(images).latent_dist
        rows = range(self.global_rank * len(images), (self.global_rank + 1) * len(images))
        keys = [(self.seed, LATENTS, self.batches_seen, row) for row in rows]
        noise = keyed_normal(keys, found.mean.shape[1:]).to(found.mean)
        decoded = self.network.decode(found.mean + found.std * noise).sample
        reconstruction = (decoded.float() - images).square().mean()
        kl = 0.5 * (found.mean.square() + found.var - 1 - found.logvar).float().mean()
        self.batches_seen += 1
        self.log_dict({"loss/reconstruction": reconstruction.detach(), "loss/kl": kl.detach()})
        loss: Tensor = reconstruction + self.kl_weight * kl
        return loss

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Measure the error of reconstructed held-out rows."""
        images = 2 * batch.clean - 1
        latents = self.network.encode(images).latent_dist.mode()
        error = (self.network.decode(latents).sample.float() - images).square().flatten(1).mean(1)
        self.error.update(error)

    def on_validation_epoch_end(self) -> None:
        self.log("val/reconstruction", self.error.compute(), prog_bar=True)
        self.error.reset()

    @torch.no_grad()
    def on_train_end(self) -> None:
        """Measure the latents of all held-out rows with the last weights, on every rank alike."""
        data = getattr(self.trainer, "datamodule", None)
        if not hasattr(data, "data"):  # plain loaders: the factors stay as they came
            return
        rows = data.data[1]  # type: ignore[union-attr]
        self.network.eval()
        parts = [rows.__getitems__(part.tolist()).clean for part in torch.arange(len(rows)).split(250)]
        latents = torch.cat([self.network.encode(2 * part.to(self.device) - 1).latent_dist.mode() for part in parts])
        mean, deviation = float(latents.float().mean()), float(latents.float().std(correction=0).clamp(min=1e-6))
        self.network.register_to_config(shift_factor=mean, scaling_factor=1 / deviation)

    def export(self, folder: str | Path) -> None:
        """Write the autoencoder to `folder`, as diffusers does, and beside it `training.json`."""
        self.network.save_pretrained(folder)
        self.write_training(folder)
