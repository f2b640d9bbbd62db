"""The zoo's planner: its figures, and the statistics of its data that plans are compared with."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from constrained_diffusion.denoisers.loading import PretrainedDenoiser
from constrained_diffusion.denoisers.samples import draw
from constrained_diffusion.diffusion.sampler import Sampler
from constrained_diffusion.domains.mazes.layout import Maze
from constrained_diffusion.domains.mazes.plan_evaluation import PlanEvaluation
from constrained_diffusion.domains.mazes.plans import points
from constrained_diffusion.domains.mazes.simulator import execute, planned_velocities, tracking_error
from constrained_diffusion.domains.mazes.smoothness import plan_statistics
from constrained_diffusion.runtime import cards
from constrained_diffusion.runtime.cards import DataMaker, ZooEntry
from constrained_diffusion.runtime.files import write_json

COUNT, EXECUTED = 1000, 200  #: seeds 0 .. 999, of which so many are executed
WINDOWS = 5000  #: of the recording, for its statistics
QUALITY = Sampler(steps=50, spacing="linspace")  # whose last step is from the lowest noise level
STATISTICS = "statistics.json"


def statistics(plans: Tensor, maze: Maze, stack: int, recorded: Tensor) -> dict[str, float]:
    """Return the steps and bends of recorded plans, and how far the simulated ball strays from drawn ones.

    Args:
        plans: drawn by the planner, `(n, L, S, C)`; the first 200 are executed.
        maze: the maze.
        stack: S.
        recorded: `(m, L, S, C)`, from the data.
    """
    paths = points(plans[:EXECUTED]).double()
    inner = paths[:, stack:-stack]
    ball = execute(maze, paths, paths.shape[1], planned_velocities(inner)[:, 0]).positions
    strayed = tracking_error(paths, ball).flatten()
    return {**plan_statistics(points(recorded)[:, stack:-stack]), "tracking_p95": float(strayed.quantile(0.95))}


def planner(target: Path, export: Path, make_data: DataMaker, count: int = COUNT) -> cards.Card:
    """Copy an exported planner to `target`, measure it, and write its data's statistics; no `data_dir` is needed.

    The recording is made if it is not there, as by the config that trains the planner.
    """
    model = PretrainedDenoiser(str(export))  # refuses an export that is not whole, before anything is overwritten
    shutil.rmtree(target)
    shutil.copytree(export, target, ignore=shutil.ignore_patterns("training.json"))
    training: dict[str, Any] = json.loads((export / "training.json").read_text())
    tokens, stack, channels = model.sample_shape
    data = make_data(tokens=tokens, frame_stack=stack, channels=channels)
    train, _ = data.data
    recorded = train.__getitems__(torch.linspace(0, len(train) - 1, min(WINDOWS, len(train))).long().tolist()).clean
    started = time.perf_counter()
    plans = draw(model, QUALITY, count)
    seconds = (time.perf_counter() - started) / count
    write_json(target / STATISTICS, statistics(plans, data.maze, stack, recorded))
    evaluation = PlanEvaluation(data.maze_name, reference=str(target), executed=EXECUTED)
    evaluation.update(plans)
    measured = {key: value for key, value in evaluation.compute()["metrics"].items() if value is not None}
    return cards.Card(
        name=target.name,
        summary=f"A small transformer that plans {(tokens - 2) * stack / 100:g} s of motion through PointMaze Medium, "
        f"(B, {tokens}, {stack}, {channels}) in cells; every token of {stack} frames has its own noise level.",
        data="1,000,000 steps of gymnasium-robotics' PointMaze_Medium-v3, driven by the waypoint controller along "
        "shortest routes; recorded by the same command",
        data_licence="none needed: simulated here",
        command="lightning fit --config pretrain/maze2d.yaml --trainer.devices 2 --trainer.accelerator cpu",
        training=training,
        figures={
            "parameters": sum(p.numel() for p in model.parameters()),
            f"DDIM {QUALITY.steps} steps, n": count,
            "seconds_per_plan": seconds,
            **measured,
        },
        notes=[
            "EMA weights of the last step; the run was stopped and resumed from its own checkpoint.",
            f"{STATISTICS}: steps (in cells per 0.01 s) and bends of {WINDOWS:,} recorded windows, and the p95 of the "
            f"simulated ball's distance to its plan over {EXECUTED} of the planner's own plans.",
        ],
    )


ENTRIES = {"planner": ZooEntry("maze2d_planner", planner, "Maze2DDataModule")}
