"""Where a run's files lie: `runs/<config>/<number>/`, with a `latest` link; nothing earlier is overwritten."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_only

from constrained_diffusion.runtime import untrusted
from constrained_diffusion.runtime.files import write_text

CONFIG = "config.yaml"  # written when a run begins; a folder without it holds no results yet


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
    rank: int = rank_zero_only.rank  # type: ignore[attr-defined]  # Lightning reads it from the environment
    return rank == 0 and os.environ.get("NODE_RANK", "0") == "0"


def new_run(config: str, root: Path) -> Path:
    """Make the next numbered folder of `config` below `root`; on several ranks, for the first one alone."""
    folder = root / config
    folder.mkdir(parents=True, exist_ok=True)
    number = max((int(p.name) for p in folder.iterdir() if p.name.isdecimal()), default=0)
    while True:
        number += 1
        run = folder / str(number)
        try:
            run.mkdir()  # fails where another process was faster
        except FileExistsError:
            continue
        return run.absolute()


def unfinished_run(config: str, text: str, root: Path) -> Path | None:
    """Return the latest run of `config` if it was interrupted and had just this config, to go on with; else None.

    For commands that mark their end by a file `finished`.
    """
    run = _latest(config, root)
    if run is None or (run / "finished").exists() or not (run / CONFIG).is_file():
        return None
    if (run / CONFIG).read_bytes() != text.encode():
        return None
    return run


def begin(run: Path, config: str, latest: bool = True) -> None:
    """Keep `run` from now on: write its config, if it has none yet, and point `latest` at it."""
    file = run / CONFIG
    if not file.exists():
        write_text(file, config)
    if latest:
        _link(run.parent / "latest", run.name)


def withdraw(run: Path) -> None:
    """Remove the folder that `new_run` made, unless the run has begun."""
    if not run.is_dir() or (run / CONFIG).exists():
        return
    shutil.rmtree(run, ignore_errors=True)  # a termination may withdraw it at the same moment
    with contextlib.suppress(OSError):  # other runs of this config are there
        run.parent.rmdir()


def latest_run(config: str, root: Path) -> Path:
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


def check_links(run: Path) -> None:
    """Raise ValueError where a link in the folder `run` leads out of it: what is written there would lie elsewhere."""
    inside = run.resolve()
    for path in run.rglob("*"):
        if path.is_symlink() and not os.path.realpath(path).startswith(f"{inside}{os.sep}"):
            raise ValueError(
                f"'{path}' is a link out of its run's folder, to '{os.readlink(path)}': nothing is written there; put "
                "the file itself in its place, or take it out."
            )


def last_checkpoint(run: Path) -> Path:
    """Return the checkpoint that `--ckpt_path last` continues.

    Raises:
        FileNotFoundError: the run has none yet.
    """
    checkpoint = run / "checkpoints" / "last.ckpt"
    if not checkpoint.is_file():
        raise FileNotFoundError(f"'{run}' holds no checkpoints/last.ckpt to continue from; start a fresh fit instead.")
    return checkpoint


def best_checkpoint(run: Path) -> Path:
    """Return what `test` and `predict` use: `best_feasible` where a fit found one, else `last`."""
    best = run / "checkpoints" / "best_feasible.ckpt"
    return best if best.is_file() else last_checkpoint(run)


def run_of(checkpoint: Path) -> Path | None:
    """Return the run that a checkpoint belongs to; None where it lies in none."""
    run = checkpoint.resolve().parent.parent
    return run if checkpoint.resolve().parent.name == "checkpoints" and (run / CONFIG).is_file() else None


def _latest(config: str, root: Path) -> Path | None:
    link = root / config / "latest"
    if not link.exists():
        return None
    run = link.resolve()
    if run.parent != link.parent.resolve():
        raise ValueError(f"'{link}' leads out of its folder, to '{run}': expected a run beside it; take the link out.")
    return run


def _link(link: Path, target: str) -> None:
    temporary = link.with_name(f".latest-{os.getpid()}")
    temporary.symlink_to(target)
    temporary.replace(link)


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
