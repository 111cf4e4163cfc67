"""Turns a Program and real layers into an nn.Module. Knows no layer family and no network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn

from optnet.errors import AlgorithmError, OperatorError, ProgramError, ShapeError
from optnet.language.declaration import Algorithm, python_name
from optnet.language.folding import without
from optnet.language.lookup import find_algorithm
from optnet.language.program import Program
from optnet.language.tracing import all_constants, trace
from optnet.networks.activation_checkpointing import MEMORY, set_recomputing
from optnet.networks.dynamic import Dynamic, dynamic
from optnet.networks.emitting import Emitter, Factory
from optnet.networks.formulas import with_formulas
from optnet.networks.rules import CONSTANTS, DYNAMIC, NAMES, table
from optnet.networks.tables import Table
from optnet.options import one_of

COEFFICIENTS = ("learnable", "fixed", *NAMES)
SYNONYMS = {"free": "learnable"}
"""Other words in ``coefficients=``, and what they stand for."""
MOST = 20_000
"""The number of instructions of the largest program that becomes a module."""


class Unrolled(nn.Module):
    """An unrolled algorithm: one module that takes the starting points and returns what the algorithm returns.

    ``body``, a ``torch.fx.GraphModule``, does the work. The first eager call runs it node by node and checks that all
    terms of a sum have the same shape.

    Attributes:
        program: the program with the weights that the coefficients started from.
        textbook: the program with the algorithm's own weights, for comparison.
        layers: for the value of each call, the name in ``body`` of the module that serves it.
        shortcuts: for each starting point that has one, the name of its shortcut in ``body``.
        rows: for each sum the name of its coefficients, a parameter of ``body`` or (``dynamic``) a module; "" if they
            are fixed or in the table.
        table: the name in ``body`` of the table of the coefficients that are under a rule; "" if there is none.
        per_sample: whether the weights differ from sample to sample, by a part that ``learned`` leaves out.

    Raises:
        ShapeError: on the first call, if two terms of a sum have different shapes.
    """

    def __init__(
        self,
        program: Program,
        textbook: Program,
        body: fx.GraphModule,
        *,
        layers: Mapping[str, str],
        shortcuts: Mapping[str, str],
        rows: Mapping[str, str],
        table: str = "",
        per_sample: bool = False,
    ) -> None:
        super().__init__()
        self.program = program
        self.textbook = textbook
        self.layers, self.shortcuts, self.rows = dict(layers), dict(shortcuts), dict(rows)
        self.table = table
        self.body = body
        self.per_sample = per_sample
        self._checked = False

    def forward(self, *starts: Any) -> Any:
        return self._run(*starts)

    @torch.jit.ignore
    def _run(self, *starts: Any) -> Any:
        if not self._checked and not torch.compiler.is_compiling() and _is_real(starts):
            results = _CheckedRun(self.body, self.program.name).run(*starts)
            self._checked = True
            return results
        return self.body(*starts)

    def reads(self) -> set[int]:
        """The numbers of the starting points that the graph uses; fixed weights of 0 may leave one unused."""
        nodes = [node for node in self.body.graph.nodes if node.op == "placeholder"]
        if isinstance(self, _UnrolledFromList):
            return {user.args[1] for node in nodes for user in node.users}
        return {i for i, node in enumerate(nodes) if node.users}

    @torch.jit.ignore
    def served_by(self, operator: str) -> dict[str, nn.Module]:
        """The modules that serve an operator's calls, by their name in ``body``, in the order of the calls."""
        names = [self.layers[call.value] for call in self.program.calls(operator) if call.value in self.layers]
        return {name: self.body.get_submodule(name) for name in names}

    @torch.jit.ignore
    def learned(self) -> dict[str, Tensor]:
        """The weights that learned sums have now, by the name of the sum: (terms,) or (terms * channels,).

        Under ``dynamic`` they are those of features 0, the part that all samples share.
        """
        ruled = self._table()
        found = {} if ruled is None else ruled.weights()
        for row, name in self.rows.items():
            if name and self.per_sample:
                found[row] = cast(Dynamic, self.body.get_submodule(name)).shared()
            elif name:
                found[row] = self.body.get_parameter(name)
        return found

    @torch.jit.ignore
    def constants(self) -> dict[str, Tensor]:
        """The learned constants of the algorithm now, (1,) or (channels,); none unless ``coefficients=constants``."""
        ruled = self._table()
        return {} if ruled is None else ruled.constants()

    @torch.jit.ignore
    def _table(self) -> Table | None:
        found = self.body.get_submodule(self.table) if self.table else None
        assert found is None or isinstance(found, Table)
        return found

    @torch.jit.ignore
    def set_checkpointing(self, enable: bool = True) -> None:
        """Turns activation checkpointing of the layers on or off."""
        set_recomputing(self.body, enable)

    def extra_repr(self) -> str:
        return f"{self.program.name}, {len(self.learned())} rows of learnable coefficients"


