"""The LAION aesthetic predictor: a linear head on CLIP's image features."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from torch import Tensor, nn

from constrained_diffusion.domains.images.clip import FrozenCLIP
from constrained_diffusion.objectives import Reward, register
from constrained_diffusion.runtime import untrusted

WIDTHS = (1024, 128, 64, 16, 1)  #: outputs of the head's linear maps


def aesthetic_head(width: int) -> nn.Sequential:
    """Return the head `(B, width)` -> `(B, 1)`: five linear maps without anything nonlinear between them.

    Identities stand where training had dropout, so that the published weights' names fit.
    """
    first, second, third, fourth, last = (nn.Linear(*pair) for pair in pairwise((width, *WIDTHS)))
    return nn.Sequential(first, nn.Identity(), second, nn.Identity(), third, nn.Identity(), fourth, last)


def load_head(path: str | Path, width: int) -> nn.Sequential:
    """Read the head's weights from a `.safetensors` file, or from a `.pth` file of plain tensors.

    Args:
        path: the tensors are named `0.weight` ... `7.bias` as in `aesthetic_head`, or the same after `layers.`.
        width: width of the image features that the head is for.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is unreadable, holds more than tensors, or tensors of another head.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"LAIONAesthetic expects the weights of its head, but there is no file at '{path}'; download "
            "sac+logos+ava1-l14-linearMSE.pth from the repository christophschuhmann/improved-aesthetic-predictor."
        )
    try:
        if Path(path).suffix == ".safetensors":
            weights, _ = untrusted.read_tensors(path)
        else:
            weights = untrusted.read_checkpoint(path)
        head = aesthetic_head(width)
        head.load_state_dict({name.removeprefix("layers."): value for name, value in weights.items()})
    except (ValueError, RuntimeError, LookupError, AttributeError, TypeError) as error:  # of another head
        chain = "-".join(map(str, (width, *WIDTHS)))
        raise ValueError(
            f"'{path}' does not hold the plain weights of a head {chain}, which the image features need "
            f"({type(error).__name__}: {' '.join(str(error).split())[:300]}); the published one is for CLIP ViT-L/14, "
            "of width 768."
        ) from error
    return head.requires_grad_(False)


@register()
class LAIONAesthetic(Reward):
    """How people would rate the image, from about 1 to 10 (LAION's improved aesthetic predictor, 2022).

    r(x) = head(f(x)), f the image features of CLIP ViT-L/14, of unit length, and the head linear. Gradients flow to the
    images. The network runs in float32 unless it is moved to another dtype; the reward has the images' dtype.

    Args:
        head: file with the head's weights, see `load_head`; the published one is `sac+logos+ava1-l14-linearMSE.pth`.
        source: folder or hub id of the CLIP that the head was trained on, see `FrozenCLIP`: OpenAI's ViT-L/14. The
            features of another CLIP of the same width would give meaningless values.

    Raises:
        ImportError: transformers is not installed.
        FileNotFoundError: there is no such file, folder or hub id.
        ValueError: the folder holds no whole CLIP, or the file another head.
    """

    def __init__(self, head: str, source: str = "openai/clip-vit-large-patch14") -> None:
        super().__init__()
        self.clip = FrozenCLIP(source, text=False)
        self.head = load_head(head, self.clip.width)

    def forward(self, clean: Tensor) -> Tensor:
        """Return the rating of each image `(B, 3, H, W)` in [0, 1], clamped; shape `(B,)`.

        Raises:
            ValueError: the images have another shape.
        """
        rating: Tensor = self.head(self.clip.image_features(clean))
        return rating[:, 0].to(clean.dtype)
