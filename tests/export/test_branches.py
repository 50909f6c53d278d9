"""Low-rank branches beside few-bit layers, in the file that ships."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from adalora_qat.adapt.inject import inject
from adalora_qat.config import AdaptConfig, ExportConfig, QuantizeConfig
from adalora_qat.export import layers
from adalora_qat.export.graph import Graph
from adalora_qat.export.kernels import kernel_counts
from adalora_qat.export.onnx import export_onnx
from adalora_qat.export.run import deployable
from adalora_qat.model.sam import Segmenter, random_segmenter
from adalora_qat.quantize.batch_norm import fold_batch_norms
from adalora_qat.quantize.compensate import compensate
from adalora_qat.quantize.convert import QuantizedLayer, convert
from adalora_qat.quantize.policy import load_policy, parse_policy
from adalora_qat.quantize.prepare import freeze, observe, prepare
from adalora_qat.runtime.session import inference_session, session_options
from adalora_qat.study.size import onnx_entries

LOFTQ = QuantizeConfig(compensate="loftq", compensate_rank=3, compensate_targets=("*",))
GROUPS = "weight: {bits: 4, granularity: group, group_size: 8}\n    activation: {bits: 8}"
CHANNEL = "weight: {bits: 4, granularity: channel}\n    activation: {bits: 8}"
WEIGHT_ONLY = "weight: {bits: 4, granularity: channel}"


def branched(numerics: str, x: torch.Tensor) -> QuantizedLayer:
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(20, 12))
    prepare(model, parse_policy(f"name: t\nrows:\n  - match: '*'\n    {numerics}\n", "t"))
    observe(model)
    model(x)
    compensate(model, LOFTQ)
    freeze(model)
    found = convert(model.eval())[0]  # type: ignore[index]
    assert isinstance(found, QuantizedLayer)
    assert found.branch_rank == 3
    return found


def run(layer: nn.Module, x: np.ndarray, rows: torch.Tensor | None) -> tuple[np.ndarray, bytes]:
    g = Graph("layer")
    with g.scope("layer"):
        quantized = layers.quantize(g, layer, g.input("x", x.shape))
        y = layers.product(g, layer, quantized, rows, "part" if rows is not None else "")
    g.output(y, "y", ("M", 12 if rows is None else len(rows)))
    model = g.model({})
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString()
    session = inference_session(data, session_options())
    return session.run(None, {"x": x})[0], data


@pytest.mark.parametrize("picked", [None, torch.tensor([5, 0, 11])], ids=["all", "some rows"])
@pytest.mark.parametrize("numerics", [GROUPS, CHANNEL, WEIGHT_ONLY])
def test_a_branch_is_exported(numerics: str, picked: torch.Tensor | None) -> None:
    x = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    layer = branched(numerics, x)
    expected = layer(x).numpy()
    found, model = run(layer, x.numpy(), picked)
    if picked is not None:
        expected = expected[:, picked]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    # Without the branch it is another layer.
    layer.branch_out.zero_()  # type: ignore[union-attr]
    assert np.abs(layer(x).numpy() - layer_without(layer, x)).max() == 0
    assert np.abs(found - layer(x).numpy()[:, slice(None) if picked is None else picked]).max() > 0
    integer = numerics == CHANNEL
    # Added to a float weight, which the runtime does on loading, or two Gemms beside integers.
    assert kernel_counts(model) == ({"QGemm": 1, "Gemm": 2} if integer else {"Gemm": 1})


def layer_without(layer: QuantizedLayer, x: torch.Tensor) -> np.ndarray:
    held = layer.branch_out, layer.branch_in
    layer.branch_out = layer.branch_in = None
    y = layer(x).numpy()
    layer.branch_out, layer.branch_in = held
    return y


def adapted(variant: str) -> Segmenter:
    segmenter = random_segmenter(variant, seed=3)
    found = inject(segmenter.image_encoder, AdaptConfig(rank=4, schedule=()), seed=1)
    generator = torch.Generator().manual_seed(2)
    for adapter in found.values():
        adapter.lam.data.copy_(torch.randn(4, generator=generator))  # type: ignore[union-attr]
    fold_batch_norms(segmenter)
    return segmenter


@pytest.mark.parametrize("scales", ["float32", "float16"])
@pytest.mark.parametrize("variant", ["tiny-test", "tiny-vit-test"])
def test_a_whole_model_with_branches(  # type: ignore[no-untyped-def]
    variant: str, scales: str, tmp_path: Path, some_cases
) -> None:
    options = LOFTQ.model_copy(update={"group_scales": scales})
    segmenter, cases = adapted(variant), some_cases(2, boxes=2)
    prepare(segmenter, load_policy("w4a8"), options)
    observe(segmenter)
    with torch.inference_mode():
        for case in cases:
            segmenter(torch.from_numpy(case.image)[None], torch.from_numpy(case.boxes)[None])
    done = compensate(segmenter, options)
    freeze(segmenter)
    path = tmp_path / "model.onnx"
    exported = export_onnx(
        deployable(segmenter), path, cases, policy="w4a8", sources={},
        # One rounding that falls the other way moves up to 1.2 % of this random model's pixels,
        # as noise of 1e-6 on the image does; without one, logits agree to 4e-8.
        gate=ExportConfig(min_dice=0.98, min_pixel_agreement=0.985),
    )  # fmt: skip
    assert exported.parity.dice_min >= 0.98
    half = sum(size for _, precision, size in onnx_entries(path) if precision == "FP16")
    # Every byte of the branches, each stored once although queries, keys and values are parts.
    assert 0 < half <= sum(layer.bytes for layer in done)
