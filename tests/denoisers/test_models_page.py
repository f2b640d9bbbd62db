"""Every row of the table of sources in docs/models.md, and the block below it, as they stand there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from constrained_diffusion.denoisers import packed
from constrained_diffusion.denoisers.loading import PretrainedDenoiser
from constrained_diffusion.denoisers.schedule import DiffusersSchedule
from constrained_diffusion.diffusion.normalizer import Normalizer
from constrained_diffusion.diffusion.sampler import Sampler, seeded_noise

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
ROWS = {name: re.findall(r"`([^`]+)`", lines) for name, lines in re.findall(r"^\| ([^|]+) \| (`.+`) \|$", PAGE, re.M)}
(BLOCK,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
STANDS_FOR = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "sd",
    "stabilityai/stable-diffusion-3.5-medium": "sd3",
    "black-forest-labs/FLUX.1-dev": "flux",
    "black-forest-labs/FLUX.1-schnell": "schnell",
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS": "pixart_sigma",
    "Efficient-Large-Model/Sana_600M_512px_diffusers": "sana",
    "stabilityai/sd-turbo": "turbo",
    "SimianLuo/LCM_Dreamshaper_v7": "lcm",
    "openai/diffusers-cd_bedroom256_l2": "consistency",
    "facebook/DiT-XL-2-256": "dit",
    "CompVis/ldm-celebahq-256": "ldm",
    "google/ddpm-cat-256": "ddim",
}


class MyUNet(nn.Module):
    """A network that is not diffusers', without a config that tells the shape of a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        output: Tensor = self.conv(noisy)
        return output


@pytest.fixture
def here(folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the page names, tiny and random."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(packed, "SIDE", 8)
    shutil.copytree(folders["sdxl"], "stabilityai/stable-diffusion-xl-base-1.0")
    for file in Path("stabilityai").rglob("*.safetensors"):
        half = {name: tensor.half() for name, tensor in load_file(file).items()}
        save_file(half, file.with_name(file.name.replace(".", ".fp16.", 1)), {"format": "pt"})
        file.unlink()
    down, up = ("DownBlock1DNoSkip", "DownBlock1D"), ("UpBlock1D", "UpBlock1DNoSkip")
    blocks = {"down_block_types": down, "up_block_types": up}
    audio = diffusers.UNet1DModel(sample_size=32, extra_in_channels=16, block_out_channels=(8, 32), **blocks)
    audio.save_pretrained("my-audio-unet")
    diffusers.DDIMScheduler().save_pretrained("my-audio-unet/scheduler")
    state = MyUNet().state_dict()
    torch.save(state, "my.pt")
    torch.save({"state_dict": {f"model.{name}": tensor for name, tensor in state.items()}}, "my.ckpt")
    # The file holds the UNet alone, by the names of diffusers; the folder has all the rest.
    shutil.copytree(folders["sd"], "sd15-configs")
    Path("sd15-configs/unet/diffusion_pytorch_model.safetensors").rename("dreamshaper.safetensors")
    return tmp_path


def test_each_row_is_executed_and_draws(here: Path, folders: Any) -> None:
    assert len(ROWS) == 18
    for name, lines in ROWS.items():
        assert 1 <= len(lines) <= 6
        names: dict[str, Any] = {
            "PretrainedDenoiser": lambda source, **settings: PretrainedDenoiser(
                str(folders[STANDS_FOR[source]]) if source in STANDS_FOR else source, **settings
            ),
            "Sampler": Sampler,
            "Normalizer": Normalizer,
            "DiffusersSchedule": DiffusersSchedule,
            "MyUNet": MyUNet,
            "torch": torch,
            "seeded_noise": seeded_noise,
            "sampler": Sampler(steps=2),
            "condition": None,
        }
        exec("\n".join(lines), names)
        denoiser, block = names["denoiser"], BLOCK
        if not denoiser.has_prompts:
            block = block.partition("\n")[2]
        with torch.no_grad():
            exec(block, names)
        assert names["pictures"].shape == (2, *denoiser.data_shape), name
        assert names["pictures"].isfinite().all(), name
