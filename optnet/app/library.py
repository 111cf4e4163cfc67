"""optnet list | show | analyse | certify | signal: the library on a terminal. Computes nothing itself."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.text import Text

from optnet import analysis
from optnet.analysis.certificate import identity_note
from optnet.app import certification, pictures, terminal
from optnet.app.exits import one_line
from optnet.data import SPLITS
from optnet.errors import AlgorithmError, ConfigError, RequestError, printable
from optnet.language.declaration import Algorithm
from optnet.language.lookup import find_algorithm, list_algorithms
from optnet.language.tracing import trace
from optnet.networks.design import SPLIT, is_split
from optnet.networks.initialisation import SCHEMES
from optnet.networks.zoo import list_models

MOST_KAPPA = 1e12
"""The largest condition number: with larger ones 1 - mu / L loses its digits."""


EXAMPLES = {
    "list": ["list", "list | grep hbnet"],
    "show": ["show heavy_ball --steps 3", "show my_file.py:my_method --reading residual"],
    "analyse": ["analyse nesterov --kappa 1000", "analyse my_file.py:my_method --steps 20 --worst-case"],
    "certify": [
        "certify runs/hbnet_small-digits/2026-01-31_12-00-00",
        "certify best.pt --no-accuracy --json",
        "certify my_file.py:my_method --steps 5 -o certificate.png",
    ],
    "signal": ["signal hbnet20_cifar", "signal hbnet_small norm=none blocks=[18,18,18] --init lsuv --png signal.png"],
}


ALL = """examples:
  optnet train model=hbnet_small data=mnist epochs=4
  optnet evaluate model=[hbnet34,resnet34] pretrained=true data=imagenet
  optnet analyse nesterov --kappa 1000
completion of all commands with the tab key, in bash (also zsh, fish):
  eval "$(optnet -sc install=bash)" """


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, and takes a value like -inf for a value."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, one_line(ConfigError(f"{message}; see {self.prog} --help")) + "\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        given = list(sys.argv[1:] if args is None else args)
        numbers = {name for action in self._actions if action.type in (int, float) for name in action.option_strings}
        joined: list[str] = []
        for word in given:
            if joined and joined[-1] in numbers and _is_number(word):
                joined[-1] += f"={word}"
            else:
                joined.append(word)
        return super().parse_known_args(joined, namespace)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def main(arguments: Sequence[str] | None, others: Mapping[str, str]) -> int:
    """Runs one command; returns the exit status, 2 for a wrong request (one line on stderr).

    Args:
        others: the commands that are run elsewhere, to be listed, each with a sentence.
    """
    options = _parser(others).parse_args(arguments)
    console = terminal.console()
    try:
        if options.command == "list":
            _list(console)
        elif options.command == "show":
            _show(console, find_algorithm(options.name), options.steps, options.reading)
        elif options.command == "certify":
            certification.run(console, options)
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
    parser = _Parser(
        prog="optnet",
        description="Turns an optimization algorithm into a neural network",
        epilog=ALL,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, sentence in others.items():
        commands.add_parser(name, help=sentence)

    def added(name: str, sentence: str) -> argparse.ArgumentParser:
        examples = "\n".join(f"  optnet {line}" for line in EXAMPLES[name])
        made: argparse.ArgumentParser = commands.add_parser(
            name, help=sentence, description=f"{sentence[0].upper()}{sentence[1:]}.",
            epilog=f"examples:\n{examples}", formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        return made

    added("list", "all algorithms and models")
    show = added("show", "an algorithm's equations, program and coefficients")
    analyse = added("analyse", "an algorithm's rate, stability and theorem")
    certificate = added("certify", "what a network's coefficients are worth as optimization methods, stage by stage")
    certificate.add_argument("subject", help="a checkpoint, a run's folder, a model of ours, or an algorithm")
    certificate.add_argument("--steps", type=int, default=5, help="of an algorithm; stages have their own")
    certificate.add_argument("--kappa", type=float, default=10.0, help="L / mu of the strongly convex functions")
    certificate.add_argument("--split", default="test", help=f"of the data for the accuracies: {', '.join(SPLITS)}")
    certificate.add_argument("--no-accuracy", action="store_true", help="leave the accuracies out; needs no data")
    certificate.add_argument("--json", action="store_true", help="print JSON alone")
    certificate.add_argument("-o", "--output", help="the picture; by default certificate.png in the run's folder")
    signals = added("signal", "how large activations and gradients start, at every depth")
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
    analyse.add_argument("--kappa", type=float, default=100.0, help="the condition number L / mu, greater than 1")
    analyse.add_argument(
        "--worst-case", action="store_true", help="over all functions of the theorem's class, by PEPit (extra: proof)"
    )
    return parser


def _list(console: Console) -> None:
    rows = []
    for name in list_algorithms():
        method = find_algorithm(name)
        promise = str(method.theorem) if method.theorem else ""
        rows.append((name, ", ".join(method.aliases), _equation(method).splitlines()[0], promise))
    columns = ("name", "also", "equation", "promises")
    console.print(terminal.table("algorithms", columns, [[printable(cell) for cell in row] for row in rows], text=4))
    console.print("models: " + ", ".join(list_models()))


def _equation(method: Algorithm) -> str:
    """The docstring's first paragraph."""
    lines = inspect.cleandoc(method.__doc__ or "").split("\n\n")[0].splitlines()
    return "\n".join(map(printable, lines)) or "(it has no docstring)"


