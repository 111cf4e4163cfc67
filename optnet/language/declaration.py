"""The class ``Algorithm``, its decorator and the registry: a function and what is known of it. No tracing, no torch."""

from __future__ import annotations

import inspect
import math
import numbers
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from optnet.errors import AlgorithmError, did_you_mean
from optnet.language.symbols import Iterate, Operator
from optnet.language.theorems import Theorem, Tuning


@dataclass(frozen=True, kw_only=True)
class NetworkDefaults:
    """The defaults of a network that is built from an algorithm.

    Attributes:
        layer: the layer family; None chooses one that suits the operators.
        reading: ``map`` or ``residual``; None chooses the one that suits the layer family.
        constants: the algorithm's constants in a network.
        last: further constants of the last stage.
        unsuited: why the algorithm cannot be an image classifier; None if it can.
        velocity: whether the optional P acts on the velocity (a norm), and not on the iterates (an activation).
    """

    layer: str | None = None
    reading: str | None = None
    constants: Mapping[str, Any] = field(default_factory=dict)
    last: Mapping[str, Any] = field(default_factory=dict)
    unsuited: str | None = None
    velocity: bool = False


class Algorithm:
    """An optimization algorithm, written as a plain function of operators, starting points and constants.

    Call it on tensors and it is the optimizer. ``optnet.trace`` turns it into a program.

    Attributes:
        name, aliases: the names under which it is found.
        reference: where the algorithm is stated.
        operators: the name of each operator -> whether it must be given (it has no default).
        starts: the names of its starting points.
        constants: its keyword-only constants with their defaults.
        ancestor: the constants at which the network equals its classical ancestor (for heavy ball: ResNet), or None.
        network: the defaults of a network that is built from it.
        tuned: (mu, L) -> the recommended constants for T = id - grad f / L, or None: its defaults.
        theorem: what it guarantees at its tuned constants, or None.
        relaxation_of: the method that it is, with more terms of weight 0 for a network to learn, or None.

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
        network: NetworkDefaults | Mapping[str, Any] | None = None,
        tuned: Tuning | None = None,
        theorem: Theorem | None = None,
        relaxation_of: str | None = None,
    ) -> None:
        self.function = function
        self.name = getattr(function, "__name__", "algorithm")
        self.__name__ = self.name
        self.__doc__ = function.__doc__
        self.__module__ = function.__module__
        self.reference = reference
        self.aliases = tuple(aliases)
        self.ancestor = None if ancestor is None else dict(ancestor)
        self.network = self._network_defaults(network)
        self.tuned = tuned
        self.theorem = theorem
        self.relaxation_of = relaxation_of
        self.operators: dict[str, bool] = {}
        self.starts: tuple[str, ...] = ()
        self.constants: dict[str, Any] = {}
        self._types: dict[str, Any] = {}
        self._read_signature()
        for what, named in {
            "the ancestor": self.ancestor or {}, "network.constants": self.network.constants,
            "network.last": self.network.last,
        }.items():  # fmt: skip
            for constant in named:
                if constant not in self.constants:
                    known = ", ".join(self.constants) or "none"
                    raise AlgorithmError(
                        f"{self.name}: {what} names '{constant}', which is not a constant; it has: {known}"
                    )
        if self.network.velocity and self.operators.get("P") is not False:
            raise AlgorithmError(f"{self.name}: network.velocity is about an optional P; add P: Operator = identity")

    def _network_defaults(self, given: NetworkDefaults | Mapping[str, Any] | None) -> NetworkDefaults:
        if isinstance(given, NetworkDefaults):
            return given
        known = [field.name for field in fields(NetworkDefaults)]
        for key in given or {}:
            if key not in known:
                raise AlgorithmError(f"{self.name}: network= has no '{key}'; it has: {', '.join(known)}")
        return NetworkDefaults(**(given or {}))

    def _read_signature(self) -> None:
        try:
            parameters = inspect.signature(self.function, eval_str=True).parameters.values()
        except (NameError, TypeError, ValueError) as error:
            raise AlgorithmError(
                f"{self.name}: its signature cannot be read ({error}); annotate it with Operator and Iterate"
            ) from None
        has_steps = False
        for parameter in parameters:
            required = parameter.default is parameter.empty
            self._check_form(parameter)
            if parameter.annotation is Operator:
                self.operators[parameter.name] = required
            elif parameter.annotation is Iterate:
                self.starts += (parameter.name,)
            elif parameter.name == "steps":
                has_steps = True
            elif required:
                raise AlgorithmError(
                    f"{self.name}: '{parameter.name}' is not an Operator or Iterate and has no default; annotate it "
                    "or give it a default"
                )
            else:
                self.constants[parameter.name] = parameter.default
                self._types[parameter.name] = parameter.annotation
        if not (has_steps and self.starts and any(self.operators.values())):
            raise AlgorithmError(
                f"{self.name}: write an algorithm as f(T: Operator, x: Iterate, steps: int, *, beta: float = 0.9)"
            )

    def _check_form(self, parameter: inspect.Parameter) -> None:
        shown = str(parameter).partition(":")[0].partition("=")[0]
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise AlgorithmError(
                f"{self.name}: '{shown}' cannot be traced; name every operator, starting point and constant"
            )
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise AlgorithmError(
                f"{self.name}: '{shown}' is positional-only; remove the '/', because parameters are given by name"
            )
        for kind, instead in ((Operator, "P: Operator = identity"), (Iterate, "x: Iterate")):
            if parameter.annotation is not kind and _mentions(parameter.annotation, kind):
                name = kind.__name__
                raise AlgorithmError(
                    f"{self.name}: '{shown}' is annotated {inspect.formatannotation(parameter.annotation)}; write "
                    f"{name} alone, for one {'operator' if kind is Operator else 'starting point'}, as in {instead}"
                )

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<algorithm {self.name}>"

    def read_constants(self, constants: Mapping[str, Any]) -> dict[str, Any]:
        """The constants as plain Python values: numpy's numbers and fractions become numbers, a tuple a list.

        Raises:
            AlgorithmError: a constant does not exist, has the wrong type or is not finite.
        """
        read = {}
        for given, value in constants.items():
            name = python_name(given)
            if name not in self.constants:
                known = ", ".join(f"{key}={default}" for key, default in self.constants.items()) or "none"
                near = did_you_mean(name, [*self.constants])
                raise AlgorithmError(
                    f"{self.name} has no constant '{name}'{near or ';'} {'It' if near else 'it'} has: {known}"
                )
            read[name] = self._read(name, value)
        return read

    def _read(self, name: str, value: Any) -> Any:
        kind, default = self._types[name], self.constants[name]
        if isinstance(default, (list, tuple)):
            return self._read_list(name, value)
        value = _plain(value)
        if value is not None and not isinstance(value, (bool, int, float, str)):
            raise AlgorithmError(f"{self.name}: {name}={value!r} must be a number, true or false, or a word")
        wants_bool = kind is bool or type(default) is bool
        is_number = type(value) in (int, float)
        if wants_bool != isinstance(value, bool) or (kind in (float, int) and not is_number):
            wanted = "true or false" if wants_bool else "a number"
            raise AlgorithmError(f"{self.name}: {name}={value!r} must be {wanted}, for instance {name}={default}")
        if kind is int and type(value) is not int:
            raise AlgorithmError(f"{self.name}: {name}={value!r} must be a whole number, for instance {default}")
        self._check_finite(name, value)
        return value

    def _read_list(self, name: str, value: Any) -> list[Any]:
        default = self.constants[name]
        if hasattr(value, "tolist"):  # an array
            value = value.tolist()
        if not isinstance(value, (list, tuple)):
            raise AlgorithmError(f"{self.name}: {name}={value!r} must be a list, for instance {name}={list(default)}")
        entries = [_plain(entry) for entry in value]
        for entry in entries:
            if not isinstance(entry, (bool, int, float, str)):
                raise AlgorithmError(f"{self.name}: {name} has the entry {entry!r}, which is not a number or a word")
            self._check_finite(name, entry)
        return entries

    def _check_finite(self, name: str, value: Any) -> None:
        if isinstance(value, (int, float)) and not _is_finite(value):
            shown = value if isinstance(value, float) else "a number beyond 1e308"
            raise AlgorithmError(
                f"{self.name}: {name}={shown} must be finite, for instance {name}={self.constants[name]}"
            )


def python_name(name: str) -> str:
    """A name as Python reads it in a program's text, where some letters have several forms (NFKC)."""
    return unicodedata.normalize("NFKC", name)


