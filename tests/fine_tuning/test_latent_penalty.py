"""The penalty on decoded pixels: its gradient with respect to LoRA weights, and what it calls."""

from __future__ import annotations

import runpy
from collections import Counter
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from constrained_diffusion.batch import Batch
from constrained_diffusion.denoisers import autoencoder
from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.denoisers.autoencoder import Autoencoder
from constrained_diffusion.denoisers.schedule import DiffusersSchedule
from constrained_diffusion.fine_tuning.loss import PenaltyLoss
from constrained_diffusion.fine_tuning.networks import Networks
from constrained_diffusion.fine_tuning.noising import draw_training
from constrained_diffusion.fine_tuning.steering import Steering
from constrained_diffusion.objectives import Constraint

pytest.importorskip("peft", reason="the extra `lora` is not installed")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
UNET = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
UNET |= {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "attention_head_dim": 2, "cross_attention_dim": 8}
UNET |= {"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}
VAE = {"block_out_channels": (4, 8), "latent_channels": 4, "norm_num_groups": 2, "scaling_factor": 0.25}
VAE |= {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
LORA = {"r": 2, "lora_alpha": 5, "target_modules": ["to_q", "to_v", "conv1"], "init_lora_weights": False}


class Contrast(Constraint):
    """g = mean square of pixel - 0.5 in the left half, and in the right half, both above 0 here."""

    def forward(self, clean: Tensor) -> Tensor:
        left, right = (clean - 0.5).square().mean((1, 2)).chunk(2, -1)
        return torch.stack([left.mean(-1), 2 * right.mean(-1)], 1)


class Parts:
    """A UNet told of text, an autoencoder, adapters, and a step of four rows."""

    def __init__(
        self, guidance_scale: float = 3.0, checkpointed: bool = True, formulation: str = "penalty", **settings: Any
    ) -> None:
        torch.manual_seed(0)
        unet, vae = diffusers.UNet2DConditionModel(**UNET), diffusers.AutoencoderKL(**VAE)
        betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
        codec = Autoencoder(network=vae, checkpointed=checkpointed)
        null = {"encoder_hidden_states": torch.randn(5, 8)}
        denoiser = Denoiser(unet, DiffusersSchedule(betas), codec, None, guidance_scale, null).double()
        self.networks = Networks(denoiser, lora=LORA, gradient_checkpointing=checkpointed).double()
        self.loss = PenaltyLoss(Steering([Contrast()]), denoiser, formulation, **settings).double()
        told = {"encoder_hidden_states": torch.randn(4, 5, 8).double()}
        batch = Batch(torch.rand(4, 3, 16, 16).double(), told, latent=torch.randn(4, 4, 8, 8).double())
        self.step = draw_training(batch, denoiser, (0, 0), (0, 1), 1000)

    def penalty(self) -> Tensor:
        """The penalty part of the loss alone, on the guided predicted clean sample."""
        _, judged = self.networks.predict_judged(self.step, True)
        record = self.loss.record(self.step, judged, None, torch.arange(4))
        assert record.predicted_clean.shape == (4, 3, 16, 16)
        return self.loss.penalty(record, torch.zeros(4)).loss


@pytest.mark.parametrize("checkpointed", [True, False])
def test_the_gradient_of_adapters_is_that_of_central_differences(checkpointed: bool) -> None:
    parts = Parts(checkpointed=checkpointed)
    parts.networks.trained.train()
    adapters = [p for p in parts.networks.trained.parameters() if p.requires_grad]
    value = parts.penalty()
    assert value.dtype == torch.float64
    assert value > 0
    gradient, h = torch.autograd.grad(value, adapters), 3e-5
    for seed in range(3):
        draw = torch.Generator().manual_seed(seed)
        direction = [torch.randn(p.shape, generator=draw, dtype=torch.float64) for p in adapters]
        length = torch.stack([part.square().sum() for part in direction]).sum().sqrt()
        direction, values = [part / length for part in direction], []
        for side in (h, -2 * h, h):  # there, on the other side, and back
            with torch.no_grad():
                for parameter, towards in zip(adapters, direction, strict=True):
                    parameter.add_(towards, alpha=side)
                values.append(float(parts.penalty()))
        expected = (values[0] - values[1]) / (2 * h)
        found = float(sum((g * d).sum() for g, d in zip(gradient, direction, strict=True)))
        assert abs(found - expected) <= 1e-6 * abs(expected)


def counted(parts: Parts) -> Counter[str]:
    """Rows by what they go through, and how often: `trained`, `frozen`, `decoded`."""
    codec: Any = parts.networks.denoiser.codec
    counts: Counter[str] = Counter()

    def watch(module: Any, name: str) -> None:
        def seen(_: Any, inputs: Any) -> None:
            key = name or ("trained" if torch.is_grad_enabled() else "frozen")
            counts.update({f"{key} calls": 1, f"{key} rows": len(inputs[0])})

        module.register_forward_pre_hook(seen)

    watch(parts.networks.trained, "")
    watch(codec.network.decoder, "decoded")
    return counts


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("rows", [None, 2])
def test_one_trained_pass_and_one_decoding_for_each_judged_row(guided: bool, rows: int | None) -> None:
    parts = Parts(3.0 if guided else 1.0, formulation="anchored_algorithm1", decode_rows=rows)
    counts, networks, step = counted(parts), parts.networks, parts.step
    frozen = networks.predict_frozen(step)
    plain, judged = networks.predict_judged(step, guided)
    cost = parts.loss(step, plain, frozen, judged).loss
    network = {"trained calls": 1, "trained rows": 8 if guided else 4, "frozen calls": 1, "frozen rows": 4}
    assert counts == {**network, "decoded calls": 1, "decoded rows": rows or 4}
    cost.backward()
    assert counts == {**network, "decoded calls": 2, "decoded rows": 2 * (rows or 4)}  # once more on the way back


def test_pieces_that_are_decoded_one_by_one_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the activations of one piece alone are held at a time."""
    parts, seen = Parts(), []
    codec: Any = parts.networks.denoiser.codec
    latents = parts.step.clean.clone().requires_grad_(True)
    expected = codec._decode(latents)
    monkeypatch.setattr(autoencoder, "PIECE", 3 * 8 * 8)
    codec.network.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    images = codec.decode(latents)
    assert seen == [3, 1]
    torch.testing.assert_close(images, expected, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(part.square().sum(), latents)[0] for part in (images, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)
    assert codec.decode(latents[:0]).shape == (0, 3, 16, 16)


def test_networks_that_cannot_checkpoint(tiny_denoiser: Any) -> None:
    with pytest.raises(ValueError, match="gradient_checkpointing expects .* which TinyNetwork does not; leave it out"):
        Networks(tiny_denoiser(), gradient_checkpointing=True)


@pytest.mark.slow
def test_what_pixels_add_to_a_step_of_stable_diffusion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # as for a program that is run there
    count = runpy.run_path(str(BENCHMARKS / "lora_cost.py"))["count"]
    plain, one, both = count(2, constrained=False), count(2, decode_rows=1), count(2)
    assert (plain["trained"], one["trained"], both["trained"]) == (2, 2, 2)
    assert (one["decoded"], both["decoded"]) == (1, 2)
    # the second row costs what the first does, and nothing else is added
    assert both["flops"] - one["flops"] == pytest.approx(one["flops"] - plain["flops"], rel=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_of_stable_diffusion_fits_24_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    measure = runpy.run_path(str(BENCHMARKS / "lora_cost.py"))["measure"]
    anchored = {"formulation": "anchored_algorithm1"}
    plain = measure(4, **anchored)
    guided = measure(4, **anchored, guided=True, checkpointed=True)
    print(f"{plain['bytes'] / 2**30:.1f} GiB, {guided['bytes'] / 2**30:.1f} GiB with guidance and checkpointing")
    print(f"{guided['seconds'] / plain['seconds']:.2f} x the time with guidance and checkpointing")
    assert max(plain["bytes"], guided["bytes"]) <= 24 * 2**30
