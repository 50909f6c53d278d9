"""The published numbers hold together, and names find their rows."""

import pytest

from adalora_qat.report.paper import ABLATIONS, MODELS, published_key


def test_tables_one_and_two_agree_on_dice() -> None:
    for model in MODELS.values():
        if model.dsc is not None:
            assert model.dsc_percent == pytest.approx(100 * model.dsc.mean)


def test_tables_two_and_three_agree_on_dice() -> None:
    for key in ABLATIONS.keys() & MODELS.keys():
        assert ABLATIONS[key].dice_percent == MODELS[key].dsc_percent


def test_published_reduction_is_total_over_trainable() -> None:
    for model in MODELS.values():
        if model.reduction is not None:
            assert model.total_millions is not None
            assert model.trainable_millions is not None
            ratio = model.total_millions / model.trainable_millions
            assert ratio == pytest.approx(model.reduction, abs=0.05)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("nnU-Net", "nnunet"),
        ("DeepLabv3+", "deeplabv3plus"),
        ("SegFormer-B5", "segformer"),
        ("decoder_only", "decoder"),
        ("SAM decoder fine-tuning", "decoder"),
        ("litemedsam D-QAT", "dqat"),
        ("decoder-only QAT", "dqat"),
        ("litemedsam-lora-r8-encoder", "lora"),
        ("stage1", "adalora"),
        ("AdaLoRA FP32", "adalora"),
        ("AdaLoRA + Full QAT", "fullqat"),
        ("int8_runtime", "fullqat"),
        ("zero_shot", None),
        ("U-Net", None),
    ],
)
def test_names_find_their_row(name: str, key: str | None) -> None:
    assert published_key(name) == key
