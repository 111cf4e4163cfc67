"""Trains a network: python train.py [group=option] [key=value]; see conf/train.yaml.

On several GPUs: torchrun --nproc-per-node 8 train.py ...
"""

from pathlib import Path

from optnet.app.compose import run
from optnet.app.config import Train
from optnet.app.launch import prepare, train
from optnet.training.distributed import processes

if __name__ == "__main__":
    with processes():
        run("train", Train, prepare, train, Path(__file__).resolve().parent / "conf")
