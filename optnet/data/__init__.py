"""Data sets and loaders: a thin layer over torchvision. Trains nothing."""

from optnet.data.datasets import AUGMENTATIONS, DATA_SETS, SPLITS, DataOptions, DataSet, load, load_as
from optnet.data.loading import FileLoader, Loader, TensorLoader
from optnet.data.preprocessing import Preprocessing
from optnet.data.record import DataRecord

__all__ = [
    "AUGMENTATIONS", "DATA_SETS", "SPLITS", "DataOptions", "DataRecord", "DataSet", "FileLoader", "Loader",
    "Preprocessing",
    "TensorLoader", "load", "load_as",
]  # fmt: skip
