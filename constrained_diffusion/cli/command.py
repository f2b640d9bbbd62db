"""The command line: LightningCLI over everything that the package has; the only file that imports everything."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
import warnings
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, LambdaCallback, ProgressBar
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.utilities import rank_zero_info

from constrained_diffusion import datamodules, denoisers, domains, guides
from constrained_diffusion.callbacks import (
    ContinueLog,
    DivergedError,
    FitLines,
    FitProgress,
    NoiseProgress,
    SharedRunFolder,
)
from constrained_diffusion.cli import arguments, config_errors, defaults, devices, runs
from constrained_diffusion.diffusion import token_sampler
from constrained_diffusion.diffusion.rejection import InfeasibleError
from constrained_diffusion.diffusion.sampler import Sampler
from constrained_diffusion.fine_tuning import divergence
from constrained_diffusion.fine_tuning.autoencoding import Autoencoding
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion
from constrained_diffusion.fine_tuning.schedules import WarmupStableDecay
from constrained_diffusion.fine_tuning.supervised import Supervised
from constrained_diffusion.noise_optimization import gradients, regularizers
from constrained_diffusion.noise_optimization.module import DirectNoiseOptimization
from constrained_diffusion.reports import table
from constrained_diffusion.runtime import cpu_precision, untrusted
from constrained_diffusion.runtime.files import disk_full
from constrained_diffusion.runtime.run_folder import RunFolder
from constrained_diffusion.runtime.run_lock import locked

# Imported so that configs can name their classes without a path.
IMPORTED = (
    *(datamodules, denoisers, divergence, guides, gradients, regularizers, token_sampler),
    *(ConstrainedDiffusion, DirectNoiseOptimization, Supervised, Autoencoding, WarmupStableDecay),
)


set_parsing_settings(subclasses_enabled=[Sampler])  # which jsonargparse takes for closed, being a dataclass

TRAINER_DEFAULTS = {
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,  # the data modules shard by themselves
    "log_every_n_steps": 10,
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
    "LightningCLI's args parameter is intended to run from within Python",
)
ADVERTISING = ("lightning.fabric.utilities.rank_zero", "lightning.pytorch.utilities.rank_zero")  # loggers
LATEST = {"fit": ("last",), **dict.fromkeys(("validate", "test", "predict"), (None, "last", "best"))}  # --ckpt_path
MISTAKES = (ArgumentError, MisconfigurationException, ValueError, TypeError, OSError, ImportError)
EXPECTED = (ArgumentError, MisconfigurationException, FileNotFoundError, ImportError)  # in a training, too


@dataclass
class Progress:
    """How far a command has come, which decides how a failure is reported and what is taken back."""

    exits: contextlib.ExitStack  #: what is done at the end: withdraw a folder that never began, and unlock it
    stepped: bool = False  #: whether this command has trained a batch
    training: bool = False  #: whether training has begun; what goes wrong then is no mistake in a config


class ConstrainedCLI(LightningCLI):
    """LightningCLI with a run folder, the run's callbacks, and `--ckpt_path last`."""

    run_folder: RunFolder  #: on ranks other than the first a stand-in, until `SharedRunFolder` tells the Trainer

    def __init__(self, words: arguments.Words, progress: Progress, **settings: Any) -> None:
        self.words, self.config_name, self.progress = words, words.name, progress
        super().__init__(LightningModule, LightningDataModule, args=words.argv, **settings)  # runs the command

    def add_arguments_to_parser(self, parser: Any) -> None:
        text = "sample the pretrained model again in `test`, even where its samples are stored beside the weights"
        parser.add_argument("--recompute", action="store_true", help=text)

    def parse_arguments(self, parser: Any, args: Any) -> None:
        super().parse_arguments(parser, args)
        given = self.config[self.config.subcommand].ckpt_path
        if given not in LATEST[self.config.subcommand]:
            runs.check_checkpoint(given)  # before Lightning opens it

    def before_instantiate_classes(self) -> None:
        config, trainer, fit = self._own_config, self._own_config.trainer, self.subcommand == "fit"
        if config.get("weights_only") is False:
            raise ValueError("with weights_only: false a checkpoint may execute anything; leave it out.")
        self.config_text = self._parser(self.subcommand).dump(config, skip_unset=False)
        arguments.check_prompt_files(config.get("data"))
        config.weights_only = True  # also against the environment's TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD
        root = Path(trainer.default_root_dir or os.environ.get("CONSTRAINED_DIFFUSION_RUNS", "runs"))
        given = config.ckpt_path
        if self._optimizes_noise:
            earlier = runs.unfinished_run(self.config_name, self.config_text, root)
        elif given in LATEST[self.config.subcommand]:
            earlier = runs.latest_run(self.config_name, root)
            find = runs.last_checkpoint if given == "last" else runs.best_checkpoint
            checkpoint = find(earlier)
            runs.check_checkpoint(str(checkpoint))
            config.ckpt_path = str(checkpoint)
        else:
            earlier = None if fit or given is None else runs.run_of(Path(given))
        if earlier is not None:
            runs.check_links(earlier)
        self.run_folder = earlier or RunFolder((root / self.config_name).absolute())
        if runs.first_rank():
            self._take_folder(earlier, root)
        if not fit:
            warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint")  # the fit's own
        trainer.default_root_dir = str(self.run_folder)

    def _take_folder(self, earlier: RunFolder | None, root: Path) -> None:
        self.run_folder = earlier or runs.new_run(self.config_name, root)
        if earlier is None or self.subcommand != "validate":  # which writes nothing
            self.progress.exits.enter_context(locked(self.run_folder))
        if earlier is None:
            self.progress.exits.callback(runs.withdraw, self.run_folder)

    @property
    def _optimizes_noise(self) -> bool:
        """Whether this command starts from pretrained weights, not from a fit's checkpoint."""
        module, _, name = self._own_config.model.class_path.rpartition(".")
        return issubclass(getattr(import_module(module), name), DirectNoiseOptimization)

    @property
    def _own_config(self) -> Any:
        return self.config[self.subcommand]

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        run, fit = self.run_folder, self.subcommand == "fit"
        if self._own_config.recompute:
            if not isinstance(self.model, ConstrainedDiffusion):
                name = self._own_config.model.class_path
                raise ValueError(f"--recompute is for models that draw samples; {name} does not, so leave it out.")
            self.model.evaluator.recompute = True
        resumed = runs.checkpoint_step(self._own_config.ckpt_path) if fit else None
        config = self.config_init[self.subcommand].trainer
        kwargs |= cpu_precision.plugins(config)
        kwargs["logger"] = (
            defaults.loggers(run, resumed, config.logger) if fit and config.logger is not False else False
        )
        own = config.callbacks or []
        given = {type(callback) for callback in (own if isinstance(own, list) else [own])}
        callbacks = defaults.callbacks(self.model, self.config_name, fit)
        if resumed is not None:
            callbacks.insert(0, ContinueLog(run.metrics))
        if config.enable_progress_bar is not False and not any(issubclass(kind, ProgressBar) for kind in given):
            bar = FitProgress() if sys.stdout.isatty() else FitLines()
            callbacks.append(NoiseProgress() if self._optimizes_noise else bar)
        if config.enable_checkpointing is False:
            callbacks = [callback for callback in callbacks if not isinstance(callback, Checkpoint)]
        begin = LambdaCallback(
            on_train_epoch_start=self._begin, on_test_start=self._begin, on_predict_start=self._begin,
            on_train_batch_end=self._stepped,
        )  # fmt: skip
        self.trainer_defaults["callbacks"] = [*(c for c in callbacks if type(c) not in given), begin]
        first = runs.first_rank()  # before the Trainer knows better
        trainer = super().instantiate_trainer(**kwargs)
        if trainer.global_rank == 0 and not first:
            raise ValueError(
                "RANK, LOCAL_RANK, SLURM_PROCID, NODE_RANK or MPI's in the environment says that this is not the first "
                "rank, but for the Trainer it is; start it by torchrun or srun on all ranks, or unset these variables."
            )
        devices.report_idle(trainer)
        trainer.callbacks.insert(0, SharedRunFolder())  # type: ignore[attr-defined]  # before the config's own callbacks
        return trainer

    def after_fit(self) -> None:
        if isinstance(self.model, ConstrainedDiffusion):
            rank_zero_info(f"next, before and after on samples of their own: {self.words.next_command('test')}")

    def after_test(self) -> None:
        if isinstance(self.model, ConstrainedDiffusion) and self.trainer.is_global_zero:
            print(table.verdict(untrusted.read_json(self.run_folder.results)))

    def _begin(self, trainer: Trainer, model: LightningModule) -> None:
        """Note, once, that everything has been checked, so that this run is worth keeping."""
        if trainer.is_global_zero and not self.progress.training:
            runs.begin(self.run_folder, self.config_text)
            if self._optimizes_noise:
                runs.point_latest(self.run_folder)
            for logger in trainer.loggers:
                logger.log_hyperparams(yaml.safe_load(self.config_text))
        self.progress.training = trainer.training

    def _stepped(self, trainer: Trainer, *_: Any) -> None:
        """Let `latest` point at this fit from its first step on, and before its first checkpoint."""
        if trainer.is_global_zero and not self.progress.stepped:
            runs.point_latest(self.run_folder)
        self.progress.stepped = True


