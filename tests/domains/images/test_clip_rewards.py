"""Rewards with prompts against transformers' own logits."""

import os

import pytest
import torch

from constrained_diffusion.domains.images.clip import clip_pixels
from constrained_diffusion.domains.images.clip_rewards import CLIPScore, HPSv2, PickScore

PROMPTS = ["a cab", "b", "c a b", "a"]
REAL_CLIP = os.environ.get("CONSTRAINED_DIFFUSION_CLIP")
every_class = pytest.mark.parametrize("cls", [CLIPScore, PickScore, HPSv2])


def images(height: int = 10, width: int = 12) -> torch.Tensor:
    return torch.rand(4, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def logits(transformers_clip, tokenizer) -> torch.Tensor:
    """exp(logit_scale) cos(image, text) of each image and its prompt, `(4,)`."""
    tokens = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        return transformers_clip(**tokens, pixel_values=clip_pixels(images(), 8)).logits_per_image.diagonal()


def test_pick_score_is_the_logit(clip_folder, logits):
    torch.testing.assert_close(PickScore(clip_folder)(images(), PROMPTS), logits)


def test_clip_score_and_hps_are_the_cosine(clip_folder, logits, transformers_clip):
    cosine = logits / transformers_clip.logit_scale.detach().exp()
    torch.testing.assert_close(CLIPScore(clip_folder)(images(), PROMPTS), 100 * cosine)
    torch.testing.assert_close(HPSv2(clip_folder)(images(), PROMPTS), cosine)


def test_nothing_is_cut_off_at_zero(clip_folder):
    reward, opposite = CLIPScore(clip_folder), CLIPScore(clip_folder)
    opposite.clip.network.text_projection.weight.neg_()
    torch.testing.assert_close(opposite(images(), PROMPTS), -reward(images(), PROMPTS))


@every_class
def test_the_gradient_reaches_the_images(cls, clip_folder):
    reward = cls(clip_folder).double()
    batch = images().double().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda clean: reward(clean, PROMPTS), batch, fast_mode=True)


@every_class
def test_climbing_it_raises_it(cls, clip_folder):
    reward, batch = cls(clip_folder), images().requires_grad_(True)
    before = reward(batch, PROMPTS)
    before.sum().backward()
    step = 0.01 * batch.grad / batch.grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert (reward(batch + step, PROMPTS) > before).all()


@every_class
def test_the_values_have_the_dtype_of_the_images(cls, clip_folder):
    reward = cls(clip_folder)
    exact = reward(images(), PROMPTS)
    for dtype in (torch.float64, torch.float16):
        values = reward(images().to(dtype), PROMPTS)
        assert values.dtype == dtype
        torch.testing.assert_close(values.float(), exact, rtol=1e-2, atol=1e-2)


@every_class
@pytest.mark.parametrize("prompts", [None, "a", ["a"]])
def test_one_prompt_per_image(cls, prompts, clip_folder):
    with pytest.raises(ValueError, match=f"{cls.__name__} expects a list of 4 prompts"):
        cls(clip_folder)(images(), prompts)


def test_hps_refuses_another_activation(new_clip, tmp_path):
    folder = new_clip(tmp_path / "clip", hidden_act="quick_gelu")
    with pytest.raises(
        ValueError, match=r"HPSv2 expects a network with hidden_act 'gelu'.*has 'quick_gelu' in a tower"
    ):
        HPSv2(str(folder))


@pytest.mark.clip_weights
@pytest.mark.skipif(REAL_CLIP is None, reason="CONSTRAINED_DIFFUSION_CLIP names no folder with clip-vit-base-patch16")
def test_clip_score_on_the_real_weights():
    noise = torch.randint(255, (3, 224, 224), generator=torch.Generator().manual_seed(42))
    value = CLIPScore(REAL_CLIP)(noise[None] / 255, ["a photo of a cat"])
    assert value.item() == pytest.approx(
        24.426, abs=0.01
    )  # the example in the documentation of torchmetrics' clip_score
