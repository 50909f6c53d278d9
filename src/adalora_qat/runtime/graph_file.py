"""ONNX files without the ``onnx`` package, which the base install lacks: walked and cut in two.

A file of this package holds one graph, in which everything about the image ends in the output
``embeddings`` and everything about the prompt begins there. Cut at that tensor it is an encoder,
which an image goes through once, and a decoder, which answers each prompt.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import NamedTuple

EMBEDDINGS = "embeddings"

# Fields of ONNX's messages (onnx.proto3), by their numbers: of a model, of a graph, of a node.
GRAPH = 7
NODE, INITIALIZER, INPUT, OUTPUT = 1, 5, 11, 12
_NODE_INPUT, _NODE_OUTPUT = 1, 2
_METADATA, _KEY, _VALUE = 14, 1, 2
# Of the type of a value, down to a size: a number, or a name.
_TYPE, _TENSOR, _SHAPE, _DIMENSION, _SIZE = 2, 1, 2, 1, 1
# The name of a value, and of a tensor.
_VALUE_NAME, TENSOR_NAME = 1, 8
_NAMED = {INITIALIZER: TENSOR_NAME, INPUT: _VALUE_NAME, OUTPUT: _VALUE_NAME}
_VARINT, _LENGTH = 0, 2
_FIXED = {1: 8, 5: 4}


class GraphNames(NamedTuple):
    """What a graph takes and gives."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Described(NamedTuple):
    """What a model says about itself.

    Attributes
    ----------
    properties : its metadata, key → value.
    shapes : of its inputs and outputs by name; a dynamic size is a string.
    """

    properties: dict[str, str]
    shapes: dict[str, list[int | str]]


class _Field(NamedTuple):
    kind: int
    raw: bytes
    start: int
    end: int


class _Node(NamedTuple):
    raw: bytes
    inputs: frozenset[str]
    outputs: frozenset[str]


def names_of(model: bytes) -> GraphNames:
    """Return the names of a model's inputs and outputs.

    Raises
    ------
    IndexError, ValueError
        If the bytes are no model.
    """
    start, end = _graph(model)
    fields = list(message_fields(model, start, end))
    inputs, outputs = (
        tuple(_text(model, a, b, _VALUE_NAME) for kind, a, b in fields if kind == wanted)
        for wanted in (INPUT, OUTPUT)
    )
    return GraphNames(inputs, outputs)


def described(model: bytes) -> Described:
    """Return the metadata of a model, and the shapes of its inputs and outputs.

    Raises
    ------
    IndexError, ValueError
        If the bytes are no model, or its metadata no text.
    """
    properties: dict[str, str] = {}
    for number, start, end in message_fields(model, 0, len(model)):
        if number == _METADATA:
            properties[_text(model, start, end, _KEY)] = _text(model, start, end, _VALUE)
    shapes = {
        _text(model, a, b, _VALUE_NAME): _shape(model, a, b)
        for kind, a, b in message_fields(model, *_graph(model))
        if kind in (INPUT, OUTPUT)
    }
    return Described(properties, shapes)


def _shape(model: bytes, start: int, end: int) -> list[int | str]:
    """Return the sizes of a value: ValueInfoProto, TypeProto, Tensor, TensorShapeProto."""
    places = [(start, end)]
    for number in (_TYPE, _TENSOR, _SHAPE, _DIMENSION):
        places = [
            (a, b)
            for place in places
            for kind, a, b in message_fields(model, *place)
            if kind == number
        ]
    sizes: list[int | str] = []
    for a, b in places:
        kind, first, last = next(message_fields(model, a, b), (0, a, a))
        sizes.append(
            _varint(model, first)[0] if kind == _SIZE else model[first:last].decode("utf-8")
        )
    return sizes


