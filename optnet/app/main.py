"""The command optnet: which part of the application each subcommand calls. Computes nothing."""

from __future__ import annotations

import sys
from collections.abc import Sequence

RUNS = {
    "train": "train a network: the same as train.py; optnet train --help lists all options",
    "evaluate": "score checkpoints or models: the same as evaluate.py",
}
"""The subcommands that Hydra reads, each with a sentence."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    command, *rest = [*(sys.argv[1:] if arguments is None else arguments), ""]
    if command in RUNS:
        sys.argv = [f"optnet {command}", *rest[:-1]]
        if command == "train":
            from optnet.app import train

            train.main()
        else:
            from optnet.app import evaluate

            evaluate.main()
        return 0
    from optnet.app import exits, library

    with exits.command():
        return library.main(arguments, RUNS)
