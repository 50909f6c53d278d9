"""What is counted, in figures worked out by hand, and what is said of it beside the paper's."""

import pytest

from adalora_qat.recipe import load_config
from adalora_qat.study.parameters import beside_the_paper, count_parameters, layer_numerics

# Counted by hand from SAM ViT-B: see the page on the method.
ENCODER, DECODER, PROMPT = 89_670_912, 4_058_340, 6_476
PER_RANK = 12 * (768 + 2304 + 1)
WHOLE = ENCODER + DECODER + PROMPT


def counts(start: int, pruned: int, per_rank: int = PER_RANK) -> dict[str, object]:
    trains = {"start": start, "pruned": pruned}
    return {
        "parts": {"image_encoder": {"total": ENCODER}, "mask_decoder": {"total": DECODER}},
        "total": {"total": WHOLE, **trains},
        "percent": {name: 100 * n / WHOLE for name, n in trains.items()},
        "reduction": {name: WHOLE / n for name, n in trains.items()},
        "per_rank": per_rank,
    }


def test_percent_reduction_and_cost_of_a_rank() -> None:
    counts = count_parameters(load_config("sam-vit-base"))
    whole = 89_670_912 + 4_058_340 + 6_476
    assert counts["total"]["total"] == whole
    assert counts["per_rank"] == 12 * (768 + 2304 + 1)
    assert round(counts["percent"]["pruned"], 2) == 5.59
    assert round(counts["reduction"]["start"], 2) == 16.08


def test_a_fixed_rank_is_not_pruned() -> None:
    total = count_parameters(load_config("sam-vit-base", ["adapt.schedule=[]"]))["total"]
    assert total["start"] == total["pruned"] == 4_058_340 + 48 * 12 * 3073


def test_layers_are_listed_with_their_numerics() -> None:
    config = load_config(
        "demo",
        ["model.variant=tiny-vit-test", "model.side=null", "adapt.rank=2", "adapt.schedule=[]"],
    )
    layers = {layer["name"]: layer for layer in layer_numerics(config, "full")}
    qkv = layers["image_encoder.layers.0.attn.qkv"]
    assert qkv["numerics"] == "float32"
    # Weight and bias, and the adapter: its P, Q and Λ at the recipe's rank.
    rank = config.adapt.rank
    assert qkv["parameters"] == 96 * 32 + 96 + rank * (96 + 32 + 1)
    positions = layers["image_encoder.pos_embed"]
    assert (positions["kind"], positions["numerics"]) == ("parameter", "W INT8, A float32")


def test_the_papers_figures_stand_beside_ours() -> None:
    found = beside_the_paper(
        counts(DECODER + 48 * PER_RANK, DECODER + 32 * PER_RANK), load_config("sam-vit-base")
    )
    assert found.paper_name == "SAM Ada-LoRA + Full QAT"
    assert [(row.column, row.paper) for row in found.rows] == [
        ("total (M)", 89.7),
        ("trainable (M)", 5.4),
        ("reduction (×)", 16.6),
        ("trainable (%)", 6.1),
    ]
    assert found.rows[1].start == pytest.approx(5.83, abs=0.005)
    assert found.rows[1].pruned == pytest.approx(5.24, abs=0.005)
    text = " ".join(found.differences)
    assert "image encoder alone (89,670,912)" in text
    # 5.4 M − 4.058340 M = 1.34166 M, over 36,876 a rank.
    assert "a mean rank of 36.4; ours is 48 at the start and 32 after pruning" in text


def test_encoder_only_lora_does_not_give_the_papers_share() -> None:
    per_rank = 12 * (768 + 2304)
    config = load_config(
        "sam-vit-base", ["adapt.method=lora", "adapt.rank=8", "stage1.decoder=frozen"]
    )
    found = beside_the_paper(counts(8 * per_rank, 8 * per_rank, per_rank), config)
    assert found.rows[3].paper == 1.9
    assert found.rows[3].start == pytest.approx(0.31, abs=0.005)
    assert "a rank of 46 on them" in " ".join(found.differences)


def test_where_the_paper_has_no_row_it_is_said() -> None:
    found = beside_the_paper(counts(1, 1), load_config("litemedsam"))
    assert found.paper_name is None
    assert [row.paper for row in found.rows] == [None] * 4
    assert found.differences == ("the paper counts SAM ViT-B; litemedsam is another model",)
