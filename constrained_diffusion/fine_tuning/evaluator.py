"""`Evaluator`: samples of a model's weights, and what is measured on them before and after; no Lightning."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from constrained_diffusion.batch import Seeds
from constrained_diffusion.condition import Condition, moved
from constrained_diffusion.constraint_rates import ConstraintRates
from constrained_diffusion.diffusion.prediction import Predict
from constrained_diffusion.diffusion.sampler import Sampler, seeded_noise
from constrained_diffusion.evaluation import Evaluation, OwnViolations
from constrained_diffusion.fine_tuning.networks import Networks, Weights
from constrained_diffusion.fine_tuning.steering import Steering
from constrained_diffusion.guides.base import Guide
from constrained_diffusion.runtime import assets
from constrained_diffusion.runtime.precision import to_float32
from constrained_diffusion.runtime.ranks import place, sum_over_ranks


class Tally:
    """Running figures of one set of samples: by the constraints' own g, and by an evaluation where there is one.

    Args:
        steering: the constraints.
        evaluation: it is emptied, and filled anew.
        device: where the samples will be.
    """

    def __init__(self, steering: Steering, evaluation: Evaluation | None, device: torch.device) -> None:
        self.steering, self.evaluation = steering, evaluation
        self.own = ConstraintRates(steering.constraints).to(device)  # type: ignore[arg-type]
        if evaluation is not None:
            evaluation.reset()

    @torch.no_grad()
    def update(self, samples: Tensor, condition: Condition | None = None) -> None:
        """Measure one batch of samples `(B, *shape)`, in the data's units, and what was asked for."""
        if self.evaluation is not None:
            self.evaluation.update_asked(samples, condition)
        if len(samples):
            self.own.update(samples)

    def compute(self) -> dict[str, Any]:
        """Return the figures of all ranks' samples, JSON-ready; all ranks must call it."""
        own = self.own.compute()
        result: dict[str, Any] = {"violation_rate": None, "violation_upper_95": None, "n": own["n"], "metrics": {}}
        result |= self.evaluation.compute() if self.evaluation is not None else {}
        if self.steering.names:
            result |= {key: value for key, value in own.items() if key != "n"}
        return result


class HeldOut:
    """The mean of a loss over all held-out rows of all ranks.

    Args:
        device: where the losses will be.
    """

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(2, device=device)  # of the loss over rows, and of the rows

    def update(self, loss: Tensor, rows: int) -> None:
        """Add the mean `loss` of a batch of `rows` rows, at least one."""
        self._sums = self._sums + torch.stack([loss * rows, loss.new_tensor(rows)])

    def compute(self) -> Tensor:
        """Return the mean, a scalar; all ranks must call it."""
        # Summed here: Lightning's `log(sync_dist=True)` cuts the mean number of rows per rank to an integer.
        total, rows = sum_over_ranks(self._sums).unbind()
        return total / rows


