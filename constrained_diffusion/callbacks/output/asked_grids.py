"""Before and after, side by side, for each label or prompt that samples are asked for."""

from __future__ import annotations

import re
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from constrained_diffusion.callbacks.output.sample_grid import draw_grid
from constrained_diffusion.callbacks.output.samples import pictures
from constrained_diffusion.runtime.conditions import Conditions
from constrained_diffusion.runtime.run_folder import RunFolder

MOST = 32  #: conditions that get a picture; the first ones
LOOKED_AT = 4096  #: seeds among which those of a condition are looked for


class AskedGrids(Callback):
    """Writes `<run>/grids/asked/000-NAME.png` when a test ends, one for each condition: a row before, a row after.

    The data module offers `conditions`; without them nothing is sampled. The module is spoken to as by `SampleGrid`:
    every rank samples, rank zero draws.

    Args:
        samples: of each condition, the first of the evaluation's seeds that are asked for it.

    Raises:
        ValueError: samples is below 1.
    """

    def __init__(self, samples: int = 8) -> None:
        if samples < 1:
            raise ValueError(f"AskedGrids expects at least one sample of each condition, got {samples}.")
        self.samples = samples

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        asked = getattr(getattr(trainer, "datamodule", None), "conditions", None)
        if not isinstance(asked, Conditions):
            return
        sides = ["pretrained", "ema"] if pl_module.steering.names else ["ema"]
        for place, (name, seeds) in enumerate(self._seeds(asked).items()):
            with torch.no_grad():
                drawn = torch.cat([pl_module.sample(seeds, weights=weights) for weights in sides])
                images = pictures(pl_module, drawn)
                if images is None:  # on every rank alike, because it depends on the shape alone
                    return
                marks = [] if pl_module.evaluation is None else pl_module.evaluation.marks(drawn)
            if trainer.is_global_zero:
                rows = "before above, after below" if len(sides) > 1 else "after"
                grid = draw_grid(images, marks, len(seeds), 2 if max(images.shape[2:]) <= 64 else 1, f"{name}: {rows}")
                folder = RunFolder.of(trainer).grids / "asked"
                folder.mkdir(parents=True, exist_ok=True)
                grid.save(
                    folder / f"{place:03d}-{re.sub('[^0-9A-Za-z]+', '-', name)[:60].strip('-')}.png", optimize=True
                )

    def _seeds(self, asked: Conditions) -> dict[str, list[int]]:
        """Return the first seeds of each of the first conditions, by what people call it."""
        found: dict[str, list[int]] = {}
        for seed, name in enumerate(asked.names(range(LOOKED_AT))):
            if name in found or len(found) < MOST:
                found.setdefault(name, []).append(seed)
        return {name: seeds[: self.samples] for name, seeds in found.items()}
