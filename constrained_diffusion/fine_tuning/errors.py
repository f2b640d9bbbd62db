"""How far a prediction is from its target, place by place."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from constrained_diffusion.diffusion import NoiseSchedule, Normalizer, PredictionType

LEAST = 1e-6  #: shares below it count as it, so that no place costs more than 14 nats


def squared(output: Tensor, target: Tensor, normalizer: Normalizer) -> Tensor:
    """Return the squared error of each value, shape of `output`."""
    return (output - target).square()


def cross_entropy(output: Tensor, target: Tensor, normalizer: Normalizer) -> Tensor:
    """Return the cross-entropy of each place, `(B, L)`, in nats.

    Args:
        output: clean samples as predicted, `(B, V, L)`, in network units: shares of V tokens in the data's units.
        target: what they should be, alike.
        normalizer: between the two units.
    """
    shares, wanted = normalizer.denormalize(output), normalizer.denormalize(target)
    return -(wanted * shares.clamp(min=LEAST).log()).sum(1)


ERRORS: dict[str, Callable[[Tensor, Tensor, Normalizer], Tensor]] = {"squared": squared, "cross_entropy": cross_entropy}


def weighted(each: Tensor, timesteps: Tensor, schedule: NoiseSchedule, gamma: float | None, floor: float) -> Tensor:
    """Return errors `(B, ...)` times the weight of their noise levels, `(B,)` or `(B, L)`; see `loss_weight`.

    Args:
        each: the errors.
        timesteps: their levels.
        schedule: what the levels mean.
        gamma: of min-SNR; None: all weigh 1.
        floor: the least weight on the clean sample.
    """
    if gamma is None:
        return each
    weight = schedule.loss_weight(timesteps, gamma, floor)
    return each * weight.reshape(*weight.shape, *(1,) * (each.ndim - weight.ndim))


def check_loss(loss: str, prediction_type: PredictionType) -> None:
    """Raise ValueError if there is no such loss, or it cannot judge what the network predicts."""
    if loss not in ERRORS:
        raise ValueError(f"loss must be one of {', '.join(ERRORS)}, got '{loss}'.")
    if loss == "cross_entropy" and prediction_type != "sample":
        raise ValueError(
            "the loss 'cross_entropy' judges predicted clean samples, but the schedule's prediction_type is "
            f"'{prediction_type}'; take a network that predicts samples, or the loss 'squared'."
        )
