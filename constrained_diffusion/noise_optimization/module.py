"""`DirectNoiseOptimization`: `lightning predict` aligns the samples of a pretrained model (D eq. 7, 12)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.diffusion.prediction import Prediction
from constrained_diffusion.diffusion.sampler import Sampler, seeded_noise
from constrained_diffusion.evaluation import Evaluation, images
from constrained_diffusion.noise_optimization.gradients import Perturbed, check_differentiable
from constrained_diffusion.noise_optimization.hooks import NoiseCallback, Optimized
from constrained_diffusion.noise_optimization.jobs import Job, as_jobs, asked_of_two, condition_of, contexts_of
from constrained_diffusion.noise_optimization.mapping import NoiseToSample
from constrained_diffusion.noise_optimization.memory import MemoryBudget, Predict
from constrained_diffusion.noise_optimization.optimizer import NoiseOptimizer, Run
from constrained_diffusion.noise_optimization.orders import check_size
from constrained_diffusion.objectives import (
    Constraint,
    Feasibility,
    Objective,
    Reward,
    check_built,
    check_objective,
    measure_reward,
)
from constrained_diffusion.runtime.conditions import Prompts


class DirectNoiseOptimization(LightningModule):
    """Optimise the noise of each sample for a reward, for `Trainer.predict`.

    A batch is a list of `Job` (prompts and seeds) or `Seeds`; every row is on its own.

    Args:
        model: a `Denoiser`, such as `PretrainedDenoiser`; for prompts one that was read from a text-to-image pipeline.
        objective: the reward to maximise; a constraint is read as its `Feasibility`.
        sampler: steps, eta and the rest; by default 10 steps with eta 1, for a model with prompts 50 of them.
        memory_budget: see `NoiseToSample`.
        evaluation: what draws the samples and judges them before and after, bound to the objective's constraints where
            it has some; None: images are drawn as they are, and nothing but the objective is measured.
        settings: see `NoiseOptimizer`: steps, regularizer, estimator, stops, seed and the rest.

    Raises:
        TypeError: the objective has no gradient and the estimator needs one, or it needs prompts and has none.
        ValueError: a setting is out of range, or k does not divide the numbers of a sample's noise.
    """

    def __init__(
        self,
        model: Denoiser,
        objective: Objective,
        sampler: Sampler | None = None,
        memory_budget: MemoryBudget = "minimal",
        evaluation: Evaluation | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        prompted = model.has_prompts
        self.model, self.reward = model.requires_grad_(False).eval(), as_reward(objective)
        self.reward.requires_grad_(False)
        if self.reward.needs_prompts and not prompted:
            raise TypeError(
                f"{type(self.reward).__name__} judges how an image fits its prompt, but {type(model).__name__} takes "
                "none; choose a text-to-image model, or a reward of the image alone."
            )
        self.sampler = sampler or Sampler(steps=50 if prompted else 10, eta=1.0)
        self.mapping = NoiseToSample(self._predictor, model.noise_schedule, self.sampler, self._finish, memory_budget)
        self.evaluation = evaluation
        if evaluation is not None and self.constraints:
            evaluation.bind(self.constraints)
        self.optimizer = NoiseOptimizer(self.mapping, _Rated(self.reward, type(objective).__name__), **settings)
        check_differentiable(self.reward, self.optimizer.estimator)
        check_size(self.mapping.slices * math.prod(model.sample_shape), self.optimizer.k)  # before a run has a folder

    def setup(self, stage: str) -> None:
        estimator, data = self.optimizer.estimator, getattr(self.trainer, "datamodule", None)
        self.model.check_data(self.model.data_shape, asked_of_two(self.model, data))
        conditions = getattr(data, "conditions", None)
        if self.reward.needs_prompts and conditions is not None and not isinstance(conditions, Prompts):
            raise ValueError(
                f"{type(self.reward).__name__} judges how an image fits its prompt, but {type(conditions).__name__} "
                "has none: expected `conditions` set to Prompts, or PromptsDataModule; take one of them, or a reward "
                "of the image alone."
            )
        parts: list[Objective] = [*self.constraints, self.reward]  # the user's own first, under its own name
        for part in parts:
            part.check_data(self.model.data_shape)
            if not getattr(part, "needs_prompts", False):
                check_objective(part, self.model.data_shape)
        if not (isinstance(estimator, Perturbed) and estimator.shard and self.trainer.world_size > 1):
            return
        if self.optimizer.max_seconds is not None:
            raise ValueError(
                "ranks that share the perturbations of a sample must stop together, and max_seconds would stop each by "
                "its own clock; take it out and limit `steps`, or let the ranks share samples (shard: false)."
            )
        if not hasattr(data, "sharded"):
            raise ValueError(
                f"shard: true of {type(estimator).__name__} needs a data module that gives all ranks the same jobs, "
                "such as PromptsDataModule or SeedsDataModule; give one, or let the ranks share samples (shard: false)."
            )
        data.sharded = False  # type: ignore[union-attr]

    @property
    def constraints(self) -> list[Constraint]:
        """The constraints whose feasibility the objective rewards, alone or among other things."""
        return [part.constraint for part in self.reward.modules() if isinstance(part, Feasibility)]

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Return the noise sequences of seeds, `(len(seeds), 1 + K, *shape)`; each depends on its own seed alone."""
        return seeded_noise(seeds, self.model.sample_shape, self.sampler, self.model.noise_schedule)

    def pictures(self, clean: Tensor) -> Tensor | None:
        """Return `(B, C, H, W)` in [0, 1] that show samples `(B, *shape)`; None where they cannot be drawn."""
        return images(clean) if self.evaluation is None else self.evaluation.pictures(clean)

    def predict_step(self, batch: Any, batch_idx: int) -> Optimized:
        """Optimise the batch's jobs that have no results yet; an interrupted run of them goes on as a whole.

        Raises:
            ValueError: the reward is not finite, or as `NoiseOptimizer.run`; the message names the jobs.
        """
        data = getattr(self._trainer, "datamodule", None)
        whole, watchers = as_jobs(batch, data), self._watchers()
        done = set().union(*(callback.finished_jobs(self.trainer, whole) for callback in watchers))
        jobs: Sequence[Job] = [job for job in whole if job.key not in done]
        if not jobs:
            return Optimized([], [])
        runs = [callback.interrupted(self.trainer, whole) for callback in watchers]
        earlier = next((run for run in runs if run is not None and set(jobs) <= set(run.jobs)), None)
        jobs = jobs if earlier is None else earlier.jobs
        with torch.inference_mode(False), torch.enable_grad():
            run = Run(
                self.optimizer,
                self.noise([job.seed for job in jobs]).to(self.device),
                contexts_of(self.model, data, jobs),
                [job.seed for job in jobs],
            )
            if earlier is not None:
                run.load_state_dict(earlier.state)
            for callback in () if run.finished else watchers:
                callback.on_batch_begin(self.trainer, self, jobs, run)
            while not run.finished:
                try:
                    clean = run.step()
                except ValueError as error:
                    for callback in watchers:
                        callback.on_failure(self.trainer, self, jobs, run)
                    raise ValueError(f"{' .. '.join(dict.fromkeys((jobs[0].key, jobs[-1].key)))}: {error}") from error
                for callback in watchers:
                    callback.on_evaluation(self.trainer, self, jobs, run, clean)
        return Optimized(jobs, run.records)

    def _watchers(self) -> list[NoiseCallback]:
        return [callback for callback in self.trainer.callbacks if isinstance(callback, NoiseCallback)]  # type: ignore[attr-defined]

    def _predictor(self, contexts: list[Any]) -> Predict:
        predict = self.model.predictor(condition_of(self.model, contexts, self.device))

        def in_precision(noisy: Tensor, timesteps: Tensor) -> Prediction:
            with self._precision():
                return predict(noisy, timesteps)

        return in_precision

    def _finish(self, sample: Tensor) -> Tensor:
        with self._precision():
            return self.model.codec.decode(self.model.codec.clamp(sample))

    def _precision(self) -> AbstractContextManager[Any]:
        return self._trainer.precision_plugin.forward_context() if self._trainer else nullcontext()


class _Rated:
    """A reward as a function of samples and prompts, which errors call by the name of the user's class."""

    def __init__(self, reward: Reward, name: str) -> None:
        self.reward, self.__name__ = reward, name

    def __call__(self, clean: Tensor, prompts: list[Any]) -> Tensor:
        return measure_reward(self.reward, clean, prompts)


def as_reward(objective: Objective) -> Reward:
    """Return a reward: itself, or the feasibility of a constraint.

    Raises:
        TypeError: its constructor does not call that of its base.
    """
    check_built(objective)
    return Feasibility(objective) if isinstance(objective, Constraint) else objective
