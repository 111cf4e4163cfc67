"""Evaluates: python evaluate.py checkpoint=FILE | model=NAME [data=...] [key=value]; see conf/evaluate.yaml."""

from pathlib import Path

from optnet.training.assess import prepare, run
from optnet.training.command import run as command
from optnet.training.config import Evaluate
from optnet.training.distributed import processes

if __name__ == "__main__":
    with processes():
        command("evaluate", Evaluate, prepare, run, Path(__file__).resolve().parent / "conf")
