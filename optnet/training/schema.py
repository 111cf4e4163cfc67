"""What was stored is checked before it is used: types by annotation, ranges by declaration. Knows no file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from optnet.errors import CheckpointError, printable

NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", Tensor: "a tensor"}


def conform(value: Any, kind: Any, where: str) -> None:
    """Checks a stored value.

    Args:
        kind: its type: a number, text, tensor, ``dict[str, ...]``, ``list[...]``, ``tuple[...]``, or a dataclass. A
            dataclass stands for a table of its fields, whose ranges are those that they declare. ``Annotated[...,
            kind]`` is ``kind``.
        where: what to call the value in the message.

    Raises:
        CheckpointError: it is of another type, lacks a field, has one too many, or is out of range.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return
    if origin is Annotated:
        conform(value, parts[1], where)
    elif origin in (UnionType, Union):
        if value is not None or NoneType not in parts:
            conform(value, next(part for part in parts if part is not NoneType), where)
    elif is_dataclass(kind):
        _conform_table(value, kind, where)
    elif origin is dict:
        _need(isinstance(value, Mapping), where, "a table", value)
        for key, entry in value.items():
            _need(isinstance(key, parts[0]), f"a key of {where}", NAMES[parts[0]], key)
            conform(entry, parts[1], f"{where}.{key}")
    elif origin is list:
        _need(isinstance(value, list), where, "a list", value)
        for number, entry in enumerate(value):
            conform(entry, parts[0], f"{where}[{number}]")
    elif origin is tuple:
        many = parts[-1] is Ellipsis
        kinds = parts[:1] * len(value) if many and isinstance(value, tuple) else parts
        _need(isinstance(value, tuple) and len(value) == len(kinds), where, "a tuple", value)
        for number, (entry, one) in enumerate(zip(value, kinds, strict=True)):
            conform(entry, one, f"{where}[{number}]")
    elif kind is float:
        _need(isinstance(value, (int, float)) and not isinstance(value, bool), where, NAMES[float], value)
    elif kind is int:
        _need(isinstance(value, int) and not isinstance(value, bool), where, NAMES[int], value)
    else:
        _need(isinstance(value, kind), where, NAMES.get(kind, f"a {kind.__name__}"), value)


def _conform_table(value: Any, kind: Any, where: str) -> None:
    _need(isinstance(value, Mapping), where, "a table", value)
    hints, declared = get_type_hints(kind, include_extras=True), fields(kind)
    for entry in declared:
        inner = f"{where}.{entry.name}" if where else entry.name
        if entry.name not in value:
            raise CheckpointError(f"it has no {inner}")
        found, limits = value[entry.name], entry.metadata
        conform(found, hints[entry.name], inner)
        if hints[entry.name] in (int, float) and "low" in limits:
            lowest = limits["low"] if limits["above"] is None else math.nextafter(limits["above"], math.inf)
            _need(lowest <= found <= limits["high"], inner, f"in {lowest:g} .. {limits['high']:g}", found)
    if unknown := [str(key) for key in value if key not in {entry.name for entry in declared}]:
        raise CheckpointError(f"{printable(where or 'it')} has an unknown entry {printable(unknown[0][:80])}")


def _need(condition: bool, where: str, what: str, value: Any) -> None:
    if not condition:
        given = type(value).__name__ if isinstance(value, (Tensor, Mapping, list)) else repr(value)[:80]
        raise CheckpointError(f"its {printable(where[:200])} must be {what}, not {given}")


def alike(stored: Any, own: Any, where: str) -> None:
    """Checks that a stored state has the form of one that is in use: where both have an entry it is of the same type,
    and tensors are of the same shape and kind (real, complex, whole number, truth value).

    Raises:
        CheckpointError: it has another form.
    """
    if stored is None or own is None:
        return
    if isinstance(own, Tensor):
        _need(isinstance(stored, Tensor), where, "a tensor", stored)
        found, wanted = form(stored), form(own)
        if found != wanted:
            raise CheckpointError(f"its {printable(where[:200])} must be {wanted}, not {found}")
    elif isinstance(own, Mapping):
        _need(isinstance(stored, Mapping), where, "a table", stored)
        for key, entry in own.items():
            if key in stored:
                alike(stored[key], entry, f"{where}.{key}")
    elif isinstance(own, (list, tuple)):
        _need(isinstance(stored, (list, tuple)), where, "a list", stored)
        for number, (one, other) in enumerate(zip(stored, own, strict=False)):
            alike(one, other, f"{where}[{number}]")
    else:
        conform(stored, type(own), where)


def form(tensor: Tensor) -> str:
    """What has to be the same of two tensors that hold the same thing, in any precision."""
    kind = "complex" if tensor.is_complex() else "real" if tensor.is_floating_point() else "whole-number"
    shape = "x".join(map(str, tensor.shape)) or "one entry"
    return f"a {'truth-value' if tensor.dtype == torch.bool else kind} tensor of {shape}"
