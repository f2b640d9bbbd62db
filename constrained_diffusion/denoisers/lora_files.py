"""LoRA adapters in diffusers' own file, which `pipeline.load_lora_weights(folder)` takes, and back."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from constrained_diffusion.runtime import untrusted

LORA_NAME = "pytorch_lora_weights.safetensors"  #: diffusers' own name of a file of adapters
ON_TOP_OF = "on_top_of"  #: in the JSON file beside adapters of ours: the earlier ones that they were trained on
_COMPONENTS = ("unet", "transformer")  #: the parts of a pipeline that a denoiser's network may be
_OTHERS = ("lora_unet_", "lora_te", "lora_transformer_", "diffusion_model.")  #: kohya's, and those of the original code
_PART = re.compile(r"(?P<module>.+)\.lora_(?P<matrix>[AB])\.weight")


def takes_lora(pipeline_class: str | None) -> bool:
    """Return whether diffusers' `pipeline_class` stores adapters with their settings."""
    return _component(pipeline_class) is not None


def save_lora(
    network: nn.Module, folder: str | Path, pipeline_class: str, state: Mapping[str, Tensor] | None = None
) -> None:
    """Write the adapters of `network` to `folder`, with the settings that their tensors do not tell, as `lora_alpha`.

    Args:
        network: with the adapters that `add_adapters` injected.
        folder: the file there gets the name that diffusers looks for.
        pipeline_class: the class of diffusers whose names it gets, such as "StableDiffusionXLPipeline".
        state: of `network`, to write in place of its own; adapters suffice.

    Raises:
        ValueError: pipelines of that class store no adapters.
    """
    import diffusers
    from peft import LoraConfig, get_peft_model_state_dict

    component = _component(pipeline_class)
    if component is None:
        raise ValueError(
            f"{pipeline_class} stores no LoRA adapters: expected a pipeline like StableDiffusionPipeline; export the "
            "whole network with them merged (merge_lora)."
        )
    own: Any = network.peft_config
    plain: Any = LoraConfig()
    settings, usual = own["default"].to_dict(), plain.to_dict()
    # What differs from peft's defaults, and so can be read by versions of peft that know fewer settings.
    told = {key: value for key, value in settings.items() if value != usual[key] or key in ("r", "lora_alpha")}
    tensors = get_peft_model_state_dict(network, None if state is None else dict(state))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    given = {f"{component}_lora_layers": tensors, f"{component}_lora_adapter_metadata": told}
    getattr(diffusers, pipeline_class).save_lora_weights(str(folder), **given)


def load_lora(network: Any, source: str | Path) -> None:
    """Give `network` the adapters in `source`, in place.

    Args:
        network: a UNet or transformer of diffusers.
        source: a file that a pipeline's `save_lora_weights` wrote, or the folder with it.

    Raises:
        ImportError: peft is not installed.
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, is of another kind, or is for another network.
    """
    path = Path(source).expanduser()
    path = path / LORA_NAME if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"no file of adapters is at '{path}': expected a file that a pipeline's save_lora_weights wrote, or the "
            f"folder with it ({LORA_NAME}); mend `adapters`."
        )
    tensors, _ = untrusted.read_tensors(path)
    if other := next((name for name in tensors if name.startswith(_OTHERS)), None):
        raise ValueError(
            f"'{path}' holds adapters in another layout ({other[:80]}): expected diffusers' own; convert it once, with "
            "`pipe.load_lora_weights(file)` and then `pipe.save_lora_weights(folder, ..)` of diffusers, the metadata "
            "included (they hold alpha), and give that folder."
        )
    components = {name.partition(".")[0] for name in tensors}
    wrong = sorted(components - set(_COMPONENTS))
    if wrong or len(components) != 1 or not hasattr(network, "load_lora_adapter"):
        what = f"{wrong[0][:80]}.." if wrong else " and ".join(sorted(components)) or "nothing"
        raise ValueError(
            f"'{path}' holds adapters of {what} for a {type(network).__name__}: expected a file of adapters of one "
            f"network of diffusers ({' or '.join(_COMPONENTS)}), as a pipeline's save_lora_weights writes it."
        )
    component = components.pop()
    _check(network, {name.removeprefix(f"{component}."): tensor for name, tensor in tensors.items()}, path)
    try:
        network.load_lora_adapter(str(path), prefix=component, use_safetensors=True, local_files_only=True)
    except (ImportError, FileNotFoundError):
        raise
    except Exception as error:  # diffusers and peft have many, without a common base
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"the adapters in '{path}' cannot be had ({said[:300]}); make the file again.") from error


def are_adapters(names: Collection[str]) -> bool:
    """Return whether the tensors of a file with these `names` are adapters, of whatever layout, and nothing else."""
    return bool(names) and all("lora" in name for name in names)


def not_weights(source: Path) -> ValueError:
    """Return the error that `source`, which was given as a model, holds adapters."""
    return ValueError(
        f"'{source}' holds LoRA adapters, not whole weights: give the model that they belong to as the source, and "
        f"this {'folder' if source.is_dir() else 'file'} as `adapters`."
    )


def _check(network: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

    modules, pairs = dict(network.named_modules()), dict[str, dict[str, Tensor]]()
    if foreign := next((name for name in tensors if "lora" not in name), None):
        raise _broken(path, f"{foreign[:80]} belongs to no adapter")
    for name, tensor in convert_unet_state_dict_to_peft(tensors).items():
        found = _PART.fullmatch(name)
        weight = getattr(modules.get(found["module"]), "weight", None) if found else None
        side = 1 if found and found["matrix"] == "A" else 0  # A takes what the module takes, B gives what it gives
        if found and (weight is None or tensor.ndim != weight.ndim or tensor.shape[side] != weight.shape[side]):
            raise ValueError(
                f"the adapters in '{path}' are for another network: {name} does not fit a {type(network).__name__} of "
                "this size; give the model that they were trained on."
            )
        if not bool(tensor.isfinite().all()):
            raise _broken(path, f"{name} is not finite")
        if found:
            pairs.setdefault(found["module"], {})[found["matrix"]] = tensor
    if not pairs:
        raise _broken(path, "it has none")
    for name, pair in pairs.items():
        if len(pair) < 2 or pair["A"].shape[0] != pair["B"].shape[1]:
            raise _broken(path, f"the two matrices of {name} do not belong together, or one is missing")


def _broken(path: Path, why: str) -> ValueError:
    return ValueError(
        f"the adapters in '{path}' are broken: expected pairs of finite matrices, but {why}; make it again."
    )


def _component(pipeline_class: str | None) -> str | None:
    """Return which part of the pipeline `save_lora_weights` takes adapters and their settings of."""
    import diffusers

    cls: Any = getattr(diffusers, pipeline_class or "", None)
    if not (inspect.isclass(cls) and hasattr(cls, "save_lora_weights")):
        return None
    known = inspect.signature(cls.save_lora_weights).parameters
    return next((name for name in _COMPONENTS if f"{name}_lora_adapter_metadata" in known), None)
