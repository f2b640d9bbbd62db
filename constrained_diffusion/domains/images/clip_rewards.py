"""Rewards of how well an image fits its prompt: the cosine of CLIP's two features, times a factor.

| reward | factor | network |
|---|---|---|
| `CLIPScore` | 100 | any CLIP |
| `PickScore` | exp(logit_scale), about 100 | ViT-H/14, fine-tuned on choices between two images |
| `HPSv2` | 1 | ViT-H/14, fine-tuned on rankings of several images |
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from constrained_diffusion.domains.images.clip import FrozenCLIP, checked_prompts
from constrained_diffusion.objectives import Reward, register


class CosineReward(Reward):
    """r(x, prompt) = factor * cos(image features, text features); subclass it, and write `factor` where it is not 1.

    Gradients flow to the images. The network runs in float32 unless it is moved to another dtype; the reward has the
    images' dtype.

    Args:
        source: see `FrozenCLIP`.
    """

    needs_prompts = True

    def __init__(self, source: str) -> None:
        super().__init__()
        self.clip = FrozenCLIP(source)

    def factor(self) -> Tensor | float:
        """Return what the cosine is multiplied by."""
        return 1.0

    def forward(self, clean: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
        """Return the reward of each image for its prompt, shape `(B,)`, values in [-factor, factor].

        Args:
            clean: images `(B, 3, H, W)` in [0, 1], clamped.
            prompts: one string per image.

        Raises:
            ValueError: there is not one prompt per image, or the images have another shape.
        """
        texts = checked_prompts(prompts, len(clean), type(self).__name__)
        cosine = (self.clip.image_features(clean) * self.clip.text_features(texts)).sum(dim=-1)
        return (self.factor() * cosine).to(clean.dtype)


@register()
class CLIPScore(CosineReward):
    """100 cos(image, text), in [-100, 100]; photographs and their captions have about 20 to 35.

    These are the values whose mean torchmetrics' CLIPScore reports, as max(mean, 0). Nothing is cut off here, because
    an image that does not fit its prompt at all needs a gradient, too. (Hessel et al. 2021, arXiv 2104.08718, has
    2.5 max(cos, 0).)

    Args:
        source: folder or hub id of a CLIP, see `FrozenCLIP`; by default that of torchmetrics.

    Raises:
        ImportError: transformers is not installed.
        FileNotFoundError: there is no such folder or hub id.
        ValueError: the folder holds no whole CLIP with its tokenizer.
    """

    def __init__(self, source: str = "openai/clip-vit-large-patch14") -> None:
        super().__init__(source)

    def factor(self) -> float:
        """Return 100."""
        return 100.0


@register()
class PickScore(CosineReward):
    """exp(logit_scale) cos(image, text) (Kirstain et al. 2023, arXiv 2305.01569); generated images have about 20.

    Args:
        source: folder or hub id, see `FrozenCLIP`; 4 GB.

    Raises:
        ImportError: transformers is not installed.
        FileNotFoundError: there is no such folder or hub id.
        ValueError: the folder holds no whole CLIP with its tokenizer.
    """

    def __init__(self, source: str = "yuvalkirstain/PickScore_v1") -> None:
        super().__init__(source)

    def factor(self) -> Tensor:
        """Return the temperature that the network was trained with, a scalar."""
        scale: Tensor = self.clip.network.logit_scale.exp()
        return scale


@register()
class HPSv2(CosineReward):
    """cos(image, text) of the HPS network (Wu et al. 2023, arXiv 2306.09341); generated images have about 0.2 to 0.35.

    The authors publish open_clip weights (hub `xswu/HPSv2`, v2.1: `HPS_v2.1_compressed.pt`). What fits here is a
    conversion of all their tensors to transformers' CLIPModel, that is, a folder that differs from the hub's
    `laion/CLIP-ViT-H-14-laion2B-s32B-b79K` in the weights alone. In its `config.json`, `hidden_act` must be "gelu" in
    both towers, since OpenAI's "quick_gelu" would load as well and give other values; `projection_dim` is 1024. The hub
    has such a conversion, `adams-story/HPSv2-hf`, but its card does not say from which version.

    Args:
        source: folder or hub id of such a conversion, see `FrozenCLIP`.

    Raises:
        ImportError: transformers is not installed.
        FileNotFoundError: there is no such folder or hub id.
        ValueError: the folder holds no whole CLIP with its tokenizer, or the config asks for another activation.
    """

    def __init__(self, source: str) -> None:
        super().__init__(source)
        config = self.clip.network.config
        for tower in (config.text_config, config.vision_config):
            if tower.hidden_act != "gelu":
                raise ValueError(
                    f"HPSv2 expects a network with hidden_act 'gelu', but the config.json of '{source}' has "
                    f"'{tower.hidden_act}' in a tower; convert it with the config of open_clip's ViT-H-14."
                )
