import pytest

from adalora_qat.config import RunConfig
from adalora_qat.errors import ConfigError
from adalora_qat.recipe import RECIPES, dump_config, load_config, packaged_names, validated


@pytest.mark.parametrize("name", packaged_names(RECIPES))
def test_every_recipe_is_valid_and_survives_a_round_trip(name: str) -> None:
    import yaml

    config = load_config(name)
    assert validated(yaml.safe_load(dump_config(config)), name) == config


def test_the_paper_recipe_says_what_the_paper_says() -> None:
    config = load_config("sam-vit-base")
    assert config.adapt.pruning_at(config.stage1.epochs) == {3: 43, 7: 37, 12: 32}
    assert (config.stage1.lr_encoder, config.stage1.lr_decoder) == (5e-5, 2e-5)
    assert (config.stage1.batch_size, config.stage1.lambda_ortho) == (16, 0.003)
    assert (config.adapt.rank, config.stage2.lr_lambda) == (48, 1e-6)
    assert config.stage2.train == ("lambda",)
    assert config.quantize.policy == "full"


def test_the_schedule_scales_with_the_epochs() -> None:
    adapt = load_config("litemedsam").adapt
    assert adapt.pruning_at(8) == {2: 43, 4: 37, 6: 32}


def test_overrides_and_numbers_without_a_dot() -> None:
    config = load_config("litemedsam", ["stage1.lr_encoder=1e-3", "stage2.train=[lambda, decoder]"])
    assert config.stage1.lr_encoder == 1e-3
    assert config.stage2.train == ("lambda", "decoder")


def test_every_problem_is_reported_at_once_with_the_nearest_key() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("litemedsam", ["stage1.epoch=3", "seed=-1", "adapt.rnk=2"])
    message = str(caught.value)
    assert "did you mean stage1.epochs?" in message
    assert "did you mean adapt.rank?" in message
    assert "seed=-1" in message


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["adapt.schedule=[{epoch: 3, rank: 50}]"], "must not rise"),
        (["adapt.schedule=[{epoch: 5, rank: 40}, {epoch: 3, rank: 30}]"], "epochs must rise"),
        (["adapt.schedule=[{epoch: 16, rank: 40}]"], "beyond schedule_epochs"),
        (["stage1.epochs=2"], "too few for 3 prunings"),
        (["adapt.method=none"], "encoder=frozen"),
        (["stage1"], "section.key=value"),
        (["data.prompt.oracle=0.7", "data.prompt.whole_image=0.6"], "at most 1 together"),
    ],
)
def test_what_does_not_hold_together_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("litemedsam", overrides)


def test_unknown_recipe_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean litemedsam"):
        load_config("litemedsm")


def test_configurations_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().seed = 1  # type: ignore[misc]


def test_a_target_is_a_name_of_any_structure() -> None:
    config = load_config("litemedsam", ["data.prompt.target=[liver, left_kidney]"])
    assert config.data.prompt.targets == ("liver", "left_kidney")
    with pytest.raises(ConfigError, match="'Left kidney' cannot name a structure"):
        load_config("litemedsam", ["data.prompt.target=Left kidney"])
