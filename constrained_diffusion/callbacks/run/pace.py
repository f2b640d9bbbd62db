"""How fast a fit goes and what its steps gave, in words; pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

LONGEST_SILENCE = (
    30.0  #: seconds; later a twentieth of the time so far, so that a fit of a day prints no thousand lines
)
SHORTEST_SILENCE = 2.0  #: seconds between the lines of a short fit


class Pace(NamedTuple):
    """Where and when this part of a fit began, and where the fit ends."""

    began: float  #: seconds, by the clock that is asked later too
    first: int  #: optimiser steps that a checkpoint brought
    total: float  #: optimiser steps of the whole fit; infinite where time ends it

    def seconds_left(self, step: int, now: float) -> float | None:
        """Return how long the rest of the fit takes, validations like those so far included; None where unknown.

        >>> Pace(began=100.0, first=10, total=40).seconds_left(20, now=105.0)
        10.0
        """
        done = step - self.first
        if done < 1 or self.total == float("inf"):
            return None
        return (now - self.began) * max(self.total - step, 0) / done

    def line_is_due(self, step: int, now: float, said: int, said_at: float) -> bool:
        """Return whether a log should hear of this step, after the last line came at step `said`, at time `said_at`."""
        silence = now - said_at
        if silence >= max(LONGEST_SILENCE, (now - self.began) / 20):
            return step > said
        tenths = self.total < float("inf") and 10 * step // self.total > 10 * said // self.total
        return tenths and silence >= SHORTEST_SILENCE


def figures(terms: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Return what is shown of a step's terms, the constraint's figures first; of several constraints the worst."""
    shown = {"violating": "violation_rate/", "P": "penalty/", "loss": "loss/total"}
    found = {name: [float(v) for key, v in terms.items() if key.startswith(prefix)] for name, prefix in shown.items()}
    return {name: max(values) for name, values in found.items() if values}