class _UnrolledFromOne(Unrolled):
    """Has an explicit signature, like the next two, because TorchScript does not support ``*starts``."""

    def forward(self, x: Tensor) -> Any:
        if not torch.jit.is_scripting():
            return self._run(x)
        return self.body(x)


class _UnrolledFromTwo(Unrolled):
    def forward(self, x: Tensor, y: Tensor) -> Any:
        if not torch.jit.is_scripting():
            return self._run(x, y)
        return self.body(x, y)


class _UnrolledFromList(Unrolled):
    def forward(self, starts: list[Tensor]) -> list[Tensor]:
        if not torch.jit.is_scripting():
            return self._run(starts)
        return self.body(starts)


class Coefficient(NamedTuple):
    """One entry of the coefficient table: the weight of ``term`` in the sum ``step`` of the unrolled module ``stage``.

    For a per-channel coefficient, ``value`` is the mean over the channels; under ``dynamic``, it is the part that all
    samples share, see ``Unrolled.per_sample``. ``textbook`` is the algorithm's own weight,
    or None for a term that the algorithm itself does not have.
    """

    stage: str
    step: str
    term: str
    value: float
    textbook: float | None


def unrolled_in(model: nn.Module) -> dict[str, Unrolled]:
    """Every unrolled algorithm in a model, by its module's name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Unrolled)}


def coefficient_names(model: nn.Module) -> set[str]:
    """The names of the model's parameters that are learnable coefficients."""
    names: set[str] = set()
    for stage, module in unrolled_in(model).items():
        rows = set(filter(None, module.rows.values()))
        holders = {module.table} if module.table else rows if module.per_sample else set()
        inside = {f"{one}.{name}" for one in holders for name, _ in module.body.get_submodule(one).named_parameters()}
        names |= {f"{stage}.body.{name}" if stage else f"body.{name}" for name in inside or rows}
    return names


def coefficients(model: nn.Module) -> list[Coefficient]:
    """The coefficient table of every unrolled algorithm in ``model``, learnable or fixed."""
    table = []
    for stage, module in unrolled_in(model).items():
        textbook = module.textbook.weights()
        learned = module.learned()
        for row in module.program.combines:
            values = list(row.weights)
            if row.value in learned:
                values = learned[row.value].detach().reshape(len(row.terms), -1).double().mean(1).tolist()
            for term, value in zip(row.terms, values, strict=True):
                table.append(Coefficient(stage, row.value, term, value, textbook.get((row.value, term))))
    return table


