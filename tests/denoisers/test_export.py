"""Exported folders are opened by diffusers, and by us to the last bit."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, UNet2DConditionModel, UNet2DModel
from torch import nn

from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.denoisers.autoencoder import Autoencoder, small_autoencoder
from constrained_diffusion.denoisers.config import build, denoiser_config
from constrained_diffusion.denoisers.export import export, weights_sha256
from constrained_diffusion.denoisers.loading import PretrainedDenoiser
from constrained_diffusion.denoisers.schedule import DiffusersSchedule
from constrained_diffusion.diffusion.normalizer import Normalizer
from constrained_diffusion.diffusion.sampler import Sampler, sample
from constrained_diffusion.diffusion.variance_preserving import VariancePreserving


def make(unet: Any, **settings: Any) -> Denoiser:
    schedule = DiffusersSchedule({"num_train_timesteps": 50, "beta_schedule": "squaredcos_cap_v2"})
    return Denoiser(unet(), schedule, **settings)


def test_both_pipelines_of_diffusers_open_and_sample(tmp_path: Path, unet: Any) -> None:
    folder = export(make(unet), tmp_path / "new" / "export")
    assert folder == tmp_path / "new" / "export"
    for cls in (DDPMPipeline, DDIMPipeline):
        pipeline = cls.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        images = pipeline(batch_size=2, num_inference_steps=3, output_type="np").images
        assert images.shape == (2, 8, 8, 1)
        assert np.isfinite(images).all()


def test_diffusers_draws_the_images_that_we_draw(tmp_path: Path, unet: Any) -> None:
    denoiser = make(unet)
    pipeline = DDIMPipeline.from_pretrained(export(denoiser, tmp_path / "export"))
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(5)
    theirs = pipeline(batch_size=3, generator=generator, num_inference_steps=10, output_type="np").images
    z = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(5))[:, None]
    with torch.no_grad():
        ours = sample(denoiser.predict, denoiser.noise_schedule, z, Sampler(10))
    ours = denoiser.codec.decode(denoiser.codec.clamp(ours))
    np.testing.assert_allclose(theirs[..., 0], ours[:, 0].numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("foreign_schedule", [False, True])
def test_a_reloaded_denoiser_answers_to_the_last_bit(
    tmp_path: Path, unet: Any, answers: Any, foreign_schedule: bool
) -> None:
    denoiser = make(unet, codec=Normalizer(mean=0.1, std=[0.3], low=-0.5))
    if foreign_schedule:
        abar = torch.cos(torch.linspace(0.05, 1.5, 50)) ** 2
        denoiser = Denoiser(unet(), VariancePreserving(abar, "v_prediction"), denoiser.codec)
    reloaded = PretrainedDenoiser(str(export(denoiser, tmp_path / "export")))
    assert torch.equal(answers(reloaded), answers(denoiser))
    assert reloaded.codec.settings == denoiser.codec.settings
    assert weights_sha256(reloaded.network) == weights_sha256(denoiser.network)


def test_a_foreign_schedule_reaches_diffusers_too(tmp_path: Path, unet: Any) -> None:
    schedule = VariancePreserving(torch.cos(torch.linspace(0.05, 1.5, 50)) ** 2, "v_prediction")
    scheduler = DDPMPipeline.from_pretrained(export(Denoiser(unet(), schedule), tmp_path / "export")).scheduler
    torch.testing.assert_close(scheduler.alphas_cumprod, schedule.alphas_cumprod, rtol=1e-5, atol=1e-7)
    assert scheduler.config.prediction_type == "v_prediction"


def test_the_ema_weights_are_exported_in_place_of_the_raw_ones(tmp_path: Path, unet: Any, answers: Any) -> None:
    denoiser, ema = make(unet), unet(1).requires_grad_(False)
    raw = weights_sha256(denoiser.network)
    reloaded = PretrainedDenoiser(str(export(denoiser, tmp_path / "export", network=ema)))
    assert weights_sha256(reloaded.network) == weights_sha256(ema) != raw
    assert weights_sha256(denoiser.network) == raw
    assert torch.equal(answers(reloaded), answers(Denoiser(ema, denoiser.noise_schedule)))


def test_a_conditional_network_becomes_a_model_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = UNet2DConditionModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=6,
        norm_num_groups=4,
        attention_head_dim=4,
    ).eval()
    denoiser = make(lambda: network)
    folder = export(denoiser, tmp_path / "export")
    reloaded = PretrainedDenoiser(str(folder))
    inputs = (torch.randn(2, 1, 8, 8), torch.tensor([3, 40]), {"encoder_hidden_states": torch.randn(2, 4, 6)})
    with torch.no_grad():
        assert torch.equal(reloaded(*inputs), denoiser(*inputs))
    assert weights_sha256(UNet2DConditionModel.from_pretrained(folder)) == weights_sha256(network)


def test_a_foreign_network_becomes_safetensors(tmp_path: Path, tiny_denoiser: Any, answers: Any) -> None:
    denoiser = tiny_denoiser(seed=2)
    folder = export(denoiser, tmp_path / "export")
    assert {file.name for file in folder.iterdir()} == {"model.safetensors", "constrained_diffusion.json"}
    reloaded = PretrainedDenoiser(str(folder), network=tiny_denoiser(seed=3).network)
    assert torch.equal(answers(reloaded), answers(denoiser))
    with pytest.raises(ValueError, match=r"its network \(TinyNetwork\): give the network"):
        PretrainedDenoiser(str(folder))


def test_the_autoencoder_of_a_foreign_network_lies_beside_it(tmp_path: Path, tiny_denoiser: Any, answers: Any) -> None:
    tiny, codec = tiny_denoiser(), Autoencoder(network=small_autoencoder(3, [8, 16], 1, groups=4))
    denoiser = Denoiser(tiny.network, tiny.noise_schedule, codec, (1, 8, 8))
    folder, network = export(denoiser, tmp_path / "export"), tiny_denoiser(seed=1).network
    reloaded, latents = PretrainedDenoiser(str(folder), network=network), torch.randn(2, 1, 8, 8)
    assert torch.equal(answers(reloaded), answers(denoiser))
    assert torch.equal(reloaded.codec.decode(latents), codec.decode(latents))


def test_shared_weights_of_a_foreign_network_are_written(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.b = self.a

        def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(self.b(self.a(noisy)))

    denoiser = Denoiser(Tied(), VariancePreserving([0.5]), sample_shape=(4,))
    reloaded = PretrainedDenoiser(str(export(denoiser, tmp_path / "export")), network=Tied())
    assert weights_sha256(reloaded.network) == weights_sha256(denoiser.network)


def test_the_empty_condition_is_kept(unet: Any, tmp_path: Path) -> None:
    schedule = VariancePreserving(torch.linspace(0.9, 0.1, 50))
    denoiser = Denoiser(unet(num_class_embeds=4), schedule, null_condition={"class_labels": 3})
    config = json.loads(json.dumps(denoiser_config(denoiser)))
    assert int(build(config).null_condition["class_labels"]) == 3
    read = PretrainedDenoiser(str(export(denoiser, tmp_path / "export")), guidance_scale=2.0)
    assert int(read.null_condition["class_labels"]) == 3


def test_no_path_of_this_machine_is_written(tmp_path: Path, pipeline: Path) -> None:
    folder = export(PretrainedDenoiser(str(pipeline)), tmp_path / "export")
    texts = [file.read_text() for file in folder.rglob("*.json")]
    assert len(texts) == 4
    assert not any(str(tmp_path) in text for text in texts)


def test_exporting_what_was_loaded_changes_nothing(tmp_path: Path, pipeline: Path, answers: Any) -> None:
    first = PretrainedDenoiser(str(pipeline))
    second = PretrainedDenoiser(str(export(first, tmp_path / "export")))
    assert torch.equal(answers(first), answers(second))
    assert second.noise_schedule.config == first.noise_schedule.config  # type: ignore[union-attr]


def test_weights_may_be_read_by_whoever_may_read_the_rest(tmp_path: Path, unet: Any, tiny_denoiser: Any) -> None:
    for name, denoiser in (("pipeline", make(unet)), ("foreign", tiny_denoiser())):
        folder = export(denoiser, tmp_path / name)
        assert len({file.stat().st_mode for file in folder.rglob("*") if file.is_file()}) == 1


# -------------------------------------------------------------------------------------------------------------- folders


def test_an_empty_folder_and_an_earlier_export_are_written(tmp_path: Path, unet: Any, tiny_denoiser: Any) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    export(tiny_denoiser(), folder)
    export(make(unet), folder)
    assert not (folder / "model.safetensors").exists()  # nothing of the first is left to be mistaken
    assert isinstance(PretrainedDenoiser(str(folder)).network, UNet2DModel)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


@pytest.mark.parametrize("other", ["notes.txt", "unet/weights.bin"])
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, unet: Any, other: str) -> None:
    file = tmp_path / "export" / other
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with pytest.raises(ValueError, match=f"something else already .{other.split('/')[0]}.: .* an empty folder"):
        export(make(unet), tmp_path / "export")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]
    assert file.read_text() == "mine"


def test_a_file_beside_an_earlier_export_is_left_alone(tmp_path: Path, unet: Any) -> None:
    folder = export(make(unet), tmp_path / "export")
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds something else already \(notes.txt\)"):
        export(make(unet), folder)
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_file_in_the_folders_place_is_left_alone(tmp_path: Path, unet: Any) -> None:
    (tmp_path / "export").write_text("mine")
    with pytest.raises(ValueError, match="holds something else already"):
        export(make(unet), tmp_path / "export")
    assert (tmp_path / "export").read_text() == "mine"


# ----------------------------------------------------------------------------------------------------------------- hash


def test_the_hash_is_that_of_names_and_bytes() -> None:
    module = nn.BatchNorm1d(3).bfloat16()
    expected = hashlib.sha256()
    for name in ["bias", "num_batches_tracked", "running_mean", "running_var", "weight"]:
        expected.update(name.encode())
        values = getattr(module, name).detach()
        if name == "num_batches_tracked":
            expected.update(np.int64(0).tobytes())
        else:  # bfloat16 is the upper half of float32
            expected.update(b"".join(word[2:] for word in (np.float32(v).tobytes() for v in values.float())))
    assert weights_sha256(module) == expected.hexdigest()


def test_the_hash_sees_every_weight_and_only_the_weights(unet: Any) -> None:
    module = unet(0)
    before = weights_sha256(module)
    assert weights_sha256(unet(0).train().requires_grad_(False)) == before
    with torch.no_grad():
        module.conv_out.bias[0] += 1e-6
    assert weights_sha256(module) != before


def test_the_json_beside_the_weights_holds_units_and_shape(tmp_path: Path, unet: Any) -> None:
    folder = export(make(unet), tmp_path / "export")
    stored = json.loads((folder / "constrained_diffusion.json").read_text())
    assert stored.pop("sampler_settings") == {}  # which diffusers' own file has no place for
    assert stored == {
        "codec": {"mean": 0.5, "std": 0.5, "low": 0.0, "high": 1.0},
        "sample_shape": [1, 8, 8],
    }
