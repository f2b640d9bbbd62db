"""Whether a step between log steps makes the host wait for the device."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer

from constrained_diffusion.callbacks import FitStatus, PenaltyScheduler
from speed_parts.host import BetweenLogSteps
from speed_parts.step import QUIET, Noise, module, on_gpu
from speed_parts.table import Row

ON_THE_HOST = ("keyed_sampler.py", "delayed_flag.py")  # the rows to load; the flag of the step before, which was copied


def rows(given: Any) -> Iterator[Row]:
    """Yield how often a step between log steps reads the device, with the schedule that fits release and stop by."""
    for decision in ("release", "stop"):
        watch = BetweenLogSteps()
        scheduler = PenaltyScheduler(stop_below=0.0, when_satisfied=decision)  # type: ignore[arg-type]
        trainer = Trainer(
            max_steps=4,
            log_every_n_steps=1000,
            precision=given.precision,
            default_root_dir=tempfile.mkdtemp(),
            accelerator="gpu" if on_gpu() else "cpu",
            devices=1,
            gradient_clip_val=1.0,
            callbacks=[watch, FitStatus(), scheduler],
            **QUIET,
        )
        constrained = module("algorithm1")
        constrained.steering.constraints[0].tolerance = -1.0  # never satisfied, so that nothing stops
        constrained.optimizer = partial(torch.optim.SGD, lr=1e-6)  # Adam reads its own counter, on the host
        what = f"host reads in a step, when_satisfied: {decision}"
        side = constrained.denoiser.sample_shape[-1]
        try:
            trainer.fit(constrained, datamodule=Noise(side, batch_size=min(given.batch_size, 128)))
        except RuntimeError as error:  # torch's sync debug mode
            if "synchroniz" not in str(error):
                raise
            yield Row(what, 1.0, unit="", at_most=0.0, note=str(error).splitlines()[0])
            continue
        found = {p: often for p, often in watch.per_batch.items() if not any(file in p for file in ON_THE_HOST)}
        how = "torch's sync debug mode found none" if on_gpu() else f"counted{': ' if found else ''}{', '.join(found)}"
        yield Row(what, sum(found.values()), unit="", at_most=0.0, note=how)
