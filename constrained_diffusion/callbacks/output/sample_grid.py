"""Sample grids as in the penalty paper's Figure 1: violating samples outlined red, invalid ones yellow and dashed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from constrained_diffusion.callbacks.output.samples import pictures
from constrained_diffusion.runtime.run_folder import RunFolder

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

RED, YELLOW = (255, 59, 48), (255, 214, 10)
BACKGROUND, TEXT = (28, 30, 34), (232, 234, 237)
OUTLINES = {"violation": (RED, False), "invalid": (YELLOW, True)}  #: mark -> colour, dashed
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def draw_grid(images: Tensor, marks: Sequence[str], columns: int, scale: int = 2, caption: str = "") -> Image:
    """Draw samples row by row, outlined by their marks, with a legend strip of counts below.

    Args:
        images: `(N, C, H, W)` in [0, 1], C = 1 (grey), 3 (RGB) or 4 (RGBA); values outside are clamped, NaN is black.
        marks: per sample "violation" (solid red outline), "invalid" (dashed yellow) or ""; an empty list where nothing
            was judged, and then the legend has no counts.
        columns: samples per row.
        scale: every pixel becomes `scale` x `scale`.
        caption: first words of the legend strip.

    Returns:
        An RGB image; sample i's pixels start at `cell_origin(i, ...)`, the outline lies around them.

    Raises:
        ValueError: no images of that shape, marks of another length or unknown, columns or scale below 1.
    """
    from PIL import Image, ImageDraw

    if images.ndim != 4 or images.shape[1] not in _MODES or len(images) < 1:
        raise ValueError(f"draw_grid expects images (N, C, H, W) with C = 1, 3 or 4, got shape {tuple(images.shape)}.")
    if columns < 1 or scale < 1:
        raise ValueError(f"draw_grid expects columns and scale of at least 1, got {columns} and {scale}.")
    if marks and len(marks) != len(images):
        raise ValueError(f"draw_grid expects one mark per image or none at all, got {len(marks)} for {len(images)}.")
    if unknown := set(marks) - {*OUTLINES, ""}:
        raise ValueError(f"unknown mark '{min(unknown)}'; a mark is 'violation', 'invalid' or ''.")

    count, channels, height, width = images.shape
    columns = min(columns, count)
    last_x = cell_origin(columns - 1, columns, height, width, scale)[0]
    last_y = cell_origin(count - 1, columns, height, width, scale)[1]
    margin = 2 * _line(scale)
    size = (last_x + width * scale + margin, last_y + height * scale + margin)
    sheet = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    pixels = (images.detach().float().cpu().nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8)
    for index, sample in enumerate(pixels):
        array = np.ascontiguousarray(sample.permute(1, 2, 0).numpy())
        cell = Image.fromarray(array[..., 0] if channels == 1 else array, _MODES[channels])
        cell = cell.resize((width * scale, height * scale), Image.Resampling.NEAREST)
        x, y = cell_origin(index, columns, height, width, scale)
        sheet.paste(cell, (x, y), cell if channels == 4 else None)
        if marks and marks[index]:
            _outline(draw, (x, y, x + cell.width, y + cell.height), marks[index], _line(scale))
    return _with_legend(sheet, list(marks), count, caption)


def cell_origin(index: int, columns: int, height: int, width: int, scale: int) -> tuple[int, int]:
    """Return the sheet's (x, y) of the top left pixel of sample `index`."""
    line = _line(scale)
    row, column = divmod(index, columns)
    return 2 * line + column * (width * scale + 3 * line), 2 * line + row * (height * scale + 3 * line)


def _line(scale: int) -> int:
    return max(2, round(1.5 * scale))


def _outline(draw: ImageDraw, box: tuple[int, int, int, int], mark: str, line: int) -> None:
    """Draw a frame of width `line` around `box` (left, top, right, bottom; right and bottom exclusive)."""
    colour, dashed = OUTLINES[mark]
    left, top, right, bottom = box[0] - line, box[1] - line, box[2] + line - 1, box[3] + line - 1
    if not dashed:
        draw.rectangle((left, top, right, bottom), outline=colour, width=line)
        return
    for near, far, horizontal in ((left, right, True), (top, bottom, False)):
        spans = max(3, round((far - near + 1) / (4 * line))) | 1  # odd: a side begins and ends with a dash
        for span in range(0, spans, 2):
            a = near + round(span * (far - near + 1) / spans)
            b = near + round((span + 1) * (far - near + 1) / spans) - 1
            for start in (top, bottom - line + 1) if horizontal else (left, right - line + 1):
                end = start + line - 1
                draw.rectangle((a, start, b, end) if horizontal else (start, a, end, b), fill=colour)


