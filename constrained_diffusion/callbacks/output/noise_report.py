"""`report.html` of a noise optimisation: what was gained, whether the noise stayed typical, and pictures of the way."""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from constrained_diffusion.callbacks.output.noise_results import read_results, summary
from constrained_diffusion.callbacks.output.overlays import plans_section
from constrained_diffusion.callbacks.output.report import before_after_section, read_json
from constrained_diffusion.callbacks.output.samples import save_picture
from constrained_diffusion.noise_optimization.hooks import AllRanks, NoiseCallback, writing_rank
from constrained_diffusion.noise_optimization.jobs import Job
from constrained_diffusion.noise_optimization.optimizer import Run
from constrained_diffusion.reports import plots
from constrained_diffusion.reports.page import figure, note, write_page
from constrained_diffusion.runtime import untrusted
from constrained_diffusion.runtime.files import write_bytes
from constrained_diffusion.runtime.run_folder import RunFolder

STRIPS, FRAMES = 8, 8  #: samples shown on their way, and pictures of each
SHOWN = 48  #: rows of the table


class NoiseReport(NoiseCallback):
    """Keeps pictures of the first samples on their way, and writes `report.html` when `predict` ends.

    Until then they lie in `strips/KEY/STEP.png`, so that a command that was killed shows all of the way; then, side by
    side, in `strips/KEY.png`.
    """

    def __init__(self) -> None:
        self._shown: set[str] = set()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._ranks = AllRanks()
        self._shown = {path.name.removesuffix(".png") for path in _strips_folder(trainer).glob("*")}

    def on_batch_begin(self, trainer: Trainer, module: LightningModule, jobs: Sequence[Job], run: Run) -> None:
        if trainer.global_rank == writing_rank(trainer):
            for job in jobs:
                for frame in _frames(_strips_folder(trainer) / job.key):
                    if int(frame.stem) >= run.evaluations:  # of steps that a kill has cost, and which come again
                        frame.unlink()

    def on_evaluation(
        self, trainer: Trainer, module: Any, jobs: Sequence[Job], run: Run, clean: dict[int, Tensor]
    ) -> None:
        if trainer.global_rank != writing_rank(trainer):
            return
        step, every = run.evaluations - 1, max(1, run.settings.steps // (FRAMES - 1))
        for row, sample in clean.items():
            key, ends = jobs[row].key, run.records[row].stopped != "none"
            known = key in self._shown or (step == 0 and len(self._shown) < STRIPS)
            if known and (step % every == 0 or ends):
                with torch.no_grad():
                    drawn = module.pictures(sample[None].float())
                if drawn is not None:
                    self._shown.add(key)
                    folder = _strips_folder(trainer) / key
                    folder.mkdir(parents=True, exist_ok=True)
                    save_picture(drawn[0], folder / "draft.png")
                    (folder / "draft.png").replace(folder / f"{step:06d}.png")  # atomic: no kill leaves half a picture

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Not `on_predict_end`, which a rank without jobs never reaches.
        self._ranks.wait()
        if trainer.is_global_zero:
            for folder in [path for path in _strips_folder(trainer).glob("*") if path.is_dir()]:
                if frames := _frames(folder):
                    write_bytes(folder.with_name(f"{folder.name}.png"), strip(frames))
                shutil.rmtree(folder)
            print(f"report: {write_noise_report(RunFolder.of(trainer).path)}")


def _strips_folder(trainer: Trainer) -> Path:
    return RunFolder.of(trainer).strips


def _frames(folder: Path) -> list[Path]:
    """Return the pictures of one sample, by step."""
    return sorted(folder.glob("[0-9]*.png"))


def strip(frames: Sequence[Path]) -> bytes:
    """Return pictures of one size side by side as a PNG; small ones are enlarged."""
    from PIL import Image

    pixels = []
    for frame in frames:
        with untrusted.open_picture(frame) as opened:
            pixels.append(np.asarray(opened))
    image, page = Image.fromarray(np.concatenate(pixels, axis=1)), io.BytesIO()
    factor = max(1, 96 // image.height)
    image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST).save(page, "PNG")
    return page.getvalue()


def write_noise_report(folder: Path) -> Path:
    """Write `report.html` from what lies in the folder of a noise optimisation, and return its path."""
    run, rows = RunFolder(folder), read_results(folder)
    config = run.config.read_text("utf-8", "replace") if run.config.is_file() else ""
    sections = [
        f"<h1>{escape(run.title)}</h1>",
        f'<p class="verdict plain">{escape(summary(rows))}</p>',
        before_after_section(read_json(run.results)),
        plans_section(run.overlays),
        _trajectories(rows),
        _strips(run.strips),
        _table(rows),
        f"<details><summary>config.yaml</summary><pre>{escape(config)}</pre></details>" if config else "",
    ]
    return write_page(run.report, run.title, sections)


def _trajectories(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return note("Nothing is finished yet.")
    rewards = _columns(rows, "rewards")
    probabilities = [[math.exp(value) for value in column] for column in _columns(rows, "log_probabilities")]
    try:
        drawings = [
            ("reward, mean over samples", plots.curves([_line("mean", rewards, fmean)], "reward", "step")),
            (
                "P(z): near 0, the noise is no longer what the model knows",
                plots.curves(
                    [_line("median", probabilities, median), _line("smallest", probabilities, min)], "P(z)", "step"
                ),
            ),
        ]
    except ImportError as error:
        return note(f"Plots left out: {error}")
    figures = [f"<figure><figcaption>{escape(n)}</figcaption>{svg.decode()}</figure>" for n, svg in drawings]
    return "\n".join(["<h2>Trajectories</h2>", '<div class="pair">', *figures, "</div>"])


def _columns(rows: Sequence[Mapping[str, Any]], name: str) -> list[list[float]]:
    """Return the values of all samples per step; a sample that has stopped keeps its last one."""
    longest = max(len(row[name]) for row in rows)
    return [[row[name][min(step, len(row[name]) - 1)] for row in rows] for step in range(longest)]


def _line(name: str, columns: Sequence[Sequence[float]], middle: Callable[[Sequence[float]], float]) -> plots.Line:
    return plots.Line(name, list(range(len(columns))), [middle(column) for column in columns])


def _strips(folder: Path) -> str:
    files = sorted(folder.glob("*.png"))[:STRIPS]
    if not files:
        return ""
    figures = [figure(file.stem, file.read_bytes()) for file in files]
    words = note("From the start (left) to the last step, at even distances; what is returned is the best of the way.")
    return "\n".join(["<h2>On the way</h2>", words, '<div class="pair">', *figures, "</div>"])


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    names = ("key", "prompt", "reward before", "reward", "P(z) before", "P(z)", "best step", "stopped")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    body = []
    for row in rows[:SHOWN]:
        figures = [f"{row[key]:.4g}" for key in ("reward_before", "reward", "probability_before", "probability")]
        cells = [row.get("prompt") or "", *figures, f"{row['best_step']} of {row['steps']}", row["stopped"]]
        columns = "".join(f"<td>{escape(str(cell))}</td>" for cell in cells)
        body.append(f'<tr><th scope="row">{escape(row["key"])}</th>{columns}</tr>')
    more = note(f"{len(rows) - SHOWN} more rows lie in results.jsonl." if len(rows) > SHOWN else "")
    table = f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(body) + "\n</tbody></table>"
    return f'<h2>Samples</h2>\n<div class="scroll">{table}</div>\n{more}'