def main(args: list[str] | None = None) -> None:
    """Run the command line; `args` defaults to the process's own.

    A mistake of the user's ends in one sentence and exit status 2; a diverged fit, or feasible samples that cannot be
    had, in one sentence and exit status 1.
    """
    argv = list(sys.argv[1:] if args is None else args)
    _hush()
    with contextlib.ExitStack() as exits, arguments.restored_path():
        progress = Progress(exits)
        try:
            _run(argv, progress)
        except (DivergedError, InfeasibleError) as error:
            sys.exit(_say(str(error), 1))
        except MISTAKES as error:
            if full := disk_full(error):
                sys.exit(_say(_no_space(full, progress), 1))
            surprising = progress.training and not isinstance(error, EXPECTED)
            if surprising or os.environ.get("CONSTRAINED_DIFFUSION_DEBUG"):
                raise
            sys.exit(_say(_told(error, progress), 2))
        except Exception as error:
            if not _restores(error, progress) or os.environ.get("CONSTRAINED_DIFFUSION_DEBUG"):
                raise
            sys.exit(_say(_told(error, progress), 2))


def _restores(error: Exception, progress: Progress) -> bool:
    """Whether Lightning was handing out what a checkpoint holds: then it is the checkpoint that is wrong."""
    return not progress.training and any(name.endswith(".checkpoint_connector") for name in _modules(error))


