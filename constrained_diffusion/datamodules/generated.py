"""The fine-tuning set drawn from the pretrained model itself, so that no training data is needed (P section 3)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from constrained_diffusion.denoisers.config import denoiser_config
from constrained_diffusion.denoisers.export import weights_sha256
from constrained_diffusion.diffusion.sampler import Sampler
from constrained_diffusion.guides.base import Guide
from constrained_diffusion.objectives import Constraint
from constrained_diffusion.runtime import assets, untrusted
from constrained_diffusion.runtime.data import DiffusionDataModule, TensorRows
from constrained_diffusion.runtime.randomness import mix
from constrained_diffusion.runtime.tracking import tracked

FIRST_SEED = 1_000_000  # evaluation uses seeds 0, 1, ..; the training set must not hold the same samples


def default_cache() -> Path:
    """Return the folder for what can be made again: CONSTRAINED_DIFFUSION_CACHE, or ~/.cache/constrained_diffusion."""
    return Path(os.environ.get("CONSTRAINED_DIFFUSION_CACHE", Path.home() / ".cache" / "constrained_diffusion"))


STAND_INS = 0x57  # a stream of random numbers
MOST_DRAWN = 10**7  #: samples of a set: as digits, 31 GB


class GeneratedDataModule(DiffusionDataModule):
    """Samples of the model that is being fine-tuned, drawn once before the fit, by all ranks together, and cached.

    Samples that are stored beside the model's weights are taken as they are, where they are what would be drawn.

    The cache's key holds the weights' hash, the noise schedule and units, the sampler, the seeds, the precision and the
    count, and what each sample is asked for, so that another model or setting never meets old samples. The module of
    the fit is a `ConstrainedDiffusion`, or offers its `denoiser`, `steering`, `evaluator.check` and
    `sample(seeds, weights, sampler, guide)`.

    Args:
        samples: size of the training set.
        held_out: samples beside it, for the held-out loss.
        sampler: how they are drawn.
        guide: steers the drawing, after the module's own guide. Where it keeps a constraint, the fit distils that into
            the weights, which then need it no longer.
        only_feasible: keep only samples that satisfy every constraint (the set shrinks accordingly).
        filters: constraints that the set should satisfy besides, though the fit does not penalise them.
        first_seed: seed of the first sample.
        stand_ins: for each sample that breaks a constraint add so many that break none, with the condition of the
            first: drawn with the same condition where some were, else with the one that has most of them. The frozen
            model has the condition that a stand-in was drawn with. So a condition whose samples are all infeasible
            learns to draw what that other one draws.
        mixed_stand_ins: take those of conditions without feasible samples from all other conditions alike: more
            diverse, but no surer than the model's unconditional samples.
        cache_dir: where to keep them; see `default_cache`.
        kwargs: see `DiffusionDataModule`.

    Raises:
        ValueError: fewer than one sample is asked for, or more than `MOST_DRAWN`, or two settings do not go together.
    """

    def __init__(
        self,
        samples: int = 512,
        held_out: int = 128,
        sampler: Sampler = Sampler(steps=25),  # noqa: B008  (frozen)
        guide: Guide | None = None,
        only_feasible: bool = False,
        filters: Constraint | list[Constraint] | None = None,
        first_seed: int = FIRST_SEED,
        stand_ins: int = 0,
        mixed_stand_ins: bool = False,
        cache_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if samples < 1 or held_out < 1:
            raise ValueError(f"expected at least one sample and one held-out sample, got {samples} and {held_out}.")
        if stand_ins < 0:
            raise ValueError(f"stand_ins is a number of samples, at least 0, got {stand_ins}.")
        if samples + held_out > MOST_DRAWN:
            raise ValueError(
                f"GeneratedDataModule keeps its samples in memory, at most {MOST_DRAWN:,}, but samples + held_out is "
                f"{samples + held_out:,}; draw fewer: a fit needs a few thousand."
            )
        if stand_ins and (only_feasible or filters):
            raise ValueError(
                "stand_ins keeps every sample and adds to them, but only_feasible and filters take samples out: choose "
                "one of the two."
            )
        self.samples, self.held_out, self.sampler_settings, self.guide = samples, held_out, sampler, guide
        self.only_feasible, self.first_seed, self.stand_ins = only_feasible, first_seed, stand_ins
        self.mixed_stand_ins = mixed_stand_ins
        self.filters = [filters] if isinstance(filters, Constraint) else filters or []
        self.cache_dir = Path(cache_dir) if cache_dir else default_cache()

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one clean sample: the model's own."""
        return tuple(self._module.denoiser.data_shape)

    @property
    def _module(self) -> Any:
        if self.trainer is None:
            raise RuntimeError("GeneratedDataModule draws from the module of a fit; pass it to Trainer.fit.")
        return self.trainer.lightning_module

    def cache_file(self) -> Path:
        """Return where the samples of this model and these settings lie."""
        assert self.trainer is not None
        denoiser = self._module.denoiser
        guides = [guide for guide in (getattr(self._module, "guide", None), self.guide) if guide is not None]
        settings = (
            denoiser_config(denoiser),
            asdict(self.sampler_settings.of(denoiser.noise_schedule)),
            self.first_seed,
            self.samples + self.held_out,
            str(self.trainer.precision),
            self._asked_sha256(),
            denoiser.guidance_settings,
            weights_sha256(denoiser.codec),
            *[part for guide in guides for part in (repr(guide), weights_sha256(guide))],
        )
        key = mix(*weights_sha256(denoiser.network).encode(), *repr(settings).encode())
        return self.cache_dir / "generated" / f"{key:016x}.safetensors"

    def _asked_sha256(self) -> str:
        """Return a hash of the condition of every sample: what was asked for, as its text encoders understood it."""
        digest = hashlib.sha256()
        for part in torch.arange(self.first_seed, self.first_seed + self.samples + self.held_out).split(256):
            for name, rows in (self.condition(part.tolist()) or {}).items():
                digest.update(name.encode() + rows.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def setup(self, stage: str) -> None:
        if stage not in ("fit", "validate") or self._data is not None:
            return
        module = self._module
        module.evaluator.check(stage, self.sample_shape, self.condition([0, 1]))  # the module is set up after the data
        for constraint in self.filters:
            constraint.check_data(self.sample_shape)
        if self.guide is not None:
            self.guide.bind(list(module.steering.constraints))
            self.guide.check_data(self.sample_shape)
        stored = self._stored()
        rows = self._cached() if stored is None else stored
        train, held_out = range(self.samples), range(self.samples, self.samples + self.held_out)
        kept = torch.tensor([*train])
        feasible = self._feasible(rows.clean[kept]) if self.only_feasible or self.stand_ins else None
        if self.stand_ins and feasible is not None:
            self._data = (
                with_stand_ins(rows, feasible, self.stand_ins, self.seed, self.mixed_stand_ins),
                chosen(rows, held_out),
            )
            return
        if self.only_feasible and feasible is not None:
            kept = kept[feasible]
        for constraint in self.filters:
            kept = kept[constraint.holds(rows.clean[kept])]
        self._data = chosen(rows, kept), chosen(rows, held_out)

    def _stored(self) -> TensorRows | None:
        """Return the samples that are stored beside the model's weights, if these are what would be drawn."""
        module, trainer = self._module, self.trainer
        assert trainer is not None
        folder = getattr(module.denoiser, "folder", None)
        steered = self.guide is not None or getattr(module, "guide", None) is not None
        if folder is None or steered or self.conditions is not None or module.evaluator.recompute:
            return None
        drawn = asdict(self.sampler_settings.of(module.denoiser.noise_schedule))
        settings = {"sampler": drawn, "precision": str(trainer.precision), "first_seed": self.first_seed}
        stored = assets.stored_samples(folder, settings, "training")
        count = self.samples + self.held_out
        return None if stored is None or len(stored) < count else TensorRows(stored[:count])

    def _cached(self) -> TensorRows:
        """Return the samples from the cache, where they are put first if need be."""
        module, trainer, path = self._module, self.trainer, self.cache_file()
        assert trainer is not None
        # One rank decides for all: another run may write the file between two ranks' looks at it.
        if not trainer.strategy.broadcast(path.is_file()):
            self._draw(path)
        trainer.strategy.barrier("generated samples")
        drawn = untrusted.read_tensors(path, "drawn")[0]["drawn"]
        if drawn.shape != (expected := (self.samples + self.held_out, *module.denoiser.sample_shape)):
            raise ValueError(
                f"the cache '{path}' should hold samples of shape {expected}, but holds {tuple(drawn.shape)}; delete "
                "it, so that they are drawn again."
            )
        return self._rows(drawn)

    def _rows(self, drawn: Tensor) -> TensorRows:
        """Return the samples `drawn`, in the network's space, in the data's units, and what they were asked for."""
        codec = self._module.denoiser.codec
        clean = torch.cat([codec.decode(part.to(self._module.device)).cpu() for part in drawn.split(256)])
        latent = None if clean.shape == drawn.shape else drawn
        return TensorRows(clean, self.condition([self.first_seed + i for i in range(len(drawn))]), latent=latent)

    def _feasible(self, clean: Tensor) -> Tensor:
        module = self._module
        return torch.cat([module.steering.feasible(p.to(module.device)).bool().cpu() for p in clean.split(256)])

    def build(self) -> tuple[TensorRows, TensorRows]:
        self.setup("fit")
        assert self._data is not None
        return self._data

    def _draw(self, path: Path) -> None:
        """Draw the samples and write them to `path`, together with the other ranks, each of which draws its share."""
        module, count, trainer = self._module, self.samples + self.held_out, self.trainer
        assert trainer is not None
        module.to(trainer.strategy.root_device)
        guide = None if self.guide is None else self.guide.to(trainer.strategy.root_device)
        batches = torch.arange(self.first_seed, self.first_seed + count).split(self.eval_batch_size)
        # Ranks take whole batches in turn: the calls that one rank would make, and so the same bits.
        rank, ranks = trainer.global_rank, trainer.world_size
        said = f"Drawing {count} samples from the pretrained model"
        mine = tracked(range(rank, len(batches), ranks), said, silent=not trainer.is_global_zero)
        how: dict[str, Any] = {"sampler": self.sampler_settings, "guide": guide}
        drawn = {str(i): module.encoded_sample(batches[i].tolist(), "raw", **how).float().cpu() for i in mine}
        # By files, which all ranks read in the end anyway: a collective would take the whole set onto every GPU.
        run = trainer.strategy.broadcast(os.getpid())
        parts = [path.with_suffix(f".{run}-{other}") for other in range(ranks)]
        _write(parts[rank], drawn)
        trainer.strategy.barrier("shares of the generated samples")
        if trainer.is_global_zero:
            shares = {key: value for part in parts for key, value in untrusted.read_tensors(part)[0].items()}
            _write(path, {"drawn": torch.cat([shares[str(i)] for i in range(len(batches))])})
            for part in parts:
                part.unlink()


def chosen(rows: TensorRows, index: Sequence[int] | Tensor) -> TensorRows:
    """Return the rows at `index`."""
    batch = rows.__getitems__([int(i) for i in index])
    return TensorRows(batch.clean, batch.condition, batch.target, batch.latent, batch.teacher)


def with_stand_ins(rows: TensorRows, feasible: Tensor, each: int, seed: int, mixed: bool = False) -> TensorRows:
    """Return the first rows, as many as `feasible` `(N,)` has, and after them `each` stand-ins for each infeasible one.

    Args:
        rows: samples with their conditions, at least N.
        feasible: which of them satisfy every constraint.
        each: how many stand-ins an infeasible row gets.
        seed: keys the choice.
        mixed: whether a condition without feasible rows takes those of all others, or of the one that has most.

    Raises:
        ValueError: nothing was asked for, or no row is feasible.
    """
    if rows.condition is None or not bool(feasible.any()):
        lacking = "nothing was asked for: give `conditions`" if rows.condition is None else "no sample is feasible"
        raise ValueError(f"stand_ins puts feasible samples where infeasible ones were asked for, but {lacking}.")
    count, fit = len(feasible), feasible.nonzero().squeeze(1)
    flat = torch.cat([value[:count].reshape(count, -1).double() for value in rows.condition.values()], 1)
    _, kind, sizes = flat[fit].unique(dim=0, return_inverse=True, return_counts=True)
    elsewhere = fit if mixed else fit[kind == sizes.argmax()]
    places, donors = [*range(count)], [*range(count)]
    for place in (~feasible).nonzero().squeeze(1).tolist():
        alike = fit[(flat[fit] == flat[place]).all(1)]
        among = alike if len(alike) else elsewhere
        places += [place] * each
        donors += [int(among[mix(seed, STAND_INS, place, i) % len(among)]) for i in range(each)]
    given, asked = chosen(rows, donors), chosen(rows, places)
    return TensorRows(given.clean, asked.condition, None, given.latent, given.condition)


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, unfinished)
    unfinished.replace(path)  # atomic: a killed run leaves no half-written cache
