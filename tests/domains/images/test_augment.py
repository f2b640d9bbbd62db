import numpy as np
import pytest
import torch
from scipy import ndimage

from constrained_diffusion.domains.images.augment import KeyedAffine, KeyedChain, KeyedSoftening, affine, gaussian_blur
from constrained_diffusion.runtime.randomness import keyed_uniform

KEYS = [(3, 0, row) for row in range(6)]
STILL = {"angle": torch.zeros(1), "zoom": torch.ones(1), "shear": torch.zeros(1), "shift": torch.zeros(1, 2)}
every_augmentation = pytest.mark.parametrize(
    "augment", [KeyedAffine(15.0, 0.1, 0.2, 0.2), KeyedSoftening(), KeyedChain([KeyedAffine(), KeyedSoftening()])]
)


def image(size: int = 9) -> torch.Tensor:
    return torch.rand(1, 1, size, size, generator=torch.Generator().manual_seed(0))


@every_augmentation
def test_a_row_depends_on_its_own_key_alone(augment):
    images = torch.rand(6, 1, 28, 28)
    changed = augment(images, KEYS)
    torch.testing.assert_close(augment(images[2:4], KEYS[2:4]), changed[2:4])
    assert not torch.allclose(augment(images, [(4, *key[1:]) for key in KEYS]), changed, atol=1e-3)


@every_augmentation
def test_shape_range_and_the_callers_images_are_kept(augment):
    images = torch.rand(6, 3, 12, 16)
    before = images.clone()
    changed = augment(images, KEYS)
    assert changed.shape == images.shape
    assert changed.min() >= 0
    assert changed.max() <= 1 + 1e-6
    torch.testing.assert_close(images, before, rtol=0, atol=0)


def test_uniform_numbers_are_uniform():
    numbers = keyed_uniform([(0, row) for row in range(4000)], stream=1, columns=1, like=torch.zeros(1)).flatten()
    quantiles = torch.quantile(numbers, torch.linspace(0, 1, 11))
    torch.testing.assert_close(quantiles, torch.linspace(0, 1, 11), rtol=0, atol=0.03)


def test_no_change_is_the_identity():
    torch.testing.assert_close(affine(image(), **STILL), image())


def test_quarter_turn():
    turned = affine(image(), **{**STILL, "angle": torch.tensor([torch.pi / 2])})
    torch.testing.assert_close(turned, torch.rot90(image(), 1, (2, 3)), rtol=1e-4, atol=1e-4)


def test_shift_by_whole_pixels_fills_with_zeros():
    moved = affine(image(), **{**STILL, "shift": torch.tensor([[4 / 9, 0.0]])})  # in half widths: two pixels of nine
    torch.testing.assert_close(moved[..., :-2], image()[..., 2:], rtol=1e-4, atol=1e-4)
    assert moved[..., -2:].abs().max() < 1e-4


def test_zoom_above_one_enlarges():
    square = torch.zeros(1, 1, 29, 29)
    square[..., 10:19, 10:19] = 1
    larger = affine(square, **{**STILL, "zoom": torch.tensor([1.5])})
    assert larger.sum().item() == pytest.approx(1.5**2 * 81, rel=0.05)


def test_shear_moves_rows_sideways():
    line = torch.zeros(1, 1, 9, 9)
    line[..., 4] = 1
    slanted = affine(line, **{**STILL, "shear": torch.tensor([0.5])})[0, 0]
    centres = (slanted * torch.arange(9.0)).sum(1) / slanted.sum(1)
    torch.testing.assert_close(centres.diff(), torch.full((8,), -0.5), rtol=1e-3, atol=1e-3)


def test_blur_is_the_gaussian_of_scipy():
    images = torch.rand(2, 2, 20, 20, dtype=torch.float64)
    blurred = gaussian_blur(images, torch.tensor([0.7, 1.2], dtype=torch.float64), radius=4)
    for row, sigma in enumerate([0.7, 1.2]):
        expected = ndimage.gaussian_filter(images[row].numpy(), (0, sigma, sigma), mode="constant", radius=(0, 4, 4))
        np.testing.assert_allclose(blurred[row].numpy(), expected, atol=1e-12)


def test_softening_touches_its_share_of_the_rows():
    images = torch.rand(400, 1, 8, 8)
    keys = [(0, row) for row in range(400)]
    changed = KeyedSoftening(share=0.3)(images, keys)
    assert 0.23 < (changed != images).flatten(1).any(1).double().mean() < 0.37
    torch.testing.assert_close(KeyedSoftening(share=0.0)(images, keys), images, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KeyedAffine(degrees=-1), "KeyedAffine expects sizes >= 0"),
        (lambda: KeyedSoftening(fade=1.0), r"fade in \[0, 1\)"),
        (lambda: KeyedSoftening(share=1.5), r"share in \[0, 1\]"),
    ],
)
def test_settings_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
