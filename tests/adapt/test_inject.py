"""Putting adapters in, finding them, saving them, merging them away."""

import pytest
import torch
from torch import Tensor, nn
from transformers import SamVisionConfig
from transformers.models.sam.modeling_sam import SamVisionEncoder

from adalora_qat.adapt.inject import (
    adapter_state,
    adapters,
    inject,
    load_adapter_state,
    match_linears,
    merge,
    stored_ranks,
    svd_adapters,
)
from adalora_qat.adapt.lora import LoRALinear
from adalora_qat.adapt.svd_linear import SVDLinear
from adalora_qat.config import AdaptConfig
from adalora_qat.errors import CheckpointError, ConfigError

ADALORA = AdaptConfig(rank=3, schedule=())
LORA = AdaptConfig(rank=3, schedule=(), method="lora", scaling=2.0)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.conv = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return x + self.proj(nn.functional.scaled_dot_product_attention(q, k, v))


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Block(8), Block(8))


def sam_encoder() -> SamVisionEncoder:
    torch.manual_seed(0)
    return SamVisionEncoder(
        SamVisionConfig(
            hidden_size=16,
            output_channels=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=64,
            patch_size=16,
            window_size=2,
            global_attn_indexes=[1],
            mlp_dim=32,
        )
    ).eval()


def stirred(model: nn.Module) -> nn.Module:
    torch.manual_seed(5)
    with torch.no_grad():
        for adapter in adapters(model).values():
            for parameter in adapter.parameters():
                if parameter.requires_grad:
                    parameter.normal_(std=0.3)
    return model


@pytest.mark.parametrize("config", [ADALORA, LORA])
def test_adapted_sam_encoder_equals_the_pretrained_one(config: AdaptConfig) -> None:
    model = sam_encoder()
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = model(pixels).last_hidden_state
        found = inject(model, config, seed=0)
        assert torch.equal(model(pixels).last_hidden_state, before)
    assert list(found) == ["layers.0.attn.qkv", "layers.1.attn.qkv"]
    trainable = {n for n, p in model.named_parameters() if p.requires_grad and ".qkv." in n}
    assert trainable == {
        f"{name}.{leaf}"
        for name in found
        for leaf in (["P", "lam", "Q"] if config.method == "adalora" else ["A", "B"])
    }


@pytest.mark.parametrize(("config", "kind"), [(ADALORA, SVDLinear), (LORA, LoRALinear)])
def test_merge_keeps_the_function_and_leaves_plain_layers(
    config: AdaptConfig, kind: type[nn.Module]
) -> None:
    model = small()
    assert all(type(a) is kind for a in inject(model, config, seed=0).values())
    stirred(model)
    x = torch.randn(2, 5, 8)
    before = model(x)
    assert merge(model) == ["0.qkv", "1.qkv"]
    assert type(model[0].qkv) is nn.Linear
    assert torch.allclose(model(x), before, atol=1e-5)
    with pytest.raises(ConfigError, match="no adapters to merge"):
        merge(model)


def test_the_start_depends_on_seed_and_name_only() -> None:
    both, one = small(), small()
    inject(both, ADALORA, seed=3)
    inject(one, ADALORA.model_copy(update={"targets": ("1.qkv",)}), seed=3)
    assert torch.equal(both[1].qkv.P, one[1].qkv.P)
    assert not torch.equal(both[0].qkv.P, both[1].qkv.P)
    other = small()
    inject(other, ADALORA, seed=4)
    assert not torch.equal(both[1].qkv.P, other[1].qkv.P)


def test_patterns_select_layers() -> None:
    assert list(match_linears(small(), ("*.qkv", "1.proj"))) == ["0.qkv", "1.qkv", "1.proj"]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("*.kqv",), r"'\*\.kqv' matches no module; near names: .*qkv"),
        (("*.qkv", "*.query"), r"'\*\.query' matches no module"),
        (("*.conv",), "matches 0.conv, a Conv1d"),
        (("0",), "matches 0, a Block"),
    ],
)
def test_bad_patterns_are_refused_and_nothing_changes(
    targets: tuple[str, ...], message: str
) -> None:
    model = small()
    with pytest.raises(ConfigError, match=message):
        inject(model, ADALORA.model_copy(update={"targets": targets}), seed=0)
    assert not adapters(model)


def test_injecting_twice_is_refused() -> None:
    model = small()
    inject(model, ADALORA, seed=0)
    with pytest.raises(ConfigError, match="merge them before"):
        inject(model, ADALORA, seed=0)


def test_method_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="no adapters to inject"):
        inject(small(), AdaptConfig(method="none"), seed=0)


@pytest.mark.parametrize("config", [ADALORA, LORA])
def test_state_reloads_at_the_stored_ranks(config: AdaptConfig) -> None:
    model = small()
    inject(model, config, seed=0, ranks={"0.qkv": 0, "1.qkv": 5})
    stirred(model)
    state = adapter_state(model)
    assert stored_ranks(state) == {"0.qkv": 0, "1.qkv": 5}
    assert not any(key.endswith(("weight", "bias")) for key in state)

    fresh = small()
    inject(fresh, config, seed=9, ranks=stored_ranks(state))
    load_adapter_state(fresh, state)
    x = torch.randn(2, 5, 8)
    assert torch.equal(fresh(x), model(x))


def test_a_state_that_does_not_fit_is_refused_untouched() -> None:
    model = small()
    inject(model, ADALORA, seed=0)
    state = {key: value.clone() + 1 for key, value in adapter_state(model).items()}
    before = {key: value.clone() for key, value in adapter_state(model).items()}
    with pytest.raises(CheckpointError, match="inject with ranks"):
        load_adapter_state(model, state | {"1.qkv.lam": torch.ones(2)})
    del state["0.qkv.P"]
    with pytest.raises(CheckpointError, match=r"missing \['0.qkv.P'\]"):
        load_adapter_state(model, state)
    assert all(torch.equal(before[key], value) for key, value in adapter_state(model).items())


def test_ranks_must_name_the_targets() -> None:
    with pytest.raises(ConfigError, match=r"differing: \['1.qkv'\]"):
        inject(small(), ADALORA, seed=0, ranks={"0.qkv": 2})


def test_svd_adapters_leaves_lora_out() -> None:
    model = small()
    inject(model, LORA, seed=0)
    assert svd_adapters(model) == {}
    assert len(adapters(model)) == 2
