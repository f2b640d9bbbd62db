"""A trial call of an objective before any work, so that a mistake in it costs no time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from constrained_diffusion.objectives.base import Constraint, Reward
from constrained_diffusion.objectives.measure import checked_g, checked_reward
from constrained_diffusion.runtime.precision import to_float32
from constrained_diffusion.runtime.probing import first_line, undisturbed

ROWS = 3  #: two would not tell two rules in shape `(2, B)` from `(B, 2)`


def check_built(objective: Constraint | Reward) -> None:
    """Raise TypeError where the constructor of the objective's class does not call that of its base."""
    name, state = type(objective).__name__, vars(objective)
    if "_modules" not in state or (isinstance(objective, Constraint) and "tolerance" not in state):
        base = "Constraint" if isinstance(objective, Constraint) else "Reward"
        raise TypeError(
            f"{name} lacks what {base} sets up; call super().__init__() in the first line of {name}.__init__."
        )


def check_objective(objective: Constraint | Reward, shape: Sequence[int]) -> None:
    """Call the objective on three samples of `shape` (without batch), in the data's units, and check what it returns.

    Its mode and the random numbers stay as they were. A constraint on steps is left out, for a step exists in training
    alone; its first call is checked there.

    Raises:
        TypeError: it was not set up, or returns no tensor of floats.
        ValueError: it fails, returns another shape, or is not finite for any of the three.
    """
    check_built(objective)
    if isinstance(objective, Constraint) and objective.needs_step_record:
        return
    name = type(objective).__name__
    own = [*objective.parameters(), *objective.buffers(), torch.empty(0)]
    like = next(values for values in own if values.is_floating_point())
    samples = to_float32(trial_samples(shape).to(own[0].device, like.dtype))  # in double precision it takes no others
    with undisturbed(objective, like.device):
        try:
            prompted = isinstance(objective, Reward) and objective.needs_prompts
            returned = objective(samples, ["a picture"] * ROWS) if prompted else objective(samples)
        except Exception as error:  # anything may happen in another's code
            raise ValueError(
                f"{name} fails on {ROWS} samples of shape {tuple(shape)} ({first_line(error)}); mend its forward, or "
                "raise a ValueError in its check_data where such samples cannot be judged."
            ) from error
        check = checked_g if isinstance(objective, Constraint) else checked_reward
        found = check(objective, returned, ROWS)  # type: ignore[arg-type]
    finite = found.reshape(ROWS, -1).isfinite().all(1)
    if not bool(finite.any()):
        value = float(found[~found.isfinite()][0])
        raise ValueError(
            f"{name} returned {value} for samples of zeros, of 0.5 and of noise in [0, 1]; it must be finite: look for "
            "a division by zero, or a logarithm or root of what is not above 0."
        )


def trial_samples(shape: Sequence[int]) -> Tensor:
    """Return `(3, *shape)`: zeros, 0.5, and noise in [0, 1], for g may have no value for an even picture."""
    noise = torch.rand(*shape, generator=torch.Generator().manual_seed(0))
    return torch.stack([torch.zeros(*shape), torch.full(tuple(shape), 0.5), noise])
