"""How ONNX Runtime is asked to compute, so that integer sums are exact on every processor.

x86 without VNNI (AVX2, AVX-512 before 2019) adds two products of an unsigned and a signed byte in
16 bits, which saturate: masks then stray further from the trained model's than roundings explain,
and nothing says so. Products of unsigned bytes are added in 32 bits there. So the runtime is asked
once how it adds, and where it saturates, the weights of a file are read as unsigned ones: the same
integers and the same zero point, both 128 higher. With VNNI signed weights are exact, and faster.

The runtime has an option for this (``session.x64quantprecision``), which refuses graphs that use a
weight twice, misses those inside loops, and takes the VNNI kernels away where there are some.

The base install has no ``onnx``, so a file is changed in place: types and bytes keep their length.
"""

from __future__ import annotations

import functools
import math
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort

# It quantizes float weights between quantized values, which the policy left in float.
_NOT_ASKED_FOR = ["WeightBiasQuantization"]
# ONNX Runtime's own warnings are for developers; errors arrive as exceptions.
_ERRORS_ONLY = 3

# MatMulInteger of a uint8 input (2, 4) with a (4, 4) of int8, all 127, as onnx.helper writes it.
PROBE = bytes.fromhex(
    "080912003a640a180a01610a0162120179220d4d61744d756c496e74656765721201702a1b0804080410034201624a"
    "107f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f5a130a0161120e0a0c080212080a0208020a02080462130a0179120e0a0c"
    "080612080a0208020a02080442040a00100a"
)

# Fields of ONNX's messages (onnx.proto3), by their numbers.
_GRAPH, _NODE, _INITIALIZER, _ATTRIBUTE, _SUBGRAPH, _SUBGRAPHS = 7, 1, 5, 5, 6, 11
_DATA_TYPE, _NAME, _RAW_DATA = 2, 8, 9
_INT8, _UINT8 = 3, 2
_VARINT, _LENGTH = 0, 2
_FIXED = {1: 8, 5: 4}
# What ``export.layers`` calls an integer weight that kernels multiply, and its zero point.
_INTEGERS, _ZERO_POINT = b"_int8", b"_zero_point"


def session_options(threads: int | None = None) -> ort.SessionOptions:
    """Return options for a session on the CPU, with one thread a core if none are named.

    Never more threads than ``available_cpus``: those beyond them wait for one another, so that
    256 on two processors give no result for minutes.
    """
    options, available = ort.SessionOptions(), available_cpus()
    options.log_severity_level = _ERRORS_ONLY
    if threads is not None:
        options.intra_op_num_threads = min(threads, available)
    elif available < (os.cpu_count() or available):
        # The runtime itself counts the cores of the machine, not those it may use.
        options.intra_op_num_threads = available
    return options


def available_cpus(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Return how many processors this process may use, at least 1.

    That is the least of the processors it is bound to and its share of time, rounded up.

    Parameters
    ----------
    quota : the file in which cgroup v2 gives microseconds, or ``max``, in each period.
    """
    # Python 3.13 has the first, Linux the second.
    counted = getattr(os, "process_cpu_count", os.cpu_count)() or 1
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else counted
    try:
        time, period = quota.read_text("ascii").split()[:2]
        share = math.ceil(int(time) / int(period))
    except (OSError, ValueError, ZeroDivisionError):
        share = counted  # there is no quota, or "max"
    return max(1, min(counted, bound, share))


def inference_session(model: Path | bytes, options: ort.SessionOptions) -> ort.InferenceSession:
    """Open a model on the CPU: a file or its bytes."""
    return ort.InferenceSession(
        runnable(model),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=_NOT_ASKED_FOR,
        # Else it prints, to standard output, that it will try the same again.
        enable_fallback=0,
    )


def runnable(model: Path | bytes) -> str | bytes:
    """Return a model as ``InferenceSession`` should get it on this processor."""
    source = model if isinstance(model, bytes) else str(model)
    if exact_sums():
        return source
    given = model if isinstance(model, bytes) else model.read_bytes()
    changed = unsigned_weights(given)
    # A file without such weights is best read by the runtime itself.
    return source if changed is given else changed


@functools.cache
def exact_sums() -> bool:
    """Return whether the runtime adds products of unsigned and signed bytes without saturating."""
    session = ort.InferenceSession(PROBE, session_options(1), providers=["CPUExecutionProvider"])
    found = session.run(None, {"a": np.full((2, 4), 255, np.uint8)})[0]
    return bool((np.asarray(found) == 4 * 255 * 127).all())


def unsigned_weights(model: bytes) -> bytes:
    """Return a model whose signed integer weights are unsigned, their zero points with them.

    Weights are known by their names, which ``export.layers`` gives: those of a zero point and of
    its integers. Anything else stays as it is, as does a model that is not one.
    """
    try:
        places = [
            place
            for number, start, end in message_fields(model, 0, len(model))
            if number == _GRAPH
            for place in _signed_weights(model, start, end)
        ]
    except (IndexError, ValueError):
        return model  # the runtime says best what is wrong with it
    if not places:
        return model
    changed = bytearray(model)
    for kind, first, last in places:
        changed[kind] = _UINT8
        signed = np.frombuffer(model, np.uint8, last - first, first)
        changed[first:last] = (signed ^ 128).tobytes()
    return bytes(changed)


def _signed_weights(model: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield where type and bytes of each weight and zero point of a graph are, subgraphs too."""
    tensors: dict[bytes, tuple[int, int, int]] = {}
    for number, first, last in message_fields(model, start, end):
        if number == _INITIALIZER:
            name, kind, *raw = _tensor(model, first, last)
            if kind:
                tensors[name] = kind, raw[0], raw[1]
        elif number == _NODE:
            for inner, a, b in message_fields(model, first, last):
                if inner == _ATTRIBUTE:
                    for held, x, y in message_fields(model, a, b):
                        if held in (_SUBGRAPH, _SUBGRAPHS):
                            yield from _signed_weights(model, x, y)
    for name in tensors:
        weight = name.removesuffix(_ZERO_POINT) + _INTEGERS
        if name.endswith(_ZERO_POINT) and weight in tensors:
            yield from (tensors[name], tensors[weight])


def _tensor(model: bytes, start: int, end: int) -> tuple[bytes, int, int, int]:
    """Return a tensor's name, and where its type and its bytes are; 0 for what is not int8."""
    name, kind, raw = b"", 0, (0, 0)
    for number, first, last in message_fields(model, start, end):
        if number == _NAME:
            name = model[first:last]
        elif number == _DATA_TYPE and model[first] == _INT8:
            kind = first
        elif number == _RAW_DATA:
            raw = first, last
    return name, kind, *raw


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
        key, place = _varint(model, place)
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
