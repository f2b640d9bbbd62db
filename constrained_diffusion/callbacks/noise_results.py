"""What a noise optimisation leaves on disk, so that nothing finished is ever done twice.

results.jsonl            one row per finished sample (`results-rank1.jsonl`, .. of further ranks)
results.json             with an evaluation: its figures of all finished samples, before and after
before/KEY.png, after/KEY.png      samples that can be drawn; others lie in noise/KEY.safetensors alone
plans/before.png, plans/after.png  all of them in one picture each, where the evaluation draws some
noise/KEY.safetensors    the noise that was found, the sample, and the one before
unfinished/KEY.pt        the state of a batch in work, from which a killed command goes on
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from safetensors.torch import save_file
from torch import Tensor

from constrained_diffusion import untrusted
from constrained_diffusion.callbacks.noise_callback import NoiseCallback, Optimized
from constrained_diffusion.callbacks.noise_figures import before_and_after, samples
from constrained_diffusion.callbacks.plan_overlay import draws_overlays, write_overlays
from constrained_diffusion.callbacks.results import versions
from constrained_diffusion.callbacks.samples import save_picture
from constrained_diffusion.callbacks.table import before_after_table
from constrained_diffusion.datamodules.prompts import Job
from constrained_diffusion.noise_optimization.optimizer import Run

NUMBERS = ("reward_before", "reward", "probability_before", "probability", "best_step", "steps")  #: in every row


class NoiseResults(NoiseCallback):
    """Writes each finished sample at once, and the state of the batch in work every so often.

    Args:
        save_every_seconds: how much work a kill may cost.
    """

    def __init__(self, save_every_seconds: float = 30.0) -> None:
        self.save_every_seconds = save_every_seconds
        self._saved = time.monotonic()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name in ("before", "after", "noise", "unfinished"):
            (Path(trainer.default_root_dir) / name).mkdir(parents=True, exist_ok=True)
        rows = Path(trainer.default_root_dir) / _rows_file(trainer.global_rank)
        if rows.is_file() and not rows.read_bytes().endswith(b"\n"):  # a kill has cut the last line
            with rows.open("a", encoding="utf-8") as file:
                file.write("\n")

    @staticmethod
    def _writes(trainer: Trainer) -> bool:
        """Whether this rank's jobs are its own; ranks that share the perturbations of a sample all have the same."""
        return trainer.is_global_zero or getattr(trainer.datamodule, "sharded", True)  # type: ignore[attr-defined]

    def finished_jobs(self, trainer: Trainer) -> set[str]:
        return {row["key"] for row in read_results(Path(trainer.default_root_dir))}

    def interrupted(self, trainer: Trainer, jobs: Sequence[Job]) -> dict[str, Any] | None:
        file = _unfinished(trainer, jobs)
        if not file.is_file():
            return None
        try:
            state = untrusted.read_checkpoint(file)
            return state["run"] if state["keys"] == [job.key for job in jobs] else None
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"'{file}', from which a batch would go on, is damaged ({error}); delete it to start the batch anew."
            ) from error

    def on_batch_begin(self, trainer: Trainer, module: LightningModule, jobs: Sequence[Job], run: Run) -> None:
        self._saved = time.monotonic()

    def on_evaluation(
        self, trainer: Trainer, module: LightningModule, jobs: Sequence[Job], run: Run, clean: dict[int, Tensor]
    ) -> None:
        if run.finished or not self._writes(trainer) or time.monotonic() - self._saved < self.save_every_seconds:
            return
        file = _unfinished(trainer, jobs)
        draft = file.with_suffix(".part")
        torch.save({"keys": [job.key for job in jobs], "run": run.state_dict()}, draft)
        draft.replace(file)  # atomic: a kill leaves the state before
        self._saved = time.monotonic()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not isinstance(outputs, Optimized) or not outputs.jobs or not self._writes(trainer):
            return
        folder = Path(trainer.default_root_dir)
        for job, record in zip(outputs.jobs, outputs.records, strict=True):
            tensors = {"noise": record.noise, "sample": record.sample, "before": record.start}
            tensors = {name: tensor.float().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(tensors, folder / "noise" / f"{job.key}.safetensors")
            drawn = pl_module.pictures(torch.stack([record.start, record.sample]).float().to(pl_module.device))
            for side, picture in zip(("before", "after"), () if drawn is None else drawn, strict=False):
                save_picture(picture, folder / side / f"{job.key}.png")
            row = {"key": job.key, "seed": job.seed, "prompt": job.prompt, **record.summary()}
            row |= {"rewards": record.rewards, "log_probabilities": record.log_probabilities}
            with (folder / _rows_file(trainer.global_rank)).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")  # last, so that a row says that the rest is there
        _unfinished(trainer, outputs.jobs).unlink(missing_ok=True)

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        # Not `on_predict_end`, which a rank without jobs never reaches.
        trainer.strategy.barrier("noise results")
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            rows = read_results(folder)
            if pl_module.evaluation is not None and rows:
                _measure(folder, [row["key"] for row in rows], pl_module)
            (folder / "finished").touch()
            print(summary(rows) + f" They lie in {folder}.")


def _measure(folder: Path, keys: Sequence[str], module: Any) -> None:
    results = before_and_after(folder, keys, module.evaluation, module.constraints, module.device)
    results["versions"] = versions()
    (folder / "results.json").write_text(json.dumps(results, indent=2))
    print(before_after_table(results))
    if draws_overlays(module.evaluation):
        for side in ("before", "after"):
            write_overlays(module.evaluation, samples(folder, keys, side).to(module.device), folder, side)


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of all ranks in order of their keys; a line that was cut by a kill, or damaged, is left out."""
    rows = {}
    for file in sorted(folder.glob("results*.jsonl")):
        for line in file.read_text("utf-8", "replace").splitlines():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if _is_whole(row):
                rows[row["key"]] = row
    return [rows[key] for key in sorted(rows)]


def _is_whole(row: Any) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("key"), str):
        return False
    values = [row.get(name) for name in NUMBERS]
    for name in ("rewards", "log_probabilities"):
        values += row[name] if isinstance(row.get(name), list) and row[name] else [None]
    return all(type(value) in (int, float) and _is_finite(value) for value in values)


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Return one sentence on all finished samples."""
    if not rows:
        return "No samples were optimised."
    before, after = (fmean(row[name] for row in rows) for name in ("reward_before", "reward"))
    typical = sum(row["probability"] >= 0.01 for row in rows)
    return (
        f"{len(rows)} samples: mean reward {before:.4g} -> {after:.4g}; "
        f"{typical} of {len(rows)} have typical noise (P(z) >= 0.01)."
    )


def _rows_file(rank: int) -> str:
    return "results.jsonl" if rank == 0 else f"results-rank{rank}.jsonl"


def _unfinished(trainer: Trainer, jobs: Sequence[Job]) -> Path:
    return Path(trainer.default_root_dir) / "unfinished" / f"{jobs[0].key}.pt"
