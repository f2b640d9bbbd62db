"""The size of an image as a JPEG file: a reward without a gradient."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from PIL import Image
from torch import Tensor

from constrained_diffusion.objectives import Reward, register


def jpeg_bytes(pixels: Tensor, quality: int) -> int:
    """Return the size in bytes of one 8-bit image `(C, H, W)`, C = 1 or 3, on the CPU, as a JPEG file by Pillow."""
    array = pixels.permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(array if array.shape[2] == 3 else array[:, :, 0]).save(file, "JPEG", quality=quality)
    return file.tell()


@register()
class JPEGCompressibility(Reward):
    """Minus the size of the image as a JPEG file, in kB (1000 bytes): smoother is better.

    A black box, piecewise constant in the pixels (Black et al. 2023, arXiv 2305.13301). The rows are encoded in
    threads, since Pillow lets go of Python's global lock meanwhile.

    Args:
        quality: JPEG quality, from 1 to 100; DNO's released code uses 95.

    Raises:
        ValueError: the quality is out of range.
    """

    differentiable = False

    def __init__(self, quality: int = 95) -> None:
        super().__init__()
        if not 1 <= quality <= 100:
            raise ValueError(f"JPEGCompressibility expects a quality from 1 to 100, got {quality}.")
        self.quality = quality

    def forward(self, clean: Tensor) -> Tensor:
        """Return minus the file size in kB, shape `(B,)`, values < 0.

        Args:
            clean: `(B, 1, H, W)` grey or `(B, 3, H, W)` RGB in [0, 1]; clamped, and rounded to 8 bits.

        Raises:
            ValueError: the samples are no grey or RGB images.
        """
        if clean.ndim != 4 or clean.shape[1] not in (1, 3):
            raise ValueError(
                "JPEGCompressibility expects images of shape (B, 1, H, W) or (B, 3, H, W), got samples of shape "
                f"{tuple(clean.shape)}; decode latents to images first."
            )
        pixels = (clean.detach().float().clamp(0, 1) * 255).round().to("cpu", torch.uint8)
        with ThreadPoolExecutor() as pool:
            sizes = list(pool.map(partial(jpeg_bytes, quality=self.quality), pixels))
        return -clean.new_tensor(sizes) / 1000
