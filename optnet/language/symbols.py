"""The symbols that an algorithm runs on when it is traced: they record every operation. No torch."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, NoReturn

from optnet.errors import TraceError
from optnet.language.expressions import Expression
from optnet.language.program import Apply, Combine, Instruction, unique

MOST = 500_000
"""Number of operations that are recorded at most."""


class Operator:
    """The annotation of an algorithm's operators. Tracing passes a symbol that maps an iterate to an iterate."""

    def __call__(self, x: Iterate) -> Iterate:
        raise NotImplementedError("Operator is only an annotation; pass a function or a layer")


class _Identity(Operator):
    def __call__(self, x: Any) -> Any:
        return x

    def __repr__(self) -> str:
        return "identity"


identity = _Identity()
"""The operator that does nothing; the usual default of a projection P."""


def _refuse(name: str, instead: str) -> Callable[..., NoReturn]:
    def refuse(self: Iterate, *others: Any) -> NoReturn:
        raise TraceError(f"{name} of an iterate cannot be traced: {instead}")

    return refuse


_NO_BRANCH = "a program has no branches; decide by the iteration number or by a constant"
_NO_COMPARE = "an iterate has no value while it is traced; decide by the iteration number or by a constant"
_NO_INPLACE = "on tensors it would change the caller's tensor; write x = x + y"
_NO_SHAPE = "only weighted sums can; put everything else into an operator and write T(x)"


class Iterate:
    """The annotation of an algorithm's starting points, and the symbol that tracing passes for one.

    Iterates can be added, subtracted, multiplied or divided by plain numbers, and passed to operators. Anything else
    raises ``TraceError``, which says what to write instead.
    """

    __slots__ = ("_name", "_recorder")

    def __init__(self, recorder: Recorder, name: str) -> None:
        self._recorder = recorder
        self._name = name

    def __add__(self, other: Iterate | float) -> Iterate:
        return self._plus(other, 1.0, 1.0)

    __radd__ = __add__

    def __sub__(self, other: Iterate | float) -> Iterate:
        return self._plus(other, 1.0, -1.0)

    def __rsub__(self, other: Iterate | float) -> Iterate:
        return self._plus(other, -1.0, 1.0)

    def __mul__(self, other: float) -> Iterate:
        return self._recorder.combine({self._name: _number(other, "multiply an iterate by")})

    __rmul__ = __mul__

    def __truediv__(self, other: float) -> Iterate:
        divisor = _number(other, "divide an iterate by")
        if not divisor:
            raise TraceError("an iterate is divided by 0; change the divisor")
        return self._recorder.combine({self._name: _number(1.0 / divisor, "multiply an iterate by")})

    def __neg__(self) -> Iterate:
        return self._recorder.combine({self._name: -1.0})

    def __pos__(self) -> Iterate:
        return self

    def _plus(self, other: Any, mine: float, theirs: float) -> Iterate:
        if not isinstance(other, Iterate):
            if _number(other, "add an iterate and") != 0:
                raise TraceError(f"an iterate and the number {other} cannot be added: put constants into an operator")
            return self if mine == 1 else -self
        if other._recorder is not self._recorder:
            raise TraceError("an iterate of another trace was used: keep iterates inside the algorithm's function")
        if mine == -theirs:
            for whole, point, sign in ((self, other, mine), (other, self, theirs)):
                if branch := self._recorder.branches.get((whole._name, point._name)):
                    return Iterate(self._recorder, branch) if sign == 1 else -Iterate(self._recorder, branch)
        terms = {self._name: mine}
        terms[other._name] = terms.get(other._name, 0.0) + theirs
        return self._recorder.combine(terms)

    __hash__ = object.__hash__
    __bool__ = _refuse("the truth value", _NO_BRANCH)
    __eq__ = _refuse("a comparison", _NO_COMPARE)
    __ne__ = _refuse("a comparison", _NO_COMPARE)
    __lt__ = _refuse("a comparison", _NO_COMPARE)
    __le__ = _refuse("a comparison", _NO_COMPARE)
    __gt__ = _refuse("a comparison", _NO_COMPARE)
    __ge__ = _refuse("a comparison", _NO_COMPARE)
    __iadd__ = _refuse("in-place arithmetic (+=)", _NO_INPLACE)
    __isub__ = _refuse("in-place arithmetic (-=)", _NO_INPLACE)
    __imul__ = _refuse("in-place arithmetic (*=)", _NO_INPLACE)
    __itruediv__ = _refuse("in-place arithmetic (/=)", _NO_INPLACE)
    __rtruediv__ = _refuse("division by an iterate", _NO_SHAPE)
    __pow__ = _refuse("a power", _NO_SHAPE)
    __rpow__ = _refuse("a power", _NO_SHAPE)
    __matmul__ = _refuse("a matrix product", _NO_SHAPE)
    __rmatmul__ = _refuse("a matrix product", _NO_SHAPE)
    __mod__ = _refuse("a remainder", _NO_SHAPE)
    __floordiv__ = _refuse("a division", _NO_SHAPE)
    __abs__ = _refuse("the absolute value", _NO_SHAPE)
    __float__ = _refuse("the value", _NO_COMPARE)
    __int__ = _refuse("the value", _NO_COMPARE)
    __index__ = _refuse("the value", _NO_COMPARE)
    __len__ = _refuse("the length", _NO_SHAPE)
    __iter__ = _refuse("a loop over the entries", _NO_SHAPE)
    __getitem__ = _refuse("an entry", _NO_SHAPE)
    __setitem__ = _refuse("an entry", _NO_SHAPE)
    __array__ = _refuse("a numpy array", _NO_SHAPE)

    def __array_ufunc__(self, function: Any, how: str, *args: Any, **kwargs: Any) -> Iterate:
        """numpy's number on the left of an iterate: ``np.float64(0.5) * x``."""
        number: Any = args[0]
        if how == "__call__" and len(args) == 2 and not kwargs and isinstance(number, numbers.Real):
            done: dict[str, Callable[[Any], Iterate]] = {
                "multiply": self.__mul__, "add": self.__add__, "subtract": self.__rsub__, "divide": self.__rtruediv__,
                "true_divide": self.__rtruediv__,
            }  # fmt: skip
            if function.__name__ in done:
                return done[function.__name__](number)
        raise TraceError(f"numpy's {function.__name__} of an iterate cannot be traced: {_NO_SHAPE}")

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        raise TraceError(
            f"torch.{getattr(function, '__name__', 'function')} of an iterate cannot be traced: {_NO_SHAPE}"
        )

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise TraceError(f".{name} of an iterate cannot be traced: {_NO_SHAPE}")

    def __repr__(self) -> str:
        return f"<iterate {self._name}>"


