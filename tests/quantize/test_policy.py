from pathlib import Path

import pytest
from torch import nn

from adalora_qat.adapt.inject import inject
from adalora_qat.config import AdaptConfig, QuantizeConfig
from adalora_qat.errors import ConfigError
from adalora_qat.model.sam import Segmenter, random_segmenter
from adalora_qat.quantize.policy import POLICIES, load_policy, parse_policy
from adalora_qat.recipe import packaged_names

BUILT_IN = ["decoder", "full", "int8-all", "none", "w4a8", "weight-only"]


@pytest.fixture(scope="module", params=["tiny-test", "tiny-vit-test"])
def segmenter(request: pytest.FixtureRequest) -> Segmenter:
    model = random_segmenter(request.param, 0)
    inject(model.image_encoder, AdaptConfig(rank=2, schedule=()), 0)
    return model


def texts(model: nn.Module, name: str) -> dict[str, str]:
    return {layer: str(n) for layer, n in load_policy(name).assign(model).items()}


def test_built_in_policies() -> None:
    assert packaged_names(POLICIES) == BUILT_IN


def test_none_quantizes_nothing(segmenter: Segmenter) -> None:
    assert set(texts(segmenter, "none").values()) == {"float32"}


def test_decoder_is_the_decoder_alone(segmenter: Segmenter) -> None:
    for name, numerics in texts(segmenter, "decoder").items():
        wanted = "W INT8, A INT8" if name.startswith("mask_decoder.") else "float32"
        assert numerics == wanted, name


def test_full_keeps_encoder_qkv_in_float_and_nothing_else(segmenter: Segmenter) -> None:
    """Eq. 3 of the paper, held against the model's own list of layers."""
    found = texts(segmenter, "full")
    kept = {name for name, numerics in found.items() if numerics == "float32"}
    attention = {
        f"image_encoder.{name}"
        for name, _ in segmenter.image_encoder.named_modules()
        if name.endswith(".qkv")
    }
    assert kept == attention and attention
    layers = {
        name
        for name, module in segmenter.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.Embedding)
    }
    positional = {"image_encoder.pos_embed"} & dict(segmenter.named_parameters()).keys()
    assert found.keys() == layers | attention | positional
    assert found["mask_decoder.transformer.layers.0.self_attn.q_proj"] == "W INT8, A INT8"
    assert found["prompt_encoder.mask_embed.conv1"] == "W INT8, A INT8"
    assert found["prompt_encoder.no_mask_embed"] == "W INT8, A INT8"


def test_int8_all_takes_everything(segmenter: Segmenter) -> None:
    assert "float32" not in texts(segmenter, "int8-all").values()


def test_w4a8_has_four_bit_linears(segmenter: Segmenter) -> None:
    found = texts(segmenter, "w4a8")
    assert found["mask_decoder.iou_prediction_head.proj_in"] == "W INT4/group32, A INT8"
    assert found["mask_decoder.upscale_conv1"] == "W INT8/channel, A INT8"


def test_first_match_wins_and_star_crosses_dots() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Linear(2, 2))
    policy = parse_policy(
        """
name: mine
rows:
  - {match: "0.1"}
  - {match: "0*", weight: {bits: 4}}
  - {match: "*", weight: {bits: 8}, activation: {bits: 8}}
""",
        "mine",
    )
    found = {name: str(n) for name, n in policy.assign(model).items()}
    assert found == {"0.0": "W INT4, A float32", "0.1": "float32", "1": "W INT8, A INT8"}


def test_a_pattern_that_matches_nothing_raises_unless_optional() -> None:
    row = '{match: "decodr.*", weight: {bits: 8}'
    with pytest.raises(ConfigError, match=r"decodr\.\*"):
        parse_policy(f"name: x\nrows: [{row}}}]", "x").assign(nn.Linear(2, 2))
    parse_policy(f"name: x\nrows: [{row}, optional: true}}]", "x").assign(nn.Linear(2, 2))


def test_options_of_the_run_fill_what_rows_leave_open() -> None:
    policy = load_policy("w4a8").with_options(QuantizeConfig(per_channel=True, observer="mse"))
    linear, *_, convolution, embedding, _ = policy.rows
    assert linear.weight is not None and linear.weight.granularity == "group"
    assert embedding.weight is not None and embedding.weight.granularity == "channel"
    assert convolution.activation is not None and convolution.activation.observer == "mse"


def test_own_policy_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nrows: [{match: '*', weight: {bits: 4}}]")
    assert load_policy(path).name == "mine"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: x\nrows: [{match: '*', weigth: {bits: 8}}]", "weigth"),
        ("name: x\nrows: [{match: '*', weight: {bits: 12}}]", "bits"),
        ("name: x\nrows: [{match: '*', activation: {bits: 8}}]", "give weight too"),
        ("name: [", "not YAML"),
        ("", "valid dictionary"),
    ],
)
def test_a_table_that_does_not_hold_together_is_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_policy(text, "mine.yaml")


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean int8-all"):
        load_policy("int8_all")
    with pytest.raises(ConfigError, match="does not exist"):
        load_policy("nowhere.yaml")


def test_depthwise_convolutions_are_their_own_kind() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3, groups=2))
    model.append(nn.Conv2d(1, 4, 3))
    policy = parse_policy("name: x\nrows: [{match: '*', kinds: [conv], weight: {bits: 8}}]", "x")
    found = [numerics.weight is not None for numerics in policy.assign(model).values()]
    assert found == [False, True, True]


@pytest.mark.parametrize("policy", ["full", "int8-all", "w4a8"])
def test_tiny_vit_keeps_inputs_float_where_rounding_them_costs(policy: str) -> None:
    found = texts(random_segmenter("tiny-test", 0), policy)
    depthwise = [name for name in found if name.endswith(("local_conv.c", ".conv2.c"))]
    for name in (
        *depthwise,
        "image_encoder.patch_embed.seq.0.c",
        *(name for name in found if name.startswith("image_encoder.layers.0.")),
    ):
        assert found[name] == "W INT8/channel, A float32", name
    assert found["image_encoder.layers.1.downsample.conv1.c"] == "W INT8/channel, A INT8"
    # The same names in a ViT are attention blocks: nothing of them is meant.
    vit = texts(random_segmenter("tiny-vit-test", 0), policy)
    assert vit["image_encoder.layers.0.attn.proj"].endswith("A INT8")
