"""What every domain's data module shares: keyed order, held-out rows, and seeds to sample from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from constrained_diffusion.batch import Batch, Seeds
from constrained_diffusion.condition import Condition, take
from constrained_diffusion.runtime.conditions import Conditions
from constrained_diffusion.runtime.keyed_sampler import KeyedSampler


class TensorRows(Dataset[Batch]):
    """Clean samples in memory, fetched a batch at a time.

    Args:
        clean: `(N, *shape)`; uint8 images are read as [0, 1].
        condition: of the denoiser, N rows.
        target: `(N, ...)`, what a supervised network should say of each.
        latent: `(N, *shape)`, the same samples in the network's space, where that is known.
        teacher: the condition of the frozen model, where that is another.

    Raises:
        ValueError: something else has not N rows.
    """

    def __init__(
        self,
        clean: Tensor,
        condition: Condition | None = None,
        target: Tensor | None = None,
        latent: Tensor | None = None,
        teacher: Condition | None = None,
    ) -> None:
        self.clean, self.condition, self.target = clean, condition, target
        self.latent, self.teacher = latent, teacher
        others = {"target": target, "latent": latent, **(condition or {}), **(teacher or {})}
        for name, rows in others.items():
            if rows is not None and len(rows) != len(clean):
                raise ValueError(
                    f"the data has {len(clean)} samples, but '{name}' {len(rows)} rows: expected one row per sample."
                )

    def __len__(self) -> int:
        return len(self.clean)

    def __getitems__(self, indices: list[int]) -> Batch:
        index = torch.tensor(there(indices, len(self)), dtype=torch.long)
        clean = self.clean[index]
        clean = clean.float() / 255 if clean.dtype == torch.uint8 else clean
        target, latent = (None if rows is None else rows[index] for rows in (self.target, self.latent))
        return Batch(clean, take(self.condition, index), None, index, target, latent, take(self.teacher, index))

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])


class Listed(Dataset[Any]):
    """Entries of a sequence, such as seeds or jobs, fetched a list at a time."""

    def __init__(self, entries: Sequence[Any]) -> None:
        self.entries = entries

    def __len__(self) -> int:
        return len(self.entries)

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self.entries[index] for index in there(indices, len(self))]

    def __getitem__(self, index: int) -> Any:
        return self.entries[index]


def there(indices: Sequence[int], count: int) -> list[int]:
    """Return the `indices` below `count`; a rank without rows asks for one beyond, and gets an empty batch."""
    return [index for index in indices if index < count]


def as_is(batch: Any) -> Any:
    """Collate function for data sets that fetch whole batches."""
    return batch


MOST = 10**9  #: samples of one command


class DiffusionDataModule(LightningDataModule, ABC):
    """Base of all data modules; subclass it and write `build`.

    Training rows come in the order of `KeyedSampler`. Validation has two loaders: the held-out rows, for a diffusion
    loss with fixed noise, and n seeds, for samples. Test and predict have seeds alone.

    Args:
        batch_size: rows of a training step, which all ranks share evenly.
        eval_batch_size: rows per rank and evaluation step.
        val_samples, test_samples, predict_samples: how many samples each of these draws.
        first_eval_seed: they are drawn from the seeds first_eval_seed, first_eval_seed + 1, ..
        seed: keys the training order.
        conditions: what samples are asked for, by their seeds; None for an unconditional model.

    Raises:
        ValueError: a batch size below 1, or a number of samples below 0 or above `MOST`.
    """

    sampler: KeyedSampler | None = None
    sharded = True  #: whether ranks share the rows of evaluation, or all see all of them

    def __init__(
        self,
        batch_size: int = 128,
        eval_batch_size: int = 250,
        val_samples: int = 0,
        test_samples: int = 2000,
        predict_samples: int = 64,
        first_eval_seed: int = 0,
        seed: int = 0,
        conditions: Conditions | None = None,
    ) -> None:
        super().__init__()
        name, sizes = type(self).__name__, {"batch_size": batch_size, "eval_batch_size": eval_batch_size}
        for key, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} expects {key} >= 1, got {value}; a batch has at least one row.")
        counts = {"val_samples": val_samples, "test_samples": test_samples, "predict_samples": predict_samples}
        for key, value in counts.items():
            if not 0 <= value <= MOST:
                raise ValueError(f"{name} expects {key} in 0 .. {MOST:,}, got {value:,}; draw fewer.")
        self.batch_size, self.eval_batch_size, self.seed = batch_size, eval_batch_size, seed
        self.val_samples, self.test_samples, self.predict_samples = val_samples, test_samples, predict_samples
        self.first_eval_seed, self.conditions = first_eval_seed, conditions
        self._restored: dict[str, Any] | None = None
        self._data: tuple[TensorRows, TensorRows] | None = None

    @abstractmethod
    def build(self) -> tuple[TensorRows, TensorRows]:
        """Return the training rows and the held-out rows, in the data's own units."""

    @property
    def data(self) -> tuple[TensorRows, TensorRows]:
        """Training and held-out rows, built once."""
        if self._data is None:
            self._data = self.build()
        return self._data

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one clean sample, without batch."""
        return tuple(self.data[0].clean.shape[1:])

    def moments(self) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation of each channel, the last side of a sample, over the training rows."""
        values = self.data[0].clean.double().flatten(0, -2)
        return values.mean(0).tolist(), values.std(0).tolist()

    def bank(self, count: int) -> Tensor:
        """Return the first training rows, at most `count`, as the pretrained model's own samples: `(N, *shape)`."""
        rows = self.data[0]
        return rows.__getitems__(list(range(min(count, len(rows))))).clean

    def condition(self, seeds: list[int]) -> Condition | None:
        """Return the denoiser's condition for the samples of `seeds`, one row each; None where it is unconditional."""
        if self.conditions is None:
            return None
        module: Any = None if self.trainer is None else self.trainer.lightning_module
        return self.conditions.of(seeds, getattr(module, "denoiser", None) or getattr(module, "model", None))

    def export(self, folder: Path) -> None:
        """Write beside exported weights what their users need to know of the data: nothing, unless overridden."""

    def train_dataloader(self) -> DataLoader[Batch]:
        rows = self.data[0]
        self.sampler = KeyedSampler(len(rows), self.batch_size, self.seed)
        if self._restored:
            self.sampler.position = self._restored["position"]
        return DataLoader(rows, batch_size=self.sampler.share, sampler=self.sampler, drop_last=True, collate_fn=as_is)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        loaders: list[DataLoader[Any]] = [self._in_order(self.data[1], collate_fn=as_is)]
        return [*loaders, self._seeds(self.val_samples)] if self.val_samples else loaders

    def test_dataloader(self) -> DataLoader[Any]:
        return self._seeds(self.test_samples)

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._seeds(self.predict_samples)

    def _seeds(self, count: int) -> DataLoader[Any]:
        seeds = range(self.first_eval_seed, self.first_eval_seed + count)
        return self._in_order(Listed(seeds), collate_fn=self._with_condition)

    def _with_condition(self, seeds: list[int]) -> Seeds:
        condition = self.condition(seeds or [self.first_eval_seed])
        chosen = torch.tensor(seeds, dtype=torch.long)
        return Seeds(chosen, condition if seeds else take(condition, chosen))

    def _in_order(self, rows: Any, **kwargs: Any) -> DataLoader[Any]:
        sampler = Shard(len(rows), self.sharded)
        return DataLoader(rows, batch_size=self.eval_batch_size, sampler=sampler, **kwargs)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.sampler is None else {"position": self.sampler.position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict or None
        if self.sampler is not None and state_dict:
            self.sampler.position = state_dict["position"]


class Shard(DistributedSampler[int]):
    """Rows rank, rank + world, ... in order: every row on exactly one rank, none repeated to fill up.

    A rank without rows has one beyond the last, which its data set leaves out: its only batch is empty. So all ranks
    run through the same hooks, in which they wait for each other. With `split` off every rank has all rows; a plain
    loader would not do, since Lightning splits it by itself.
    """

    def __init__(self, size: int, split: bool = True) -> None:
        on = split and torch.distributed.is_initialized()
        world, rank = (torch.distributed.get_world_size(), torch.distributed.get_rank()) if on else (1, 0)
        super().__init__(range(size), num_replicas=world, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self.rows = range(rank, size, world) or range(size, size + bool(size))

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Any:
        return iter(self.rows)
