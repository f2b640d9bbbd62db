"""Autoencoders as codecs, against diffusers' own calls."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

from constrained_diffusion.denoisers.autoencoder import Autoencoder, read, small_autoencoder


def kl(**settings: Any) -> Any:
    torch.manual_seed(0)
    network: Any = small_autoencoder(3, [8, 16], 4, groups=4)
    network.register_to_config(**{"scaling_factor": 0.5, "shift_factor": 0.1, **settings})
    return network


def test_images_become_scaled_latents_and_latents_images() -> None:
    network, images = kl(), torch.rand(2, 3, 8, 8)
    codec = Autoencoder(network=network)
    with torch.no_grad():
        expected = (network.encode(2 * images - 1).latent_dist.mode() - 0.1) * 0.5
        torch.testing.assert_close(codec.encode(images), expected)
        torch.testing.assert_close(codec.decode(expected), (network.decode(expected / 0.5 + 0.1).sample + 1) / 2)
    assert codec.data_shape((4, 4, 4)) == (3, 8, 8)
    assert codec.factor == 2


@pytest.mark.parametrize("checkpointed", [True, False])
def test_the_gradient_passes_the_decoder_and_not_its_weights(checkpointed: bool) -> None:
    codec = Autoencoder(network=kl(), checkpointed=checkpointed).double()
    latents = torch.randn(1, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: codec.decode(z).square().mean(), latents)
    assert not any(p.requires_grad for p in codec.parameters())
    codec.train()
    assert not codec.network.training


def test_a_decoder_that_overflows_in_half_precision_computes_in_single() -> None:
    codec, latents = Autoencoder(network=kl(force_upcast=True)), torch.randn(1, 4, 2, 2)
    expected = codec.decode(latents)
    with torch.autocast("cpu", torch.float16):
        assert torch.equal(codec.decode(latents), expected)
    codec.half().decode(latents.half())
    assert next(codec.network.parameters()).dtype == torch.float32


def test_the_latents_means_and_deviations_are_those_of_diffusers() -> None:
    """As pipelines of SDXL decode: latents * std / scaling_factor + mean, of each channel."""
    mean, std = [0.1, -1.0, 2.0, 0.3], [0.5, 2.0, 1.5, 3.0]
    network = kl(latents_mean=mean, latents_std=std, shift_factor=None)
    codec, images = Autoencoder(network=network), torch.rand(2, 3, 8, 8)
    means, stds = torch.tensor(mean).view(1, 4, 1, 1), torch.tensor(std).view(1, 4, 1, 1)
    with torch.no_grad():
        latents = (network.encode(2 * images - 1).latent_dist.mode() - means) * 0.5 / stds
        torch.testing.assert_close(codec.encode(images), latents)
        expected = (network.decode(latents * stds / 0.5 + means).sample + 1) / 2
        torch.testing.assert_close(codec.decode(latents), expected)
        torch.testing.assert_close(codec.double().decode(latents.double()).float(), expected)


def test_vq_and_tiny_autoencoders_are_taken() -> None:
    torch.manual_seed(0)
    vq: Any = diffusers.VQModel(block_out_channels=(8,), norm_num_groups=4, latent_channels=3, num_vq_embeddings=8)
    tiny: Any = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=4,
    )
    for network, latents in ((vq, (3, 8, 8)), (tiny, (4, 4, 4))):
        codec, images = Autoencoder(network=network), torch.rand(2, 3, 8, 8)
        encoded = codec.encode(images)
        assert encoded.shape[1:] == latents
        assert codec.data_shape(latents) == (3, 8, 8)
        assert codec.decode(encoded).shape == images.shape


def test_a_latent_of_another_autoencoder_is_refused() -> None:
    with pytest.raises(ValueError, match=r"makes latents of 4 channels, but the denoiser works on \(3, 8, 8\)"):
        Autoencoder(network=kl()).data_shape((3, 8, 8))


def test_other_sources_are_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="either a source or a network"):
        Autoencoder()
    with pytest.raises(ValueError, match="expected one of|expects one of AutoencoderKL"):
        Autoencoder(network=nn.Linear(1, 1))
    with pytest.raises(FileNotFoundError, match="no autoencoder at"):
        read(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(ValueError, match="holds a UNet2DModel"):
        read(tmp_path)
    kl().save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="truncated or from another model"):
        read(tmp_path)
