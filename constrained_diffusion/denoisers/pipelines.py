"""Text-to-image pipelines of diffusers: which are taken, and which refused, before any weights are fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from constrained_diffusion.runtime.distribution import needs_extra

_EXPECTED = {
    "unet": "UNet2DConditionModel",
    "vae": "",
    "text_encoder": "CLIPTextModel",
    "tokenizer": "",
    "scheduler": "",
}
_LIBRARIES = {"diffusers", "transformers"}  #: whose classes a pipeline may name; loading one imports its library
_NEVER_LOADED = {"safety_checker", "feature_extractor", "image_encoder"}
_EXAMPLES = "'stable-diffusion-v1-5/stable-diffusion-v1-5' or 'stabilityai/stable-diffusion-xl-base-1.0'"


def load(source: str, variant: str | None = None) -> Any:
    """Return the `StableDiffusionPipeline` or `StableDiffusionXLPipeline` at `source`, without safety checker.

    Args:
        source: a folder that a diffusers pipeline was saved to, or a hub id `owner/name`.
        variant: of the weights' files, for example "fp16".

    Raises:
        FileNotFoundError: `source` is no pipeline, and cannot be had from the hub.
        ImportError: transformers is missing.
        ValueError: it is of another kind, or damaged.
    """
    with needs_extra("text-to-image", "text-to-image models need transformers"):
        import transformers  # noqa: F401  (without it, diffusers has no such pipelines)
    import diffusers
    from diffusers.utils.import_utils import is_accelerate_available

    cls: Any = diffusers.StableDiffusionPipeline
    unused: dict[str, Any] = {"feature_extractor": None, "image_encoder": None}
    if is_xl(source):
        cls = diffusers.StableDiffusionXLPipeline
        unused["add_watermarker"] = False
    else:
        unused.update(safety_checker=None, requires_safety_checker=False)
    try:
        return cls.from_pretrained(source, variant=variant, low_cpu_mem_usage=is_accelerate_available(), **unused)
    except Exception as error:  # what readers of weights, and the hub's client, raise has no common base
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        of = f" of the variant '{variant}'" if variant else ""
        raise ValueError(
            f"the pipeline in '{source}' cannot be read ({said[:300]}): expected all of its parts, with weights{of}; "
            "fetch it again, or give another variant."
        ) from error


def is_xl(source: str) -> bool:
    """Return whether `source` is an SDXL pipeline; of its files only configs are read.

    Raises:
        FileNotFoundError: it is no pipeline, and cannot be had from the hub.
        ValueError: it is of another kind.
    """
    from diffusers import DiffusionPipeline, UNet2DConditionModel

    try:
        index = DiffusionPipeline.load_config(source)
        listed = {name: part for name, part in index.items() if isinstance(part, list) and part[0]}
        parts = {name: str(part[1]) for name, part in listed.items()}
        unet = UNet2DConditionModel.load_config(source, subfolder="unet") if "unet" in parts else {}
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise FileNotFoundError(
            f"'{source}' is no diffusers pipeline: expected a folder with a model_index.json and a folder per part, or "
            "a hub id owner/name that can be reached; make a folder of a single file by diffusers' from_single_file."
        ) from error
    if code := next(Path(source).glob("*/*.py"), None) if Path(source).is_dir() else None:
        raise ValueError(
            f"the pipeline '{source}' brings code, '{code.name}', which some versions of diffusers would run: expected "
            "weights and configs alone; take the file out, or use one like " + _EXAMPLES + "."
        )
    loaded = {str(part[0]) for name, part in listed.items() if name not in _NEVER_LOADED}
    if other := sorted(loaded - _LIBRARIES):
        raise ValueError(
            f"the pipeline at '{source}' names a part of '{other[0][:80]}', whose code is not trusted: expected parts "
            f"of {' and '.join(sorted(_LIBRARIES))} alone; use one like {_EXAMPLES}."
        )
    if came := _foreign(parts, unet):
        raise ValueError(
            f"expected a Stable Diffusion 1.x, 2.x or SDXL text-to-image pipeline, but '{source}' is a "
            f"{index.get('_class_name')} with {came}; use one like {_EXAMPLES}."
        )
    return "text_encoder_2" in parts


def _foreign(parts: dict[str, str], unet: dict[str, Any]) -> str:
    """Return what in a pipeline's parts (name to class) and its unet's config is not Stable Diffusion's, or ""."""
    for name, expected in _EXPECTED.items():
        if name not in parts:
            return f"no {name}"
        if expected not in ("", parts[name]):
            return f"a {parts[name]} as {name}"
    if "Flow" in parts["scheduler"]:
        return f"the flow-matching {parts['scheduler']}"
    channels = unet.get("in_channels", 4), unet.get("out_channels", 4)
    if channels[0] != channels[1]:
        return f"a unet that takes {channels[0]} channels and returns {channels[1]}, as for inpainting"
    return "a unet that takes the guidance scale as an input" if unet.get("time_cond_proj_dim") else ""
