"""The loop of direct noise optimisation: gradient ascent on r(M(z)) + gamma R(z), every row on its own (D eq. 7, 12).

No Lightning here, and nothing of diffusion: `sample` is any map from noise to samples.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from constrained_diffusion.noise_optimization.concentration import log_bounds, log_probability
from constrained_diffusion.noise_optimization.gradients import Exact, GradientEstimator, check_differentiable
from constrained_diffusion.noise_optimization.orders import check_size, draw_orders
from constrained_diffusion.noise_optimization.problem import check_per_row, checked_problem, first_not_finite, name_of
from constrained_diffusion.noise_optimization.record import Record, StopReason
from constrained_diffusion.noise_optimization.regularizers import PRNO, Regularizer
from constrained_diffusion.runtime.precision import without_autocast

DEFAULT_OPTIMIZER = partial(Adam, lr=0.01)  # no weight decay: it would shrink z out of the typical set
ORDERS = 0x0D  # the stream of random orders
Progress = Callable[[int, list[Record]], None]


class NoiseOptimizer:
    """Optimises the noise of a batch of samples for a reward; weights are not touched.

    Args:
        sample: z `(B, *z_shape)` -> samples `(B, *shape)`, differentiable in z unless the estimator is `ZOSGD`. Called
            with the rows' contexts as second argument where `run` is given any.
        reward: samples -> `(B,)`, larger is better; likewise. Messages call it by its `__name__`, an object without one
            by its class.
        steps: updates of z, at most.
        regularizer: keeps z typical; PRNO by default.
        estimator: how the reward's gradient is got; `Exact` needs a differentiable reward.
        optimizer: a factory, called with the parameters; Adam without weight decay at 0.01 by default.
        max_grad_norm: each row's gradient is clipped to this norm; None: not at all.
        k: length of the rows that the concentration bounds cut z into.
        permutations: q, the random orders of each step.
        typical_probability: the returned iterate is the best one with P(z) of at least this.
        stop_reward, stop_probability, max_seconds: a row stops when the reward of an iterate with P(z) of at least
            `typical_probability` has reached the first, when its P(z) has fallen below the second; all stop after so
            many seconds.
        seed: keys the random orders.

    Raises:
        ValueError: a setting is out of range.
        TypeError: the estimator needs a gradient that the reward, by its own word, does not have.

    Example:
        >>> optimizer = NoiseOptimizer(lambda z: z.tanh(), lambda x: x.mean(1), steps=3)
        >>> [record] = optimizer.run(torch.zeros(1, 8))
        >>> record.reward > record.rewards[0], record.stopped
        (True, 'steps')
    """

    def __init__(
        self,
        sample: Callable[..., Tensor],
        reward: Callable[..., Tensor],
        steps: int = 100,
        regularizer: Regularizer | None = None,
        estimator: GradientEstimator | None = None,
        optimizer: Callable[[list[Tensor]], Optimizer] | None = None,
        max_grad_norm: float | None = 1.0,
        k: int = 2,
        permutations: int = 100,
        typical_probability: float = 0.01,
        stop_reward: float | None = None,
        stop_probability: float | None = None,
        max_seconds: float | None = None,
        seed: int = 0,
    ) -> None:
        if steps < 0 or permutations < 0 or (max_grad_norm is not None and max_grad_norm <= 0):
            raise ValueError(
                "expected steps >= 0, permutations >= 0 and max_grad_norm > 0 or None; got "
                f"{steps}, {permutations} and {max_grad_norm}."
            )
        for name, value in (("typical_probability", typical_probability), ("stop_probability", stop_probability)):
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {value}.")
        self.estimator, self.regularizer = estimator or Exact(), regularizer or PRNO()
        check_differentiable(reward, self.estimator)
        self.sample, self.reward, self.steps = sample, reward, steps
        self.optimizer = optimizer or DEFAULT_OPTIMIZER
        self.max_grad_norm, self.k, self.permutations, self.seed = max_grad_norm, k, permutations, seed
        self.log_typical = math.log(typical_probability) if typical_probability > 0 else -math.inf
        self.stop_reward, self.max_seconds = stop_reward, max_seconds
        self.log_stop = math.log(stop_probability) if stop_probability else -math.inf

    def run(
        self,
        noise: Tensor,
        context: Sequence[Any] | None = None,
        keys: Sequence[int] | None = None,
        progress: Progress | None = None,
        state: dict[str, Any] | None = None,
    ) -> list[Record]:
        """Optimise every row of `noise`.

        Args:
            noise: z to start from, `(B, *z_shape)`; read as float32 (float64 stays).
            context: one entry per row, such as a prompt, handed to `sample` and `reward`.
            keys: one integer per row, such as its seed, that keys what the estimator draws; 0, 1, .. by default.
            progress: called after each evaluation with the step and all records.
            state: what `state_dict` gave in an interrupted run of the same batch, to go on from.

        Raises:
            ValueError: the noise has no rows, k does not divide the size of z, there are not as many contexts, keys or
                samples as rows, the reward's shape is wrong, or it or its gradient is not finite.
            TypeError: `sample` or `reward` returns no tensor, or has no gradient where the estimator needs it.
        """
        run = Run(self, noise, context, keys)
        if state is not None:
            run.load_state_dict(state)
        while not run.finished:
            run.step()
            if progress is not None:
                progress(run.evaluations - 1, run.records)
        return run.records


class Run:
    """One batch on its way: z, the state of the optimiser, and the records.

    A row that has stopped is not evaluated again. What a row goes through depends on its own noise, key and context,
    and on the step; rows never meet in a sum.
    """

    def __init__(
        self, settings: NoiseOptimizer, noise: Tensor, context: Sequence[Any] | None, keys: Sequence[int] | None
    ) -> None:
        if noise.ndim < 2 or len(noise) == 0:
            raise ValueError(
                f"expected noise of shape (B, *z_shape) with at least one row, got {tuple(noise.shape)}; give at "
                "least one z, a single one as z[None]."
            )
        check_size(noise[0].numel(), settings.k)
        self.settings, self.context = settings, context
        self.keys = list(keys) if keys is not None else list(range(len(noise)))
        check_per_row("context", context, len(noise))
        check_per_row("keys", self.keys, len(noise))
        self.noise = noise.detach().to(torch.promote_types(noise.dtype, torch.float32)).clone()
        self.optimizer = settings.optimizer([self.noise])
        self.records: list[Record] = []
        self.evaluations, self.seconds = 0, 0.0

    @property
    def finished(self) -> bool:
        """Whether no row runs any more."""
        return bool(self.records) and not self._running()

    def _running(self) -> list[int]:
        return [i for i, record in enumerate(self.records) if record.stopped == "none"] if self.records else []

    def step(self) -> dict[int, Tensor]:
        """Evaluate the running rows at their present z, note the best, and move those that go on.

        Returns the evaluated rows with their samples.
        """
        started, settings = time.perf_counter(), self.settings
        rows = self._running() or list(range(len(self.noise)))
        last = self.evaluations >= settings.steps
        noise = self.noise[rows]
        clean, reward, gradient = self._evaluate(rows, noise, last)
        gradients = [(name_of(settings.reward), gradient)]
        flat = noise.flatten(1).requires_grad_(not last and settings.regularizer.weight > 0)
        orders = draw_orders(
            flat.shape[1], settings.k, settings.permutations, (settings.seed, ORDERS, self.evaluations)
        )
        with torch.enable_grad(), without_autocast(flat):
            bounds = log_bounds(flat, orders.to(flat.device), settings.k)
            if flat.requires_grad:
                regularizer = settings.regularizer.weight * settings.regularizer(flat, bounds).sum()
                pull = torch.autograd.grad(regularizer, flat)[0].view_as(noise)
                gradients.append((name_of(settings.regularizer), pull))
        self._note(rows, noise.detach(), clean, reward.tolist(), log_probability(bounds.detach()).tolist())
        self.evaluations += 1
        self.seconds += time.perf_counter() - started
        self._stop(rows)
        going = [place for place, i in enumerate(rows) if self.records[i].stopped == "none"]
        if going:
            self._move([rows[place] for place in going], [(name, part[going]) for name, part in gradients])
        return dict(zip(rows, clean, strict=True))

    def _evaluate(self, rows: list[int], noise: Tensor, last: bool) -> tuple[Tensor, Tensor, Tensor]:
        settings = self.settings
        problem = checked_problem(
            settings.sample,
            settings.reward,
            None if self.context is None else [self.context[i] for i in rows],
            [(settings.seed, self.evaluations, self.keys[i]) for i in rows],
        )
        if not last:
            return settings.estimator(problem, noise)
        with torch.no_grad():  # the last iterate is looked at, but not moved
            clean = problem.sample(noise, problem.context)
            return clean, problem.reward(clean, problem.context), torch.zeros_like(noise)

    def _note(
        self, rows: list[int], noise: Tensor, clean: Tensor, rewards: list[float], log_probabilities: list[float]
    ) -> None:
        if not self.records:
            self.records = [Record(clean[i].clone(), noise[i].clone(), clean[i].clone()) for i in rows]
        for place, (i, reward, log_p) in enumerate(zip(rows, rewards, log_probabilities, strict=True)):
            record = self.records[i]
            record.rewards.append(reward)
            record.log_probabilities.append(log_p)
            if log_p >= self.settings.log_typical and (not self._typical(record) or reward > record.reward):
                record.best_step = len(record.rewards) - 1
                record.sample, record.noise = clean[place].clone(), noise[place].clone()

    def _typical(self, record: Record) -> bool:
        return record.log_probabilities[record.best_step] >= self.settings.log_typical

    def _stop(self, rows: list[int]) -> None:
        settings = self.settings
        goal = math.inf if settings.stop_reward is None else settings.stop_reward
        for i in rows:
            record = self.records[i]
            reasons: list[tuple[bool, StopReason]] = [
                (record.reward >= goal and self._typical(record), "reward"),
                (record.log_probabilities[-1] < settings.log_stop, "probability"),
                (len(record.rewards) > settings.steps, "steps"),
                (settings.max_seconds is not None and self.seconds >= settings.max_seconds, "seconds"),
            ]
            record.stopped = next((reason for holds, reason in reasons if holds), "none")

    def _move(self, rows: list[int], gradients: list[tuple[str, Tensor]]) -> None:
        for name, part in gradients:
            if not bool(part.isfinite().all()):
                raise ValueError(
                    f"the gradient of {name} with respect to z must be finite, but is {first_not_finite(part)} for a "
                    "sample; keep its roots, logarithms and quotients, and the sample map's, away from 0, such as by "
                    "clamp(min=1e-12)."
                )
        gradient = torch.stack([part for _, part in gradients]).sum(0)
        if self.settings.max_grad_norm is not None:
            norm = gradient.flatten(1).norm(dim=1).clamp(min=1e-12)
            factor = (self.settings.max_grad_norm / norm).clamp(max=1)
            gradient = gradient * factor.reshape(-1, *(1,) * (gradient.ndim - 1))
        self.noise.grad = torch.zeros_like(self.noise)
        self.noise.grad[rows] = -gradient.to(self.noise.dtype)  # torch's optimisers descend
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of what `load_state_dict` needs to go on from just here; readable with `weights_only=True`."""
        state = {
            "noise": self.noise.detach(),
            "optimizer": self.optimizer.state_dict(),
            "records": [record.state() for record in self.records],
            "evaluations": self.evaluations,
            "seconds": self.seconds,
        }
        return deepcopy(state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            ValueError: the state is of another batch, or damaged.
        """
        try:
            self._go_on(state)
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(
                f"the state is damaged ({type(error).__name__}: {error}); delete it to start the batch anew."
            ) from error

    def _go_on(self, state: dict[str, Any]) -> None:
        if state["noise"].shape != self.noise.shape:
            raise ValueError(
                f"the state is of noise of shape {tuple(state['noise'].shape)}, but the batch has "
                f"{tuple(self.noise.shape)}; start the batch anew."
            )
        state = deepcopy(state)  # the caller's stays as it is
        with torch.no_grad():
            self.noise.copy_(state["noise"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.records = [Record.from_state(record, self.noise.device) for record in state["records"]]
        self.evaluations, self.seconds = state["evaluations"], state["seconds"]
