"""Evaluates: python evaluate.py checkpoint=FILE | model=NAME [data=...] [key=value]; see conf/evaluate.yaml."""

from pathlib import Path

from optnet.app.compose import run as command
from optnet.app.config import Evaluate
from optnet.app.evaluate import prepare, run
from optnet.training.distributed import processes

if __name__ == "__main__":
    with processes():
        command("evaluate", Evaluate, prepare, run, Path(__file__).resolve().parent / "conf")
