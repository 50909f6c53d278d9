"""The assembled segmenter: precision of its prompts under autocast."""

import torch
from torch import Tensor

from adalora_qat.model.sam import Segmenter, random_segmenter
from adalora_qat.model.tiny_vit import TinyViT, WindowAttention, fuse_windows


def _inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    images = torch.rand(2, 3, 64, 64, generator=generator)
    boxes = torch.tensor([[[3.3, 5.7, 40.1, 61.9]], [[10.2, 8.4, 33.6, 29.5]]])
    return images, boxes


def _segmenter() -> Segmenter:
    segmenter = random_segmenter("tiny-vit-test", seed=0)
    # Wide phases, as the published weights have; at their initial spread little would show.
    segmenter.prompt_encoder.shared_embedding.positional_embedding.data.mul_(30)
    return segmenter


def _error(ours: Tensor, wanted: Tensor) -> float:
    return ((ours.float() - wanted).norm() / wanted.norm()).item()


@torch.no_grad()
def test_prompts_are_encoded_in_full_precision_under_autocast() -> None:
    segmenter, (images, boxes) = _segmenter(), _inputs()
    wanted = segmenter.prompt_encoder(None, None, boxes, None)[0]
    seen: list[Tensor] = []
    decoder = segmenter.mask_decoder
    decoder.register_forward_pre_hook(
        lambda _, __, given: seen.extend(
            (given["sparse_prompt_embeddings"], given["image_positional_embeddings"])
        ),
        with_kwargs=True,
    )
    positions = segmenter.image_positions()
    with torch.autocast("cpu", torch.bfloat16):
        segmenter(images, boxes)
    torch.testing.assert_close(seen[0], wanted, rtol=0, atol=0)
    # Rounded once, to the embeddings' precision, after the phases.
    assert _error(seen[1][:1], positions) < 4e-3


@torch.no_grad()
def test_logits_under_autocast_are_near_those_in_full_precision() -> None:
    segmenter, (images, boxes) = _segmenter(), _inputs()
    wanted, _ = segmenter(images, boxes)
    with torch.autocast("cpu", torch.bfloat16):
        logits, _ = segmenter(images, boxes)
    assert _error(logits, wanted) < 2e-2


def test_the_switch_of_precision_compiles_in_one_graph() -> None:
    segmenter, (images, boxes) = _segmenter(), _inputs()
    embeddings = segmenter.encode(images).detach()
    decode = torch.compile(segmenter.decode, backend="eager", fullgraph=True)
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            wanted, _ = segmenter.decode(embeddings, boxes)
            logits, _ = decode(embeddings, boxes)
        torch.testing.assert_close(logits, wanted)


def test_windows_take_the_kernel_only_where_they_may() -> None:
    encoder = random_segmenter("tiny-test", 0).image_encoder
    assert isinstance(encoder, TinyViT)
    windows = [m for m in encoder.modules() if isinstance(m, WindowAttention)]
    assert windows and all(each.fused for each in windows)
    fuse_windows(encoder, False)
    assert not any(each.fused for each in windows)
