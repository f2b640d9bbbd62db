"""What a diffusion LightningModule does besides training: sample, validate, test, checkpoint, export."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from constrained_diffusion.batch import Batch
from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.denoisers.export import export, weights_sha256
from constrained_diffusion.denoisers.loading import denoiser_config
from constrained_diffusion.diffusion.prediction import Predict
from constrained_diffusion.diffusion.sampler import Sampler, seeded_noise
from constrained_diffusion.evaluation import Evaluation
from constrained_diffusion.fine_tuning.lora import adapters_off, merge_adapters
from constrained_diffusion.fine_tuning.networks import DiffusionNetworks
from constrained_diffusion.guides.base import Guide
from constrained_diffusion.objectives import Constraint
from constrained_diffusion.runtime import assets, untrusted
from constrained_diffusion.runtime.files import write_json
from constrained_diffusion.runtime.precision import Float32ModuleList, keep_float32, to_float32
from constrained_diffusion.runtime.randomness import keyed_normal
from constrained_diffusion.runtime.ranks import sum_over_ranks
from constrained_diffusion.statistics import ViolationRate

Weights = Literal["ema", "raw", "pretrained"]
TRAINING, HELD_OUT, NETWORK = 1, 2, 3  # streams of random numbers
ELSEWHERE = ("evaluation.", "constraints.", "own_violation.", "guide.")  # state that checkpoints leave to its own files


class EvaluatedDiffusion(DiffusionNetworks):
    """The evaluation half of `ConstrainedDiffusion`; see there for the arguments.

    `results` holds what `test` measured: `before` (the pretrained weights, where there are constraints) and `after`.
    """

    lora: dict[str, Any] | None
    batches_seen: int

    def __init__(
        self,
        denoiser: Denoiser,
        constraints: list[Constraint],
        evaluation: Evaluation | None,
        sampler: Sampler,
        max_violation_rate: float,
        seed: int,
        keep_pretrained: bool,
        recompute: bool,
        guide: Guide | None = None,
    ) -> None:
        super().__init__()
        self.guide = guide
        self.denoiser, self.constraints = denoiser, Float32ModuleList(constraints)
        self.constraint_names = _unique_names(constraints)
        self.counted = [constraint.has_verdict for constraint in constraints]  #: whether each has a verdict
        self.in_expectation = [constraint.in_expectation for constraint in constraints]
        self.evaluation, self.sampler, self.seed, self.recompute = evaluation, sampler, seed, recompute
        self.max_violation_rate = max_violation_rate
        self.strict_loading = (
            False  # a checkpoint leaves judges and classifiers out; `on_load_checkpoint` checks the rest
        )
        if evaluation is not None and constraints:
            evaluation.bind(constraints)
        # The pretrained copy hides in a tuple, so that it is in no optimiser, no DDP wrapper and no checkpoint.
        frozen = (
            copy.deepcopy(denoiser.network).requires_grad_(False).eval() if constraints and keep_pretrained else None
        )
        self._frozen: tuple[nn.Module, ...] = (frozen,) if frozen is not None else ()
        self.own_violation = ViolationRate()  #: by the constraints' own g
        self.results: dict[str, dict[str, Any]] = {}
        self._stored_figures: dict[int, dict[str, Any]] = {}
        self._started, self._earlier_seconds = 0.0, 0.0

    # ---------------------------------------------------------------- sampling

    @property
    def pretrained(self) -> nn.Module:
        """The network with its pretrained weights; with LoRA, the trained one, to be run with its adapters off."""
        return self._frozen[0] if self._frozen else self.denoiser.network

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        for network in self._frozen:  # hidden from `modules()`, it must follow to a device or dtype all the same
            network._apply(fn, recurse)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.ema._apply(keep_float32(lambda values: values))  # in half precision an average would not move
        return self

    @torch.no_grad()
    def sample(
        self,
        seeds: Sequence[int],
        weights: Weights = "ema",
        sampler: Sampler | None = None,
        guide: Guide | None = None,
    ) -> Tensor:
        """Return one sample per seed, `(len(seeds), *shape)` in the data's units; EMA, raw or pretrained weights.

        `guide` steers after the module's own.
        """
        sampler, schedule = sampler or self.sampler, self.denoiser.noise_schedule
        z = seeded_noise(seeds, self.denoiser.sample_shape, sampler, schedule.num_timesteps)
        z = z.to(self.device, torch.promote_types(self.dtype, torch.float32))  # type: ignore[arg-type]  # allows a str
        with self._evaluating(weights) as network:
            predict: Predict = partial(self.denoiser.predict, network=network)
            for steering in (self.guide, guide):
                predict = steering(predict, self.denoiser) if steering is not None else predict
            samples = sampler(predict, schedule, z)
        normalizer = self.denoiser.normalizer
        return normalizer.denormalize(normalizer.clamp(to_float32(samples)))

    @contextmanager
    def _evaluating(self, weights: Weights) -> Iterator[nn.Module]:
        network = self.averaged if weights == "ema" else self.denoiser.network if weights == "raw" else self.pretrained
        training = network.training
        adapters = adapters_off(network) if weights == "pretrained" and self.lora else nullcontext()
        precision = self._trainer.precision_plugin.forward_context() if self._trainer else nullcontext()
        try:
            with adapters, precision:
                yield network.eval()
        finally:
            network.train(training)

    def stored_samples(self) -> Tensor | None:
        """Samples of the pretrained weights, seeds 0, 1, .., stored beside them, where this run would draw the same."""
        folder = getattr(self.denoiser, "folder", None)
        settings = {"sampler": asdict(self.sampler), "precision": str(self.trainer.precision)}
        drawn_anew = self.recompute or folder is None or self.guide is not None
        return None if drawn_anew else assets.stored_samples(folder, settings)  # type: ignore[arg-type]

    def _samples(self, seeds: list[int], weights: Weights) -> Tensor:
        stored = self.stored_samples() if weights == "pretrained" else None
        if stored is None or max(seeds) >= len(stored):
            return self.sample(seeds, weights)
        return stored[seeds].to(self.device)

    # ---------------------------------------------------------------- measuring

    def on_validation_epoch_start(self) -> None:
        self._reset(self.evaluation, self.own_violation)
        self._held_out, self._held_out_rows = torch.zeros((), device=self.device), 0

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loader 0: the held-out loss of the EMA weights, with noise fixed per row. Loader 1: seeds to sample from."""
        if dataloader_idx == 0:
            self._held_out = self._held_out + self.held_out_loss(batch) * len(batch.clean)
            self._held_out_rows += len(batch.clean)
        else:
            self._measure(self.sample(batch.tolist()), self.evaluation, self.own_violation)

    def on_validation_epoch_end(self) -> None:
        # Summed here: `log(sync_dist=True)` cuts the mean number of rows per rank to an integer.
        total, rows = sum_over_ranks(torch.stack([self._held_out, self._held_out.new_tensor(self._held_out_rows)]))
        self.log("val/diffusion_loss", total / rows, prog_bar=True)
        if len(self.trainer.num_val_batches) < 2:  # the same on every rank, unlike the number of samples drawn
            return
        measured = self._measured(self.evaluation, self.own_violation)
        before = self._stored_before(measured["n"])
        if self.evaluation is not None and before is not None:
            self.evaluation.compare(before, measured)
        flat = {k: v for k, v in {**measured, **measured.get("metrics", {})}.items() if isinstance(v, float)}
        self.log_dict({f"val/{name}": value for name, value in flat.items()})

    def held_out_loss(self, batch: Batch) -> Tensor:
        """Return the EMA network's mean error on `batch`, measured and weighted as in training; noise keyed by row."""
        schedule, clean = self.denoiser.noise_schedule, self.denoiser.normalizer.normalize(to_float32(batch.clean))
        index = loss_rows(batch)
        noise = keyed_normal([(self.seed, HELD_OUT, i) for i in index], clean.shape[1:]).to(clean)
        # Multiples of the golden ratio spread evenly over the schedule, however many rows there are.
        fractions = torch.tensor([(i * 0.6180339887498949) % 1 for i in index])
        timesteps = (fractions * schedule.num_timesteps).long().to(clean.device)
        noisy = schedule.add_noise(clean, noise, timesteps)
        output = self.denoiser.call(self.averaged, noisy, timesteps, batch.condition)
        return self.errors(output, schedule.target(clean, noise, timesteps), timesteps).mean()

    def errors(self, output: Tensor, target: Tensor, timesteps: Tensor) -> Tensor:
        """Return the errors of `output` `(B, *shape)`, `(B, ...)`, weighted as in training; here squared, weight 1."""
        return (output - target).square()

    def on_test_start(self) -> None:
        self.results = {}
        self._before = (copy.deepcopy(self.evaluation), ViolationRate().to(self.device))
        self._reset(self.evaluation, self.own_violation)
        self._reset(*self._before)

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        if len(self.constraints):
            self._measure(self._samples(batch.tolist(), "pretrained"), *self._before)
        self._measure(self._samples(batch.tolist(), "ema"), self.evaluation, self.own_violation)

    def on_test_epoch_end(self) -> None:
        self.results["after"] = self._measured(self.evaluation, self.own_violation)
        if len(self.constraints):
            self.results["before"] = self._measured(*self._before)
            if self.evaluation is not None:
                self.evaluation.compare(self.results["before"], self.results["after"])

    @torch.no_grad()
    def _measure(self, samples: Tensor, evaluation: Evaluation | None, own: ViolationRate) -> None:
        if evaluation is not None:
            evaluation.update(samples)
        own.update(self.feasible(samples) == 0)

    @torch.no_grad()
    def feasible(self, clean: Tensor) -> Tensor:
        """Return 1.0 where `clean` `(B, *shape)`, in data units, satisfies every constraint, else 0.0; shape `(B,)`.

        Constraints on the whole step, and those that do not count, have no say. A sample whose g is no number does not
        satisfy it.
        """
        result = torch.ones(len(clean), device=clean.device)
        for constraint in self.constraints:
            if constraint.has_verdict and not constraint.needs_step_record:
                result = result * constraint.holds(clean)  # type: ignore[operator]
        return result

    def _measured(self, evaluation: Evaluation | None, own: ViolationRate) -> dict[str, Any]:
        measured = own.compute()
        result: dict[str, Any] = {"violation_rate": None, "violation_upper_95": None, "n": measured["n"], "metrics": {}}
        result |= evaluation.compute() if evaluation is not None else {}
        if len(self.constraints):
            result |= {f"own_{key}": measured[key] for key in ("violation_rate", "violation_upper_95")}
        return result

    def _stored_before(self, count: int) -> dict[str, Any] | None:
        stored = self.stored_samples() if len(self.constraints) else None
        first = getattr(self.trainer.datamodule, "first_eval_seed", 0)  # type: ignore[attr-defined]
        if self.evaluation is None or stored is None or len(stored) < first + count:
            return None
        if count not in self._stored_figures:
            evaluation = copy.deepcopy(self.evaluation)
            evaluation.reset()
            evaluation.update(
                stored[first + self.global_rank : first + count : self.trainer.world_size].to(self.device)
            )
            self._stored_figures[count] = evaluation.compute()
        return copy.deepcopy(self._stored_figures[count])

    @staticmethod
    def _reset(evaluation: Evaluation | None, own: ViolationRate) -> None:
        own.reset()
        if evaluation is not None:
            evaluation.reset()

    # ---------------------------------------------------------------- keeping

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Judges and classifiers are named in the config and come from their own files.
        for key in [k for k in checkpoint["state_dict"] if k.startswith(ELSEWHERE)]:
            del checkpoint["state_dict"][key]
        checkpoint["batches_seen"], checkpoint["seconds"] = self.batches_seen, self.seconds
        checkpoint["denoiser"] = self.unsharded_config or denoiser_config(self.denoiser)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        ours = {k: v for k, v in self.state_dict().items() if not k.startswith(ELSEWHERE)}
        wrong = [k for k, v in ours.items() if k not in state or state[k].shape != v.shape]
        wrong += [k for k in state if k not in ours]
        if wrong or "batches_seen" not in checkpoint:
            raise ValueError(
                f"the checkpoint is of another model: of the {len(ours)} tensors of this denoiser and its constraints, "
                f"{len(wrong)} are missing, left over or of another shape (the first: "
                f"{(wrong or ['batches_seen'])[0]}); give the config that the checkpoint was made with."
            )
        self.batches_seen, self._earlier_seconds = checkpoint["batches_seen"], checkpoint.get("seconds", 0.0)

    def export(self, folder: str | Path, checkpoint: str | Path | None = None) -> None:
        """Write the EMA weights to `folder`: a diffusers pipeline where the network is one, else safetensors.

        Args:
            folder: a new or an empty one.
            checkpoint: one of this model's, whose EMA weights to write in place of the present ones.
        """
        network = copy.deepcopy(self.averaged)
        if checkpoint is not None:
            state = untrusted.read_checkpoint(checkpoint, "state_dict")["state_dict"]
            network.load_state_dict({k.removeprefix("ema."): v for k, v in state.items() if k.startswith("ema.")})
        export(self.denoiser, folder, merge_adapters(network) if self.lora else network)
        write_json(Path(folder) / "training.json", self.training_facts())

    def training_facts(self) -> dict[str, Any]:
        """Return what a card says of the training: seed, batches, and the torch that did it."""
        return {
            "seed": self.seed,
            "batches": self.batches_seen,
            "seconds": round(self.seconds),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }

    @property
    def seconds(self) -> float:
        """How long the fit has taken, earlier parts of a resumed one included."""
        return self._earlier_seconds + (time.monotonic() - self._started if self._started else 0.0)

    def on_fit_start(self) -> None:
        self._started = time.monotonic()

    def weights_sha256(self) -> dict[str, str]:
        """Return the hashes of the pretrained weights (where a copy is kept) and of the EMA weights."""
        before = {"before": weights_sha256(self._frozen[0])} if self._frozen else {}
        return {**before, "after": weights_sha256(self.averaged)}


def loss_rows(batch: Batch) -> list[int]:
    """Return each row's place in the data set; its place in the batch where that is not known."""
    return list(range(len(batch.clean))) if batch.rows is None else batch.rows.tolist()


def _unique_names(constraints: list[Constraint]) -> list[str]:
    names = [type(constraint).__name__ for constraint in constraints]
    return [name if names.count(name) == 1 else f"{name}_{i}" for i, name in enumerate(names)]
