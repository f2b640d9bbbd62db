"""A flag of the device, read one step late."""

from __future__ import annotations

import pytest
import torch

from constrained_diffusion.callbacks.late_flag import LateFlag


@pytest.mark.parametrize("value", [True, False])
def test_what_was_put_last_is_read(value: bool) -> None:
    flag = LateFlag()
    assert flag.peek() is False
    flag.put(torch.tensor(not value))
    given = torch.tensor(value)
    flag.put(given)
    given.logical_not_()  # the step after writes anew where the step before wrote
    assert flag.peek() is flag.peek() is value


def test_it_goes_through_a_checkpoint() -> None:
    flag, restored = LateFlag(), LateFlag()
    flag.put(torch.tensor(True))
    restored.restore(flag.peek())
    assert restored.peek() is True


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_is_not_waited_for() -> None:
    flag, value = LateFlag(), torch.tensor(True, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        flag.put(value)
        assert flag.peek() is True
    finally:
        torch.cuda.set_sync_debug_mode("default")
