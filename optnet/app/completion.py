"""Tab completion. Hydra completes train and evaluate; this hands it their lines, and completes the rest of optnet."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence

from optnet.errors import ConfigError
from optnet.options import one_of

OPTIONS = ("-sc", "--shell-completion")
SHELLS = ("bash", "fish", "zsh")
WHAT = ("install", "uninstall", "query")


def check(overrides: Sequence[str]) -> None:
    """Raises:
    ConfigError: what follows -sc is nothing that Hydra knows.
    """
    what, _, shell = (overrides[0] if len(overrides) == 1 else "").partition("=")
    if what not in WHAT:
        raise ConfigError("-sc takes one of install=SHELL, uninstall=SHELL and query=SHELL, like -sc install=bash")
    one_of(what, shell, SHELLS)


def complete(arguments: Sequence[str], programs: Mapping[str, Callable[[], None]], names: Mapping[str, str]) -> int:
    """``optnet -sc ...``: prints what Hydra prints for a program, or the names that may come next. Returns the status.

    Args:
        programs: the subcommands that Hydra completes, and what runs each.
        names: the other subcommands -> ``algorithms``, ``models`` or nothing, whose names follow.
    """
    line = os.environ.get("COMP_LINE", "")
    words = line.split()
    done = len(words) - (not line.endswith(" "))
    asked = words[1] if len(words) > 1 else ""
    if "query" not in "".join(arguments[1:]) or (done > 1 and asked in programs):
        rest = re.sub(r"^\s*\S+\s+\S+\s?", "optnet ", line)
        os.environ["COMP_LINE"], os.environ["COMP_POINT"] = rest, str(len(rest))
        sys.argv = ["optnet", *arguments]
        programs[asked if asked in programs else next(iter(programs))]()
        return 0
    if done <= 1:
        found = [*programs, *names]
    else:
        from optnet import list_algorithms, list_models

        found = {"algorithms": list_algorithms, "models": list_models}.get(names.get(asked, ""), list)()
    begun = "" if line.endswith(" ") or not words else words[-1]
    print(" ".join(name for name in found if name.startswith(begun)))
    return 0