def _with_legend(sheet: Image, marks: list[str], count: int, caption: str) -> Image:
    from PIL import Image, ImageDraw, ImageFont

    size = max(13, min(22, sheet.width // 50))
    font = ImageFont.load_default(size)
    first = f"{caption}, {count:,} samples" if caption else f"{count:,} samples"
    entries = [(first, "")]
    if marks:
        entries += [(f"{mark}: {marks.count(mark)} of {count:,}", mark) for mark in OUTLINES]
    spots, x = [], size // 2
    for text, mark in entries:
        spots.append((x, text, mark))
        x += round(font.getlength(text)) + (round(1.6 * size) if mark else 0) + 2 * size
    whole = Image.new("RGB", (max(sheet.width, x - size), sheet.height + 2 * size), BACKGROUND)
    whole.paste(sheet, (0, 0))
    draw = ImageDraw.Draw(whole)
    middle = sheet.height + size
    for x, text, mark in spots:
        if mark:
            half = size // 2
            _outline(draw, (x + 2, middle - half + 2, x + size - 2, middle + half - 2), mark, 2)
            x += round(1.6 * size)
        draw.text((x, middle), text, fill=TEXT, font=font, anchor="lm")
    return whole


class SampleGrid(Callback):
    """Draws `<run>/grids/epoch-000.png` while fitting, and `before.png` and `after.png` at the end of the test.

    The run is `trainer.default_root_dir`. The module offers `sample(seeds, weights=...)`, which returns EMA samples in
    the data's units, and `evaluation`, whose `pictures` show and whose `marks` judge them (None: images as they are,
    without outlines). Every rank samples, so that sharded weights meet; rank zero draws. A TensorBoard logger, and any
    that has `log_image`, shows the same pictures.

    Args:
        samples: how many; they have the seeds 0 .. samples - 1, the first of the evaluation's.
        columns: per row.
        every_n_epochs: draw in epochs 0, n, 2 n, ... and in the last one.

    Raises:
        ValueError: a setting is below 1.
    """

    def __init__(self, samples: int = 64, columns: int = 16, every_n_epochs: int = 1) -> None:
        if min(samples, columns, every_n_epochs) < 1:
            raise ValueError(
                "SampleGrid expects samples, columns and every_n_epochs of at least 1, "
                f"got {samples}, {columns} and {every_n_epochs}."
            )
        self.samples, self.columns, self.every_n_epochs = samples, columns, every_n_epochs
        self._drawable = True

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        epoch = trainer.current_epoch
        last = trainer.max_epochs is not None and epoch == trainer.max_epochs - 1
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:  # `validate` alone knows no epoch
            return
        if epoch % self.every_n_epochs == 0 or last:
            self._draw(trainer, pl_module, f"epoch-{epoch:03d}", f"epoch {epoch}")

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        if pl_module.steering.names:  # without constraints there is no pretrained copy to compare with
            self._draw(trainer, pl_module, "before", "before", weights="pretrained")
        self._draw(trainer, pl_module, "after", "after")

    def _draw(self, trainer: Trainer, pl_module: Any, name: str, caption: str, **weights: str) -> None:
        if not self._drawable:
            return
        with torch.no_grad():
            samples = pl_module.sample(range(self.samples), **weights)
            self._drawable = pictures(pl_module, samples[:1]) is not None  # on every rank, so that all stop sampling
            if not self._drawable:
                rank_zero_info(
                    f"SampleGrid draws images (C, H, W); there are none in samples {tuple(samples.shape)}. An "
                    "evaluation whose `pictures` draws them would show them."
                )
                return
            marks = [] if pl_module.evaluation is None else pl_module.evaluation.marks(samples)
            images = pictures(pl_module, samples) if trainer.is_global_zero else None
        if images is None:
            return
        grid = draw_grid(images, marks, self.columns, 2 if max(images.shape[2:]) <= 64 else 1, caption)
        folder = RunFolder.of(trainer).grids
        folder.mkdir(parents=True, exist_ok=True)
        grid.save(folder / f"{name}.png", optimize=True)
        for logger in trainer.loggers:
            tag = "samples" if name.startswith("epoch-") else f"samples/{name}"
            if hasattr(logger, "log_image"):  # as Weights & Biases' has, and others like it
                logger.log_image(key=tag, images=[grid], step=trainer.global_step)
            elif isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(tag, np.asarray(grid), trainer.global_step, dataformats="HWC")
