"""A flag of the device, read one step late."""

from __future__ import annotations

import pytest
import torch

from constrained_diffusion.callbacks.controllers.delayed_flag import DelayedFlag


@pytest.mark.parametrize("value", [True, False])
def test_what_was_put_last_is_read(value: bool) -> None:
    flag = DelayedFlag()
    assert flag.get() is False
    flag.set(torch.tensor(not value))
    given = torch.tensor(value)
    flag.set(given)
    given.logical_not_()  # the step after writes anew where the step before wrote
    assert flag.get() is flag.get() is value


def test_it_goes_through_a_checkpoint() -> None:
    flag, restored = DelayedFlag(), DelayedFlag()
    flag.set(torch.tensor(True))
    restored.restore(flag.get())
    assert restored.get() is True


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_is_not_waited_for() -> None:
    flag, value = DelayedFlag(), torch.tensor(True, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        flag.set(value)
        assert flag.get() is True
    finally:
        torch.cuda.set_sync_debug_mode("default")
