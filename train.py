"""Trains a network: python train.py [group=option] [key=value]; see conf/train.yaml.

On several GPUs: torchrun --nproc-per-node 8 train.py ...
"""

from pathlib import Path

from optnet.training.command import run
from optnet.training.config import Train
from optnet.training.distributed import processes
from optnet.training.launch import prepare, train

if __name__ == "__main__":
    with processes():
        run("train", Train, prepare, train, Path(__file__).resolve().parent / "conf")
