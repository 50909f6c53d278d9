import copy

import pytest
import torch

from adalora_qat.adapt.inject import adapters, inject
from adalora_qat.config import AdaptConfig
from adalora_qat.errors import ConfigError
from adalora_qat.model.sam import Segmenter, random_segmenter
from adalora_qat.quantize.batch_norm import fold_batch_norms
from adalora_qat.quantize.movement import lambda_movement, lambdas
from adalora_qat.quantize.policy import load_policy
from adalora_qat.quantize.prepare import freeze, observe, prepare

IMAGES = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
BOXES = torch.tensor([[[5.0, 5, 50, 60]]])


def calibrated(model: Segmenter, policy: str) -> Segmenter:
    prepare(model, load_policy(policy))
    observe(model)
    with torch.no_grad():
        model(IMAGES, BOXES)
    freeze(model)
    return model


def test_lambda_movement_by_hand() -> None:
    before = {"a": torch.tensor([3.0, 4.0]), "zero": torch.zeros(2), "none": torch.zeros(0)}
    after = {"a": torch.tensor([3.0, 4.5]), "zero": torch.zeros(2), "none": torch.zeros(0)}
    moved = {movement.name: movement for movement in lambda_movement(before, after)}
    assert moved["a"].largest == 0.5 and moved["a"].mean == 0.25
    assert moved["a"].relative == pytest.approx(0.1)
    assert moved["zero"].relative == 0 and moved["none"].rank == 0
    with pytest.raises(ConfigError, match="different adapters"):
        lambda_movement(before, {"a": before["a"]})


def test_lambdas_have_the_same_names_before_and_after_prepare() -> None:
    model = random_segmenter("tiny-test", 0)
    fold_batch_norms(model)
    inject(model.image_encoder, AdaptConfig(rank=2, schedule=()), 0)
    before = lambdas(model)
    prepared = calibrated(copy.deepcopy(model), "int8-all")
    assert lambdas(prepared).keys() == before.keys() and before
    next(iter(adapters(model.image_encoder).values())).lam.data.fill_(1)
    moved = lambda_movement(before, lambdas(model))
    assert sorted(movement.largest for movement in moved)[-1] == 1
    assert sum(movement.largest > 0 for movement in moved) == 1
