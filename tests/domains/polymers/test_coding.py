from __future__ import annotations

import pytest
import torch

from constrained_diffusion.domains.polymers.coding import CODINGS, coding


@pytest.mark.parametrize("name", CODINGS)
@pytest.mark.parametrize("size", [2, 17, 22, 32])
def test_values_lie_in_the_unit_interval_and_are_read_back_through_noise(name: str, size: int) -> None:
    code, numbers = coding(name, size), torch.arange(size).repeat(3).view(3, size)
    values = code.encode(numbers)
    assert values.shape == (3, code.channels, size)
    assert values.dtype == torch.float32
    assert 0 <= values.min() < values.max() == 1
    tolerance = 0.49 / (size - 1) if name == "ordinal" else 0.49
    noise = tolerance * (2 * torch.rand(values.shape, generator=torch.Generator().manual_seed(0)) - 1)
    assert torch.equal(code.decode(values), numbers)
    assert torch.equal(code.decode(values + noise), numbers)


@pytest.mark.parametrize(("name", "channels"), [("one_hot", 22), ("analog_bits", 5), ("ordinal", 1)])
def test_channels_and_numbers_beyond_the_vocabulary(name: str, channels: int) -> None:
    code = coding(name, 22)
    assert code.channels == channels
    for value in (-3.0, 0.4, 7.0):
        assert code.decode(torch.full((1, channels, 4), value)).min() >= 0
        assert code.decode(torch.full((1, channels, 4), value)).max() <= 21


def test_bits_are_pythons() -> None:
    bits = coding("analog_bits", 22).encode(torch.tensor([[19]]))[0, :, 0]
    assert "".join(str(int(bit)) for bit in bits) == f"{19:05b}"


def test_unknown_names_and_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="coding must be one of one_hot, analog_bits, ordinal, got 'bpe'"):
        coding("bpe", 22)
    with pytest.raises(ValueError, match="at least 2 tokens, END included, got 1"):
        coding("one_hot", 1)
