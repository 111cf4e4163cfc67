"""The command optnet: which part of the application each subcommand calls. Computes nothing."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from optnet.app.completion import OPTIONS, complete

RUNS = {
    "train": "train a network: the same as train.py; optnet train --help lists all options",
    "evaluate": "score checkpoints or models: the same as evaluate.py",
}
"""The subcommands that Hydra reads, each with a sentence."""


NAMES = {"list": "", "show": "algorithms", "analyse": "algorithms", "certify": "models", "signal": "models"}
"""The other subcommands, and whose names follow them."""


def _train() -> None:
    from optnet.app import train

    train.main()


def _evaluate() -> None:
    from optnet.app import evaluate

    evaluate.main()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    command, *rest = [*(sys.argv[1:] if arguments is None else arguments), ""]
    programs = {"train": _train, "evaluate": _evaluate}
    if command in RUNS:
        completing = rest[:1] and rest[0] in OPTIONS  # Hydra asks the command that it finds here
        sys.argv = ["optnet" if completing else f"optnet {command}", *rest[:-1]]
        programs[command]()
        return 0
    from optnet.app import exits, library

    with exits.command():
        if command in OPTIONS:
            return complete([command, *rest[:-1]], programs, NAMES)
        return library.main(arguments, RUNS)
