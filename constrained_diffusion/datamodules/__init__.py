"""Data modules: one file per source, one batch contract."""

from constrained_diffusion.batch import Batch
from constrained_diffusion.datamodules.generated import GeneratedDataModule
from constrained_diffusion.datamodules.image_folder import ImageFolderDataModule
from constrained_diffusion.datamodules.maze2d import Maze2DDataModule
from constrained_diffusion.datamodules.mnist import MNISTDataModule
from constrained_diffusion.datamodules.optimized import OptimizedDataModule
from constrained_diffusion.datamodules.polymers import PolymerDataModule
from constrained_diffusion.datamodules.preferences import PreferenceDataModule
from constrained_diffusion.datamodules.prompts import PromptsDataModule
from constrained_diffusion.datamodules.seeds import SeedsDataModule
from constrained_diffusion.runtime.data import DiffusionDataModule, TensorRows

__all__ = [
    "Batch",
    "DiffusionDataModule",
    "GeneratedDataModule",
    "ImageFolderDataModule",
    "MNISTDataModule",
    "Maze2DDataModule",
    "OptimizedDataModule",
    "PolymerDataModule",
    "PreferenceDataModule",
    "PromptsDataModule",
    "SeedsDataModule",
    "TensorRows",
]
