import pytest
import torch

from constrained_diffusion.domains.images.pixels import Brightness, Darkness, Ink

SAMPLES = torch.tensor([[[0.0, 1.0], [0.5, 0.5]], [[2.0, -1.0], [0.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]])[:, None]
MEANS = torch.tensor([0.5, 0.5, 1.0])  # values outside [0, 1] count as they are


def test_brightness_is_the_mean_and_darkness_its_negative():
    torch.testing.assert_close(Brightness()(SAMPLES), MEANS)
    torch.testing.assert_close(Darkness()(SAMPLES), -MEANS)


def test_all_channels_count_alike():
    red = torch.zeros(1, 3, 4, 4)
    red[:, 0] = 1
    torch.testing.assert_close(Brightness()(red), torch.tensor([1 / 3]))


def test_ink_is_the_mean_or_its_nearness_to_a_target():
    torch.testing.assert_close(Ink()(SAMPLES), MEANS)
    torch.testing.assert_close(Ink(target=0.75)(SAMPLES), torch.tensor([-0.0625, -0.0625, -0.0625]))
    torch.testing.assert_close(Ink(target=1)(SAMPLES), torch.tensor([-0.25, -0.25, 0.0]))


@pytest.mark.parametrize("value", [-3.0, 0.2, 5.0])
def test_the_gradient_of_ink_pulls_to_the_target_from_anywhere(value):
    sample = torch.full((1, 1, 2, 2), value, requires_grad=True)
    Ink(target=0.5)(sample).sum().backward()
    torch.testing.assert_close(sample.grad, torch.full_like(sample, 2 * (0.5 - value) / 4))


def test_the_gradient_of_brightness_is_the_same_everywhere():
    sample = torch.tensor([[-1.0, 0.3, 2.0]], requires_grad=True)
    Brightness()(sample).sum().backward()
    torch.testing.assert_close(sample.grad, torch.full((1, 3), 1 / 3))
