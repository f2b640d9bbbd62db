"""Which text-to-image pipelines of diffusers are taken: their networks, their text encoders, and what those say."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from constrained_diffusion.runtime.stored_networks import find_network

_TEXT, _POOLED = "encoder_hidden_states", "pooled_projections"
_MASK, _ADDED = "encoder_attention_mask", "added_cond_kwargs.text_embeds"
_TOKENIZER = re.compile(r"(CLIP|T5|Gemma)Tokenizer(Fast)?")


class Family(NamedTuple):
    """One kind of text-to-image model."""

    name: str
    network: str  #: its class
    pipelines: tuple[str, ...]  #: whose `encode_prompt` is used; the first where the pipeline names none of them
    encoders: dict[str, tuple[str, ...]]  #: the classes that each of its text encoders may be of
    results: tuple[str, ...]  #: keyword names of what `encode_prompt` returns, those of the negative prompt with "-"
    optional: tuple[str, ...] = ()  #: encoders that it may lack


_CLIP, _PROJECTED, _T5 = ("CLIPTextModel",), ("CLIPTextModelWithProjection",), ("T5EncoderModel",)
_GEMMA = ("Gemma2Model", "Gemma2ForCausalLM")

FAMILIES = (
    Family("sd", "UNet2DConditionModel", ("StableDiffusionPipeline",), {"text_encoder": _CLIP}, (_TEXT, "-" + _TEXT)),
    Family(
        "sdxl",
        "UNet2DConditionModel",
        ("StableDiffusionXLPipeline",),
        {"text_encoder": _CLIP, "text_encoder_2": _PROJECTED},
        (_TEXT, "-" + _TEXT, _ADDED, "-" + _ADDED),
    ),
    Family(
        "sd3",
        "SD3Transformer2DModel",
        ("StableDiffusion3Pipeline",),
        {"text_encoder": _PROJECTED, "text_encoder_2": _PROJECTED, "text_encoder_3": _T5},
        (_TEXT, "-" + _TEXT, _POOLED, "-" + _POOLED),
        optional=("text_encoder_3",),
    ),
    Family(
        "flux",
        "FluxTransformer2DModel",
        ("FluxPipeline",),
        {"text_encoder": _CLIP, "text_encoder_2": _T5},
        (_TEXT, _POOLED, ""),
    ),
    Family(
        "pixart",
        "PixArtTransformer2DModel",
        ("PixArtAlphaPipeline", "PixArtSigmaPipeline"),
        {"text_encoder": _T5},
        (_TEXT, _MASK, "-" + _TEXT, "-" + _MASK),
    ),
    Family(
        "sana",
        "SanaTransformer2DModel",
        ("SanaPipeline",),
        {"text_encoder": _GEMMA},
        (_TEXT, _MASK, "-" + _TEXT, "-" + _MASK),
    ),
)

# Networks of pipelines without prompts.
_PROMPTLESS = ("UNet1DModel", "UNet2DModel", "DiTTransformer2DModel")


def family_of(source: str, index: dict[str, Any], network: str) -> Family | None:
    """Return the family of a pipeline, None for one that takes no prompts; of its files only the index is read.

    Args:
        source: what errors call the pipeline.
        index: the content of its model_index.json.
        network: the class of its network.

    Raises:
        ValueError: its text encoders are missing, or are not those of its family, or it is of no known one.
    """
    kind, like = index.get("_class_name"), ", ".join(name for family in FAMILIES for name in family.pipelines)
    listed = {name: part for name, part in index.items() if isinstance(part, list) and len(part) == 2 and part[1]}
    encoders = {name: str(part[1]) for name, part in listed.items() if name.startswith("text_encoder")}
    candidates = [family for family in FAMILIES if family.network == network]
    if not candidates and encoders:
        raise ValueError(
            f"'{source}' is a {kind}, whose text encoders are not supported: expected a pipeline like {like}."
        )
    if not candidates:
        if network not in _PROMPTLESS and find_network(network) is None:
            raise ValueError(
                f"'{source}' is a {kind} around a {network[:80]}, which is not supported: expected a pipeline like "
                f"{like}, or one without prompts around a {' or '.join(_PROMPTLESS)}; choose another model."
            )
        return None
    if encoders.keys() == {"text_encoder_2"} and network == "UNet2DConditionModel":
        raise ValueError(
            f"'{source}' is SDXL's refiner, which goes on with what the base model drew and is not supported: expected "
            "the base model; give that."
        )
    if not encoders and not any(kind in family.pipelines for family in candidates):
        raise ValueError(
            f"'{source}' is a {kind} without text encoders, which is not supported: expected a pipeline like {like}; "
            "choose another model."
        )
    family = next((one for one in candidates if encoders.keys() == one.encoders.keys()), candidates[0])
    for name, classes in family.encoders.items():
        if name not in encoders and name not in family.optional:
            raise ValueError(
                f"the pipeline in '{source}' has no {name}, without which prompts cannot be encoded: expected a "
                f"{' or '.join(classes)} in its folder {name}; fetch the whole pipeline."
            )
        if encoders.get(name, classes[0]) not in classes:
            raise ValueError(
                f"the pipeline in '{source}' has a {encoders[name]} as {name}: expected a {' or '.join(classes)}, as "
                f"in a {family.pipelines[0]}."
            )
    for name in [name for name in encoders if name in family.encoders]:
        tokenizer = str((listed.get(name.replace("text_encoder", "tokenizer")) or ["", "nothing"])[1])
        if not _TOKENIZER.fullmatch(tokenizer):
            raise ValueError(
                f"the pipeline in '{source}' has {tokenizer[:80]} as the tokenizer of its {name}: expected a "
                "CLIPTokenizer, T5Tokenizer or GemmaTokenizer."
            )
    return family
