"""The name that this package is installed by, and what is said where one of its extras is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

DISTRIBUTION = "lightning-constrained-diffusion"  #: to pip; another project has the name `constrained-diffusion`


def install_hint(*extras: str) -> str:
    """Return the command that installs this package with the extras.

    >>> install_hint("lora")
    'pip install "lightning-constrained-diffusion[lora]"'
    """
    return f'pip install "{DISTRIBUTION}[{",".join(extras)}]"'


@contextmanager
def needs_extra(extra: str, sentence: str, otherwise: str = "") -> Iterator[None]:
    """Import in this context what the extra brings; where it is missing, the error names the command that installs it.

    Args:
        extra: its name in `pyproject.toml`.
        sentence: who needs what, such as "LoRA needs peft".
        otherwise: how to do without.

    Raises:
        ImportError: something cannot be imported. What is installed but broken is reported with its own reason.
    """
    try:
        yield
    except ImportError as error:
        broken = "" if isinstance(error, ModuleNotFoundError) else f" ({error})"
        alternative = f", or {otherwise}" if otherwise else ""
        raise ImportError(f"{sentence}{broken}: {install_hint(extra)}{alternative}") from error
