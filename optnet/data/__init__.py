"""Data sets and loaders: a thin layer over torchvision."""

from optnet.data.datasets import AUGMENTATIONS, DATA_SETS, SPLITS, DataSet, load
from optnet.data.loading import FileLoader, Loader, TensorLoader

__all__ = ["AUGMENTATIONS", "DATA_SETS", "SPLITS", "DataSet", "FileLoader", "Loader", "TensorLoader", "load"]
