"""`report.html` of a noise optimisation: what was gained, whether the noise stayed typical, and pictures of the way."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from constrained_diffusion.callbacks import plots
from constrained_diffusion.callbacks.noise_callback import NoiseCallback
from constrained_diffusion.callbacks.noise_results import read_results, summary
from constrained_diffusion.callbacks.page import figure, note, write_page
from constrained_diffusion.callbacks.plan_overlay import plans_section
from constrained_diffusion.callbacks.report import before_after_section, read_json
from constrained_diffusion.datamodules.prompts import Job
from constrained_diffusion.noise_optimization.optimizer import Run

STRIPS, FRAMES = 8, 8  #: samples shown on their way, and pictures of each
SHOWN = 48  #: rows of the table


class NoiseReport(NoiseCallback):
    """Keeps pictures of the first samples on their way, and writes `report.html` when `predict` ends."""

    def __init__(self) -> None:
        self._strips: dict[str, dict[int, Tensor]] = {}

    def on_evaluation(
        self, trainer: Trainer, module: Any, jobs: Sequence[Job], run: Run, clean: dict[int, Tensor]
    ) -> None:
        step, every = run.evaluations - 1, max(1, run.settings.steps // (FRAMES - 1))
        for row, sample in clean.items():
            known = jobs[row].key in self._strips or len(self._strips) < STRIPS
            ends = run.records[row].stopped != "none"
            if known and (step % every == 0 or ends):
                with torch.no_grad():
                    drawn = module.pictures(sample[None].float())
                if drawn is not None:
                    self._strips.setdefault(jobs[row].key, {})[step] = drawn[0].detach().clamp(0, 1).cpu()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Not `on_predict_end`, which a rank without jobs never reaches.
        folder = Path(trainer.default_root_dir)
        strips = folder / "strips"
        strips.mkdir(parents=True, exist_ok=True)
        for key, frames in self._strips.items():
            (strips / f"{key}.png").write_bytes(strip(frames))
        trainer.strategy.barrier("strips")
        if trainer.is_global_zero:
            print(f"report: {write_noise_report(folder)}")


def strip(frames: Mapping[int, Tensor]) -> bytes:
    """Return the pictures `(C, H, W)` in [0, 1], by step, side by side as a PNG; small ones are enlarged."""
    from PIL import Image

    row = torch.cat([frames[step] for step in sorted(frames)], dim=2)
    pixels = (row * 255).round().to(torch.uint8).permute(1, 2, 0).squeeze(-1).numpy()
    image, page = Image.fromarray(pixels), io.BytesIO()
    factor = max(1, 96 // image.height)
    image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST).save(page, "PNG")
    return page.getvalue()


def write_noise_report(folder: Path) -> Path:
    """Write `report.html` from what lies in the folder of a noise optimisation, and return its path."""
    rows = read_results(folder)
    title = f"{folder.resolve().parent.name} / {folder.resolve().name}"
    config = (folder / "config.yaml").read_text("utf-8", "replace") if (folder / "config.yaml").is_file() else ""
    sections = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="verdict plain">{escape(summary(rows))}</p>',
        before_after_section(read_json(folder / "results.json")),
        plans_section(folder / "plans"),
        _trajectories(rows),
        _strips(folder / "strips"),
        _table(rows),
        f"<details><summary>config.yaml</summary><pre>{escape(config)}</pre></details>" if config else "",
    ]
    return write_page(folder / "report.html", title, sections)


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
