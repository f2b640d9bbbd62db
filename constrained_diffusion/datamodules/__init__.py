"""Data modules: one file per source, one batch contract."""

from constrained_diffusion.datamodules.base import DiffusionDataModule, TensorRows
from constrained_diffusion.datamodules.batch import Batch
from constrained_diffusion.datamodules.generated import GeneratedDataModule
from constrained_diffusion.datamodules.image_folder import ImageFolderDataModule
from constrained_diffusion.datamodules.mnist import MNISTDataModule

__all__ = [
    "Batch",
    "DiffusionDataModule",
    "GeneratedDataModule",
    "ImageFolderDataModule",
    "MNISTDataModule",
    "TensorRows",
]
