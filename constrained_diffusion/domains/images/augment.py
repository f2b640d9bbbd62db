"""Random changes to training images, keyed row by row, so that ranks, resumes and batch sizes agree by construction.

An augmentation is called as `augment(images, keys)`: `images` `(B, C, H, W)` and one integer tuple per row, from which
alone that row's random numbers follow (`constrained_diffusion.runtime.randomness`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from constrained_diffusion.runtime.randomness import Keys, keyed_normal, keyed_uniform

AFFINE, SOFTEN, PIXELS = 0xAF, 0x50, 0x51  # streams of random numbers


def affine(images: Tensor, angle: Tensor, zoom: Tensor, shear: Tensor, shift: Tensor) -> Tensor:
    """Turn, enlarge, slant and shift each of `images` `(B, C, H, W)` about its middle; what comes in is 0.

    Args:
        images: the images.
        angle: radians, `(B,)`.
        zoom: factor of the size, `(B,)`; above 1 enlarges.
        shear: horizontal shift per unit of height, `(B,)`.
        shift: in half widths, `(B, 2)`.
    """
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    rows = [cos, cos * shear - sin, shift[:, 0], sin, sin * shear + cos, shift[:, 1]]  # output to input coordinates
    grid = functional.affine_grid(torch.stack(rows, dim=1).reshape(-1, 2, 3), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def gaussian_blur(images: Tensor, sigma: Tensor, radius: int = 3) -> Tensor:
    """Blur each of `images` `(B, C, H, W)` by its own Gaussian, `sigma` `(B,)` in pixels, cut off at `radius`."""
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma.clamp(min=1e-3)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(images.shape[1], dim=0)
    rows = images.reshape(1, -1, *images.shape[2:])
    groups = rows.shape[1]
    rows = functional.conv2d(rows, kernel[:, None, None, :], padding=(0, radius), groups=groups)
    rows = functional.conv2d(rows, kernel[:, None, :, None], padding=(radius, 0), groups=groups)
    return rows.reshape(images.shape)


class KeyedAffine(nn.Module):
    """Small turns, zooms, slants and shifts, each drawn uniformly.

    Args:
        degrees: largest turn to either side.
        shift: largest shift to each side, as a share of the image's side.
        zoom: largest relative change of size; 0.1 draws from [1 / 1.1, 1.1].
        shear: largest slant, in widths per height.
    """

    def __init__(self, degrees: float = 10.0, shift: float = 0.07, zoom: float = 0.1, shear: float = 0.0) -> None:
        super().__init__()
        if min(degrees, shift, zoom, shear) < 0:
            raise ValueError(f"KeyedAffine expects sizes >= 0, got {degrees}, {shift}, {zoom} and {shear}.")
        self.degrees, self.shift, self.zoom, self.shear = degrees, shift, zoom, shear

    def forward(self, images: Tensor, keys: Keys) -> Tensor:
        """Return changed images of the same shape."""
        draws = 2 * keyed_uniform(keys, AFFINE, 5, images) - 1
        angle = draws[:, 0] * math.radians(self.degrees)
        zoom = (1 + self.zoom) ** draws[:, 1]
        return affine(images, angle, zoom, draws[:, 2] * self.shear, draws[:, 3:] * 2 * self.shift)


class KeyedSoftening(nn.Module):
    """Blur, fade and noise on a share of the rows, after which an image in [0, 1] looks like a denoiser's early guess.

    A constraint judges predicted clean samples, which are blurred and pale at high noise levels; a classifier that has
    seen such images does not answer there at random.

    Args:
        blur: largest sigma of the Gaussian, in pixels.
        fade: largest loss of contrast; 0.5 multiplies by 0.5 to 1.
        noise: largest standard deviation of white noise, in the images' units.
        share: probability that a row is changed at all.
    """

    def __init__(self, blur: float = 1.5, fade: float = 0.5, noise: float = 0.1, share: float = 0.5) -> None:
        super().__init__()
        if min(blur, fade, noise) < 0 or fade >= 1 or not 0 <= share <= 1:
            raise ValueError(
                "KeyedSoftening expects blur, noise >= 0, fade in [0, 1) and share in [0, 1], "
                f"got {blur}, {noise}, {fade} and {share}."
            )
        self.blur, self.fade, self.noise, self.share = blur, fade, noise, share

    def forward(self, images: Tensor, keys: Keys) -> Tensor:
        """Return changed images of the same shape, clamped to [0, 1]."""
        draws = keyed_uniform(keys, SOFTEN, 4, images)
        chosen, blur, fade, noise = (column.reshape(-1, 1, 1, 1) for column in draws.T)
        white = keyed_normal([(*key, PIXELS) for key in keys], images.shape[1:]).to(images)
        soft = gaussian_blur(images, self.blur * blur.flatten()) * (1 - self.fade * fade) + self.noise * noise * white
        return torch.where(chosen < self.share, soft.clamp(0, 1), images)


class KeyedChain(nn.Module):
    """Several augmentations, one after the other.

    Args:
        steps: the augmentations in order.
    """

    def __init__(self, steps: list[nn.Module]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)

    def forward(self, images: Tensor, keys: Keys) -> Tensor:
        """Return changed images of the same shape."""
        for step in self.steps:
            images = step(images, keys)
        return images