def _show(console: Console, method: Algorithm, steps: int, reading: str) -> None:
    program = trace(method, steps=steps, reading=dict.fromkeys(SPLIT, reading) if is_split(method) else reading)
    console.print(Text(printable(method.name), style="bold").append(f"  {_equation(method)}", style="not bold"))
    if method.reference:
        console.print(Text(printable(method.reference), style="dim"))
    constants = ", ".join(f"{name}={value}" for name, value in method.constants.items())
    console.print(printable(f"constants: {constants or 'none'}"))
    for line in str(program).splitlines():
        console.print(printable(line))
    rows = [(row, term, f"{weight:.6g}") for (row, term), weight in program.weights().items()]
    console.print(terminal.table("coefficients", ("sum", "term", "weight"), rows, text=2))


def _analyse(console: Console, method: Algorithm, kappa: float, steps: int, worst_case: bool) -> None:
    if not 1 < kappa <= MOST_KAPPA:
        raise ConfigError(f"--kappa {kappa:g} must be greater than 1 and at most {MOST_KAPPA:g}, like --kappa 100")
    if steps < 1:
        raise ConfigError(f"--steps {steps} must be at least 1")
    mu, L = 1 / kappa, 1.0
    constants = analysis.constants_for(method, mu, L)
    program = trace(method, steps=steps, constants=constants)
    tuned = ", ".join(f"{name} = {value:.6g}" for name, value in constants.items())
    rows = [("constants", tuned or "its defaults"), ("factor per step", _factor(method, mu, L))]
    rows.append(("error on quadratics", f"{analysis.worst_error(program, mu, L):.6g} after {steps} steps"))
    if is_split(method):
        rows.append(("whole steps", "an iteration is one: a half-step of A, attention, and one of M, the MLP"))
    if note := identity_note(program):
        rows.append(("note", note))
    diagnosis = analysis.diagnose(program)
    for sentence in diagnosis.sentences:
        name, _, rest = sentence.partition(":")
        rows.append((name.lower(), rest.strip()))
    rows.append(("nearest method", _nearest(method, diagnosis)))
    if method.theorem is None:
        rows.append(("theorem", "none declared"))
    else:
        after = _numbers_of_steps(steps)
        margin = analysis.theorem_margin(method, mu, L, steps, after)
        rows.append(("theorem", f"{method.theorem} ({method.theorem.reference})"))
        holds = "holds" if margin is not None and margin <= 1 + 1e-9 else "DOES NOT HOLD"
        some = "" if len(after) == steps else f" (after {len(after)} of the numbers of steps from 1 to {steps})"
        rows.append(("on quadratics", f"{holds}: at most {margin:.4f} of the bound{some}"))
    if worst_case:
        rows.append(("worst case", _worst_case(method, mu, L, steps, constants)))
    console.print(terminal.entries(f"{method.name}, kappa = {kappa:g}, {steps} steps", rows))


def _factor(method: Algorithm, mu: float, L: float) -> str:
    try:
        found = analysis.tuned_recurrence(method, mu, L)
    except AlgorithmError as error:
        return f"not found, because {analysis.LOOKED} steps are looked at: {error}"
    if found is None:
        return f"not stationary: no repetition in steps 1 to {analysis.LOOKED}"
    repeats = f"a period of {found.period} steps" if found.period > 1 else "the same step"
    first = f" from step {found.first + 1} on" if found.first > 1 else ""
    return f"{analysis.largest_radius(found, mu, L):.6f}: {repeats}{first}, seen in steps 1 to {found.looked}"


def _nearest(method: Algorithm, diagnosis: analysis.Diagnosis) -> str:
    """The nearest method of the library, and all that have the same recurrence."""
    name, distance = diagnosis.nearest
    others = [other for other in diagnosis.same if other != method.name]
    if method.name in diagnosis.same:
        return f"{method.name} itself" + (f"; the same recurrence: {', '.join(others)}" if others else "")
    if others:
        return f"the same recurrence: {', '.join(others)}"
    if diagnosis.bounded is None:
        return "left out for so many calls"
    return f"{name}, at a distance of {distance:.3g}" if name else "none has the same number of calls"


def _numbers_of_steps(steps: int) -> list[int]:
    """1 to 32, then every number an eighth larger than the last: their sum grows linearly."""
    numbers = list(range(1, min(steps, 32) + 1))
    while numbers[-1] < steps:
        numbers.append(min(numbers[-1] + numbers[-1] // 8, steps))
    return numbers


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
    if not all(given.values()):
        raise ConfigError("options of the model are written key=value, like norm=none")
    limits = {"batch": (2, 100_000), "size": (2, 100_000), "seed": (0, 2**63 - 1)}
    for name, (low, high) in limits.items():
        value = getattr(options, name)
        if value is not None and not low <= value <= high:
            raise ConfigError(f"--{name} {value} must be a whole number from {low} to {high}")
    file = Path(options.png or f"signal-{options.model}-{options.init}.png").expanduser()
    pictures.check("--png", file)
    shape, points = signal.of(
        options.model, options.init, {key: _value(text) for key, text in given.items()}, batch=options.batch,
        size=options.size, seed=options.seed,
    )  # fmt: skip
    title = printable(" ".join([options.model, *options.options, f"--init {options.init}"]))
    rows = [
        (str(depth), point.layer, f"{point.activation:.3g}", f"{point.gradient:.3g}")
        for depth, point in enumerate(points, 1)
    ]
    columns = ("depth", "input of", "activation (rms)", "gradient (relative)")
    console.print(terminal.table(f"{title}, images of {shape}", columns, rows, text=2))
    pictures.save("--png", file, signal.figure({options.init: points}, title))
    console.print(printable(f"drawn in {file}"))


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
