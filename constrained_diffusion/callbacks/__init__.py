"""Callbacks: what steers the penalty, and what users see of a run."""

from constrained_diffusion.callbacks.controllers.augmented_lagrangian import AugmentedLagrangian
from constrained_diffusion.callbacks.controllers.base import ConstraintCallback, Violations
from constrained_diffusion.callbacks.controllers.dual_ascent import DualAscent, NuPI
from constrained_diffusion.callbacks.controllers.fixed_penalty import FeasibilityGrowth, FixedPenalty
from constrained_diffusion.callbacks.controllers.penalty_scheduler import PenaltyScheduler
from constrained_diffusion.callbacks.output.asked_grids import AskedGrids
from constrained_diffusion.callbacks.output.certificate import Certificate
from constrained_diffusion.callbacks.output.noise_report import NoiseReport
from constrained_diffusion.callbacks.output.noise_results import NoiseResults
from constrained_diffusion.callbacks.output.overlays import Overlays
from constrained_diffusion.callbacks.output.report import Report
from constrained_diffusion.callbacks.output.results import Results
from constrained_diffusion.callbacks.output.sample_grid import SampleGrid
from constrained_diffusion.callbacks.output.samples import SampleWriter
from constrained_diffusion.callbacks.run.checkpoints import BestFeasible, LastCheckpoint
from constrained_diffusion.callbacks.run.continue_log import ContinueLog, KeepLog
from constrained_diffusion.callbacks.run.export import Export
from constrained_diffusion.callbacks.run.fit_progress import FitLines, FitProgress
from constrained_diffusion.callbacks.run.gradient_check import GradientCheck
from constrained_diffusion.callbacks.run.noise_progress import NoiseProgress
from constrained_diffusion.callbacks.run.shared_run_folder import SharedRunFolder
from constrained_diffusion.callbacks.run.status import DivergedError, FitStatus
from constrained_diffusion.noise_optimization.hooks import NoiseCallback

__all__ = [
    "AskedGrids",
    "AugmentedLagrangian",
    "BestFeasible",
    "Certificate",
    "ConstraintCallback",
    "ContinueLog",
    "DivergedError",
    "DualAscent",
    "Export",
    "FeasibilityGrowth",
    "FitLines",
    "FitProgress",
    "FitStatus",
    "FixedPenalty",
    "GradientCheck",
    "KeepLog",
    "LastCheckpoint",
    "NoiseCallback",
    "NoiseProgress",
    "NoiseReport",
    "NoiseResults",
    "NuPI",
    "Overlays",
    "PenaltyScheduler",
    "Report",
    "Results",
    "SampleGrid",
    "SampleWriter",
    "SharedRunFolder",
    "Violations",
]
