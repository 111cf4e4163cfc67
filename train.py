"""Trains a network by backpropagation: python train.py [group=option] [key=value]; see conf/train.yaml."""

from pathlib import Path

from optnet.training.command import run
from optnet.training.config import Train
from optnet.training.run import prepare, train

if __name__ == "__main__":
    run("train", Train, prepare, train, Path(__file__).resolve().parent / "conf")
