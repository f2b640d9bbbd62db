"""Callbacks: what steers the penalty, and what users see of a run."""

from constrained_diffusion.callbacks.checkpoints import BestFeasible, LastCheckpoint
from constrained_diffusion.callbacks.constraint_callback import ConstraintCallback
from constrained_diffusion.callbacks.continue_log import ContinueLog
from constrained_diffusion.callbacks.export import Export
from constrained_diffusion.callbacks.noise_callback import NoiseCallback
from constrained_diffusion.callbacks.noise_progress import NoiseProgress
from constrained_diffusion.callbacks.noise_report import NoiseReport
from constrained_diffusion.callbacks.noise_results import NoiseResults
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
    "NoiseCallback",
    "NoiseProgress",
    "NoiseReport",
    "NoiseResults",
    "PenaltyScheduler",
    "Report",
    "Results",
    "SampleGrid",
    "SampleWriter",
]
