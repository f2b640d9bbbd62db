"""How much of the sampler's activations is kept for the backward pass: memory against time.

Kept, a denoiser call costs its activations; checkpointed, a second forward pass (non-reentrant, so that gradients flow
though no weight has any). The calls nearest to the sample are the ones to keep: backward frees them first, before the
others are computed again, one at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from constrained_diffusion.diffusion.prediction import Prediction

MemoryBudget = int | Literal["unlimited", "minimal"]
Predict = Callable[[Tensor, Tensor], Prediction]


def check_budget(budget: MemoryBudget) -> MemoryBudget:
    """Return `budget` where it is one, else raise ValueError."""
    if budget in ("unlimited", "minimal") or (isinstance(budget, int) and budget > 0):
        return budget
    raise ValueError(f'memory_budget must be a number of bytes, "unlimited" or "minimal", got {budget!r}.')


def saved_bytes(predict: Predict, noisy: Tensor, timesteps: Tensor) -> int:
    """Return how many bytes one call keeps for its backward pass, weights and input aside.

    Under autocast they include the copies in half precision that it makes, in each call anew, of frozen weights.
    """
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        owner = tensor if tensor._base is None else tensor._base  # a linear layer keeps a transposed view of its weight
        if not isinstance(owner, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    given = noisy.detach().requires_grad_(True)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = predict(given, timesteps)  # alive until counted, so that no address is used twice
        storages.pop(given.untyped_storage().data_ptr(), None)
        del result
    return sum(storages.values())


def kept_calls(budget: MemoryBudget, calls: int, bytes_per_call: Callable[[], int]) -> int:
    """Return how many of `calls` keep their activations.

    Raises:
        ValueError: the budget is smaller than what a single call needs, which the backward pass needs in any case.
    """
    if budget == "unlimited":
        return calls
    if budget == "minimal":
        return 0
    needed = bytes_per_call()
    if budget < needed:
        raise ValueError(
            f"memory_budget is {budget} bytes, but the activations of a single denoiser call are {needed}; give at "
            'least that, optimise fewer samples at once, or "minimal", which keeps none beyond the one in work.'
        )
    return min(calls, budget // max(needed, 1))


def checkpoint_calls(predict: Predict, calls: int, keep: int) -> Predict:
    """Wrap `predict` so that of the next `calls` calls all but the last `keep` are checkpointed."""
    made = 0

    def wrapped(noisy: Tensor, timesteps: Tensor) -> Prediction:
        nonlocal made
        made += 1
        if made > calls - keep or not (torch.is_grad_enabled() and noisy.requires_grad):
            return predict(noisy, timesteps)
        result: Prediction = checkpoint(
            predict, noisy, timesteps, use_reentrant=False, preserve_rng_state=False, determinism_check="none"
        )
        return result

    return wrapped
