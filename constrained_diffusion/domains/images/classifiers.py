"""The small image classifiers that ship with the package.

`DigitCNN` is what a constraint is trained with: plain, fast, and smooth, because its gradient is used. `DigitResNet` is
the judge: another architecture, so that what fools the one need not fool the other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from constrained_diffusion.runtime.stored_networks import load_network, storable


class Classifier(nn.Module, ABC):
    """A network from images to logits with a named penultimate layer; subclass it and write `features`.

    Args:
        num_classes: number of classes.
        num_features: d, the width of the penultimate layer.
        settings: the keyword arguments that make this very network again; they are saved beside its weights.
    """

    def __init__(self, num_classes: int, num_features: int, settings: dict[str, Any]) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"{type(self).__name__} expects num_classes >= 2, got {num_classes}.")
        self.num_classes, self.num_features, self.settings = num_classes, num_features, settings
        self.head = nn.Linear(num_features, num_classes)

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Return the penultimate features `(B, d)` of `images` `(B, C, H, W)`, in the data's units."""

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(B, num_classes)`."""
        logits: Tensor = self.head(self.features(images))
        return logits


@storable
class DigitCNN(Classifier):
    """A plain strided CNN for digits `(B, 1, 28, 28)` in [0, 1], smooth (SiLU), about 0.2 M parameters.

    Images up to 32 x 32 are cropped to the middle 28 x 28: MNIST is padded for networks that halve five times.

    Args:
        num_classes: number of classes.
        width: channels of the first layer; the later ones have two and four times as many.

    Example:
        >>> import torch
        >>> DigitCNN()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, num_classes: int = 10, width: int = 24) -> None:
        super().__init__(num_classes, 64, {"num_classes": num_classes, "width": width})
        self.body = nn.Sequential(
            *_convolution(1, width, kernel_size=5, stride=2),  # 14 x 14
            *_convolution(width, 2 * width, kernel_size=3, stride=2),  # 7 x 7
            *_convolution(2 * width, 2 * width, kernel_size=3, stride=1),
            *_convolution(2 * width, 4 * width, kernel_size=3, stride=2),  # 4 x 4
            nn.Flatten(),
            nn.Linear(4 * width * 4 * 4, 64),
            nn.SiLU(),
        )

    def features(self, images: Tensor) -> Tensor:
        """Return features `(B, 64)`."""
        hidden: Tensor = self.body(middle(images))
        return hidden


@storable
class DigitResNet(Classifier):
    """A pre-activation residual network for digits, with ReLU and average pooling (He et al. 2016, arXiv 1603.05027).

    Takes what `DigitCNN` takes. Its 64 penultimate features are averages over positions, all >= 0.

    Args:
        num_classes: number of classes.
        width: channels of the first layer; the blocks have two and four times as many.
    """

    def __init__(self, num_classes: int = 10, width: int = 16) -> None:
        super().__init__(num_classes, 4 * width, {"num_classes": num_classes, "width": width})
        self.body = nn.Sequential(
            nn.Conv2d(1, width, kernel_size=3, padding=1, bias=False),  # 28 x 28
            ResidualBlock(width, 2 * width, stride=2),  # 14 x 14
            ResidualBlock(2 * width, 4 * width, stride=2),  # 7 x 7
            ResidualBlock(4 * width, 4 * width, stride=1),
            nn.BatchNorm2d(4 * width),
            nn.ReLU(),
        )

    def features(self, images: Tensor) -> Tensor:
        """Return features `(B, 4 * width)`."""
        hidden: Tensor = self.body(middle(images)).mean(dim=(2, 3))
        return hidden


class ResidualBlock(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x)))))); a stride averages the skipped path, a change of width projects it."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.norm1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, kernel_size=3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, kernel_size=3, padding=1, bias=False)
        same = channels_in == channels_out
        self.project = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, kernel_size=1, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map `(B, channels_in, H, W)` to `(B, channels_out, H / stride, W / stride)`."""
        update: Tensor = self.conv2(functional.relu(self.norm2(self.conv1(functional.relu(self.norm1(hidden))))))
        skipped: Tensor = self.project(functional.avg_pool2d(hidden, self.stride) if self.stride > 1 else hidden)
        return skipped + update


def middle(images: Tensor, size: int = 28, largest: int = 32) -> Tensor:
    """Return the middle `size` x `size` pixels of `(B, 1, H, W)`.

    Raises:
        ValueError: not one channel, or a side outside [size, largest].
    """
    if images.ndim != 4 or images.shape[1] != 1 or not all(size <= side <= largest for side in images.shape[2:]):
        raise ValueError(
            f"a digit classifier expects images of shape (B, 1, {size}, {size}), with at most {largest - size} pixels "
            f"of padding; got {tuple(images.shape)}; resize them first."
        )
    top, left = ((side - size) // 2 for side in images.shape[2:])
    return images[:, :, top : top + size, left : left + size]


def _convolution(channels_in: int, channels_out: int, kernel_size: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels_in, channels_out, kernel_size, stride, kernel_size // 2, bias=False)
    return [convolution, nn.BatchNorm2d(channels_out), nn.SiLU()]


def load_classifier(source: str | Path) -> Classifier:
    """Read a classifier from a zoo name or from a folder that `save_network` wrote; see `PretrainedClassifier`."""
    return load_network(source, Classifier, "classifier")  # type: ignore[type-abstract]


class PretrainedClassifier(nn.Module):
    """A classifier read from disk, frozen and always in eval mode, whatever `.train()` is called.

    Args:
        source: a zoo name such as `mnist_classifier`, or a folder with `config.json` and `model.safetensors`.

    Raises:
        ValueError: no such zoo entry or folder, an unknown class, or weights that are truncated or of another network.
        FileNotFoundError: the folder lacks one of the two files.
    """

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.network = load_classifier(source).requires_grad_(False).eval()
        self.num_classes, self.num_features = self.network.num_classes, self.network.num_features

    def train(self, mode: bool = True) -> PretrainedClassifier:
        """Set the mode of this module alone; the network stays in eval mode."""
        super().train(mode)
        self.network.eval()
        return self

    def features(self, images: Tensor) -> Tensor:
        """Return the penultimate features `(B, d)` of `images` `(B, 1, 28, 28)` in [0, 1]."""
        return self.network.features(images)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(B, num_classes)`."""
        logits: Tensor = self.network(images)
        return logits