def unroll(
    algorithm: str | Callable[..., Any] | Algorithm | Program,
    /,
    *,
    steps: int | None = None,
    operators: Mapping[str, nn.Module | Factory],
    coefficients: str = "learnable",
    reading: str | Mapping[str, str] | None = None,
    per_channel: bool = False,
    channels: int | None = None,
    channel_dim: int = 1,
    start_channels: int | None = None,
    shortcuts: Mapping[str, nn.Module | None] | None = None,
    textbook: Program | None = None,
    equal: Sequence[str] = (),
    formulas: Program | None = None,
    packed: bool = False,
    memory: str = "keep",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    constants: Mapping[str, Any] | None = None,
    **more: Any,
) -> Unrolled:
    """Unrolls an algorithm (or its program) onto real layers.

    All calls share a module that is given as an operator (tied weights, the literal algorithm). A factory
    ``(call) -> nn.Module`` is called once per call. Layers are called ``layer(x)``, with x of shape (batch, channels,
    ...) or, with ``channel_dim=-1``, (batch, ..., channels). If a factory or shared module has a true attribute
    ``weighted``, its layers are called ``layer(inputs, weights)`` with two lists, and they fold the weights into their
    last affine map (weights is None if all are 1). If a factory has a true attribute ``sums``, it makes one such layer
    for all fresh calls of a sum; under ``dynamic`` it is called ``layer(inputs, None, weights)`` with weights
    (batch, 1, ...).

    Args:
        algorithm: whatever ``optnet.trace`` takes, or a ``Program`` (then steps, reading and constants are its own).
        steps: the number of iterations.
        operators: a module or factory for each operator to trace.
        coefficients: ``learnable`` or ``free`` (1-d parameters named ``coefficients.<row>``), ``fixed`` numbers, or
            learned under a rule of ``optnet.networks.rules.NAMES``.
        reading: ``map`` (default) or ``residual``; see ``optnet.trace``.
        per_channel: one coefficient per channel instead of one per term; needs ``channels``.
        channels: the number of channels of the iterates; ``dynamic`` needs it too.
        channel_dim: the dimension of the channels: 1, or -1 for tokens (batch, tokens, channels).
        start_channels: that of starting points that only operators read, where it differs.
        shortcuts: for a starting point, the module that is applied to it wherever it is not an operator's argument;
            None says that it has another shape and enters sums only through operators.
        textbook: the algorithm's own program, if ``algorithm`` is one with other weights.
        equal: starting points that always have equal values; see ``rules.table``.
        formulas: the program with formulas for its weights, where constants are learned; see ``design.StageProgram``.
        packed: the module takes one list of tensors and returns one, for callers with a varying number of them.
        memory: ``keep`` the layers' activations for the backward pass, or ``checkpoint``: keep their inputs and
            recompute the rest.
        device, dtype: those of the coefficients; by default those of the layers, the wider dtype if there are several.
        constants: the algorithm's constants. Those whose names this function does not use itself may also be given as
            keywords.

    Raises:
        AlgorithmError, TraceError: see ``optnet.trace``.
        OperatorError: an operator is missing, unknown or not a layer; an unknown option.
        ProgramError: a starting point of another shape enters a sum with a non-zero weight.
    """
    one_of("coefficients", coefficients, (*COEFFICIENTS, *SYNONYMS), OperatorError)
    coefficients = SYNONYMS.get(coefficients, coefficients)
    one_of("memory", memory, MEMORY, OperatorError)
    operators = {python_name(name): operator for name, operator in operators.items()}
    if channel_dim not in (1, -1):
        raise OperatorError(f"channel_dim={channel_dim} must be 1, or -1 for tokens (batch, tokens, channels)")
    for wants, what in ((per_channel, "per_channel=True"), (coefficients == DYNAMIC, f"coefficients={DYNAMIC}")):
        if wants and (type(channels) is not int or channels < 1):
            raise OperatorError(f"{what} needs channels=C, the number of channels of the iterates")
    if per_channel and coefficients == DYNAMIC:
        raise OperatorError("per_channel=True does not go with coefficients=dynamic: a sample has one weight per term")
    if isinstance(algorithm, Program):
        if steps is not None or reading is not None or constants or more:
            raise AlgorithmError("a program already has its steps, reading and constants; give them to optnet.trace")
        program = algorithm
    else:
        if steps is None:
            raise AlgorithmError("steps is missing: unroll(algorithm, steps=8, operators=...)")
        method = find_algorithm(algorithm)
        options = {
            name: value
            for name, value, default in (
                ("coefficients", coefficients, "learnable"), ("reading", reading, None), ("channels", channels, None),
                ("channel_dim", channel_dim, 1), ("start_channels", start_channels, None),
                ("per_channel", per_channel, False),
                ("packed", packed, False), ("memory", memory, "keep"), ("device", device, None),
                ("textbook", textbook, None), ("dtype", dtype, None), ("equal", equal, ()),
                ("formulas", formulas, None),
            )
            if value is not default and value != default
        }  # fmt: skip
        given = all_constants(method, constants, more, options)
        program = trace(method, steps=steps, operators=operators, reading=reading or "map", constants=given)
        if coefficients in CONSTANTS:
            how = {"operators": operators, "reading": reading or "map"}
            formulas = with_formulas(method, program, given, how, per_iteration=CONSTANTS[coefficients])
    _check_operators(program, operators)
    if coefficients in CONSTANTS and formulas is None:
        raise OperatorError(f"coefficients={coefficients} needs the algorithm itself, or formulas= beside the program")
    if len(program.instructions) > MOST:
        raise ProgramError(
            f"{program.name}: {len(program.instructions):,} instructions are too many for a module, which has at most "
            f"{MOST:,}; take fewer steps"
        )
    textbook = textbook or program
    projections = {python_name(start): shortcut for start, shortcut in (shortcuts or {}).items()}
    for start, shortcut in projections.items():
        if start not in program.starts:
            raise OperatorError(f"{program.name} has no starting point '{start}'; it has: {', '.join(program.starts)}")
        if shortcut is None:
            program, textbook = without(program, start), without(textbook, start, at_any_weight=True)
            formulas = formulas and without(formulas, start, at_any_weight=True)
    width = (channels if per_channel else 0) if coefficients != "fixed" else None
    ruled = made = None
    if coefficients == DYNAMIC:
        made = dynamic(program, channels or 0, start_channels or channels or 0, channel_dim)
    elif coefficients in NAMES:
        ruled = table(coefficients, program, width or 0, equal, formulas)
    emitter = Emitter(program, operators, projections, width, packed, device, dtype, ruled, made, channel_dim)
    by_starts = {1: _UnrolledFromOne, 2: _UnrolledFromTwo}
    kind = _UnrolledFromList if packed else by_starts.get(len(program.starts), Unrolled)
    body = emitter.run()
    unrolled = kind(
        program, textbook, body, layers=emitter.layers, shortcuts=emitter.projections, rows=emitter.rows,
        table=emitter.coefficients if emitter.vectors else "", per_sample=bool(made),
    )  # fmt: skip
    if memory == "checkpoint":
        unrolled.set_checkpointing()
    return unrolled


