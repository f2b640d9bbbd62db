"""Where a run's files lie: `runs/<config>/<number>/`, with a `latest` link; nothing earlier is overwritten."""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_only

from constrained_diffusion.runtime import untrusted
from constrained_diffusion.runtime.files import rename_existing, write_text
from constrained_diffusion.runtime.run_folder import RunFolder
from constrained_diffusion.runtime.run_lock import RunInUseError, locked

RANKS = ("NODE_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")  # beside those that Lightning reads


def shipped_configs() -> Path:
    """Return the folder of the configs that ship with the package, in a wheel or in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def find_config(name: str) -> Path:
    """Return the file of a config: a path as given, else the shipped config of that name.

    Raises:
        FileNotFoundError: neither exists; the message lists the shipped ones.
    """
    shipped = shipped_configs()
    for candidate in (Path(name), shipped / name, shipped / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    names = sorted(p.relative_to(shipped).as_posix() for p in shipped.rglob("*.yaml"))
    raise FileNotFoundError(f"no config '{name}': it is no file here, and the shipped ones are {', '.join(names)}.")


def config_name(file: Path) -> str:
    """Return the name under which a config's runs are kept: its path below the shipped configs, or its stem.

    Raises:
        ValueError: the name would lead out of the folder of the runs, as that of `...yaml` does.
    """
    shipped = shipped_configs()
    inside = file.resolve().is_relative_to(shipped.resolve())
    name = file.resolve().relative_to(shipped.resolve()) if inside else Path(file.name)
    if name.stem in (".", ".."):
        raise ValueError(f"the runs of a config are kept under its name, but '{file}' has none; rename it.")
    return name.with_suffix("").as_posix()


def first_rank() -> bool:
    """Return whether this process is the first rank of its command, as far as its launcher's variables tell.

    For decisions before there is a process group. A launcher that Lightning does not know from its environment makes
    every rank the first; what they then decide must be mended later (`SharedRunFolder`, `withdraw`).
    """
    # NODE_RANK: Lightning's own launcher, started once per node, gives the first process of a node no other number.
    # The others are MPI's, which Lightning asks only later.
    rank: int = rank_zero_only.rank  # type: ignore[attr-defined]  # Lightning reads it from the environment
    return rank == 0 and all(os.environ.get(name, "0") == "0" for name in RANKS)


def new_run(config: str, root: Path) -> RunFolder:
    """Make the next numbered folder of `config` below `root`; on several ranks, for the first one alone.

    Folders of commands that were killed before their runs began are taken away.
    """
    folder = root / config
    for run in [RunFolder(path) for path in folder.glob("[0-9]*")]:
        if run.lock.is_file() and not run.config.exists():
            with contextlib.suppress(RunInUseError, FileNotFoundError), locked(run) as alone:
                if alone:
                    withdraw(run)
    folder.mkdir(parents=True, exist_ok=True)
    number = max((int(p.name) for p in folder.iterdir() if p.name.isdecimal()), default=0)
    while True:
        number += 1
        path = folder / str(number)
        try:
            path.mkdir()  # fails where another process was faster
        except FileExistsError:
            continue
        return RunFolder(path.absolute())


def unfinished_run(config: str, text: str, root: Path) -> RunFolder | None:
    """Return the latest run of `config` if it was interrupted and had just this config, to go on with; else None.

    For commands that mark their end by a file `finished`.
    """
    run = _latest(config, root)
    if run is None or run.finished.exists() or not run.config.is_file():
        return None
    if run.config.read_bytes() != text.encode():
        return None
    return run


def begin(run: RunFolder, config: str) -> None:
    """Keep `run` from now on: write its config, if it has none yet."""
    if not run.config.exists():
        write_text(run.config, config)


def point_latest(run: RunFolder) -> None:
    """Let the link `latest` beside the run point at it; a file or folder of that name is put aside as `latest-1`."""
    link = run.path.parent / "latest"
    if run.path == link:  # copied without links
        return
    temporary = link.with_name(f".latest-{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)  # a kill left it, of another process with this number
        temporary.symlink_to(run.path.name)
        if not link.is_symlink():
            rename_existing(link)
        temporary.replace(link)
    except OSError as error:  # a fit does not end for that
        warnings.warn(
            f"'{link}' cannot be made a link to this run ({error}); give the path of a checkpoint, such as "
            f"'{run.last_checkpoint}', in place of `--ckpt_path last`.",
            stacklevel=2,
        )


def withdraw(run: RunFolder) -> None:
    """Remove the folder that `new_run` made, unless the run has begun."""
    if not run.path.is_dir() or run.config.exists():
        return
    shutil.rmtree(run.path, ignore_errors=True)
    with contextlib.suppress(OSError):  # other runs of this config are there
        run.path.parent.rmdir()


def latest_run(config: str, root: Path) -> RunFolder:
    """Return the newest run of `config` below `root`.

    Raises:
        FileNotFoundError: there is none; the message says how to make one.
        ValueError: the link leads out of the config's folder.
    """
    run = _latest(config, root)
    if run is None:
        raise FileNotFoundError(
            f"there is no run of '{config}' below '{root}': expected '{root / config / 'latest'}'; "
            "run `lightning fit` with this config first."
        )
    return run


def check_links(run: RunFolder) -> None:
    """Raise ValueError where a link in the folder `run` leads out of it: what is written there would lie elsewhere."""
    inside = run.path.resolve()
    for path in run.path.rglob("*"):
        if path.is_symlink() and not os.path.realpath(path).startswith(f"{inside}{os.sep}"):
            raise ValueError(
                f"'{path}' is a link out of its run's folder, to '{os.readlink(path)}': nothing is written there; put "
                "the file itself in its place, or take it out."
            )


def last_checkpoint(run: RunFolder) -> Path:
    """Return the checkpoint that `--ckpt_path last` continues.

    Raises:
        FileNotFoundError: the run has none yet.
    """
    checkpoint = run.last_checkpoint
    if not checkpoint.is_file():
        raise FileNotFoundError(f"'{run}' holds no checkpoints/last.ckpt to continue from; start a fresh fit instead.")
    return checkpoint


def best_checkpoint(run: RunFolder) -> Path:
    """Return what `test` and `predict` use: `best_feasible` where a fit found one, else `last`."""
    return run.best_feasible if run.best_feasible.is_file() else last_checkpoint(run)


def run_of(checkpoint: Path) -> RunFolder | None:
    """Return the run that a checkpoint belongs to; None where it lies in none."""
    run = RunFolder(checkpoint.resolve().parent.parent)
    return run if checkpoint.resolve().parent == run.checkpoints and run.config.is_file() else None


def _latest(config: str, root: Path) -> RunFolder | None:
    link = root / config / "latest"
    if not link.exists():
        return None
    run = link.resolve()
    if run.parent != link.parent.resolve():
        raise ValueError(f"'{link}' leads out of its folder, to '{run}': expected a run beside it; take the link out.")
    return RunFolder(run)


def check_checkpoint(checkpoint: str | None) -> None:
    """Raise FileNotFoundError or ValueError where `checkpoint` is missing or unreadable; it is not executed."""
    if checkpoint is None:
        return
    content = untrusted.read_checkpoint(checkpoint, "state_dict", "global_step", map_location="meta")
    if type(content["global_step"]) is not int:
        raise ValueError(f"'{checkpoint}' is not a checkpoint of a fit: its global_step is no integer; give another.")


def checkpoint_step(checkpoint: str | None) -> int | None:
    """Return the optimiser step at which `checkpoint` was written; None where none is given."""
    if checkpoint is None:
        return None
    return int(torch.load(checkpoint, map_location="meta", weights_only=True)["global_step"])
