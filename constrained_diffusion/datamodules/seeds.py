"""Seeds alone: all that sampling and noise optimisation need of a data module."""

from __future__ import annotations

from constrained_diffusion.runtime.data import DiffusionDataModule, TensorRows


class SeedsDataModule(DiffusionDataModule):
    """The seeds first_eval_seed, first_eval_seed + 1, .. in batches of `eval_batch_size`; there is nothing to train on.

    Raises:
        ValueError: a fit asks for training rows.
    """

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one clean sample: that of the model that samples."""
        if self.trainer is None or self.trainer.lightning_module is None:
            raise RuntimeError("SeedsDataModule learns the shape from the model; pass it to a Trainer first.")
        return tuple(self.trainer.lightning_module.denoiser.sample_shape)  # type: ignore[union-attr, arg-type]

    def build(self) -> tuple[TensorRows, TensorRows]:
        raise ValueError("SeedsDataModule has seeds and no rows to train on; for a fit choose GeneratedDataModule.")
