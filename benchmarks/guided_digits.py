"""The zoo's denoiser of digits, taught their classes: it stands for a model with prompts where there is none."""

from __future__ import annotations

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from tqdm.auto import trange

from constrained_diffusion import PretrainedDenoiser
from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.domains.images.classifiers import PretrainedClassifier
from constrained_diffusion.runtime import assets, cards
from constrained_diffusion.runtime.randomness import keyed_generator

UNTOLD = 10  #: what is given in place of a class that is not told
UNTOLD_SHARE = 0.15  #: of the rows in training


class Guided(nn.Module):
    """A network with classes under classifier-free guidance (Ho and Salimans 2022), both branches in one batch."""

    def __init__(self, network: nn.Module, scale: float) -> None:
        super().__init__()
        self.network, self.scale, self.config = network, scale, network.config

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        if self.scale == 1:
            alone: Tensor = self.network(sample, timestep, class_labels=class_labels).sample
            return alone
        labels = torch.cat([class_labels, torch.full_like(class_labels, UNTOLD)])
        told, untold = self.network(sample.repeat(2, 1, 1, 1), timestep.repeat(2), class_labels=labels).sample.chunk(2)
        guided: Tensor = untold + self.scale * (told - untold)
        return guided


def untrained(scale: float = 1.0) -> Denoiser:
    """Return the zoo's denoiser with an embedding of classes that knows nothing yet."""
    source = PretrainedDenoiser("mnist_denoiser")
    torch.manual_seed(0)
    network = UNet2DModel.from_config(dict(source.network.config), num_class_embeds=UNTOLD + 1)
    network.load_state_dict(source.network.state_dict(), strict=False)
    return Denoiser(Guided(network, scale), source.noise_schedule, source.codec)


def labelled() -> tuple[Tensor, Tensor]:
    """Return the zoo's own samples, in [0, 1], and their classes by the zoo's training classifier."""
    folder = assets.path("mnist_denoiser")
    drawn = cards.read(folder)["samples"]
    clean = assets.read_sheet(folder / "samples.png", drawn["count"], drawn["size"]).float()
    classifier = PretrainedClassifier("mnist_classifier").eval()
    with torch.no_grad():
        return clean, torch.cat([classifier(part).argmax(1) for part in clean.split(500)])


def taught(steps: int, scale: float, batch: int = 64, lr: float = 5e-4) -> Denoiser:
    """Return the denoiser after `steps` with classes (some 15 minutes for 1,200, on one core)."""
    denoiser, (clean, labels), generator = untrained(), labelled(), keyed_generator(1)
    schedule, optimizer = denoiser.noise_schedule, torch.optim.AdamW(denoiser.parameters(), lr=lr)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in trange(steps, desc="with classes", leave=False):
        rows = torch.randint(len(clean), (batch,), generator=generator)
        x, noise = denoiser.codec.encode(clean[rows]), torch.randn(batch, *clean.shape[1:], generator=generator)
        timesteps = torch.randint(schedule.num_timesteps, (batch,), generator=generator)
        untold = torch.rand(batch, generator=generator) < UNTOLD_SHARE
        told = {"class_labels": labels[rows].masked_fill(untold, UNTOLD)}
        output = denoiser(schedule.add_noise(x, noise, timesteps), timesteps, told)
        loss = (output - schedule.target(x, noise, timesteps)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    denoiser.network.scale = scale
    return denoiser
