"""The objective as the compiler sees it: one graph in both stages, with the same numbers."""

import pytest
import torch
from torch import Tensor, nn

from adalora_qat.adapt.inject import inject
from adalora_qat.config import RunConfig
from adalora_qat.model import fast_attention
from adalora_qat.model.sam import Segmenter, random_segmenter
from adalora_qat.quantize.batch_norm import fold_batch_norms
from adalora_qat.quantize.policy import load_policy
from adalora_qat.quantize.prepare import freeze, observe, prepare, quantized_layers
from adalora_qat.train.objective import LossWeights, Objective
from adalora_qat.train.placement import compile_mode
from adalora_qat.train.selection import (
    choose_trainable_stage1,
    choose_trainable_stage2,
    trainable,
)

CONFIG = RunConfig.model_validate({"adapt": {"rank": 4, "schedule": []}})


def given(side: int = 64) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {
        "inputs": torch.randn(2, 3, side, side),
        "boxes": torch.tensor([[[5.0, 6, 50, 40]]]).repeat(2, 1, 1),
        "masks": (torch.rand(2, 1, side, side) > 0.5).float(),
        "valid": torch.ones(()).expand(2, 1, side, side),
        "weights": torch.full((2,), 0.5),
    }


def prepared(name: str, stage: int) -> Segmenter:
    model = random_segmenter(name, 0)
    for adapter in inject(model.image_encoder, CONFIG.adapt, 0).values():
        nn.init.normal_(adapter.lam, std=0.3)
    if stage == 1:
        choose_trainable_stage1(model, CONFIG)
        return model
    fold_batch_norms(model)
    prepare(model, load_policy("full"), CONFIG.quantize)
    observe(model)
    with torch.no_grad():
        model(given()["inputs"], given()["boxes"])
    freeze(model)
    choose_trainable_stage2(model, CONFIG)
    return model


def outcome(run: nn.Module, model: Segmenter) -> list[Tensor]:
    losses = run(given())
    losses.total.backward()
    named = trainable(model)
    found = [term.detach() for term in losses]
    found += [p.grad for p in named.values() if p.grad is not None]
    for parameter in named.values():
        parameter.grad = None
    return found


@pytest.mark.parametrize("stage", [1, 2])
def test_a_stage_is_one_graph_with_the_same_numbers(stage: int) -> None:
    model = prepared("tiny-vit-test", stage)
    fast_attention.install(model, "folded")
    objective = Objective(model, LossWeights(ortho=0.003), "image")
    wanted = outcome(objective, model)
    torch._dynamo.reset()
    # Tracing alone: fullgraph raises at anything that would cut the graph.
    traced = torch.compile(objective, backend="eager", fullgraph=True)
    found = outcome(traced, model)  # type: ignore[arg-type]
    assert len(found) == len(wanted)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_fake_quantized_layers_take_fast_attention() -> None:
    model = prepared("tiny-vit-test", stage=2)
    images = given()["inputs"]
    wanted = model.encode(images)
    fast_attention.install(model, "folded")
    # The order of the additions differs, and with it now and then an integer.
    assert (model.encode(images) - wanted).norm() < 1e-2 * wanted.norm()


def test_weights_that_do_not_train_keep_their_integers() -> None:
    model = prepared("tiny-vit-test", stage=2)
    layers = [m for m in quantized_layers(model).values() if hasattr(m, "layer")]
    assert layers
    assert all(layer._integers is not None for layer in layers)


@pytest.mark.parametrize(
    ("name", "entry", "device", "processes", "accumulate", "mode"),
    [
        ("tiny-test", "stem", "cuda", 1, 1, "reduce-overhead"),
        ("tiny-vit-test", "embedding", "cuda", 1, 1, "reduce-overhead"),
        ("tiny-vit-test", "image", "cuda", 1, 1, "default"),
        ("tiny-test", "stem", "cuda", 1, 2, "default"),
        ("tiny-test", "stem", "cpu", 1, 1, "default"),
    ],
)
def test_graphs_are_for_short_steps_on_one_gpu(
    name: str, entry: str, device: str, processes: int, accumulate: int, mode: str
) -> None:
    model = random_segmenter(name, 0)
    objective = Objective(model, LossWeights(), entry, accumulate)  # type: ignore[arg-type]
    assert compile_mode(objective, torch.device(device), processes) == mode
