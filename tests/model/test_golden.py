"""LiteMedSAM with its published weights equals the original implementation."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from adalora_qat.config import ModelConfig
from adalora_qat.errors import CheckpointError
from adalora_qat.imaging.geometry import image_to_model, load_image
from adalora_qat.model.weights import build

SHARED = Path(__file__).parents[3] / "shared"
DATA = Path(os.environ.get("ADALORA_QAT_DATA", SHARED / "data"))
GOLDEN = SHARED / "golden" / "litemedsam_zero_shot.npz"


@pytest.mark.weights
@pytest.mark.skipif(not GOLDEN.is_file(), reason="the golden reference outputs are not here")
def test_litemedsam_matches_the_original() -> None:
    try:
        segmenter, origin = build(ModelConfig(variant="litemedsam"))
    except CheckpointError as error:
        pytest.skip(f"weights cannot be fetched: {error}")
    assert origin.sha256 is not None
    assert origin.sha256.startswith("79d8c9dca6db")
    golden = np.load(GOLDEN)
    for case in range(4):
        source, name = str(golden[f"name_{case}"]).split("/")
        image = load_image(DATA / source / "images" / f"{name}.jpg")
        pixels, _ = image_to_model(image, segmenter.variant.frame)
        box = torch.from_numpy(golden[f"box_xyxy_{case}"])[None, None]
        with torch.inference_mode():
            embedding = segmenter.encode(torch.from_numpy(pixels)[None])
            logits, _ = segmenter.decode(embedding, box)
        np.testing.assert_allclose(logits[0, 0].numpy(), golden[f"logits_{case}"], atol=1e-3)
        assert embedding.mean().item() == pytest.approx(
            float(golden[f"embedding_mean_{case}"]), abs=1e-5
        )
        assert embedding.std().item() == pytest.approx(
            float(golden[f"embedding_std_{case}"]), abs=1e-5
        )
