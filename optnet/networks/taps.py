"""Other results of an unrolled algorithm: values from the middle of its graph. Makes no layer and no coefficient."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from optnet.errors import ProgramError
from optnet.language.program import Apply, Program
from optnet.networks.unrolled import Unrolled


def newest_before(program: Program, iteration: int) -> str:
    """The newest of the values that the calls of an iteration read and that the iterations before it computed."""
    order = {start: -1 for start in program.starts}
    order |= {one.value: place for place, one in enumerate(program.instructions)}
    places = [i for i, one in enumerate(program.instructions) if isinstance(one, Apply) and one.iteration >= iteration]
    read = [call.argument for call in program.applies if call.iteration == iteration]
    return max((value for value in read if order[value] < places[0]), key=order.__getitem__)


def with_results(unrolled: Unrolled, values: Sequence[str]) -> fx.GraphModule:
    """A graph with the layers and coefficients of ``unrolled`` that returns these values in a list; what they do not
    need, it does not compute.

    Raises:
        ProgramError: a value is not in the graph.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(unrolled.body.graph, copies)
    nodes = {value: copies[node] for node in unrolled.body.graph.nodes for value in node.meta.get("values", ())}
    missing = [value for value in values if value not in nodes]
    if missing:
        raise ProgramError(f"{unrolled.program.name} has no value {missing[0]} in its graph")
    graph.output([nodes[value] for value in values])
    made = fx.GraphModule(unrolled.body, graph)
    made.graph.eliminate_dead_code()
    made.recompile()
    return made


def prune(unrolled: Unrolled, value: str) -> None:
    """Makes one value the only result, and drops the layers and coefficients that it does not need."""
    body = unrolled.body
    body.graph = with_results(unrolled, [value]).graph
    body.delete_all_unused_submodules()
    unrolled.program, unrolled.textbook = unrolled.program.until(value), unrolled.textbook.until(value)
    kept = {one.value for one in unrolled.program.instructions}
    for row, name in unrolled.rows.items():
        holder, _, attribute = name.rpartition(".")
        if row not in kept and name and hasattr(body.get_submodule(holder), attribute):
            delattr(body.get_submodule(holder), attribute)
    unrolled.rows = {row: name for row, name in unrolled.rows.items() if row in kept}
    unrolled.layers = {call: name for call, name in unrolled.layers.items() if call in kept}