def _check_operators(program: Program, operators: Mapping[str, Any]) -> None:
    for name in program.operators:
        if name not in operators:
            raise OperatorError(f"{program.name}: its operator '{name}' is missing; give operators={{'{name}': ...}}")
    for name, operator in operators.items():
        if name not in program.operators:
            raise OperatorError(f"{program.name} has no operator '{name}'; it has: {', '.join(program.operators)}")
        if isinstance(operator, type) or not callable(operator):
            raise OperatorError(
                f"operator {name}: give a module like nn.ReLU(), or a factory like lambda call: nn.ReLU()"
            )


def _is_real(starts: tuple[Any, ...]) -> bool:
    first = starts[0][0] if starts and isinstance(starts[0], list) else starts[0] if starts else None
    return isinstance(first, Tensor) and not torch.jit.is_tracing()


class _CheckedRun(fx.Interpreter):
    """Runs a graph node by node and compares the shapes of what is added."""

    def __init__(self, body: fx.GraphModule, name: str) -> None:
        super().__init__(body)
        self.extra_traceback = False
        self.algorithm = name

    def run_node(self, n: fx.Node) -> Any:
        if "sum" in n.meta:
            args, _ = self.fetch_args_kwargs_from_env(n)
            if args[0].shape != args[1].shape:
                row, term = n.meta["sum"]
                raise ShapeError(
                    f"{self.algorithm}: {row} adds {term} of shape {tuple(args[1].shape)} to {tuple(args[0].shape)}; "
                    f"let every layer keep the shape, or give the starting point a shortcut"
                )
        return super().run_node(n)
