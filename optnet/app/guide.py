"""What --help prints: examples, the groups with their options, and every key, read from its declaration."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optnet.options import describe

PROGRAMS = {
    "train": (
        "Trains a network and keeps the checkpoint that is best on the validation split. Without an argument it trains "
        "a small HB-Net on scikit-learn's digits, in about a minute on a CPU.",
        (
            "python train.py epochs=10 lr=0.05",
            "python train.py model=agdnet40_cifar data=cifar10 trainer.mixup=0.2 device=cuda",
            "python train.py -m algorithm=heavy_ball,my_file.py:my_method seed=0,1,2",
        ),
    ),
    "evaluate": (
        "Scores checkpoints, or models by name, on a split of a data set; adds the scores to evaluation.json.",
        (
            "python evaluate.py checkpoint=runs/hbnet_small-digits/2026-01-31_12-00-00/checkpoints/best.pt",
            "python evaluate.py model=[hbnet34,resnet34] pretrained=true data=imagenet",
            "python evaluate.py checkpoint=weights.safetensors model=resnet18 data=cifar10 split=validation",
        ),
    ),
}
"""What each program does, and three examples."""
SHOWN = 60
"""Names of a group that are listed; a group may have hundreds."""


def guide(program: str, config: Any, groups: Mapping[str, Sequence[str]]) -> str:
    """The text of ``--help`` for a configuration as it is composed: its values are the defaults that are shown."""
    width = min(120, shutil.get_terminal_size((120, 24)).columns)
    about, examples = PROGRAMS[program]
    lines = [*textwrap.wrap(about, width), "", "Examples", *(f"  {line}" for line in examples)]
    lines += [f"  (installed: optnet {program} instead of python {program}.py)", ""]
    lines.append("Groups: group=option takes a file of conf/, yours or optnet's; model also takes any of timm's names")
    for group, options in groups.items():
        names = [*options[:SHOWN], *(["..."] if len(options) > SHOWN else [])]
        lines += _wrapped(f"  {group:12}", " ".join(names), width)
    lines += ["", "Keys: key=value, with what they are now"]
    lines += [line for option in describe(config) for line in _key(option, width)]
    lines += [
        "",
        "Several values with -m make a sweep: a job for each combination. --hydra-help has Hydra's own options.",
    ]
    return "\n".join(lines)


def _key(option: Any, width: int) -> Iterator[str]:
    range_ = f" ({option.range})" if option.range else ""
    yield from _wrapped(f"  {option.name}={option.default}".ljust(36) + " ", option.help + range_, width)


def _wrapped(start: str, text: str, width: int) -> list[str]:
    """The text behind ``start``, its further lines below its first word (or below column 37, if that is farther)."""
    indent = " " * (14 if start.startswith("  ") and len(start) == 14 else 37)
    return textwrap.wrap(text, width, initial_indent=start, subsequent_indent=indent, break_on_hyphens=False)
