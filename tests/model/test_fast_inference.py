"""The encoder that only infers against the one that trains."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from adalora_qat.adapt.inject import inject
from adalora_qat.config import AdaptConfig
from adalora_qat.errors import ConfigError
from adalora_qat.model.fast_inference import fast_encoder
from adalora_qat.model.predict import TorchPredictor
from adalora_qat.model.sam import Segmenter, random_segmenter


def segmenter(name: str = "tiny-vit-test") -> Segmenter:
    """Weights at which every bias, norm and position matters."""
    made = random_segmenter(name, 0)
    torch.manual_seed(0)
    for key, parameter in made.image_encoder.named_parameters():
        if parameter.ndim == 1 or "rel_pos" in key or key.endswith("pos_embed"):
            nn.init.normal_(parameter, std=0.3)
    return made


@torch.no_grad()
def as_near_as_float32(model: Segmenter, images: torch.Tensor) -> None:
    """Hold float32 against the encoder in float64: no further from it than the encoder's own.

    Both sum some 64 float32 products at a time, in orders that the processor's kernels choose:
    their errors are of one size, whatever that is. A bias left out is thousands of times it.
    """
    ours = fast_encoder(model, torch.float32)(images)
    plain = model.encode(images)
    wanted = copy.deepcopy(model).double().encode(images.double())
    assert ours.shape == wanted.shape
    assert (ours - wanted).norm() < 4 * (plain - wanted).norm()


def test_in_float32_it_computes_what_the_encoder_does() -> None:
    as_near_as_float32(segmenter(), torch.randn(2, 3, 64, 64))


def test_adapters_are_merged() -> None:
    model = segmenter()
    for adapter in inject(model.image_encoder, AdaptConfig(rank=4, schedule=()), 0).values():
        nn.init.normal_(adapter.lam, std=0.5)
    as_near_as_float32(model, torch.randn(1, 3, 64, 64))


def test_in_bfloat16_it_is_as_near_as_bfloat16_is() -> None:
    model, images = segmenter(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wanted = model.encode(images)
    ours = fast_encoder(model)(images)
    assert ours.dtype == torch.bfloat16
    assert (ours.float() - wanted).norm() < 2e-2 * wanted.norm()


def test_it_keeps_the_weights_it_was_made_of() -> None:
    model, images = segmenter(), torch.randn(1, 3, 64, 64)
    fast = fast_encoder(model, torch.float32)
    before = fast(images)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(fast(images), before)


def test_what_it_cannot_encode_is_refused() -> None:
    with pytest.raises(ConfigError, match="not for tiny-test"):
        fast_encoder(random_segmenter("tiny-test", 0))
    with pytest.raises(ConfigError, match="takes images"):
        fast_encoder(segmenter())(torch.zeros(1, 3, 32, 32))
    model = segmenter()
    model.image_encoder.layers[0].mlp.lin1 = nn.Bilinear(2, 2, 2)
    with pytest.raises(ConfigError, match="Bilinear"):
        fast_encoder(model)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("graph", [True, False])
def test_on_a_gpu_it_is_as_near_to_float32_as_autocast_is(graph: bool) -> None:
    model = random_segmenter("sam-vit-base", 0).cuda()
    images = torch.randn(3, 3, 1024, 1024, device="cuda")
    with torch.no_grad():
        wanted = model.encode(images[:2])
        with torch.autocast("cuda", torch.bfloat16):
            usual = (model.encode(images[:2]).float() - wanted).norm()
    fast = fast_encoder(model, graph=graph)
    ours = fast(images[:2])
    # Autocast adds its branches up in FP32, this in bfloat16.
    assert (ours.float() - wanted).norm() < 1.5 * usual
    assert usual < 2e-2 * wanted.norm()
    fast(images[1:])
    assert torch.equal(fast(images[:2]), ours)


def test_a_predictor_may_encode_with_it() -> None:
    model = segmenter()
    image = np.random.default_rng(0).integers(0, 255, (50, 64), dtype=np.uint8)
    boxes = np.array([[5.0, 6, 40, 45]])
    plain = TorchPredictor(model, "plain").predict(image, boxes)
    fast = TorchPredictor(model, "fast", fast_encoder(model, torch.float32)).predict(image, boxes)
    np.testing.assert_allclose(fast.logits, plain.logits, atol=1e-4)
