"""Lets the mathematics of docstrings through Markdown: ``x*`` is no emphasis and ``<x, y>`` no HTML."""

import re
from typing import Any

import griffe

CODE = re.compile(r"(``.+?``|`[^`\n]+`)", re.DOTALL)


def escaped(text: str) -> str:
    """The text with ``*``, ``<`` and leading ``_`` escaped, except in code spans."""
    parts = CODE.split(text)
    parts[::2] = [
        re.sub(r"(?<!\w)_(?=\w)", r"\\_", part).replace("*", r"\*").replace("<", "&lt;") for part in parts[::2]
    ]
    return "".join(parts)


class Escape(griffe.Extension):
    """Escapes every docstring."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = escaped(obj.docstring.value)
