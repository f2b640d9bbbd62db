"""What a noise optimisation leaves on disk, so that nothing finished is ever done twice.

results.jsonl            one row per finished sample (until the end `results-rank1.jsonl`, .. of further ranks)
results.json             with an evaluation: its figures of all finished samples, before and after
before/KEY.png, after/KEY.png      samples that can be drawn; others lie in noise/KEY.safetensors alone
overlays/before.png, overlays/after.png  all of them in one picture each, where the evaluation draws some
noise/KEY.safetensors    the noise that was found, the sample, and the one before
unfinished/rank0.pt      until all is finished: the state of a rank's last batch, from which a killed command goes on
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from safetensors.torch import save_file
from torch import Tensor

from constrained_diffusion.callbacks.output.noise_figures import before_and_after, samples
from constrained_diffusion.callbacks.output.overlays import draws_overlays, write_overlays
from constrained_diffusion.callbacks.output.results import versions
from constrained_diffusion.callbacks.output.samples import save_picture
from constrained_diffusion.noise_optimization.hooks import AllRanks, Interrupted, NoiseCallback, Optimized, writing_rank
from constrained_diffusion.noise_optimization.jobs import Job
from constrained_diffusion.noise_optimization.optimizer import Run
from constrained_diffusion.noise_optimization.record import Record
from constrained_diffusion.reports.noise_rows import read_results, summary
from constrained_diffusion.reports.table import before_after_table
from constrained_diffusion.runtime import untrusted
from constrained_diffusion.runtime.files import replaced, write_json, write_text
from constrained_diffusion.runtime.run_folder import RunFolder


class NoiseResults(NoiseCallback):
    """Writes each sample as soon as it is finished, and the state of the batch in work every so often.

    Args:
        save_every_seconds: how much work a kill may cost.

    Raises:
        ValueError: what lies in the folder under the key of a job is of another prompt or seed; it stays as it is.
    """

    def __init__(self, save_every_seconds: float = 30.0) -> None:
        self.save_every_seconds = save_every_seconds
        self._saved = time.monotonic()
        self._kept: dict[str, Job] = {}  # the jobs whose rows are on disk

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._ranks, self._device = AllRanks(), pl_module.device

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._device = pl_module.device
        run = RunFolder.of(trainer)
        for folder in (run.side("before"), run.side("after"), run.noise, run.unfinished):
            folder.mkdir(parents=True, exist_ok=True)
        rows = run.rows(trainer.global_rank)
        if rows.is_file() and not rows.read_bytes().endswith(b"\n"):  # a kill has cut the last line
            with rows.open("a", encoding="utf-8") as file:
                file.write("\n")
        finished = read_results(run.path)
        self._kept = {row["key"]: Job(row["key"], row.get("prompt"), row.get("seed", -1)) for row in finished}
        jobs = getattr(trainer.datamodule, "jobs", None)  # type: ignore[attr-defined]  # where they are known beforehand
        if jobs is not None:
            self.finished_jobs(trainer, jobs)  # refuses edited prompts before any work is done

    def finished_jobs(self, trainer: Trainer, jobs: Sequence[Job]) -> set[str]:
        _check_same(jobs, self._kept, RunFolder.of(trainer).path)
        return {job.key for job in jobs if job.key in self._kept}

    def interrupted(self, trainer: Trainer, batch: Sequence[Job]) -> Interrupted | None:
        file = _unfinished(trainer)
        if not file.is_file():
            return None
        try:
            state = untrusted.read_checkpoint(file)
            kept, run = {key: Job(key, prompt, seed) for key, prompt, seed in state["jobs"]}, state["run"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"'{file}', from which a batch would go on, is damaged ({error}); delete it to start the batch anew."
            ) from error
        _check_same(batch, kept, file)
        return Interrupted(list(kept.values()), run) if kept.keys() <= {job.key for job in batch} else None

    def on_batch_begin(self, trainer: Trainer, module: LightningModule, jobs: Sequence[Job], run: Run) -> None:
        self._saved = time.monotonic()

    def on_evaluation(
        self, trainer: Trainer, module: LightningModule, jobs: Sequence[Job], run: Run, clean: dict[int, Tensor]
    ) -> None:
        if trainer.global_rank != writing_rank(trainer):
            return
        ended = self._ended(jobs, run.records)
        if ended or time.monotonic() - self._saved >= self.save_every_seconds:
            with replaced(_unfinished(trainer)) as file:
                torch.save({"jobs": [list(job) for job in jobs], "run": run.state_dict()}, file)
            self._saved = time.monotonic()
        for job, record in ended:  # after the state, which so knows every job with a row as ended
            self._write(trainer, module, job, record)

    def on_failure(self, trainer: Trainer, module: LightningModule, jobs: Sequence[Job], run: Run) -> None:
        if trainer.global_rank == writing_rank(trainer):  # no state: a step that was left half-way is made again
            for job, record in self._ended(jobs, run.records):
                self._write(trainer, module, job, record)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        # The state stays: ranks that share the batch may not have read it yet. The next batch's replaces it, after they
        # all have met in a step.
        if isinstance(outputs, Optimized) and trainer.global_rank == writing_rank(trainer):
            for job, record in self._ended(outputs.jobs, outputs.records):  # where a kill came just before their rows
                self._write(trainer, pl_module, job, record)

    def _ended(self, jobs: Sequence[Job], records: Sequence[Record]) -> list[tuple[Job, Record]]:
        """Return the jobs that have stopped and have no row yet."""
        pairs = zip(jobs, records, strict=False)  # there are no records before the first evaluation
        return [(job, record) for job, record in pairs if record.stopped != "none" and job.key not in self._kept]

    @torch.no_grad()
    def _write(self, trainer: Trainer, module: Any, job: Job, record: Record) -> None:
        run = RunFolder.of(trainer)
        tensors = {"noise": record.noise, "sample": record.sample, "before": record.start}
        tensors = {name: tensor.float().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(tensors, run.noise / f"{job.key}.safetensors")
        drawn = module.pictures(torch.stack([record.start, record.sample]).float().to(module.device))
        for side, picture in zip(("before", "after"), () if drawn is None else drawn, strict=False):
            save_picture(picture, run.side(side) / f"{job.key}.png")
        row = {"key": job.key, "seed": job.seed, "prompt": job.prompt, **record.summary()}
        row |= {"rewards": record.rewards, "log_probabilities": record.log_probabilities}
        with run.rows(trainer.global_rank).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")  # last, so that a row says that the rest is there
        self._kept[job.key] = job

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        # Not `on_predict_end`, which a rank without jobs never reaches.
        self._ranks.wait()
        if trainer.is_global_zero:
            run = RunFolder.of(trainer)
            rows = read_results(run.path)
            _merge(run, rows)
            if pl_module.evaluation is not None and rows:
                _measure(run, [row["key"] for row in rows], pl_module, self._device)
            shutil.rmtree(run.unfinished, ignore_errors=True)  # states of finished batches
            run.finished.touch()
            print(summary(rows) + f" They are in {run}.")


def _check_same(jobs: Iterable[Job], kept: Mapping[str, Job], place: str | Path) -> None:
    for job in jobs:
        earlier = kept.get(job.key, job)
        if (earlier.prompt, earlier.seed) != (job.prompt, job.seed):
            raise ValueError(
                f"'{place}' holds, as {job.key}, the prompt {str(earlier.prompt)[:80]!r} with seed {earlier.seed}, but "
                f"now {job.key} is {str(job.prompt)[:80]!r} with seed {job.seed}; restore the prompts as they were, or "
                "choose another folder (--trainer.default_root_dir)."
            )


def _merge(run: RunFolder, rows: Sequence[Mapping[str, Any]]) -> None:
    """Make results.jsonl the one file of rows: those of all ranks, and no line that a kill has cut."""
    write_text(run.rows(), "".join(json.dumps(row) + "\n" for row in rows))
    for file in run.path.glob("results-rank*.jsonl"):  # a kill in between leaves rows twice, and loses none
        file.unlink()


def _measure(run: RunFolder, keys: Sequence[str], module: Any, device: torch.device) -> None:
    for part in (module.evaluation, *module.constraints):  # Lightning has moved them to the host, where judging is slow
        part.to(device)
    results = before_and_after(run.path, keys, module.evaluation, module.constraints, device)
    results["versions"] = versions()
    write_json(run.results, results)
    print(before_after_table(results))
    if draws_overlays(module.evaluation):
        for side in ("before", "after"):
            write_overlays(module.evaluation, samples(run.path, keys, side).to(device), run, side)


def _unfinished(trainer: Trainer) -> Path:
    return RunFolder.of(trainer).unfinished / f"rank{writing_rank(trainer)}.pt"
