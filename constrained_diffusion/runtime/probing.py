"""Trying a module before work begins, without leaving a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

SAID = 300  #: characters of another's message that one of ours quotes


@contextmanager
def undisturbed(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Return a context for calls of `module` in eval mode and without gradient; modes and random numbers come back.

    Args:
        module: what is tried; its submodules may be in modes of their own.
        device: where it is.
    """
    modes = [(part, part.training) for part in module.modules()]
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        module.eval()
        try:
            yield
        finally:
            for part, mode in modes:
                part.training = mode


def first_line(error: BaseException) -> str:
    """Return the name of an error's class and the first line of what it says.

    >>> first_line(ValueError("two" + chr(10) + "lines")), first_line(KeyError())
    ('ValueError: two', 'KeyError')
    """
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:SAID].rstrip('.;')}" if lines else type(error).__name__
