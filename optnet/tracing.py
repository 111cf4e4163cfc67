"""From a plain function to a Program: what an algorithm is, and how it is traced. Knows no torch and no layers."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from optnet.errors import AlgorithmError, OperatorError
from optnet.guarantees import Theorem, Tuning
from optnet.program import Program
from optnet.symbols import Iterate, Operator, OperatorSymbol, Recorder

READINGS = ("map", "residual")


class Algorithm:
    """An optimization algorithm, written as a plain function of operators, starting points and constants.

    Called, it is that function: on tensors it is the optimizer. ``optnet.trace`` reads it as a program.

    Attributes:
        name, aliases: what it is found by.
        reference: where the algorithm is stated.
        operators: its operators' names; True for those that must be given (no default).
        starts: its starting points' names.
        constants: its keyword-only constants with their defaults.
        ancestor: the constants at which the network is its classical ancestor (heavy ball: ResNet), or None.
        network: defaults of a network built from it (plain JSON values: layer, reading, constants, last, unsuited).
        tuned: (mu, L) -> the recommended constants for T = id - grad f / L, or None: its defaults.
        theorem: what it promises at its tuned constants, or None.

    Raises:
        AlgorithmError: the signature has no operator, no starting point, no ``steps``, or a constant without a default.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        reference: str = "",
        aliases: Iterable[str] = (),
        ancestor: Mapping[str, Any] | None = None,
        network: Mapping[str, Any] | None = None,
        tuned: Tuning | None = None,
        theorem: Theorem | None = None,
    ) -> None:
        self.function = function
        self.name = getattr(function, "__name__", "algorithm")
        self.__name__ = self.name
        self.__doc__ = function.__doc__
        self.__module__ = function.__module__
        self.reference = reference
        self.aliases = tuple(aliases)
        self.ancestor = None if ancestor is None else dict(ancestor)
        self.network = dict(network or {})
        self.tuned = tuned
        self.theorem = theorem
        self.operators: dict[str, bool] = {}
        self.starts: tuple[str, ...] = ()
        self.constants: dict[str, Any] = {}
        self._types: dict[str, Any] = {}
        self._read_signature()
        for constant in self.ancestor or {}:
            if constant not in self.constants:
                raise AlgorithmError(f"{self.name}: the ancestor's constant '{constant}' is not a constant of it")

    def _read_signature(self) -> None:
        try:
            parameters = inspect.signature(self.function, eval_str=True).parameters.values()
        except (NameError, TypeError, ValueError) as error:
            raise AlgorithmError(f"{self.name}: its signature cannot be read ({error})") from None
        has_steps = False
        for parameter in parameters:
            required = parameter.default is parameter.empty
            if parameter.annotation is Operator:
                self.operators[parameter.name] = required
            elif parameter.annotation is Iterate:
                self.starts += (parameter.name,)
            elif parameter.name == "steps":
                has_steps = True
            elif parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise AlgorithmError(f"{self.name}: *args and **kwargs cannot be read; name every parameter")
            elif required:
                raise AlgorithmError(
                    f"{self.name}: '{parameter.name}' is neither Operator, Iterate, nor a constant with a default"
                )
            else:
                self.constants[parameter.name] = parameter.default
                self._types[parameter.name] = parameter.annotation
        if not (has_steps and self.starts and any(self.operators.values())):
            raise AlgorithmError(
                f"{self.name}: an algorithm reads like f(T: Operator, x: Iterate, steps: int, *, beta: float = 0.9)"
            )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<algorithm {self.name}>"

    def check_constants(self, constants: Mapping[str, Any]) -> None:
        """Raises ``AlgorithmError`` for a constant that does not exist, has the wrong type or is not finite."""
        for name, value in constants.items():
            if name not in self.constants:
                known = ", ".join(f"{key}={default}" for key, default in self.constants.items()) or "none"
                raise AlgorithmError(f"{self.name} has no constant '{name}'; it has: {known}")
            kind, default = self._types[name], self.constants[name]
            if value is not None and not isinstance(value, (bool, int, float, str)):
                raise AlgorithmError(f"{self.name}: {name}={value!r} must be a number, true or false, or a word")
            wants_bool = kind is bool or type(default) is bool
            is_number = type(value) in (int, float)
            if wants_bool != isinstance(value, bool) or (kind in (float, int) and not is_number):
                wanted = "true or false" if wants_bool else "a number"
                raise AlgorithmError(f"{self.name}: {name}={value!r} must be {wanted}, for instance {name}={default}")
            if kind is int and type(value) is not int:
                raise AlgorithmError(f"{self.name}: {name}={value!r} must be a whole number, for instance {default}")
            if isinstance(value, (int, float)) and not math.isfinite(value):
                raise AlgorithmError(f"{self.name}: {name}={value} must be finite, for instance {name}={default}")


_REGISTRY: dict[str, Algorithm] = {}