class Evaluator:
    """Draws samples and measures them: `tallies`, `held_out` and `results`, the first and last by the name of a set.

    Args:
        networks: EMA, trained and pretrained weights.
        steering: the constraints, whose own g judges each sample.
        evaluation: what else is measured; by default nothing, and samples are marked by g where there are constraints.
        sampler: how samples are drawn.
        guide: what steers every sampling of this model.
    """

    def __init__(
        self,
        networks: Networks,
        steering: Steering,
        evaluation: Evaluation | None = None,
        sampler: Sampler = Sampler(),  # noqa: B008  (frozen)
        guide: Guide | None = None,
    ) -> None:
        evaluation = OwnViolations() if evaluation is None and steering.names else evaluation
        self.networks, self.steering, self.evaluation = networks, steering, evaluation
        self.sampler, self.guide = sampler, guide
        self.recompute = False  #: draw the pretrained model's samples even where they are stored beside its weights
        self.held_out = HeldOut(networks.device)
        self.tallies: dict[str, Tally] = {}
        self.results: dict[str, dict[str, Any]] = {}  #: what `test` measured, `before` and `after`
        self._stored_figures: dict[tuple[int, int], dict[str, Any]] = {}  # by first seed and number
        for part in (evaluation, guide):
            if part is not None and steering.names:
                part.bind(list(steering.constraints))  # type: ignore[arg-type]

    def check(self, stage: str, shape: tuple[int, ...], condition: Condition | None = None) -> None:
        """Raise ValueError where samples of `shape` fit not the denoiser or a constraint, or a fit lacks a gradient.

        `condition` is that of two samples, from the data module.
        """
        self.networks.denoiser.check_data(shape, condition)
        if self.guide is not None:
            self.guide.check_data(shape)
        self.steering.check(stage, shape)

    # ---------------------------------------------------------------- samples

    @torch.no_grad()
    def sample(self, seeds: Sequence[int], weights: Weights = "ema", *how: Any, **settings: Any) -> Tensor:
        """Return one sample per seed, `(len(seeds), *shape)` in the data's units; see `encoded_sample`."""
        return self.networks.denoiser.codec.decode(self.encoded_sample(seeds, weights, *how, **settings))

    @torch.no_grad()
    def encoded_sample(
        self,
        seeds: Sequence[int],
        weights: Weights = "ema",
        sampler: Sampler | None = None,
        guide: Guide | None = None,
        condition: Condition | None = None,
    ) -> Tensor:
        """Return one sample per seed, `(len(seeds), *shape)` in the network's space; EMA, raw or pretrained weights.

        `guide` steers after the evaluator's own; `condition` has one row per seed.
        """
        denoiser, sampler = self.networks.denoiser, sampler or self.sampler
        if not seeds:  # on a rank to which there are none left
            return torch.zeros(0, *denoiser.sample_shape, device=self.networks.device)
        z = seeded_noise(seeds, denoiser.sample_shape, sampler, denoiser.noise_schedule)
        z = z.to(self.networks.device, torch.promote_types(self.networks.dtype, torch.float32))
        with self.networks.evaluating(weights) as network:
            predict: Predict = denoiser.predictor(moved(condition, self.networks.device), network)
            for steering in (self.guide, guide):
                predict = steering(predict, denoiser) if steering is not None else predict
            samples = sampler(predict, denoiser.noise_schedule, z)
        return denoiser.codec.clamp(to_float32(samples))

    @property
    def sampler_settings(self) -> dict[str, Any]:
        """How samples are drawn, with the model's own settings where the sampler leaves them open."""
        return asdict(self.sampler.of(self.networks.denoiser.noise_schedule))

    def stored_samples(self, precision: str) -> Tensor | None:
        """Return the pretrained weights' samples of seeds 0, 1, .. that are stored beside them, `(N, *shape)`.

        None where there are none, or where a run in `precision` would draw others.
        """
        folder = getattr(self.networks.denoiser, "folder", None)
        if self.recompute or folder is None or self.guide is not None:
            return None
        return assets.stored_samples(folder, {"sampler": self.sampler_settings, "precision": precision})

    def pretrained_samples(self, seeds: list[int], precision: str, condition: Condition | None = None) -> Tensor:
        """Return the pretrained weights' samples of `seeds`: stored ones, where they are what would be drawn."""
        stored = self.stored_samples(precision) if condition is None else None
        if stored is None or not seeds or max(seeds) >= len(stored):
            return self.sample(seeds, "pretrained", condition=condition)
        return stored[seeds].to(self.networks.device)

    # ---------------------------------------------------------------- figures

    def start(self, *names: str) -> None:
        """Begin a tally for each of `names`, of which "after" and "val" fill the evaluation itself, others a copy."""
        own = [self.evaluation if name in ("after", "val") else copy.deepcopy(self.evaluation) for name in names]
        device = self.networks.device
        self.held_out = HeldOut(device)
        self.tallies = {n: Tally(self.steering, e, device) for n, e in zip(names, own, strict=True)}

    def test(self, batch: Seeds, precision: str) -> None:
        """Measure what the pretrained weights draw from the seeds, for "before", and the EMA weights, for "after"."""
        seeds, condition = batch.seeds.tolist(), batch.condition
        if "before" in self.tallies:
            self.tallies["before"].update(self.pretrained_samples(seeds, precision, condition), condition)
        self.tallies["after"].update(self.sample(seeds, condition=condition), condition)

    def compute(self) -> dict[str, dict[str, Any]]:
        """Return the figures of each tally; "after" is compared with "before", where both are there."""
        measured = {name: tally.compute() for name, tally in self.tallies.items()}
        if self.evaluation is not None and {"before", "after"} <= measured.keys():
            self.evaluation.compare(measured["before"], measured["after"])
        return measured

    def validation_figures(self, first: int, precision: str) -> dict[str, float]:
        """Return the figures of the tally "val", as "val/<name>"; all ranks must call it.

        Where samples of the pretrained weights are stored, figures that compare with them are among them.

        Args:
            first: the first of the seeds that were drawn; the others follow it one by one.
            precision: of this run.
        """
        measured = self.tallies["val"].compute()
        stored = self.stored_samples(precision) if self.steering.names and self.evaluation is not None else None
        if self.evaluation is not None and stored is not None and len(stored) >= first + measured["n"]:
            before = self._of_stored(first, stored[first : first + measured["n"]])
            self.evaluation.compare(before, measured)
        flat = {**measured, **measured["metrics"], "n": float(measured["n"])}
        for name, own in measured.get("constraints", {}).items():
            flat |= {f"{key}/{name}": own[key] for key in ("violation_rate", "violation_upper_95")}
        return {f"val/{name}": value for name, value in flat.items() if isinstance(value, float)}

    def _of_stored(self, first: int, samples: Tensor) -> dict[str, Any]:
        key = first, len(samples)
        if key not in self._stored_figures:
            evaluation, (rank, ranks) = copy.deepcopy(self.evaluation), place()
            assert evaluation is not None
            evaluation.reset()
            evaluation.update(samples[rank::ranks].to(self.networks.device))
            self._stored_figures[key] = evaluation.compute()
        return copy.deepcopy(self._stored_figures[key])