class NotFinite(TraceError):
    """A number in the algorithm's text is not finite."""


def _number(value: Any, action: str) -> float:
    if isinstance(value, float) and type(value) in (float, Expression) and math.isfinite(value):
        return value
    if isinstance(value, (numbers.Real, Decimal)) and not isinstance(value, bool):
        try:
            plain = float(value)
        except OverflowError:
            plain = math.inf
        if not math.isfinite(plain):
            raise NotFinite(f"cannot {action} {plain}: constants are finite numbers")
        return plain
    if isinstance(value, Iterate):
        raise TraceError(f"cannot {action} another iterate: a program is linear in its iterates; use an operator, T(x)")
    raise TraceError(f"cannot {action} {type(value).__name__}: pass a plain Python number, float(...)")


class OperatorSymbol(Operator):
    def __init__(self, recorder: Recorder, name: str) -> None:
        self._recorder = recorder
        self._name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Iterate:
        if kwargs or len(args) != 1 or not isinstance(args[0], Iterate):
            given = ", ".join([type(arg).__name__ for arg in args] + list(kwargs))
            raise TraceError(f"{self._name} takes exactly one iterate, not ({given}); write the point 0 as 0 * x")
        return self._recorder.apply(self._name, args[0])


class Recorder:
    """Records what the algorithm does with the symbols: one instruction per operation, nothing folded."""

    def __init__(self, readings: Mapping[str, str], starts: tuple[str, ...], most_calls: int | None = None) -> None:
        self.instructions: list[Instruction] = []
        self.readings = readings
        self.calls: dict[str, int] = {}
        self.branches: dict[tuple[str, str], str] = {}  # (T(v), v) -> F(v), which is T(v) - v
        self.taken = set(starts)
        self.most_calls = most_calls  # of one operator

    def combine(self, terms: Mapping[str, float]) -> Iterate:
        value = self._name_value()
        self.instructions.append(Combine(value, tuple(terms), tuple(terms.values())))
        return Iterate(self, value)

    def _name_value(self) -> str:
        if len(self.instructions) >= MOST:
            raise TraceError(f"it has more than {MOST:,} operations; take fewer steps")
        return unique(f"_{len(self.instructions)}", self.taken)

    def apply(self, operator: str, argument: Iterate) -> Iterate:
        if argument._recorder is not self:
            raise TraceError("an iterate of another trace was used: keep iterates inside the algorithm's function")
        value = self._name_value()
        index = self.calls[operator] = self.calls.get(operator, -1) + 1
        if self.most_calls is not None and index >= self.most_calls:
            raise TraceError(f"it has more than {self.most_calls} calls of {operator}")
        self.instructions.append(Apply(value, operator, index, argument._name))
        if self.readings[operator] == "residual":
            whole = self.combine({argument._name: 1.0, value: 1.0})
            self.branches[whole._name, argument._name] = value
            return whole
        return Iterate(self, value)
