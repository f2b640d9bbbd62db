"""Starts the programs of this folder on gloo ranks; these import it when they are run, so it is beside them."""

from __future__ import annotations

import os
import socket
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.multiprocessing


def start(rank_main: Callable[[int, Path], None], ranks: int = 2) -> None:
    """Call `rank_main(rank, folder)` in so many processes, as a launcher would start them; the folder is argv's."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        free = listener.getsockname()[1]
    # forked rather than spawned, which would import torch twice more; no thread has been started here
    torch.multiprocessing.start_processes(  # type: ignore[attr-defined, no-untyped-call]
        _be, (rank_main, Path(sys.argv[1]), free, ranks), nprocs=ranks, start_method="fork"
    )


def _be(rank: int, rank_main: Callable[[int, Path], None], folder: Path, port: int, ranks: int) -> None:
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": 0, "WORLD_SIZE": ranks, "LOCAL_RANK": rank}
    os.environ.update({name: str(value) for name, value in place.items()})
    rank_main(rank, folder)
