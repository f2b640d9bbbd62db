"""The zoo's latent model of digits: what its page says of it, and what it draws."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from constrained_diffusion.denoisers.loading import PretrainedDenoiser
from constrained_diffusion.domains.images import PretrainedClassifier
from constrained_diffusion.domains.images.zoo_latent import draw

PAGE = (Path(__file__).parents[3] / "docs" / "latent.md").read_text()


def test_size_and_cost_of_a_call_are_what_the_page_says() -> None:
    network = PretrainedDenoiser("mnist_flow").network
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        network(torch.zeros(1, 4, 7, 7), torch.zeros(1), class_labels=torch.zeros(1, dtype=torch.long))
    flop, parameters = counted.get_total_flops(), sum(p.numel() for p in network.parameters())
    assert flop <= 1e8
    assert f"{parameters / 1e6:.2f} M parameters, {flop / 1e9:.3f} GFLOP a call" in PAGE


def test_asked_for_a_digit_it_draws_that_digit() -> None:
    labels = torch.arange(20) % 10
    images = draw(PretrainedDenoiser("mnist_flow", guidance_scale=3.0), labels)
    assert images.shape == (20, 1, 28, 28)
    seen = PretrainedClassifier("mnist_judge")(images).argmax(1)
    assert int((seen == labels).sum()) >= 19
