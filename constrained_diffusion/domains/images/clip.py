"""The frozen CLIP behind learnt image rewards: both towers, and images made ready for it with a gradient.

transformers is imported only when a network is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from constrained_diffusion.runtime.distribution import needs_extra

MEAN = (0.48145466, 0.4578275, 0.40821073)  #: of the RGB channels, as all CLIPs named in this package were trained
STD = (0.26862954, 0.26130258, 0.27577711)
REMEMBERED_PROMPTS = 1024


def clip_pixels(images: Tensor, size: int) -> Tensor:
    """Return what CLIP's image tower takes: `images` clamped, resized, cropped and normalised, with their gradient.

    The shorter side becomes `size` by antialiased bicubic interpolation, as Pillow does it, then the middle square is
    cut out (Radford et al. 2021, arXiv 2103.00020; its released preprocessing).

    Args:
        images: `(B, 3, H, W)` in [0, 1], float32 or wider.
        size: side of the square in pixels.

    Returns:
        `(B, 3, size, size)`.

    Raises:
        ValueError: the images have another shape.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"CLIP expects images of shape (B, 3, H, W), got {tuple(images.shape)}; repeat the channel of grey images "
            "and decode latents first."
        )
    height, width = images.shape[2:]
    shorter = min(height, width)
    resized = images.clamp(0, 1)
    if shorter != size:
        shape = (size * height // shorter, size * width // shorter)
        resized = functional.interpolate(resized, shape, mode="bicubic", antialias=True)
    top, left = ((side - size) // 2 for side in resized.shape[2:])
    square = resized[:, :, top : top + size, left : left + size]
    mean, std = (square.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (square - mean) / std


def checked_prompts(prompts: Sequence[str] | None, rows: int, name: str) -> list[str]:
    """Return the prompts of reward `name` as a list of length `rows`.

    Raises:
        ValueError: there are none, or not one per row, or a single string was given.
    """
    if prompts is None or isinstance(prompts, str) or len(prompts) != rows:
        given = "none" if prompts is None else repr(prompts) if isinstance(prompts, str) else str(len(prompts))
        raise ValueError(f"{name} expects a list of {rows} prompts, one for each image, got {given}.")
    return list(prompts)


class FrozenCLIP(nn.Module):
    """A CLIP network from disk or the hub, frozen, in float32 and always in eval mode.

    Features are of unit length, so that the product of two is the cosine of the angle between them.

    Args:
        source: a folder in transformers' format (`config.json`, weights, tokenizer), or a hub id `owner/name`, which is
            downloaded or found in the hub's cache (`HF_HUB_OFFLINE=1`: in the cache alone).
        text: whether the text tower and its tokenizer are needed.

    Raises:
        ImportError: transformers is not installed.
        FileNotFoundError: `source` is no folder here, and cannot be had from the hub.
        ValueError: the folder holds no CLIP, lacks some of its weights, or lacks the tokenizer.
    """

    def __init__(self, source: str, text: bool = True) -> None:
        super().__init__()
        self.network, self._tokenizer = _load(str(source), text)
        self.network.requires_grad_(False).float().eval()
        self.image_size: int = self.network.config.vision_config.image_size
        self.width: int = self.network.config.projection_dim  #: d, of the features
        self._remembered: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def train(self, mode: bool = True) -> Self:
        """Set the mode of this module alone; the network stays in eval mode."""
        super().train(mode)
        self.network.eval()
        return self

    def image_features(self, images: Tensor) -> Tensor:
        """Return features `(B, d)` of `images` `(B, 3, H, W)` in [0, 1], in the network's dtype, with a gradient."""
        dtype = self.network.dtype
        pixels = clip_pixels(images.to(torch.promote_types(dtype, torch.float32)), self.image_size)
        pooled = self.network.vision_model(pixel_values=pixels.to(dtype)).pooler_output
        return functional.normalize(self.network.visual_projection(pooled), dim=-1)

    def text_features(self, prompts: Sequence[str]) -> Tensor:
        """Return features `(B, d)` of `prompts`, in the network's dtype, without a gradient.

        Prompts longer than the text tower takes (77 tokens in most CLIPs) are cut. The features of the last prompts
        are remembered, so that a prompt costs only once.
        """
        keys = [(prompt, self.network.dtype, self.network.device) for prompt in prompts]
        found = {key: self._remembered[key] for key in keys if key in self._remembered}
        new = [key for key in dict.fromkeys(keys) if key not in found]
        if new:
            found |= zip(new, self._encoded([key[0] for key in new]), strict=True)
            self._remembered |= found
            for key in list(self._remembered)[:-REMEMBERED_PROMPTS]:
                del self._remembered[key]
        return torch.stack([found[key] for key in keys])

    # What is remembered must serve any later call: it is neither an inference tensor nor rounded by autocast.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _encoded(self, prompts: list[str]) -> Tensor:
        longest = self.network.config.text_config.max_position_embeddings
        tokens = self._tokenizer(prompts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        device = self.network.device
        ids, mask = tokens["input_ids"].to(device), tokens["attention_mask"].to(device)
        with torch.autocast(device.type, enabled=False):
            pooled = self.network.text_model(input_ids=ids, attention_mask=mask).pooler_output
            return functional.normalize(self.network.text_projection(pooled), dim=-1)


def _load(source: str, text: bool) -> tuple[Any, Any]:
    with needs_extra("text-to-image", "CLIP needs transformers"):
        from transformers import AutoTokenizer, CLIPModel
    source = str(Path(source).expanduser()) if Path(source).expanduser().is_dir() else source
    try:
        loaded: Any = CLIPModel.from_pretrained(source, output_loading_info=True)
        # Not left out: then transformers would ask at the terminal whether to run a tokenizer's own code.
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False) if text else None
    except Exception as error:  # transformers, its hub's client and the file formats have no exception in common
        reason = f"({type(error).__name__}: {(str(error).splitlines() or [''])[0]})"
        if Path(source).is_dir():
            raise ValueError(
                f"'{source}' holds no complete CLIP in transformers' format {reason}: it should have config.json, "
                f"weights{' and the tokenizer' if text else ''}; fetch or convert it again."
            ) from error
        raise FileNotFoundError(
            f"CLIP is no folder at '{source}', and could not be had from the hub {reason}: check the name and the "
            "connection, or give the path of a downloaded folder."
        ) from error
    network, report = loaded
    if report["missing_keys"]:
        raise ValueError(
            f"'{source}' lacks {len(report['missing_keys'])} of CLIP's tensors, such as "
            f"{min(report['missing_keys'])}; give a whole CLIPModel in transformers' format."
        )
    words = network.config.text_config.vocab_size
    if tokenizer is not None and len(tokenizer) < words:
        raise ValueError(
            f"'{source}' has a tokenizer of {len(tokenizer)} tokens, where its text tower knows {words}; put the "
            "tokenizer.json (or vocab.json and merges.txt) of the CLIP that it was trained from beside its weights."
        )
    if not text:
        del network.text_model, network.text_projection
    return network, tokenizer
