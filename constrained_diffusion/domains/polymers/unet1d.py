"""A network for sequences of tokens: Unet1D of denoising-diffusion-pytorch, as a model of diffusers' kind."""

from __future__ import annotations

from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from constrained_diffusion.runtime.distribution import needs_extra
from constrained_diffusion.runtime.stored_networks import storable


@storable
class Unet1D(ModelMixin, ConfigMixin):
    """`denoising_diffusion_pytorch.Unet1D`, whose config travels with its weights (`export`).

    PolyGen's backbone (Diffusion1D). What it predicts is what the noise schedule's `prediction_type` says.

    Args:
        channels: of a sample, one per token where tokens are one-hot.
        dim: width of the first level.
        dim_mults: width of each level, in multiples of `dim`; all but the last halve the length of the sequence.

    Raises:
        ImportError: denoising-diffusion-pytorch is not installed.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, channels: int = 1, dim: int = 64, dim_mults: tuple[int, ...] = (1, 2)) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        with needs_extra("polymer", "Unet1D needs denoising-diffusion-pytorch"):
            from denoising_diffusion_pytorch import Unet1D as Backbone
        self.halvings = len(dim_mults) - 1
        self.unet = Backbone(dim=dim, dim_mults=dim_mults, channels=channels)
        self.unet.time_mlp[1].register_forward_pre_hook(_in_its_precision)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """Return the prediction for `sample` `(B, C, L)` at `timestep` `(B,)`, shape of `sample`.

        Raises:
            ValueError: L cannot be halved as often as there are levels but one.
        """
        if sample.shape[-1] % 2**self.halvings:
            raise ValueError(
                f"Unet1D halves the length {self.halvings} times: expected a multiple of {2**self.halvings}, got "
                f"{sample.shape[-1]}; pad the sequences (`length` of the data), or give fewer dim_mults."
            )
        predicted: Tensor = self.unet(sample, timestep)
        return predicted


def _in_its_precision(layer: nn.Linear, given: tuple[Tensor]) -> Tensor:
    """The library's sinusoids are float32, whatever the network that reads them is."""
    return given[0].to(layer.weight.dtype)
