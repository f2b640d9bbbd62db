"""Which class labels a network draws, and which of them stands for none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel

from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.diffusion.variance_preserving import VariancePreserving

SCHEDULE = VariancePreserving([0.9, 0.5])


def dit() -> Any:
    torch.manual_seed(0)
    size = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "sample_size": 8}
    return DiTTransformer2DModel(in_channels=4, out_channels=8, num_embeds_ada_norm=20, **size)


def test_a_dit_in_training_drops_no_labels_by_itself() -> None:
    network = dit().train()
    torch.nn.init.normal_(network.transformer_blocks[0].norm1.linear.weight)
    noisy, told = torch.randn(16, 4, 8, 8), {"class_labels": torch.arange(16)}
    with torch.no_grad():
        first, again = (Denoiser(network, SCHEDULE)(noisy, torch.ones(16), told) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_a_label_that_the_network_does_not_know_is_refused(kind: str, unet: Any, tiny_denoiser: Any) -> None:
    network, null, name = (unet(num_class_embeds=21), 0, "UNet2DModel") if kind == "unet" else (dit(), 20, "DiT")
    denoiser = Denoiser(network, SCHEDULE, null_condition={"class_labels": null})
    known = sorted({*range(21)} - {null})
    for allowed in (None, torch.tensor(known), torch.tensor([[0.5]])):  # a vector is no label
        denoiser.check_labels(allowed)
    for wrong in (null, 21, -1):
        said = rf"the label {wrong} is asked for, but {name}\w* draws the labels {known[0]} to {known[-1]} \({null} "
        with pytest.raises(ValueError, match=f"{said}stands for none"):
            denoiser.check_labels(torch.tensor([3, wrong]))
    Denoiser(network, SCHEDULE).check_labels(torch.tensor([null]))  # then it is a label as any other
    for outside in (21, -1):
        with pytest.raises(ValueError, match=rf"the label {outside}, but .* knows 21 labels: expected one in 0 .. 20"):
            Denoiser(network, SCHEDULE, null_condition={"class_labels": outside})
    tiny_denoiser().check_labels(torch.tensor([99]))  # nobody knows how many it knows