def algorithm(
    *,
    reference: str = "",
    aliases: Iterable[str] = (),
    ancestor: Mapping[str, Any] | None = None,
    network: Mapping[str, Any] | None = None,
    tuned: Tuning | None = None,
    theorem: Theorem | None = None,
) -> Callable[[Callable[..., Any]], Algorithm]:
    """Decorator: makes a plain function an ``Algorithm`` and registers it under its name (see ``Algorithm``)."""

    def decorate(function: Callable[..., Any]) -> Algorithm:
        made = Algorithm(
            function, reference=reference, aliases=aliases, ancestor=ancestor, network=network, tuned=tuned,
            theorem=theorem,
        )  # fmt: skip
        for name in (made.name, *made.aliases):
            other = _REGISTRY.get(name)
            if other is not None and (other.__module__, other.name) != (made.__module__, made.name):
                raise AlgorithmError(
                    f"an algorithm named '{name}' exists already, in {other.__module__}; choose another"
                )
            _REGISTRY[name] = made
        return made

    return decorate


def as_algorithm(function: Callable[..., Any] | Algorithm) -> Algorithm:
    """The function as an ``Algorithm``; a decorated one as it is."""
    if isinstance(function, Algorithm):
        return function
    if not callable(function):
        raise AlgorithmError(
            f"{function!r} is not an algorithm: pass a function f(T: Operator, x: Iterate, steps: int)"
        )
    return Algorithm(function)


def registered() -> dict[str, Algorithm]:
    """Every registered algorithm by name and alias."""
    return dict(_REGISTRY)


def trace(
    function: Callable[..., Any] | Algorithm,
    *,
    steps: int,
    operators: Iterable[str] | None = None,
    reading: str | Mapping[str, str] = "map",
    **constants: Any,
) -> Program:
    """Runs the algorithm on symbols and returns its program.

    Args:
        function: the algorithm, decorated or a plain function with the annotations ``Operator`` and ``Iterate``.
        steps: how many iterations, at least 1.
        operators: the operators to trace; those with a default are traced only if they are named here.
        reading: ``map`` (T is the layer) or ``residual`` (T(v) = v + F(v), F is the layer); a string is meant for the
            first operator, a mapping names several.
        constants: the algorithm's constants.

    Raises:
        AlgorithmError: the algorithm, a constant or the number of steps cannot be read.
        TraceError: an iterate was used for something that is not a weighted sum.
        OperatorError: an operator is missing, unknown or given twice.
    """
    method = as_algorithm(function)
    traced = record(method, steps=steps, operators=operators, reading=reading, **constants).fold().renamed()
    for name in traced.readings:
        if name not in traced.operators:
            raise AlgorithmError(
                f"{method.name}: what it returns never went through its operator {name}; call {name}(x)"
            )
    return traced


def record(
    function: Callable[..., Any] | Algorithm,
    *,
    steps: int,
    operators: Iterable[str] | None = None,
    reading: str | Mapping[str, str] = "map",
    **constants: Any,
) -> Program:
    """What ``trace`` starts from: the program as it was written, one step per operation, nothing folded or dropped."""
    method = as_algorithm(function)
    if type(steps) is not int or steps < 1:
        raise AlgorithmError(f"steps={steps!r} must be a whole number of at least 1")
    method.check_constants(constants)
    names = _operator_names(method, operators)
    readings = _readings(method, names, reading)
    recorder = Recorder(readings)
    starts = {name: Iterate(recorder, name) for name in method.starts}
    symbols = {name: OperatorSymbol(recorder, name) for name in names}
    try:
        returned = method.function(**symbols, **starts, steps=steps, **constants)
    except AlgorithmError as error:
        error.args = (f"{method.name}: {error}",)
        raise
    except Exception as error:
        raise AlgorithmError(f"{method.name} failed while it was traced: {type(error).__name__}: {error}") from error
    several = isinstance(returned, (tuple, list))
    results = tuple(returned) if several else (returned,)
    if not results or not all(isinstance(result, Iterate) and result._recorder is recorder for result in results):
        kinds = ", ".join(type(result).__name__ for result in results) or "nothing"
        raise AlgorithmError(
            f"{method.name} returns {kinds}: end it with 'return x', an iterate or a tuple of iterates"
        )
    return Program(
        method.name, method.starts, tuple(recorder.steps), tuple(result._name for result in results), several,
        readings, {"steps": steps, **constants},
    )  # fmt: skip


def _operator_names(method: Algorithm, operators: Iterable[str] | None) -> tuple[str, ...]:
    required = tuple(name for name, needed in method.operators.items() if needed)
    if operators is None:
        return required
    names = (operators,) if isinstance(operators, str) else tuple(operators)
    for name in names:
        if name not in method.operators:
            raise OperatorError(f"{method.name} has no operator '{name}'; it has: {', '.join(method.operators)}")
        if names.count(name) > 1:
            raise OperatorError(f"{method.name}: the operator '{name}' is given twice; name it once")
    for name in required:
        if name not in names:
            raise OperatorError(f"{method.name}: its operator '{name}' is missing; give {', '.join(required)}")
    return tuple(name for name in method.operators if name in names)


def _readings(method: Algorithm, names: tuple[str, ...], reading: str | Mapping[str, str]) -> dict[str, str]:
    given = {names[0]: reading} if isinstance(reading, str) else dict(reading)
    for name, how in given.items():
        if name not in names:
            raise OperatorError(
                f"{method.name}: a reading is given for '{name}', which is not one of {', '.join(names)}"
            )
        if how not in READINGS:
            raise OperatorError(f"{method.name}: reading '{how}' is unknown; it is 'map' or 'residual'")
    return {name: given.get(name, "map") for name in names}
