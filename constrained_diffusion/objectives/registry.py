"""The constraints and rewards that go by their names: a dict, a decorator and a getter."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from constrained_diffusion.objectives.base import Constraint, Reward

Objective = Constraint | Reward
_REGISTRY: dict[str, type[Objective]] = {}
_Class = TypeVar("_Class", bound=type)


def register(name: str | None = None) -> Callable[[_Class], _Class]:
    """Class decorator that makes a constraint or reward available under its class name (or `name`).

    Raises:
        TypeError: the class is neither a Constraint nor a Reward.
        ValueError: the name is taken by another class.
    """

    def decorate(cls: _Class) -> _Class:
        key = name or cls.__name__
        if not issubclass(cls, Constraint | Reward):
            raise TypeError(f"register expects a subclass of Constraint or Reward, got {cls.__name__}.")
        if _REGISTRY.get(key, cls) is not cls:
            raise ValueError(f"'{key}' is registered already, by {_REGISTRY[key].__module__}; choose another name.")
        _REGISTRY[key] = cls
        return cls

    return decorate


def get(name: str) -> type[Objective]:
    """Return the class registered as `name`.

    Raises:
        KeyError: nothing of that name; the message lists what exists.
    """
    if name not in _REGISTRY:
        raise KeyError(f"no objective is registered as '{name}'; registered are {', '.join(available())}.")
    return _REGISTRY[name]


def available(kind: type[Objective] | None = None) -> list[str]:
    """Return the registered names in alphabetical order, of `kind` (Constraint or Reward) only if one is given."""
    return sorted(key for key, cls in _REGISTRY.items() if kind is None or issubclass(cls, kind))
