"""Writes a Program as a torch.fx graph of real layers. Knows no layer family."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx, nn

from optnet.errors import OperatorError
from optnet.language.program import Apply, Combine, Program, unique
from optnet.networks.dynamic import Dynamic
from optnet.networks.tables import Table


@dataclass(frozen=True)
class Call:
    """The argument of an operator's factory: the one call, or all fresh calls of one sum, to build a layer for.

    Attributes:
        operator: the operator's name.
        index: the number of the (first) call, counted per operator.
        iteration: the algorithm's iteration in which it is; several calls may be in one.
        arguments: the values that the layer is applied to; more than one only if the factory declares ``sums``.
        starts: for each argument, whether it is a starting point of the program, unprojected.
        owned: whether the argument is a sum that nothing else reads, so the layer may overwrite it.
    """

    operator: str
    index: int
    arguments: tuple[str, ...]
    starts: tuple[bool, ...]
    owned: bool = False
    iteration: int = 0


Factory = Callable[[Call], nn.Module]

RESERVED = frozenset({*dir(fx.GraphModule(nn.Module(), fx.Graph())), "self"})
"""Names that no module can have: the attributes of a GraphModule, and the first argument of its code."""
ARGUMENTS = frozenset({*dir(builtins), "self", "torch", "fx", "device", "inf", "nan", "NoneType", "pytree"})
"""Names that no argument in the code of torch.fx can have."""


@dataclass(frozen=True)
class LayerFactory:
    """A factory that declares what its layers do: ``weighted`` and ``sums`` as in ``unroll``.

    ``fresh`` declares that a layer's output is a new tensor, never an input or a view of one, and that autograd does
    not need it (it does not after an affine map). The sum is then accumulated in this tensor, in place.
    """

    build: Factory
    weighted: bool = False
    sums: bool = False
    fresh: bool = False

    def __call__(self, call: Call) -> nn.Module:
        return self.build(call)


def along_channels(weight: Tensor, x: Tensor) -> Tensor:
    """Reshapes weights (channels,) so that they multiply x of shape (batch, channels, ...).

    Weights for x of shape (batch, ..., channels) need no such thing.
    """
    return weight.reshape([-1] + [1] * (x.ndim - 2))


class Emitter:
    """Writes one fx graph: a node per call, a chain of multiply-adds per sum."""

    def __init__(
        self,
        program: Program,
        operators: Mapping[str, nn.Module | Factory],
        shortcuts: Mapping[str, nn.Module | None],
        channels: int | None,
        packed: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        table: Table | None = None,
        dynamic: Mapping[str, tuple[str, Dynamic]] | None = None,
        channel_dim: int = 1,
    ) -> None:
        self.program = program
        self.channel_dim = channel_dim
        self.table = table
        self.dynamic = dynamic or {}
        self.operators = operators
        self.shortcuts = {start: module for start, module in shortcuts.items() if module is not None}
        self.learnable = channels is not None
        self.channels = channels or 0  # 0: one coefficient per term, not per channel
        self.packed = packed
        self.device, self.dtype = device, dtype
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.raw: dict[str, fx.Node] = {}  # the starting points without their shortcuts
        self.nodes: dict[str, fx.Node] = {}  # every value as sums and results read it
        self.names = set(RESERVED)
        self.coefficients = unique("coefficients", self.names)
        self.shared = {  # the module of an operator that all its calls share
            name: unique(name, self.names) for name, given in operators.items() if isinstance(given, nn.Module)
        }
        self.layers: dict[str, str] = {}  # value of a call -> name of the module that serves it
        self.projections: dict[str, str] = {}  # starting point -> name of its shortcut
        self.rows: dict[str, str] = {}  # sum -> name of its parameter or module; "" if it has none
        self.vectors: dict[str, fx.Node] = {}  # sum -> its weights, of the table
        self.fresh: set[fx.Node] = set()  # tensors that only the current sum uses, so it may overwrite them
        self.sums: set[str] = set()  # the sums that are new tensors, not another value's
        self.readers = readers = program.readers()
        self.folded = {  # calls that only one sum reads, and whose layer takes that sum's weight
            call.value: call
            for call in program.applies
            if self._declares(call.operator, "sums" if self.dynamic else "weighted", "sums")
            and len(readers[call.value]) == 1
            and isinstance(readers[call.value][0], Combine)
            and call.value not in program.results
        }

    def _declares(self, operator: str, *flags: str) -> bool:
        return any(getattr(self.operators[operator], flag, False) for flag in flags)

    def run(self) -> fx.GraphModule:
        self._place_starts()
        if self.table is not None and self.table.rows:
            self.root.add_module(self.coefficients, self.table)
            vectors = self.graph.call_module(self.coefficients)
            self.vectors = {
                row: self.graph.call_function(getitem, (vectors, i)) for i, row in enumerate(self.table.rows)
            }
        for one in self.program.instructions:
            if isinstance(one, Combine):
                self.fresh.clear()
                self.nodes[one.value] = self._combine(one)
                if self.nodes[one.value] in self.fresh:
                    self.sums.add(one.value)
            elif one.value not in self.folded:
                self.nodes[one.value] = self._call([one], None)
        self._cast_coefficients()
        for value, node in self.nodes.items():
            node.meta["values"] = (*node.meta.get("values", ()), value)
        results = [self.nodes[value] for value in self.program.results]
        self.graph.output(results if self.packed else tuple(results) if self.program.several else results[0])
        name = self.program.name.title().replace("_", "")
        body = fx.GraphModule(self.root, self.graph, class_name=name if name.isidentifier() else "Program")
        if body.graph.eliminate_dead_code():  # with fixed weights: values that are only used with weight 0
            body.recompile()
            body.delete_all_unused_submodules()
            used = {name for name, _ in body.named_modules()}
            self.layers = {value: name for value, name in self.layers.items() if name in used}
            self.projections = {start: name for start, name in self.projections.items() if name in used}
        return body

    def _place_starts(self) -> None:
        if self.packed:
            packed = self.graph.placeholder("starts", type_expr=list[Tensor])
            for i, start in enumerate(self.program.starts):
                self.raw[start] = self.graph.call_function(getitem, (packed, i))
        else:
            taken: set[str] = set()
            self.raw = {start: self.graph.placeholder(unique(start, taken, ARGUMENTS)) for start in self.program.starts}
        carried = {term for row in self.program.combines for term in row.terms} | set(self.program.results)
        for start, node in self.raw.items():
            if start in self.shortcuts and start in carried:
                name = self.projections[start] = unique(f"shortcut_{start}", self.names)
                self.root.add_module(name, self.shortcuts[start])
                node = self.graph.call_module(name, (node,))
            self.nodes[start] = node

    def _argument(self, value: str) -> fx.Node:
        """The node that an operator gets for a value: a starting point comes without its shortcut."""
        return self.raw.get(value) or self.nodes[value]

    def _call(self, calls: list[Apply], weights: list[fx.Node] | None) -> fx.Node:
        """One layer, for one call or for all calls of one sum."""
        operator = self.operators[calls[0].operator]
        starts = tuple(call.argument in self.raw for call in calls)
        arguments = tuple(call.argument for call in calls)
        value = arguments[0]
        owned = value in self.sums and len(self.readers[value]) == 1 and value not in self.program.results
        owned = owned and value not in {source for source, _ in self.dynamic.values()}
        call = Call(calls[0].operator, calls[0].index, arguments, starts, owned, calls[0].iteration)
        inputs = [self._argument(name) for name in arguments]
        if isinstance(operator, nn.Module):
            name, layer = self.shared[call.operator], operator
        else:
            name, layer = unique(self.program.labels[calls[0].value], self.names), operator(call)
        if not isinstance(layer, nn.Module):
            raise OperatorError(
                f"operator {call.operator}: its factory returned {type(layer).__name__}; it must return an nn.Module"
            )
        self.root.add_module(name, layer)
        self.layers.update((one.value, name) for one in calls)
        if self._declares(call.operator, "weighted", "sums"):
            own = self.dynamic and weights is not None
            node = self.graph.call_module(name, (inputs, None, weights) if own else (inputs, weights))
            if calls[0].value in self.folded and self._declares(call.operator, "fresh"):
                self.fresh.add(node)
            return node
        return self.graph.call_module(name, (inputs[0],))

    def _combine(self, row: Combine) -> fx.Node:
        weights = dict(zip(row.terms, row.weights, strict=True))
        self.rows[row.value] = ""
        vector = self._vector(row)
        if vector is None:
            return self._fixed(row.value, weights)
        if self.channels:
            vector = self.graph.call_method("reshape", (vector, len(row.terms), self.channels))
        unbound = vector if self.dynamic else self.graph.call_method("unbind", (vector,))
        nodes = {term: self.graph.call_function(getitem, (unbound, i)) for i, term in enumerate(row.terms)}
        total: fx.Node | None = None
        for calls in self._layers([term for term in row.terms if term in self.folded]):
            part = self._call(calls, [nodes[call.value] for call in calls])
            total = part if total is None else self._add(row.value, calls[0].value, total, part)
        for term in row.terms:
            if term not in self.folded:
                total = self._multiply_add((row.value, term), total, self.nodes[term], nodes[term])
        assert total is not None
        return total

    def _vector(self, row: Combine) -> fx.Node | None:
        """The learned weights of a sum, under ``dynamic`` a list of them; None if they are fixed."""
        if self.dynamic:
            source, module = self.dynamic[row.value]
            name = self._add_coefficients(row.value, module)
            return self.graph.call_module(name, (self.nodes[source],))
        if not self.learnable or self.table is not None:
            return self.vectors.get(row.value)
        name = self._add_parameter(row)
        return self.graph.get_attr(name)

    def _layers(self, terms: list[str]) -> list[list[Apply]]:
        """The folded calls of one sum, grouped by layer: one per call, or one per operator that declares ``sums``."""
        groups: dict[tuple[str, str], list[Apply]] = {}
        for term in terms:
            call = self.folded[term]
            together = self._declares(call.operator, "sums") and call.operator not in self.shared
            groups.setdefault((call.operator, "" if together else term), []).append(call)
        return list(groups.values())

    def _multiply_add(self, place: tuple[str, str], total: fx.Node | None, x: fx.Node, weight: fx.Node) -> fx.Node:
        weight = self.graph.call_method("type_as", (weight, x))  # under autocast the sum keeps the layers' precision
        if self.channels and self.channel_dim == 1:
            weight = self.graph.call_function(along_channels, (weight, x))
        if total is None:
            return self._new(self.graph.call_function(torch.mul, (x, weight)))
        return self._onto(place, "addcmul", (total, x, weight))

    def _new(self, node: fx.Node) -> fx.Node:
        self.fresh.add(node)
        return node

    def _onto(self, place: tuple[str, str], name: str, arguments: tuple[fx.Node, ...], **options: Any) -> fx.Node:
        """Adds to the first argument, in place if only this sum uses it."""
        if arguments[0] in self.fresh:
            node = self.graph.call_method(f"{name}_", arguments, options)
        else:
            node = self.graph.call_function(getattr(torch, name), arguments, options)
        node.meta["sum"] = place
        return self._new(node)

    def _add_parameter(self, row: Combine) -> str:
        """Makes the coefficients of a sum a parameter; returns its name."""
        values = torch.tensor(row.weights, dtype=torch.float64, device="cpu").repeat_interleave(self.channels or 1)
        return self._add_coefficients(row.value, nn.Parameter(values))

    def _add_coefficients(self, row: str, made: nn.Parameter | Dynamic) -> str:
        """Adds the coefficients of a sum; returns their name."""
        if not any(self.rows.values()):
            self.root.add_module(self.coefficients, nn.Module())
        setattr(self.root.get_submodule(self.coefficients), row, made)
        self.rows[row] = f"{self.coefficients}.{row}"
        return self.rows[row]

    def _cast_coefficients(self) -> None:
        """Gives the coefficients the dtype and the device of the layers, unless others were asked for."""
        if not any(self.rows.values()) and not self.vectors:
            return
        coefficients = self.root.get_submodule(self.coefficients)
        own = {*coefficients.parameters(), *coefficients.buffers()}
        layers = [
            tensor
            for tensor in (*self.root.parameters(), *self.root.buffers())
            if tensor not in own and tensor.is_floating_point()
        ]
        dtypes = {tensor.dtype for tensor in layers}
        dtype = self.dtype or (reduce(torch.promote_types, dtypes) if dtypes else torch.get_default_dtype())
        devices = {tensor.device for tensor in layers}
        device = self.device or (devices.pop() if len(devices) == 1 else torch.get_default_device())
        for module in coefficients.modules():  # ``to`` fails under FakeTensorMode
            for name, parameter in list(module.named_parameters(recurse=False)):
                module.register_parameter(name, nn.Parameter(parameter.detach().to(device, dtype)))
            for name, buffer in list(module.named_buffers(recurse=False)):
                module.register_buffer(name, buffer.to(device, dtype), persistent=False)

    def _add(self, row: str, term: str, total: fx.Node, part: fx.Node, alpha: float = 1.0) -> fx.Node:
        return self._onto((row, term), "add", (total, part), **({"alpha": alpha} if alpha != 1 else {}))

    def _fixed(self, row: str, weights: Mapping[str, float]) -> fx.Node:
        """A sum with fixed weights: zero terms cost nothing, a weight of 1 costs no multiplication."""
        parts: list[tuple[fx.Node, float, str]] = []
        for calls in self._layers([term for term in weights if term in self.folded]):
            name = calls[0].value
            if len(calls) > 1:
                given = self._constants(calls, [weights[call.value] for call in calls])
                parts.append((self._call(calls, given), 1.0, name))
            elif weights[name] or len(weights) == 1:
                parts.append((self._call(calls, None), weights[name], name))
        parts += [
            (self.nodes[t], w, t) for t, w in weights.items() if t not in self.folded and (w or len(weights) == 1)
        ]
        if not parts:  # a sum of zeros
            term = next(iter(weights))
            parts = [(self._call([self.folded[term]], None) if term in self.folded else self.nodes[term], 0.0, term)]
        parts.sort(key=lambda part: (part[0] not in self.fresh, part[1] != 1))
        total, weight, _ = parts[0]
        if weight != 1 and total in self.fresh:
            total = self._new(self.graph.call_method("mul_", (total, weight)))
        elif weight != 1:
            total = self._new(self.graph.call_function(torch.mul, (total, weight)))
        for node, weight, term in parts[1:]:
            total = self._add(row, term, total, node, weight)
        return total

    def _constants(self, calls: list[Apply], weights: list[float]) -> list[fx.Node] | None:
        """Fixed weights for a layer that takes a whole sum, in the precision of its input; None if they are all 1."""
        if all(weight == 1 for weight in weights):
            return None
        first = self._argument(calls[0].argument)
        unbound = self.graph.call_method("unbind", (self.graph.call_method("new_tensor", (first, weights)),))
        return [self.graph.call_function(getitem, (unbound, i)) for i in range(len(weights))]
