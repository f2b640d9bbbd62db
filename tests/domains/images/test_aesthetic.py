"""The aesthetic head against its formula in numpy."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from constrained_diffusion.domains.images.aesthetic import LAIONAesthetic, load_head
from constrained_diffusion.domains.images.clip import clip_pixels

IMAGES = torch.rand(3, 3, 10, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["safetensors", "pth"])
def head_file(request, published_head, tmp_path):
    path = tmp_path / f"head.{request.param}"
    (save_file if request.param == "safetensors" else torch.save)(published_head, path)
    return str(path)


def test_is_five_linear_maps_of_the_unit_features(clip_folder, transformers_clip, published_head, head_file):
    with torch.no_grad():
        pooled = transformers_clip.vision_model(pixel_values=clip_pixels(IMAGES, 8)).pooler_output
        values = transformers_clip.visual_projection(pooled).double().numpy()
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    for number in (0, 2, 4, 6, 7):
        weight, bias = (published_head[f"layers.{number}.{kind}"].double().numpy() for kind in ("weight", "bias"))
        values = values @ weight.T + bias
    rating = LAIONAesthetic(head_file, clip_folder)(IMAGES)
    torch.testing.assert_close(rating.double(), torch.from_numpy(values[:, 0]), rtol=1e-4, atol=1e-4)


def test_the_gradient_reaches_the_images(clip_folder, head_file):
    reward = LAIONAesthetic(head_file, clip_folder).double()
    assert torch.autograd.gradcheck(reward, IMAGES.double().requires_grad_(True), fast_mode=True)
    assert not any(p.requires_grad for p in reward.parameters())


def test_names_without_a_prefix_do_as_well(published_head, tmp_path):
    save_file(
        {name.removeprefix("layers."): value for name, value in published_head.items()}, tmp_path / "h.safetensors"
    )
    torch.testing.assert_close(load_head(tmp_path / "h.safetensors", 12)[7].bias, published_head["layers.7.bias"])


def test_head_of_another_width(head_file):
    with pytest.raises(ValueError, match=r"weights of a head 768-1024-128-64-16-1.*size mismatch.*of width 768"):
        load_head(head_file, 768)


@pytest.mark.parametrize("content", [{"layers.0.weight": torch.zeros(1024, 12)}, torch.zeros(3), {"code": print}])
def test_files_of_another_kind(tmp_path, content):
    torch.save(content, tmp_path / "head.pth")
    with pytest.raises(ValueError, match=r"head\.pth' does not hold the plain weights of a head 12-1024-128-64-16-1"):
        load_head(tmp_path / "head.pth", 12)


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_truncated_file(kind, tmp_path):
    (tmp_path / f"head.{kind}").write_bytes(b"\x80\x02}q")
    with pytest.raises(ValueError, match="does not hold the plain weights"):
        load_head(tmp_path / f"head.{kind}", 12)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file at '.*none\.pth'; download sac\+logos\+ava1"):
        load_head(tmp_path / "none.pth", 12)
