"""The published numbers hold together, and configurations find their rows."""

import pytest

from adalora_qat.recipe import load_config
from adalora_qat.report.paper import ABLATIONS, MODELS, published_row, recipe_row


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


LORA_8 = ("adapt.method=lora", "adapt.rank=8", "stage1.decoder=frozen")


@pytest.mark.parametrize(
    ("recipe", "overrides", "stages"),
    [
        ("sam-vit-base", (), ("adalora", None, "fullqat")),
        ("litemedsam", (), ("adalora", None, "fullqat")),
        ("sam-vit-base", ("quantize.policy=decoder",), ("adalora", None, "dqat")),
        ("sam-vit-base", ("quantize.policy=w4a8",), ("adalora", None, None)),
        ("litemedsam", ("quantize.policy=int8-all",), ("adalora", None, None)),
        # Quantized, but not trained as integers.
        ("sam-vit-base", ("stage2.epochs=0",), ("adalora", None, None)),
        ("litemedsam-decoder-only", (), ("decoder", None, None)),
        # The pretrained weights as they are.
        ("litemedsam-decoder-only", ("stage1.epochs=0",), (None, None, None)),
        ("litemedsam", LORA_8, ("lora", None, None)),
        ("litemedsam", ("adapt.method=lora", "adapt.rank=8"), (None, None, None)),
        ("litemedsam", ("adapt.method=lora", "adapt.rank=16"), (None, None, None)),
        ("litemedsam-peft-schedule", (), (None, None, None)),
        ("litemedsam-single-event", (), (None, None, None)),
        ("sam-vit-base", ("stage1.encoder=full",), (None, None, None)),
        ("segformer", (), ("segformer", "segformer", "segformer")),
        ("segformer", ("baselines.input=crop",), (None, None, None)),
        ("unet", (), (None, None, None)),
    ],
)
def test_what_was_trained_decides_the_row(
    recipe: str, overrides: tuple[str, ...], stages: tuple[str | None, ...]
) -> None:
    config = load_config(recipe, overrides)
    found = tuple(published_row(config, stage) for stage in ("stage1", "ptq", "stage2"))
    assert found == stages
    assert set(found) - {None} <= {*MODELS, *ABLATIONS}


@pytest.mark.parametrize(
    ("overrides", "row"),
    [
        ((), "fullqat"),
        (("quantize.policy=decoder",), "dqat"),
        (("quantize.policy=none",), "adalora"),
        (("quantize.policy=w4a8",), None),
        (("stage1.encoder=frozen",), "decoder"),
        (LORA_8, "lora"),
        (("stage1.encoder=full",), None),
        (("model.variant=medsam",), "fullqat"),
    ],
)
def test_a_recipe_is_the_row_of_its_last_stage(overrides: tuple[str, ...], row: str | None) -> None:
    assert recipe_row(load_config("sam-vit-base", overrides)) == row