def halves(model: bytes) -> tuple[bytes, bytes]:
    """Cut a model at ``embeddings``: an encoder and a decoder, each with all metadata.

    Parameters
    ----------
    model : whose graph gives ``embeddings`` and computes its other outputs from it.

    Raises
    ------
    IndexError, ValueError
        If the bytes are no model.
    """
    fields = [
        _Field(kind, model[before:b], a, b)
        for kind, before, a, b in _raw_fields(model, *_graph(model))
    ]
    nodes = [_node(model, field) for field in fields if field.kind == NODE]
    names = [
        _text(model, field.start, field.end, _NAMED[field.kind]) if field.kind in _NAMED else ""
        for field in fields
    ]
    outputs = {name for field, name in zip(fields, names, strict=True) if field.kind == OUTPUT}
    around = [(kind, model[before:b]) for kind, before, _, b in _raw_fields(model, 0, len(model))]
    parts = []
    for wanted, given in (({EMBEDDINGS}, None), (outputs - {EMBEDDINGS}, EMBEDDINGS)):
        kept, needed = [], set(wanted)
        for node in reversed(nodes):  # producers come before their users
            if needed & node.outputs and given not in node.outputs:
                kept.append(node.raw)
                needed |= node.inputs
        body = kept[::-1]
        for field, name in zip(fields, names, strict=True):
            if field.kind == OUTPUT and name == given:
                body.append(_field(INPUT, model[field.start : field.end]))
            elif field.kind == OUTPUT:
                body += [field.raw] if name in wanted else []
            elif field.kind in _NAMED:
                body += [field.raw] if name in needed else []
            elif field.kind != NODE:
                body.append(field.raw)
        graph = _field(GRAPH, b"".join(body))
        parts.append(b"".join(graph if kind == GRAPH else raw for kind, raw in around))
    return parts[0], parts[1]


def _graph(model: bytes) -> tuple[int, int]:
    for number, start, end in message_fields(model, 0, len(model)):
        if number == GRAPH:
            return start, end
    raise ValueError("there is no graph")


def _node(model: bytes, field: _Field) -> _Node:
    found: dict[int, set[str]] = {_NODE_INPUT: set(), _NODE_OUTPUT: set()}
    for number, first, last in message_fields(model, field.start, field.end):
        if number in found:
            found[number].add(model[first:last].decode("utf-8"))
    return _Node(field.raw, frozenset(found[_NODE_INPUT]) - {""}, frozenset(found[_NODE_OUTPUT]))


def _text(model: bytes, start: int, end: int, number: int) -> str:
    for kind, first, last in message_fields(model, start, end):
        if kind == number:
            return model[first:last].decode("utf-8")
    return ""


def _raw_fields(model: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (number, first byte of the field, first byte of its content, end)."""
    before = start
    for number, first, last in message_fields(model, start, end):
        yield number, before, first, last
        before = last


def _field(number: int, content: bytes) -> bytes:
    return _number(number << 3 | _LENGTH) + _number(len(content)) + content


def _number(value: int) -> bytes:
    """Return a number as protocol buffers write it, seven bits a byte, the lowest first."""
    written = bytearray()
    while value > 127:
        written.append(value & 127 | 128)
        value >>= 7
    return bytes([*written, value])


def message_fields(
    model: bytes | mmap.mmap, start: int, end: int
) -> Iterator[tuple[int, int, int]]:
    """Yield (number, first byte, end) of the fields of a protocol buffer message.

    Raises
    ------
    IndexError, ValueError
        If the bytes from ``start`` to ``end`` are none.
    """
    place = start
    while place < end:
        # Nearly all keys and most lengths are one byte.
        key, place = (model[place], place + 1) if model[place] < 128 else _varint(model, place)
        number, wire = key >> 3, key & 7
        if wire == _LENGTH:
            length, place = _varint(model, place)
        elif wire == _VARINT:
            length = _varint(model, place)[1] - place
        elif wire in _FIXED:
            length = _FIXED[wire]
        else:
            raise ValueError(f"wire type {wire} is none of a protocol buffer")
        if place + length > end:
            raise ValueError("a field is longer than its message")
        yield number, place, place + length
        place += length


def _varint(model: bytes | mmap.mmap, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if shift > 63:
            raise ValueError("a number has more than 64 bits")
        byte = model[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
