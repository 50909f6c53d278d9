"""What is counted, in figures worked out by hand."""

from adalora_qat.recipe import load_config
from adalora_qat.study.parameters import count_parameters, weight_bytes


def test_percent_reduction_and_cost_of_a_rank() -> None:
    counts = count_parameters(load_config("sam-vit-base"))
    whole = 89_670_912 + 4_058_340 + 6_476
    assert counts["total"]["total"] == whole
    assert counts["per_rank"] == 12 * (768 + 2304 + 1)
    assert round(counts["percent"]["pruned"], 2) == 5.59
    assert round(counts["reduction"]["start"], 2) == 16.08


def test_bytes_of_a_policy() -> None:
    plain = weight_bytes(load_config("sam-vit-base", ["quantize.policy=none"]))
    assert plain == {"float32": 4 * 93_735_728, "bfloat16": 2 * 93_735_728}
    decoder = weight_bytes(load_config("sam-vit-base", ["quantize.policy=decoder"]))
    # Only weights of the decoder and of the prompt encoder may shrink, to a quarter at best.
    saved = decoder["float32"] - decoder["policy decoder"]
    assert 0.9 * 3 * 4_058_340 < saved < 3 * (4_058_340 + 6_476)
    full = weight_bytes(load_config("sam-vit-base"))["policy full"]
    # All but the qkv layers, norms, biases and positions: 12 × 768 × 2304 stay FP32.
    assert 4 * 12 * 768 * 2304 < full < decoder["policy decoder"]


def test_a_fixed_rank_is_not_pruned() -> None:
    total = count_parameters(load_config("sam-vit-base", ["adapt.schedule=[]"]))["total"]
    assert total["start"] == total["pruned"] == 4_058_340 + 48 * 12 * 3073
