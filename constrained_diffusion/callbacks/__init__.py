"""Callbacks: what steers the penalty, and what users see of a run."""

from constrained_diffusion.callbacks.augmented_lagrangian import AugmentedLagrangian
from constrained_diffusion.callbacks.certificate import Certificate
from constrained_diffusion.callbacks.checkpoints import BestFeasible, LastCheckpoint
from constrained_diffusion.callbacks.constraint_callback import ConstraintCallback, Violations
from constrained_diffusion.callbacks.continue_log import ContinueLog, KeepLog
from constrained_diffusion.callbacks.dual_ascent import DualAscent, NuPI
from constrained_diffusion.callbacks.export import Export
from constrained_diffusion.callbacks.fit_progress import FitProgress
from constrained_diffusion.callbacks.fixed_penalty import FeasibilityGrowth, FixedPenalty
from constrained_diffusion.callbacks.gradient_check import GradientCheck
from constrained_diffusion.callbacks.noise_callback import NoiseCallback
from constrained_diffusion.callbacks.noise_progress import NoiseProgress
from constrained_diffusion.callbacks.noise_report import NoiseReport
from constrained_diffusion.callbacks.noise_results import NoiseResults
from constrained_diffusion.callbacks.penalty_scheduler import PenaltyScheduler
from constrained_diffusion.callbacks.plan_overlay import PlanOverlay
from constrained_diffusion.callbacks.report import Report
from constrained_diffusion.callbacks.results import Results
from constrained_diffusion.callbacks.same_folder import SameFolder
from constrained_diffusion.callbacks.sample_grid import SampleGrid
from constrained_diffusion.callbacks.samples import SampleWriter
from constrained_diffusion.callbacks.status import DivergedError, FitStatus

__all__ = [
    "AugmentedLagrangian",
    "BestFeasible",
    "Certificate",
    "ConstraintCallback",
    "ContinueLog",
    "DivergedError",
    "DualAscent",
    "Export",
    "FeasibilityGrowth",
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
    "PenaltyScheduler",
    "PlanOverlay",
    "Report",
    "Results",
    "SameFolder",
    "SampleGrid",
    "SampleWriter",
    "Violations",
]
