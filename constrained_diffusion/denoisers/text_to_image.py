"""Stable Diffusion 1.x, 2.x and SDXL as frozen networks: prompts in, a denoiser of latents, images out.

| paper | code | shape |
|---|---|---|
| c, the prompt | `Conditioning.text` | `(B, L, D)`, L tokens |
| epsilon_theta(x_t, t, empty) | `uncond`, the answer to the negative prompt | `(B, 4, H, W)` |
| s, the guidance scale | `guidance_scale` | scalar |
| x_t, in the autoencoder's latent space | `noisy` | `(B, 4, H, W)` |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from constrained_diffusion.denoisers.pipelines import load
from constrained_diffusion.denoisers.schedule import DiffusersSchedule
from constrained_diffusion.diffusion.noise_schedule import NoiseSchedule
from constrained_diffusion.diffusion.prediction import Prediction

CACHED = 256  #: how many prompts are remembered; one of SDXL takes 1.3 MB


class Conditioning(NamedTuple):
    """What the network is told about B prompts; no gradient flows into it."""

    text: Tensor  #: embedding of the prompts, `(B, L, D)`
    negative: Tensor  #: embedding of the negative prompt, `(B, L, D)`
    pooled: Tensor | None = None  #: SDXL alone: one vector per prompt, `(B, P)`
    negative_pooled: Tensor | None = None  #: SDXL alone: `(B, P)`
    time_ids: Tensor | None = None  #: SDXL alone: original size, corner of the crop and size, in pixels, `(B, 6)`

    def rows(self, index: Tensor | list[int] | slice) -> Conditioning:
        """Return the rows at `index`, which may name a row more than once: `rows([0] * 4)` repeats the first."""
        parts: list[Any] = [None if part is None else part[index] for part in self]
        return Conditioning(*parts)


class TextToImage(nn.Module):
    """The networks of a diffusers pipeline, in float32 and evaluation mode, without gradients of their weights.

    Sampling draws nothing and keeps the gradient with respect to the noise:
    `model.decode(ddim(model.predictor(model.encode(prompts)), model.noise_schedule, z, Sampler(**...)))`. For half
    precision call `.to(torch.bfloat16)`, or use autocast: the answers keep the dtype of what they answer to.

    Args:
        source: a folder that a diffusers pipeline was saved to, or a hub id `owner/name`.
        guidance_scale: s >= 0 of classifier-free guidance; 1 is the prompt alone, at half the cost (what diffusers'
            pipelines of one-step models, SD-Turbo and the like, call 0); 0 here is the negative prompt alone.
        negative_prompt: what to lead away from. Empty, it is what the pipeline itself takes without one: the embedding
            of the empty prompt, or zeros (SDXL base).
        variant: of the weights' files, for example "fp16".

    Attributes:
        noise_schedule: alpha-bar and the prediction type.
        sample_shape: of one latent, `(4, H, W)`.

    Raises:
        FileNotFoundError: `source` is no pipeline folder, and cannot be had from the hub.
        ImportError: transformers is missing.
        ValueError: the guidance scale is negative, or the source is another kind of model or damaged.
    """

    unet: Any
    vae: Any

    def __init__(
        self, source: str, guidance_scale: float = 5.0, negative_prompt: str = "", variant: str | None = None
    ) -> None:
        super().__init__()
        if not guidance_scale >= 0:
            raise ValueError(f"TextToImage expects guidance_scale >= 0, got {guidance_scale}.")
        self.guidance_scale, self.negative_prompt = guidance_scale, negative_prompt
        self._pipeline = load(str(source), variant)  # no module: it shares ours, and knows how to encode prompts
        self.unet, self.vae = self._pipeline.unet, self._pipeline.vae
        self.text_encoder = self._pipeline.text_encoder
        self.text_encoder_2 = getattr(self._pipeline, "text_encoder_2", None)
        self.noise_schedule: NoiseSchedule = DiffusersSchedule(dict(self._pipeline.scheduler.config))
        size = self.unet.config.sample_size
        self.sample_shape = (self.unet.config.in_channels, *((size, size) if isinstance(size, int) else size))
        self._encoded: dict[str, Conditioning] = {}
        self.float().requires_grad_(False).eval()

    def train(self, mode: bool = True) -> TextToImage:
        """Stay in evaluation mode, whatever is asked for."""
        return super().train(False)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> TextToImage:
        exact = self.noise_schedule.alphas_cumprod  # half a float's digits would move every step of the sampler
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.noise_schedule.alphas_cumprod = exact.to(self.noise_schedule.alphas_cumprod.device)
        return self

    def sampler_settings(self) -> dict[str, Any]:
        """Return the arguments of `Sampler` that follow from the scheduler's config, as DDIMScheduler reads it.

        `Sampler(steps=50, eta=1.0, **model.sampler_settings())` takes its steps. Latents are not clipped, whatever the
        config says: they have no range, and diffusers' own Stable Diffusion does not clip them either.
        """
        from diffusers import DDIMScheduler

        config = DDIMScheduler.from_config(self._pipeline.scheduler.config).config
        return {
            "spacing": config.timestep_spacing,
            "steps_offset": config.steps_offset,
            "set_alpha_to_one": config.set_alpha_to_one,
            "clip_sample": False,
        }

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Return the conditioning of B prompts, each encoded once, on its own, without gradient.

        Raises:
            ValueError: there is no prompt, or a string in place of a list.
        """
        if isinstance(prompts, str) or not prompts:
            raise ValueError(f"encode expects a list of at least one prompt, got {prompts!r}; write ['a white duck'].")
        with torch.inference_mode(False), torch.no_grad():  # an inference tensor could not enter autograd later
            rows = {prompt: self._encoded.get(prompt) or self._encode(prompt) for prompt in dict.fromkeys(prompts)}
            self._encoded = dict([*self._encoded.items(), *rows.items()][-CACHED:])
            columns: list[Any] = list(zip(*(rows[prompt] for prompt in prompts), strict=True))
            columns = [None if c[0] is None else torch.cat([row.to(self.unet.device) for row in c]) for c in columns]
            return Conditioning(*columns)

    def _encode(self, prompt: str) -> Conditioning:
        found: list[Any] = self._pipeline.encode_prompt(
            prompt=prompt,
            device=self.unet.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=True,
            negative_prompt=self.negative_prompt or None,
        )
        if self.text_encoder_2 is None:
            return Conditioning(*found)
        height, width = (float(self._pipeline.vae_scale_factor * side) for side in self.sample_shape[1:])
        return Conditioning(*found)._replace(time_ids=torch.tensor([[height, width, 0, 0, height, width]]))

    def predictor(self, conditioning: Conditioning) -> Callable[[Tensor, Tensor], Prediction]:
        """Return `(noisy, timesteps) -> Prediction` for `sampling.ddim`, with the conditioning of its B rows bound.

        The output is uncond + s (text - uncond), both from one batch of 2 B rows (Ho and Salimans 2022, arXiv
        2207.12598, eq. 6 with s = 1 + w), in the network's own prediction type. Nothing is clamped.
        """
        text, pooled, copies = conditioning.text, conditioning.pooled, 1
        if self.guidance_scale != 1:
            text, copies = torch.cat([conditioning.negative, text]), 2
            pooled = None if pooled is None else torch.cat([cast(Tensor, conditioning.negative_pooled), pooled])
        extra: dict[str, Any] = {}
        if pooled is not None:
            ids = cast(Tensor, conditioning.time_ids).repeat(copies, 1)
            extra = {"added_cond_kwargs": {"text_embeds": pooled.to(self.unet.dtype), "time_ids": ids}}
        text, schedule = text.to(self.unet.dtype), self.noise_schedule

        def predict(noisy: Tensor, timesteps: Tensor) -> Prediction:
            if copies * len(noisy) != len(text):
                raise ValueError(
                    f"the conditioning has {len(text) // copies} rows and the noise {len(noisy)}: expected as many; "
                    "take rows of it, or repeat them, by conditioning.rows([0, 0, 1])."
                )
            latents = noisy.to(self.unet.dtype).repeat(copies, 1, 1, 1)
            output = self.unet(latents, timesteps.repeat(copies), encoder_hidden_states=text, **extra).sample
            output = output.to(noisy.dtype)
            if copies == 2:
                uncond, prompted = output.chunk(2)
                output = uncond + self.guidance_scale * (prompted - uncond)
            noise, clean = (f(output, noisy, timesteps) for f in (schedule.to_noise, schedule.to_clean))
            return Prediction(output, noise, clean)

        return predict

    def decode(self, latents: Tensor) -> Tensor:
        """Return the images `(B, 3, H, W)` of latents `(B, 4, h, w)`: black is 0 and white 1, but nothing is clamped.

        Where a gradient is asked for, only the latents are kept for it, and the decoder runs again on the way back.
        """
        if torch.is_grad_enabled() and latents.requires_grad:
            images: Tensor = checkpoint(self._decode, latents, use_reentrant=False, preserve_rng_state=False)
            return images
        return self._decode(latents)

    def _decode(self, latents: Tensor) -> Tensor:
        config, device = self.vae.config, latents.device.type
        if config.force_upcast and self.vae.dtype == torch.float16:  # in which SDXL's decoder overflows
            self.vae.float()
        overflows = config.force_upcast and torch.get_autocast_dtype(device) == torch.float16
        scaled = latents.to(self.vae.dtype) / config.scaling_factor
        with torch.autocast(device, enabled=torch.is_autocast_enabled(device) and not overflows):
            images: Tensor = self.vae.decode(scaled).sample
        return (images.to(latents.dtype) + 1) / 2
