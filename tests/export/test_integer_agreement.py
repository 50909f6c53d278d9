"""A thousand random layers: simulated, converted, packed and run by ONNX Runtime.

Where the arithmetic is integer, all of them agree to the last bit, and with sums that NumPy
makes of 64-bit integers. Two bounds hold elsewhere:

- An INT32 bias beyond 2²³ makes sums that float32 rounds: half a unit in the last place, once in
  the runtime and once more in the simulation (2⁻²² relative).
- One scale for a group of weights leaves sums of floats: 1e-5 of the largest output.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from adalora_qat.adapt.svd_linear import SVDLinear
from adalora_qat.export import layers
from adalora_qat.export.graph import Graph
from adalora_qat.quantize.convert import QuantizedLayer, convert
from adalora_qat.quantize.numerics import Numerics
from adalora_qat.quantize.pack import load_packed, save_packed
from adalora_qat.quantize.policy import Policy, PolicyRow
from adalora_qat.quantize.prepare import freeze, observe, prepare
from adalora_qat.runtime.session import inference_session, session_options

LAYERS_A_TEST, TESTS = 100, 10
KINDS = ("normal", "zeros", "outlier", "denormal", "saturating", "constant", "tiny", "huge")
FORMS = ("linear", "adapted", "conv1", "conv3")
EXACT_BIAS = 2**23


def values(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> torch.Tensor:
    found = rng.standard_normal(shape).astype(np.float32)
    if kind == "zeros":
        found[:] = 0
    if kind == "outlier":
        found.flat[rng.integers(found.size)] = np.float32(rng.choice([-1e15, 1e15]))
    if kind == "denormal":
        found *= np.float32(1e-41)
    if kind == "constant":
        found[:] = found.flat[0]
    if kind == "tiny":
        found *= np.float32(1e-12)
    if kind == "huge":
        found *= np.float32(1e18)
    return torch.from_numpy(found)


def layer_of(rng: np.random.Generator, form: str, kind: str, *, bias: bool) -> nn.Module:
    inputs, outputs = int(rng.integers(1, 20)), int(rng.integers(1, 12))
    if form.startswith("conv"):
        side = int(form[-1])
        layer: nn.Module = nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=bias)
    else:
        layer = nn.Linear(inputs, outputs, bias=bias)
    weight: nn.Parameter = layer.weight  # type: ignore[assignment]
    weight.data = values(rng, kind, tuple(weight.shape))
    if bias:
        layer.bias.data = values(rng, rng.choice(KINDS), (outputs,))  # type: ignore[union-attr]
    if form != "adapted":
        return layer
    rank = int(rng.integers(0, min(inputs, outputs) + 1))  # rank 0: a layer pruned to nothing
    adapter = SVDLinear.from_linear(layer, rank, 1.0, torch.Generator().manual_seed(0))
    adapter.lam.data = values(rng, "normal", (rank,))
    return adapter


def skeleton_of(layer: nn.Module) -> nn.Module:
    """Return an untrained layer of the same shape: what a packed file is loaded into."""
    bias = layer.bias is not None
    if isinstance(layer, nn.Conv2d):
        side, padding = layer.kernel_size, layer.padding
        return nn.Conv2d(layer.in_channels, layer.out_channels, side, padding=padding, bias=bias)
    outputs, inputs = layer.weight.shape  # type: ignore[misc]
    return nn.Linear(inputs, outputs, bias=bias)


def numerics_of(rng: np.random.Generator) -> Numerics:
    granularity = rng.choice(["tensor", "channel", "channel", "group"])
    size = int(rng.integers(2, 9)) if granularity == "group" else None
    return Numerics(bits=int(rng.choice([4, 8])), granularity=granularity, group_size=size)


def in_runtime(layer: nn.Module, x: torch.Tensor) -> np.ndarray[Any, Any]:
    """Run the exported layer: rows of channels, as the exporter keeps maps."""
    plain = x.ndim == 2
    given = x if plain else x.permute(0, 2, 3, 1).flatten(0, 2)
    write: Callable[[Graph, nn.Module, str], str] = layers.linear
    if not plain:
        size = (x.shape[2], x.shape[3])

        def write(g: Graph, layer: nn.Module, value: str) -> str:
            if layers.is_integer_product(layer):
                return layers.convolve(g, layer, value, size)
            planes = g.transpose(g.reshape(value, (1, *size, x.shape[1])), (0, 3, 1, 2))
            out = layers.convolve_planes(g, layer, planes)
            outputs = layers.weight_of(layer).shape[0]
            return g.reshape(g.transpose(out, (0, 2, 3, 1)), (-1, outputs))

    g = Graph("layer")
    with g.scope("layer"):
        y = write(g, layer, g.input("x", tuple(given.shape)))
    g.output(y, "y", ("M", "C"))
    session = inference_session(g.model({}).SerializeToString(), session_options(threads=1))
    found = session.run(None, {"x": given.contiguous().numpy()})[0]
    if plain:
        return np.asarray(found)
    return np.asarray(found).reshape(1, *x.shape[2:], -1).transpose(0, 3, 1, 2)


def by_hand(layer: QuantizedLayer, x: torch.Tensor) -> np.ndarray[Any, Any]:
    """Compute Σ q_x q_w + q_b with 64-bit integers, then scale once in float32."""
    assert layer.input_scale is not None
    step = np.float32(layer.input_scale)
    q_x = np.clip(np.rint(x.numpy() / step), -127, 127).astype(np.int64)
    q_w = layer.weight_int8.numpy().astype(np.int64)
    scale = step * layer.weight_scale.numpy()
    if x.ndim == 2:
        sums, shape = q_x @ q_w.T, (1, -1)
    else:
        pad = q_w.shape[-1] // 2
        padded = np.pad(q_x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, q_w.shape[2:], axis=(2, 3))
        sums, shape = np.einsum("bkhwij,ckij->bchw", windows, q_w), (1, -1, 1, 1)
    if layer.bias_int32 is not None:
        sums = sums + layer.bias_int32.numpy().astype(np.int64).reshape(shape)
    return sums.astype(np.float32) * (scale.reshape(shape) if scale.ndim else scale)


@pytest.mark.parametrize("block", range(TESTS))
@torch.no_grad()
def test_a_thousand_layers_agree(block: int, tmp_path: Path) -> None:
    exact = 0
    for seed in range(block * LAYERS_A_TEST, (block + 1) * LAYERS_A_TEST):
        rng = np.random.default_rng(seed)
        form, kind, of_input = (rng.choice(names) for names in (FORMS, KINDS, KINDS))
        layer = layer_of(rng, form, kind, bias=bool(rng.integers(2)))
        inputs = layer.weight.shape[1]
        shape = (1, inputs, 5, 6) if form.startswith("conv") else (7, inputs)
        x = values(rng, of_input, shape)
        # Saturating: what is measured is larger than what was calibrated on.
        calibration = x / 3 if of_input == "saturating" else x
        case = f"seed {seed}: {form}, weight {kind}, input {of_input}"
        model = nn.Sequential(layer).eval()
        skeleton = nn.Sequential(skeleton_of(layer))
        row = PolicyRow(match="*", weight=numerics_of(rng), activation=Numerics())
        prepare(model, Policy(name="t", rows=(row,)))
        observe(model)
        model(calibration)
        freeze(model)
        simulated = model(x)
        convert(model)
        converted = model(x)
        assert torch.equal(simulated, converted), case
        file = tmp_path / "layer.safetensors"
        save_packed(model, file)
        packed = load_packed(file, skeleton)(x)
        assert torch.equal(packed, converted), case
        [integer] = model
        assert isinstance(integer, QuantizedLayer)
        assert int(integer.weight_int8.abs().max()) <= row.numerics().weight.limit  # type: ignore[union-attr]
        runtime, expected = in_runtime(integer, x), converted.numpy()
        assert np.isfinite(expected).all(), case
        bias = 0 if integer.bias_int32 is None else int(integer.bias_int32.abs().max())
        if not integer.integer_sums:
            bound = 1e-5 * float(np.abs(expected).max())
            np.testing.assert_allclose(runtime, expected, rtol=0, atol=bound, err_msg=case)
        elif bias < EXACT_BIAS:
            exact += 1
            np.testing.assert_array_equal(runtime, expected, err_msg=case)
            np.testing.assert_array_equal(expected, by_hand(integer, x), err_msg=case)
        else:
            bound = 2.0**-22 * float(np.abs(expected).max())
            np.testing.assert_allclose(runtime, expected, rtol=0, atol=bound, err_msg=case)
            hand = by_hand(integer, x)
            np.testing.assert_allclose(expected, hand, rtol=0, atol=bound, err_msg=case)
    # Most cases are exact ones, so that the test means what it says.
    assert exact > LAYERS_A_TEST / 3
