"""The frozen CLIP against transformers' own network and image processor."""

import copy
import re
import sys
from pathlib import Path

import pytest
import torch

from constrained_diffusion.domains.images import clip
from constrained_diffusion.domains.images.clip import FrozenCLIP, checked_prompts, clip_pixels
from constrained_diffusion.runtime.distribution import install_hint

PROMPTS = ["a cab", "b", "a b c a b c a b c a b c", "a cab"]


def images(height: int = 8, width: int = 8, rows: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.rand(rows, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (33, 50), (50, 33), (5, 7), (9, 8), (8, 11)])
def test_pixels_are_those_of_the_image_processor(height, width):
    from transformers import CLIPImageProcessor

    smooth = torch.nn.functional.avg_pool2d(images(height + 4, width + 4), 5, stride=1)
    eight_bit = (smooth * 255).round().to(torch.uint8)
    processor = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    expected = processor(list(eight_bit), return_tensors="pt")["pixel_values"]
    step = 1 / 255 / min(clip.STD)  # the processor rounds to 8 bits after resizing
    torch.testing.assert_close(clip_pixels(eight_bit / 255, 8), expected, rtol=0, atol=step)


def test_pixels_are_clamped():
    batch = images()
    torch.testing.assert_close(clip_pixels(batch * 4 - 1, 8), clip_pixels((batch * 4 - 1).clamp(0, 1), 8))


def test_the_gradient_of_the_pixels():
    batch = (0.1 + 0.8 * images(7, 12, rows=1)).double().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: clip_pixels(x, 4), batch)


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (3, 8, 8)])
def test_other_shapes(shape):
    with pytest.raises(ValueError, match=r"CLIP expects images of shape \(B, 3, H, W\), got \("):
        clip_pixels(torch.zeros(shape), 8)


def test_features_are_those_of_transformers(clip_folder, transformers_clip, tokenizer):
    ours, batch = FrozenCLIP(clip_folder), images()
    tokens = tokenizer(PROMPTS, padding=True, truncation=True, max_length=10, return_tensors="pt")
    with torch.no_grad():
        theirs = transformers_clip(**tokens, pixel_values=clip_pixels(batch, 8))
    torch.testing.assert_close(ours.image_features(batch), theirs.image_embeds)
    torch.testing.assert_close(ours.text_features(PROMPTS), theirs.text_embeds)
    assert ours.width == theirs.text_embeds.shape[1] == 12


def test_is_frozen_and_stays_in_eval_mode(clip_folder):
    network = FrozenCLIP(clip_folder).train()
    assert network.training
    assert not any(module.training for module in network.network.modules())
    assert not any(p.requires_grad for p in network.parameters())


def test_a_prompt_is_encoded_once(clip_folder, monkeypatch):
    network = FrozenCLIP(clip_folder)
    encoded, encode = [], network._encoded
    monkeypatch.setattr(network, "_encoded", lambda prompts: encoded.extend(prompts) or encode(prompts))
    first = network.text_features(PROMPTS)
    torch.testing.assert_close(network.text_features(PROMPTS[::-1]), first.flip(0), rtol=0, atol=0)
    network.text_features(["c", "b"])
    assert encoded == [*dict.fromkeys(PROMPTS), "c"]


def test_memory_of_prompts_is_limited(clip_folder, monkeypatch):
    monkeypatch.setattr(clip, "REMEMBERED_PROMPTS", 2)
    network = FrozenCLIP(clip_folder)
    torch.testing.assert_close(network.text_features(PROMPTS), FrozenCLIP(clip_folder).text_features(PROMPTS))
    assert [key[0] for key in network._remembered] == PROMPTS[1:3]


def test_what_is_remembered_serves_training_and_other_precisions(clip_folder):
    network = FrozenCLIP(clip_folder)
    with torch.inference_mode(), torch.autocast("cpu"):
        remembered = network.text_features(PROMPTS)
    assert remembered.dtype == torch.float32
    batch = images().requires_grad_(True)
    (network.image_features(batch) * network.text_features(PROMPTS)).sum().backward()
    assert batch.grad.abs().sum() > 0
    torch.testing.assert_close(network.text_features(PROMPTS), FrozenCLIP(clip_folder).text_features(PROMPTS))
    exact = copy.deepcopy(network).double().text_features(PROMPTS)
    torch.testing.assert_close(exact, FrozenCLIP(clip_folder).double().text_features(PROMPTS), rtol=0, atol=0)


def test_weights_in_half_precision_are_widened(clip_folder, transformers_clip, tokenizer, tmp_path):
    copy.deepcopy(transformers_clip).half().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    features = FrozenCLIP(str(tmp_path)).image_features(images())
    torch.testing.assert_close(features, FrozenCLIP(clip_folder).image_features(images()), rtol=0.05, atol=0.01)
    assert features.dtype == torch.float32


def test_without_text_there_is_no_text_tower(clip_folder):
    whole, image_alone = FrozenCLIP(clip_folder), FrozenCLIP(clip_folder, text=False)
    torch.testing.assert_close(image_alone.image_features(images()), whole.image_features(images()))
    assert not any("text" in name for name in image_alone.state_dict())


def test_neither_folder_nor_hub_id(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder at '.*none', and could not be had from the hub.*check the"):
        FrozenCLIP(str(tmp_path / "none"))


def test_folder_without_weights(tmp_path):
    with pytest.raises(ValueError, match=r"holds no complete CLIP .*should have config\.json, weights and the tok"):
        FrozenCLIP(str(tmp_path))


def test_truncated_weights(new_clip, tmp_path):
    weights = new_clip(tmp_path / "clip") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:3000])
    with pytest.raises(ValueError, match="holds no complete CLIP .*fetch or convert it again"):
        FrozenCLIP(str(tmp_path / "clip"))


def test_weights_of_part_of_a_clip(clip_folder, new_clip, transformers_clip, tmp_path):
    folder = new_clip(tmp_path / "clip")
    weights = {name: value for name, value in transformers_clip.state_dict().items() if not name.startswith("visual")}
    transformers_clip.save_pretrained(folder, state_dict=weights)
    with pytest.raises(ValueError, match=r"lacks 1 of CLIP's tensors, such as visual_projection\.weight"):
        FrozenCLIP(str(folder))


def test_folder_without_tokenizer(new_clip, tmp_path):
    folder: Path = new_clip(tmp_path / "clip")
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (folder / name).unlink()
    FrozenCLIP(str(folder), text=False)
    with pytest.raises(ValueError, match=r"tokenizer"):
        FrozenCLIP(str(folder))


def test_without_transformers(monkeypatch, clip_folder):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=re.escape(install_hint("text-to-image"))):
        FrozenCLIP(clip_folder)


@pytest.mark.parametrize(
    ("prompts", "given"), [(None, "none"), ("ab", "'ab'"), (["a"], "1"), (["a", "b", "c"], "3"), ([], "0")]
)
def test_one_prompt_per_image(prompts, given):
    assert checked_prompts(("a", "b"), 2, "R") == ["a", "b"]
    with pytest.raises(ValueError, match=f"R expects a list of 2 prompts, one for each image, got {given}"):
        checked_prompts(prompts, 2, "R")