def _mentions(annotation: Any, kind: type) -> bool:
    """Whether a composed annotation, like ``Optional[Operator]``, contains ``kind``."""
    return annotation is kind or any(_mentions(part, kind) for part in get_args(annotation))


def _plain(value: Any) -> Any:
    """A number of numpy, torch, ``fractions`` or ``decimal`` as Python's own; anything else unchanged."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, numbers.Number) and not isinstance(value, (bool, int, float, complex)):
        try:
            return float(value)  # type: ignore[arg-type]
        except OverflowError:
            return math.inf
    return value


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False


_REGISTRY: dict[str, Algorithm] = {}


def algorithm(
    *,
    reference: str = "",
    aliases: Iterable[str] = (),
    ancestor: Mapping[str, Any] | None = None,
    network: NetworkDefaults | Mapping[str, Any] | None = None,
    tuned: Tuning | None = None,
    theorem: Theorem | None = None,
    relaxation_of: str | None = None,
) -> Callable[[Callable[..., Any]], Algorithm]:
    """Decorator: makes a plain function an ``Algorithm`` and registers it under its name (see ``Algorithm``)."""

    def decorate(function: Callable[..., Any]) -> Algorithm:
        made = Algorithm(
            function, reference=reference, aliases=aliases, ancestor=ancestor, network=network, tuned=tuned,
            theorem=theorem, relaxation_of=relaxation_of,
        )  # fmt: skip
        for name in (made.name, *made.aliases):
            other = _REGISTRY.get(name)
            if other is not None and not _same_text(other, made):
                raise AlgorithmError(
                    f"an algorithm named '{name}' exists already, in {other.__module__}; choose another name"
                )
            _REGISTRY[name] = made
        return made

    return decorate


def _same_text(one: Algorithm, other: Algorithm) -> bool:
    """Whether both are the same function: the same name in the same file, however the file was imported."""

    def place(method: Algorithm) -> tuple[str, str]:
        code = getattr(method.function, "__code__", None)
        return (str(Path(code.co_filename).resolve()) if code else str(method.__module__), method.name)

    return place(one) == place(other)


def as_algorithm(function: Callable[..., Any] | Algorithm) -> Algorithm:
    """Makes an ``Algorithm`` of a plain function; returns an ``Algorithm`` unchanged."""
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
