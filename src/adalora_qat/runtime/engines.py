"""Which engine runs a model's file: ONNX Runtime, which is always there, or OpenVINO.

``auto`` is ONNX Runtime: on the one processor where both ran this package's file (AVX2, without
VNNI) it was the faster and kept the model's Dice (``benchmarks/engines.py``, results/speed). On
others ``adalora-qat bench --engines`` measures time and agreement, and ``engine=`` names one.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import onnxruntime as ort

from adalora_qat.errors import CheckpointError, ConfigError
from adalora_qat.runtime.graph_file import names_of
from adalora_qat.runtime.networks import EarlierNetwork, Network, OnnxNetwork
from adalora_qat.runtime.session import CPU, processor_features

Engine = Literal["auto", "onnxruntime", "openvino", "openvino-bf16", "cuda", "tensorrt"]
ENGINES: tuple[Engine, ...] = get_args(Engine)
_PROVIDERS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
_INSTALL_OPENVINO = "pip install 'adalora-qat[openvino]'"
_INSTALL_GPU = "pip uninstall onnxruntime && pip install onnxruntime-gpu"


class Choice(NamedTuple):
    """An engine, and why it was taken."""

    engine: Engine
    why: str


class Opened(NamedTuple):
    """A file in an engine, and why in that one."""

    network: Network
    why: str


def open_network(
    path: Path,
    engine: str = "auto",
    threads: int | None = None,
    *,
    low_memory: bool = False,
    cache: Path | None = None,
) -> Opened:
    """Open a model's file.

    Parameters
    ----------
    path : the file that ``adalora-qat export`` wrote.
    engine : one of ``ENGINES``.
    threads : worker threads, None for one per processor that this process may use; never more.
    low_memory : hold no more between images than the model; ONNX Runtime alone can.
    cache : folder in which engines keep what they arranged for this processor; None for none.

    Raises
    ------
    CheckpointError
        If it is no model that this package wrote, or the engine that was named cannot run it.
    ConfigError
        If there is no such engine, it is not installed, or ``threads`` is not positive.
    """
    choice = _checked(engine)
    model = path.read_bytes()
    try:
        earlier = "points" not in names_of(model).inputs
    except (IndexError, ValueError):
        earlier = True  # ONNX Runtime says best what is wrong with it
    if earlier:
        if engine not in ("auto", "onnxruntime"):
            raise CheckpointError(
                f"{path} is a file of an earlier version, which only ONNX Runtime runs; export the "
                "model again, or use engine=onnxruntime"
            )
        network: Network = EarlierNetwork(path, model, threads, low_memory=low_memory)
        return Opened(network, "a file of an earlier version")
    if choice.engine in _PROVIDERS:
        providers = (_PROVIDERS[choice.engine], *CPU)
        return Opened(OnnxNetwork(path, model, threads, providers=providers), choice.why)
    if choice.engine.startswith("openvino"):
        try:
            return Opened(_in_openvino(path, model, choice.engine, threads, cache), choice.why)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; use engine=onnxruntime") from error
    network = OnnxNetwork(path, model, threads, low_memory=low_memory, cache=cache)
    return Opened(network, choice.why)


def _in_openvino(
    path: Path, model: bytes, engine: Engine, threads: int | None, cache: Path | None
) -> Network:
    from adalora_qat.runtime.openvino_network import OpenVinoNetwork

    bf16 = engine == "openvino-bf16"
    return OpenVinoNetwork(path, model, threads, "bf16" if bf16 else "f32", cache)


def _checked(engine: str) -> Choice:
    """Return the engine to try, if it is there."""
    if engine not in ENGINES:
        raise ConfigError(f"engine={engine}: give one of {', '.join(ENGINES)}")
    if engine == "auto":
        return Choice("onnxruntime", "auto: the engine that models are checked in on export")
    if engine.startswith("openvino") and not has_openvino():
        raise ConfigError(f"engine={engine} is not installed: {_INSTALL_OPENVINO}")
    if engine == "openvino-bf16" and "amx_bf16" not in processor_features():
        # Without these instructions one image takes many seconds.
        raise ConfigError("engine=openvino-bf16 needs a processor with AMX; use engine=openvino")
    provider = _PROVIDERS.get(engine)
    if provider is not None and provider not in ort.get_available_providers():
        raise ConfigError(f"engine={engine} is not installed: {_INSTALL_GPU}")
    return Choice(engine, "asked for")


def has_openvino() -> bool:
    """Return whether OpenVINO is installed; it is not imported."""
    return importlib.util.find_spec("openvino") is not None
