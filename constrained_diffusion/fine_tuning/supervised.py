"""`Supervised`: one small module that trains classifiers, judges and preference models alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection

from constrained_diffusion.batch import Batch
from constrained_diffusion.fine_tuning.trained import TrainedModule
from constrained_diffusion.runtime.stored_networks import save_network

AUGMENTATION = 4  # stream of random numbers, apart from those of diffusion training


class Supervised(TrainedModule):
    """Fits `network(batch.clean)` to `batch.target`; the loss says what that means.

    Logs `loss/supervised` per step, and `val/loss` and `test/loss` with every metric as `val/<name>` and `test/<name>`,
    reduced over all ranks.

    Args:
        network: maps `(B, *shape)` in the data's own units to `(B, ...)`, for a classifier to logits `(B, n)`.
        loss: maps (output in float32, target) to a scalar; cross-entropy by default.
        metrics: torchmetrics by name, each updated with (output, target).
        augment: called as `augment(clean, keys)` on training batches, keys being (seed, stream, step, global row), one
            tuple per row; see `constrained_diffusion.domains.images.augment`.
        seed: keys the augmentation.
        optimizer, lr_scheduler: from the config; the schedule is stepped once per optimiser step.

    Raises:
        TypeError: a batch without target, or a loader that gives no batches at all.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: nn.Module | None = None,
        metrics: dict[str, Metric] | None = None,
        augment: nn.Module | None = None,
        seed: int = 0,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(seed, optimizer, lr_scheduler)
        self.network, self.loss, self.augment = network, loss or nn.CrossEntropyLoss(), augment
        collection = MetricCollection(dict(metrics or {}))
        self.val_metrics, self.test_metrics = collection.clone(prefix="val/"), collection.clone(prefix="test/")
        self.losses = nn.ModuleDict({"val": MeanMetric(), "test": MeanMetric()})

    @property
    def trained(self) -> nn.Module:
        """The network."""
        return self.network

    def forward(self, clean: Tensor) -> Tensor:
        """Return the network's output in float32 or wider."""
        output: Tensor = self.network(clean)
        return output.to(torch.promote_types(output.dtype, torch.float32))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one augmented batch."""
        clean, target = batch.clean, _target(batch)
        if self.augment is not None:
            first = self.global_rank * len(clean)
            keys = [(self.seed, AUGMENTATION, self.batches_seen, first + row) for row in range(len(clean))]
            with torch.autocast(clean.device.type, enabled=False):  # half precision would shift pixels
                clean = self.augment(clean, keys)
        loss: Tensor = self.loss(self(clean), target)
        self.batches_seen += 1
        self.log("loss/supervised", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Measure held-out rows."""
        self._measure("val", self.val_metrics, batch)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Measure test rows."""
        self._measure("test", self.test_metrics, batch)

    def _measure(self, stage: str, metrics: MetricCollection, batch: Batch) -> None:
        target = _target(batch)
        # A metric, because `log(sync_dist=True)` cuts the mean number of rows per rank to an integer.
        mean = cast(MeanMetric, self.losses[stage])
        if rows := len(batch.clean):  # none on a rank to which there are none left
            output = self(batch.clean)
            mean.update(self.loss(output, target), rows)
            metrics.update(output, target)
        self.log(f"{stage}/loss", mean, batch_size=rows, add_dataloader_idx=False)
        self.log_dict(metrics, prog_bar=True, batch_size=rows, add_dataloader_idx=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what any fit saves, and that it is one of this kind."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["supervised"] = True

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore it.

        Raises:
            ValueError: the checkpoint is of another kind of module.
        """
        if "supervised" not in checkpoint:
            raise ValueError(
                "the checkpoint is not of a Supervised module (a classifier or preference model); give the config that "
                "it was made with, or leave --ckpt_path out."
            )
        super().on_load_checkpoint(checkpoint)

    def export(self, folder: str | Path) -> None:
        """Write the network by `save_network`, and beside it `training.json`.

        Raises:
            TypeError: the network's class is not one of `saved.NETWORKS`.
        """
        save_network(self.network, folder)
        self.write_training(folder)


def _target(batch: Batch) -> Tensor:
    if not isinstance(batch, Batch):
        raise TypeError(
            f"Supervised expects a Batch with labels as its target, but the loader gave a {type(batch).__name__} "
            "(the seeds of samples to draw); measure it with `validate`, whose first loader has the held-out rows."
        )
    if batch.target is None:
        raise TypeError(
            "Supervised expects labels in Batch.target, but the data has none; for MNISTDataModule set "
            "with_labels: true, for another data module fill the target."
        )
    return batch.target
