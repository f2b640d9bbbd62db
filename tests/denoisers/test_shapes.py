"""The shape of one sample, told by networks of one, two and three dimensions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from constrained_diffusion.denoisers.shapes import check_sides, shape_from_config


def network(name: str, **config: Any) -> Any:
    return type(name, (), {"config": config})()


@pytest.mark.parametrize(
    ("name", "config", "shape"),
    [
        ("UNet2DModel", {"in_channels": 3, "sample_size": 8}, (3, 8, 8)),
        ("UNet2DModel", {"in_channels": 3, "sample_size": [8, 16]}, (3, 8, 16)),
        ("UNet1DModel", {"in_channels": 2, "sample_size": 65536}, (2, 65536)),
        ("UNet3DConditionModel", {"in_channels": 4, "sample_size": [5, 8, 8]}, (4, 5, 8, 8)),
        ("FluxTransformer2DModel", {"in_channels": 64}, (16, 128, 128)),
    ],
)
def test_the_shape_is_read_from_the_config(name: str, config: Any, shape: tuple[int, ...]) -> None:
    assert shape_from_config(network(name, **config)) == shape


@pytest.mark.parametrize(
    "wrong",
    [
        network("UNet3DConditionModel", in_channels=4, sample_size=32),  # which says nothing of the number of frames
        network("UNet2DModel", in_channels=4, sample_size=None),
        SimpleNamespace(),
    ],
)
def test_what_does_not_say_it_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"sample_shape must be given for a .*: the shape of one sample without batch"):
        shape_from_config(wrong)


@pytest.mark.parametrize("name", ["DiT", "SD3", "PixArt", "Sana", "Flux"])
def test_sides_that_no_patches_fill_are_refused(name: str) -> None:
    patched = network(
        f"{name}Transformer2DModel", patch_size=1 if name == "Flux" else 2
    )  # Flux packs two by two itself
    check_sides(patched, (4, 6, 8))
    with pytest.raises(ValueError, match=r"sides are multiples of 2, got \(4, 7, 8\); take \(4, 6, 8\)"):
        check_sides(patched, (4, 7, 8))
    check_sides(network("UNet2DModel", patch_size=2), (4, 7, 8))


def test_sides_beyond_the_known_places_are_refused() -> None:
    sd3 = network("SD3Transformer2DModel", patch_size=2, pos_embed_max_size=8)
    check_sides(sd3, (4, 16, 16))
    with pytest.raises(ValueError, match=r"at most 16 x 16 latents: .* within \(4, 16, 16\), got \(4, 8, 18\)"):
        check_sides(sd3, (4, 8, 18))
