"""optnet list | show NAME | analyse NAME | signal MODEL: the library on a terminal. Computes nothing itself."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from optnet import analysis
from optnet.app.exits import one_line
from optnet.errors import ConfigError, RequestError
from optnet.language.declaration import Algorithm
from optnet.language.lookup import find_algorithm, list_algorithms
from optnet.language.tracing import trace
from optnet.networks.initialisation import SCHEMES
from optnet.networks.zoo import list_models


def main(arguments: Sequence[str] | None, others: Mapping[str, str]) -> int:
    """Runs one command; returns the exit status, 2 for a wrong request (one line on stderr).

    Args:
        others: the commands that are run elsewhere, to be listed, each with a sentence.
    """
    options = _parser(others).parse_args(arguments)
    console = Console(markup=False)  # equations have square brackets
    try:
        if options.command == "list":
            _list(console)
        elif options.command == "show":
            _show(console, find_algorithm(options.name), options.steps, options.reading)
        elif options.command == "signal":
            _signal(console, options)
        else:
            _analyse(console, find_algorithm(options.name), options.kappa, options.steps, options.worst_case)
    except RequestError as error:
        print(one_line(error), file=sys.stderr)
        return 2
    except BrokenPipeError:  # optnet list | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser(others: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="optnet", description="Turns an optimization algorithm into a neural network")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, sentence in others.items():
        commands.add_parser(name, help=sentence)
    commands.add_parser("list", help="all algorithms and models")
    show = commands.add_parser("show", help="an algorithm's equations, program and coefficients")
    analyse = commands.add_parser("analyse", help="an algorithm's rate, stability and theorem")
    signals = commands.add_parser("signal", help="how large activations and gradients start, at every depth")
    signals.add_argument("model", help="one of ours or any of timm's")
    signals.add_argument("options", nargs="*", help="the model's, key=value, like norm=none blocks=[18,18,18]")
    signals.add_argument("--init", default="default", help=", ".join(SCHEMES))
    signals.add_argument("--batch", type=int, default=16, help="images of noise")
    signals.add_argument("--size", type=int, help="of the images; by default the model's, at most 64")
    signals.add_argument("--seed", type=int, default=0)
    signals.add_argument("--png", help="by default signal-MODEL-SCHEME.png")
    for command in (show, analyse):
        command.add_argument("name", help="a name, my_file.py:my_method, or a dotted path")
        command.add_argument("--steps", type=int, default=4 if command is show else 10)
    show.add_argument("--reading", default="map", help="map or residual")
    analyse.add_argument("--kappa", type=float, default=100.0, help="the condition number L / mu")
    analyse.add_argument("--worst-case", action="store_true", help="over all functions, by PEPit (extra: proof)")
    return parser


def _list(console: Console) -> None:
    table = Table(title="algorithms")
    for column in ("name", "also", "equation", "promises"):
        table.add_column(column, overflow="fold")
    for name in list_algorithms():
        method = find_algorithm(name)
        promise = str(method.theorem) if method.theorem else ""
        table.add_row(name, ", ".join(method.aliases), _equation(method).splitlines()[0], promise)
    console.print(table)
    console.print("models: " + ", ".join(list_models()))


def _equation(method: Algorithm) -> str:
    """The docstring's first paragraph."""
    return (method.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", "\n")


def _show(console: Console, method: Algorithm, steps: int, reading: str) -> None:
    program = trace(method, steps=steps, reading=reading)
    console.print(Text(method.name, style="bold").append(f"  {_equation(method)}", style="not bold"))
    if method.reference:
        console.print(method.reference, style="dim", highlight=False)
    constants = ", ".join(f"{name}={value}" for name, value in method.constants.items())
    console.print(f"constants: {constants or 'none'}")
    console.print(str(program), highlight=False)
    table = Table(title="coefficients")
    for column in ("sum", "term", "weight"):
        table.add_column(column, justify="right")
    for (row, term), weight in program.weights().items():
        table.add_row(row, term, f"{weight:.6g}")
    console.print(table)


def _analyse(console: Console, method: Algorithm, kappa: float, steps: int, worst_case: bool) -> None:
    if not kappa > 1 or steps < 1:
        raise ConfigError(f"--kappa {kappa:g} must be greater than 1 and --steps {steps} at least 1")
    mu, L = 1 / kappa, 1.0
    constants = analysis.constants_for(method, mu, L)
    program = trace(method, steps=steps, **constants)
    table = Table(title=f"{method.name}, kappa = {kappa:g}, {steps} steps", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row(
        "constants", ", ".join(f"{name} = {value:.6g}" for name, value in constants.items()) or "its defaults"
    )
    factor = analysis.convergence_factor(method, mu, L)
    table.add_row("factor per step", "not stationary" if factor is None else f"{factor:.6f}")
    table.add_row("error on quadratics", f"{analysis.errors(method, mu, L, steps)[-1]:.6g} after {steps} steps")
    diagnosis = analysis.diagnose(program)
    for sentence in diagnosis.sentences:
        name, _, rest = sentence.partition(":")
        table.add_row(name.lower(), rest.strip())
    table.add_row("nearest method", f"{diagnosis.nearest[0] or 'none'}, at a distance of {diagnosis.nearest[1]:.3g}")
    if method.theorem is None:
        table.add_row("theorem", "none declared")
    else:
        margin = analysis.theorem_margin(method, mu, L, steps)
        table.add_row("theorem", f"{method.theorem} ({method.theorem.reference})")
        holds = "holds" if margin is not None and margin <= 1 + 1e-9 else "DOES NOT HOLD"
        table.add_row("on quadratics", f"{holds}: at most {margin:.4f} of the bound")
    if worst_case:
        table.add_row("worst case", _worst_case(method, mu, L, steps, constants))
    console.print(table)


def _worst_case(method: Algorithm, mu: float, L: float, steps: int, constants: dict[str, float]) -> str:
    """Of the theorem's metric, over its class of functions; of the function value if there is none."""
    theorem = method.theorem
    metric, initial = (theorem.metric, theorem.initial) if theorem else ("gap", "distance")
    mu = 0.0 if theorem and theorem.functions == "convex" else mu
    value = analysis.worst_case(method, mu, L, steps, metric=metric, initial=initial, constants=constants)
    functions = f"{mu:g}-strongly convex" if mu else "convex"
    return f"{analysis.METRICS[metric]} <= {value:.6g} {analysis.INITIAL[initial]} over all {L:g}-smooth {functions} f"


def _signal(console: Console, options: argparse.Namespace) -> None:
    from optnet.networks import signal  # matplotlib takes a while

    given = dict(option.partition("=")[::2] for option in options.options)
    if not all(given.values()) or options.batch < 2 or (options.size is not None and options.size < 1):
        raise ConfigError("options of the model are written key=value, --batch is at least 2, --size at least 1")
    file = Path(options.png or f"signal-{options.model}-{options.init}.png")
    if file.suffix != ".png" or not file.absolute().parent.is_dir():
        raise ConfigError(f"--png {file} must end in .png, in a folder that exists")
    shape, points = signal.of(
        options.model, options.init, {key: _value(text) for key, text in given.items()}, batch=options.batch,
        size=options.size, seed=options.seed,
    )  # fmt: skip
    title = " ".join([options.model, *options.options, f"--init {options.init}"])
    table = Table(title=f"{title}, images of {shape}")
    for column in ("depth", "input of", "activation (rms)", "gradient (relative)"):
        table.add_column(column, justify="right")
    for depth, point in enumerate(points, 1):
        table.add_row(str(depth), point.layer, f"{point.activation:.3g}", f"{point.gradient:.3g}")
    console.print(table)
    signal.figure({options.init: points}, title).savefig(file)
    console.print(f"drawn in {file}")


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