def _told(error: Exception, progress: Progress) -> str:
    ours = isinstance(error, MISTAKES) and _modules(error)[-1].startswith("constrained_diffusion.")
    if ours or not _restores(error, progress):
        return config_errors.summarize(str(error))
    why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return f"the checkpoint is damaged, or of another version ({why}); take an earlier one."


def _no_space(error: OSError, progress: Progress) -> str:
    what = f"'{error.filename}'" if error.filename else "a file of the run"
    on = "the same command with --ckpt_path last goes on" if progress.training else "run the command again"
    return f"the disk is full: {what} could not be written; free some space, then {on}."


def _modules(error: Exception) -> list[str]:
    return [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)]


def _hush() -> None:
    """Silence what Lightning says about things that are meant to be so, and its advertising."""
    for message in NOISE:
        warnings.filterwarnings("ignore", f".*{message}")
    for name in ADVERTISING:
        logging.getLogger(name).addFilter(_no_advertising)


def _no_advertising(record: logging.LogRecord) -> bool:
    return "Tip: For seamless cloud" not in record.getMessage()


def _run(argv: list[str], progress: Progress) -> None:
    domains.load()
    untrusted.restrict_configs()
    words = arguments.read(argv)
    arguments.find_modules_beside(words.configs)
    ConstrainedCLI(
        words,
        progress,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=None,
        load_from_checkpoint_support=False,
        trainer_defaults={**TRAINER_DEFAULTS, "devices": devices.default_devices()},
        parser_kwargs={"exit_on_error": False},
    )


def _say(message: str, status: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    main()
