"""Callbacks: what steers the penalty, and what users see of a run."""

from constrained_diffusion.callbacks.checkpoints import BestFeasible, LastCheckpoint
from constrained_diffusion.callbacks.constraint_callback import ConstraintCallback
from constrained_diffusion.callbacks.continue_log import ContinueLog
from constrained_diffusion.callbacks.export import Export
from constrained_diffusion.callbacks.penalty_scheduler import PenaltyScheduler
from constrained_diffusion.callbacks.report import Report
from constrained_diffusion.callbacks.results import Results
from constrained_diffusion.callbacks.sample_grid import SampleGrid
from constrained_diffusion.callbacks.samples import SampleWriter
from constrained_diffusion.callbacks.status import DivergedError, FitStatus

__all__ = [
    "BestFeasible",
    "ConstraintCallback",
    "ContinueLog",
    "DivergedError",
    "Export",
    "FitStatus",
    "LastCheckpoint",
    "PenaltyScheduler",
    "Report",
    "Results",
    "SampleGrid",
    "SampleWriter",
]
