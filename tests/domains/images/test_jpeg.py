import numpy as np
import pytest
import torch
from PIL import Image

from constrained_diffusion.domains.images.jpeg import JPEGCompressibility


def images(channels: int, rows: int = 3) -> torch.Tensor:
    """Noise of three strengths, in 8-bit steps."""
    noise = torch.rand(rows, channels, 24, 40, generator=torch.Generator().manual_seed(0))
    return (noise * torch.linspace(0.1, 1, rows).view(-1, 1, 1, 1) * 255).round() / 255


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
@pytest.mark.parametrize("quality", [95, 30])
def test_is_the_size_of_a_file(tmp_path, channels, mode, quality):
    batch = images(channels)
    sizes = []
    for number, pixels in enumerate(batch.numpy()):
        picture = Image.new(mode, (40, 24))
        values = np.rint(pixels * 255).astype(int).reshape(channels, -1).T.tolist()
        picture.putdata([row[0] for row in values] if channels == 1 else [tuple(row) for row in values])
        picture.save(tmp_path / f"{number}.jpg", quality=quality)
        sizes.append((tmp_path / f"{number}.jpg").stat().st_size)
    expected = torch.tensor([-size / 1000 for size in sizes])
    torch.testing.assert_close(JPEGCompressibility(quality)(batch), expected)


def test_smoother_is_better():
    weak, medium, strong = JPEGCompressibility()(images(3))
    assert strong < medium < weak < 0


def test_values_are_clamped_and_rounded():
    reward, batch = JPEGCompressibility(), images(1)
    torch.testing.assert_close(reward(batch + 0.4 / 255), reward(batch), rtol=0, atol=0)
    black_and_white = (batch > 0.3).float()
    torch.testing.assert_close(reward(black_and_white * 9 - 4), reward(black_and_white), rtol=0, atol=0)


def test_promises_no_gradient_and_gives_none():
    reward = JPEGCompressibility()
    assert not reward.differentiable
    assert not reward(images(1).requires_grad_(True)).requires_grad


@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (2, 2, 8, 8), (3, 8, 8)])
def test_other_shapes(shape):
    with pytest.raises(ValueError, match=r"shape \(B, 1, H, W\) or \(B, 3, H, W\), got samples of shape \("):
        JPEGCompressibility()(torch.zeros(shape))


@pytest.mark.parametrize("quality", [0, 101])
def test_quality_out_of_range(quality):
    with pytest.raises(ValueError, match=f"quality from 1 to 100, got {quality}"):
        JPEGCompressibility(quality)
