"""Prepares docstrings for the site: mathematics survives Markdown, and options show their help texts."""

import ast
import re
from typing import Any

import griffe

CODE = re.compile(r"(``.+?``|`[^`\n]+`)", re.DOTALL)
DECLARATIONS = ("option", "choice", "number")


def escaped(text: str) -> str:
    """Escapes ``*``, ``<`` and leading ``_`` outside code: ``x*`` is no emphasis, and ``<x, y>`` is no HTML."""
    parts = CODE.split(text)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"(?<!\w)_(?=\w)", r"\\_", parts[i]).replace("*", r"\*").replace("<", "&lt;")
    return "".join(parts)


class Docstrings(griffe.Extension):
    """Escapes every docstring; shows the default and the help text of a field declared with ``optnet.options``."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        call = attr.value
        if not (isinstance(call, griffe.ExprCall) and str(call.function) in DECLARATIONS and call.arguments):
            return
        named = {part.name: part.value for part in call.arguments if isinstance(part, griffe.ExprKeyword)}
        if not isinstance(call.arguments[0], griffe.ExprKeyword):
            attr.value = call.arguments[0]
        if attr.docstring is None and isinstance(named.get("help"), str):
            attr.docstring = griffe.Docstring(ast.literal_eval(named["help"]), parent=attr)

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = escaped(obj.docstring.value)
