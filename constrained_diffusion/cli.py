"""The command line: LightningCLI over everything that the package has; the only file that imports everything."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from constrained_diffusion import constraints, datamodules, denoisers, metrics, objectives, rewards, runs
from constrained_diffusion.callbacks import (
    BestFeasible,
    ContinueLog,
    DivergedError,
    Export,
    FitStatus,
    LastCheckpoint,
    Report,
    Results,
    SampleGrid,
    SampleWriter,
)
from constrained_diffusion.callbacks.continue_log import read_rows
from constrained_diffusion.fine_tuning.evaluated import EvaluatedDiffusion
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion
from constrained_diffusion.fine_tuning.schedules import WarmupStableDecay
from constrained_diffusion.supervised import Supervised

# Imported so that configs can name their classes without a path.
IMPORTED = (constraints, datamodules, denoisers, metrics, rewards, ConstrainedDiffusion, Supervised, WarmupStableDecay)


TRAINER_DEFAULTS = {
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,  # the data modules shard by themselves
    "log_every_n_steps": 1,
}
NOISE = (  # what Lightning says about things that are meant to be so
    "Experiment logs directory .* exists and is not empty",
    "Found .* module\\(s\\) in eval mode",
    "The '.*_dataloader' does not have many workers",
    "Trying to infer the `batch_size`",
    "You're resuming from a checkpoint that ended before the epoch ended",
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",
    "The number of training batches .* is smaller than the logging interval",
    "Checkpoint directory .* exists and is not empty",
)


class ConstrainedCLI(LightningCLI):
    """LightningCLI with a run folder, the run's callbacks, and `--ckpt_path last`."""

    run_folder: Path | None = None
    config_name: str = "run"

    def before_instantiate_classes(self) -> None:
        config, trainer = self._own_config, self._own_config.trainer
        root = Path(trainer.default_root_dir or os.environ.get("CONSTRAINED_DIFFUSION_RUNS", "runs"))
        if self.subcommand == "fit":
            resume = config.ckpt_path == "last"
            self.run_folder = (
                runs.latest_run(self.config_name, root) if resume else runs.new_run(self.config_name, root)
            )
            config.ckpt_path = str(runs.last_checkpoint(self.run_folder)) if resume else config.ckpt_path
        else:
            self.run_folder = runs.latest_run(self.config_name, root)
            if config.ckpt_path in (None, "last", "best"):
                find = runs.last_checkpoint if config.ckpt_path == "last" else runs.best_checkpoint
                config.ckpt_path = str(find(self.run_folder))
        runs.check_checkpoint(config.ckpt_path)
        trainer.default_root_dir = str(self.run_folder)

    @property
    def _own_config(self) -> Any:
        return self.config[self.subcommand]

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        run, fit = self.run_folder, self.subcommand == "fit"
        assert run is not None
        resumed = runs.checkpoint_step(self._own_config.ckpt_path) if fit else None
        rows = read_rows(run / "metrics.csv") if resumed is not None else []
        config = self.config_init[self.subcommand].trainer
        if fit and config.logger is None:
            kwargs["logger"] = _loggers(run, resumed)
        elif not fit:
            kwargs["logger"] = False
        given = {type(callback) for callback in config.callbacks or []}
        callbacks = _callbacks(self.model, self.config_name, fit) + ([ContinueLog(rows)] if rows else [])
        if config.enable_progress_bar is not False:
            callbacks.append(RichProgressBar())
        self.trainer_defaults["callbacks"] = [c for c in callbacks if type(c) not in given]
        return super().instantiate_trainer(**kwargs)

    @rank_zero_only
    def before_fit(self) -> None:
        assert self.run_folder is not None
        file = self.run_folder / "config.yaml"
        if not file.exists():
            file.write_text(self._parser(self.subcommand).dump(self._own_config, skip_unset=False))


def _loggers(run: Path, resumed: int | None) -> list[Any]:
    loggers: list[Any] = [CSVLogger(run, name="", version="", flush_logs_every_n_steps=10)]
    with contextlib.suppress(ModuleNotFoundError):  # an extra; the CSV file has the same numbers
        loggers.append(TensorBoardLogger(run, name="tensorboard", version="", purge_step=resumed))
    return loggers


def _callbacks(model: LightningModule, config: str, fit: bool) -> list[Callback]:
    everyone: list[Callback] = [LastCheckpoint(), Export()] if fit else []
    if not isinstance(model, EvaluatedDiffusion):
        return everyone
    fitting: list[Callback] = [FitStatus(), BestFeasible()] if fit else [SampleWriter()]
    return [*everyone, *fitting, SampleGrid(), Results(config), Report()]


def main(args: list[str] | None = None) -> None:
    """Run the command line; `args` defaults to the process's own.

    A mistake of the user's ends in one sentence and exit status 2, a diverged fit in one sentence and exit status 1.
    """
    argv = list(sys.argv[1:] if args is None else args)
    for message in NOISE:
        warnings.filterwarnings("ignore", f".*{message}")
    if "LOCAL_RANK" not in os.environ:
        os.environ.pop(runs.RUN, None)  # a new command is a new run; only the ranks that Lightning launches share one
    try:
        _run(argv)
    except DivergedError as error:
        sys.exit(_say(str(error), 1))
    except ArgumentError as error:
        sys.exit(_say(_innermost(str(error)), 2))
    except (ValueError, TypeError, FileNotFoundError, ImportError) as error:
        if os.environ.get("CONSTRAINED_DIFFUSION_DEBUG"):
            raise
        sys.exit(_say(str(error), 2))


def _run(argv: list[str]) -> None:
    files = [runs.find_config(argv[i]) for i in _config_values(argv)]
    for i, file in zip(_config_values(argv), files, strict=True):
        argv[i] = str(file)
        _check_names(file)
    ConstrainedCLI.config_name = runs.config_name(files[0]) if files else "run"
    ConstrainedCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=None,
        load_from_checkpoint_support=False,
        trainer_defaults=dict(TRAINER_DEFAULTS),
        parser_kwargs={"exit_on_error": False},
        args=argv,
    )


def _config_values(argv: list[str]) -> list[int]:
    for i, word in enumerate(list(argv)):
        if word.startswith("--config="):
            argv[i : i + 1] = ["--config", word.removeprefix("--config=")]
            return _config_values(argv)
    return [i + 1 for i, word in enumerate(argv) if word in ("--config", "-c") and i + 1 < len(argv)]


def _check_names(file: Path) -> None:
    """Raise ValueError for a constraint whose bare name is not registered, with the list of those that are."""
    config = yaml.safe_load(file.read_text()) or {}
    given = ((config.get("model") or {}).get("init_args") or {}).get("constraints") or []
    for entry in given if isinstance(given, list) else [given]:
        name = entry.get("class_path", "") if isinstance(entry, dict) else str(entry)
        known = objectives.available(objectives.Constraint)
        if "." not in name and name not in known:
            raise ValueError(
                f"{file}: '{name}' is no registered constraint; there are {', '.join(known)}, or give the full path "
                "of your own, as in class_path: my_project.MyConstraint."
            )


def _innermost(message: str) -> str:
    lines = [line.strip(" -\t") for line in message.splitlines() if line.strip(" -\t")]
    return lines[-1] if lines else message


def _say(message: str, status: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    main()
