from pathlib import Path

import numpy as np
import pytest
import torch

from adalora_qat.checkpoint import load_model, save_model
from adalora_qat.config import RunConfig
from adalora_qat.errors import ConfigError
from adalora_qat.model.sam import random_segmenter
from adalora_qat.recipe import load_config

NAMES = ("left", "right")
TINY = (
    "model.variant=tiny-test", "model.init=random", "model.structures=[left, right]",
    "data.prompt.target=[left, right]",
)  # fmt: skip


def test_prompts_start_as_the_pretrained_model() -> None:
    torch.manual_seed(0)
    images, boxes = torch.rand(1, 3, 64, 64), torch.tensor([[[2.0, 3, 50, 60], [0, 0, 64, 64]]])
    plain = random_segmenter("tiny-test", 0)
    named = random_segmenter("tiny-test", 0, structures=NAMES)
    with torch.inference_mode():
        expected = plain(images, boxes)
        found = named(images, boxes, torch.tensor([[0, 1]]))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        named.structure_prompts.tokens[1].add_(1.0)
        moved = named(images, boxes, torch.tensor([[-1, 1]]))
    # A prompt without a structure is what it was; that of the second is not.
    torch.testing.assert_close(moved[0][:, 0], expected[0][:, 0], rtol=0, atol=1e-6)
    assert (moved[0][:, 1] - expected[0][:, 1]).abs().max() > 1e-3


def test_a_saved_model_keeps_its_structures(tmp_path: Path) -> None:
    config = load_config("demo", TINY)
    segmenter = random_segmenter("tiny-test", 0, structures=NAMES)
    torch.nn.init.normal_(segmenter.structure_prompts.tokens)
    file = tmp_path / "model.safetensors"
    save_model(segmenter, file, config, "stage1")
    again, _ = load_model(file)
    assert again.structures == NAMES
    np.testing.assert_array_equal(
        again.structure_prompts.tokens.detach(), segmenter.structure_prompts.tokens.detach()
    )


def test_structures_must_be_the_targets() -> None:
    assert isinstance(load_config("demo", TINY), RunConfig)
    with pytest.raises(ConfigError, match=r"model\.structures left, right"):
        load_config("demo", (*TINY[:3], "data.prompt.target=[right, left]"))
