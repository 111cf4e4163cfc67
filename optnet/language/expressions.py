"""Numbers that know how they follow from an algorithm's constants, for constants that a network learns. No torch.

An algorithm runs on an ``Expression`` as on any float: it has the constant's value, and every sum, product, quotient
and power of it is written on a tape. So the weights of its program are functions of the constants.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn, Self

from optnet.errors import TraceError

OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv, "pow": operator.pow,
}  # fmt: skip
"""What a tape may do; it is done with numbers here, and with tensors elsewhere."""

Step = tuple[str, int | float, int | float]
"""An operation and its operands: the place of an earlier value (a whole number), or a number."""


class Tape:
    """The values that follow from some constants: the constants themselves, then one value for each step.

    Attributes:
        constants: their names and values.
        steps: see ``Step``. The same step is written once.

    Raises:
        TraceError: from ``evaluate`` and from arithmetic: a value is no real number.
    """

    def __init__(self, constants: Mapping[str, float], steps: Iterable[Sequence[Any]] = ()) -> None:
        self.constants = {name: float(value) for name, value in constants.items()}
        self.steps: list[Step] = []
        self._places: dict[tuple[Any, ...], int] = {}
        for operation, a, b in steps:
            self.place(operation, a, b)

    def place(self, operation: str, a: int | float, b: int | float) -> int:
        """The place of a step's value; the step is written if it is new."""
        step = (operation, a, b)
        known = len(self.constants) + len(self.steps)
        if operation not in OPERATIONS or any(type(one) is int and not 0 <= one < known for one in (a, b)):
            raise TraceError(f"{step} is no step of a tape")
        key = (operation, *((one, type(one)) for one in (a, b)))
        if key not in self._places:
            self.steps.append(step)
            self._places[key] = known
        return self._places[key]

    def inputs(self) -> dict[str, Expression]:
        """The constants as expressions."""
        return {name: Expression(value, self, i) for i, (name, value) in enumerate(self.constants.items())}

    def evaluate(self, constants: Mapping[str, float] | None = None) -> list[float]:
        """All values, at the tape's constants or at others."""
        values = [(constants or {}).get(name, value) for name, value in self.constants.items()]
        for operation, a, b in self.steps:
            values.append(_real(operation, *(values[one] if type(one) is int else one for one in (a, b))))
        return values

    def needed(self, places: Iterable[int]) -> set[int]:
        """The places that the values at ``places`` follow from, themselves too."""
        found: set[int] = set()
        waiting = list(places)
        while waiting:
            place = waiting.pop()
            if place not in found:
                found.add(place)
                if place >= len(self.constants):
                    waiting += [one for one in self.steps[place - len(self.constants)][1:] if type(one) is int]
        return found

    def copy(self, weights: Iterable[float], other: Tape, places: dict[int, int]) -> list[float]:
        """The weights on another tape, on which what they need is written.

        Args:
            places: of the constants on the other tape; those of what is written are added.
        """
        weights = list(weights)
        for place in sorted(self.needed(weight.place for weight in weights if isinstance(weight, Expression))):
            if place not in places:
                operation, a, b = self.steps[place - len(self.constants)]
                a, b = (places[one] if type(one) is int else one for one in (a, b))
                places[place] = other.place(operation, a, b)
        return [
            Expression(weight, other, places[weight.place]) if isinstance(weight, Expression) else weight
            for weight in weights
        ]

    def cut(self, weights: Iterable[float]) -> tuple[Tape, list[float]]:
        """A tape with nothing but the constants and steps that some weights need, and these weights on it."""
        weights = list(weights)
        needed = self.needed(weight.place for weight in weights if isinstance(weight, Expression))
        used = [i for i in range(len(self.constants)) if i in needed]
        names = list(self.constants)
        short = Tape({names[i]: self.constants[names[i]] for i in used})
        return short, self.copy(weights, short, {i: j for j, i in enumerate(used)})


def _real(operation: str, a: float, b: float) -> float:
    try:
        value = OPERATIONS[operation](a, b)
    except ArithmeticError as error:
        raise TraceError(f"{operation} of {a:g} and {b:g}: {error}") from None
    if not isinstance(value, float):
        raise TraceError(f"{operation} of {a:g} and {b:g} is no real number")
    return value


class Expression(float):
    """A float with its place on a tape.

    It equals no other number, because it stands for every value that the constant may come to have; the order of two
    of them cannot be asked, because the answer might change.
    """

    __slots__ = ("place", "tape")
    tape: Tape
    place: int

    def __new__(cls, value: float, tape: Tape, place: int) -> Self:
        made = super().__new__(cls, value)
        made.tape, made.place = tape, place
        return made

    def __reduce__(self) -> Any:
        return Expression, (float(self), self.tape, self.place)

    def _with(self, operation: str, a: Any, b: Any) -> Any:
        if not all(isinstance(one, (int, float)) for one in (a, b)):
            return NotImplemented  # an iterate
        if operation == "mul" and any(type(one) in (int, float) and one == 0 for one in (a, b)):
            return 0.0  # whatever the constant is: a velocity that starts as the number 0 is still no iterate
        value = _real(operation, float(a), float(b))
        operands = [one.place if isinstance(one, Expression) else float(one) for one in (a, b)]
        return Expression(value, self.tape, self.tape.place(operation, *operands))

    def __add__(self, other: Any) -> Any:
        return self._with("add", self, other)

    def __radd__(self, other: Any) -> Any:
        return self._with("add", other, self)

    def __sub__(self, other: Any) -> Any:
        return self._with("sub", self, other)

    def __rsub__(self, other: Any) -> Any:
        return self._with("sub", other, self)

    def __mul__(self, other: Any) -> Any:
        return self._with("mul", self, other)

    def __rmul__(self, other: Any) -> Any:
        return self._with("mul", other, self)

    def __truediv__(self, other: Any) -> Any:
        return self._with("div", self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return self._with("div", other, self)

    def __pow__(self, other: Any, modulus: None = None) -> Any:
        return self._with("pow", self, other)

    def __rpow__(self, other: Any, modulus: None = None) -> Any:
        return self._with("pow", other, self)

    def __neg__(self) -> Any:
        return self._with("mul", self, -1.0)

    def __pos__(self) -> Self:
        return self

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    __hash__ = float.__hash__

    def _ordered(self, other: object) -> NoReturn:
        names = [name for i, name in enumerate(self.tape.constants) if i in self.tape.needed([self.place])]
        raise TraceError(f"it asks whether {' or '.join(names)} is larger or smaller, so its weights may jump there")

    __lt__ = __le__ = __gt__ = __ge__ = _ordered

    def zero(self) -> Expression:
        """The same expression with the value 0, where rounding left a little."""
        return Expression(0.0, self.tape, self.place)
