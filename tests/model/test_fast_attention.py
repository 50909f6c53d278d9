"""Fast attention against transformers' eager attention: values, gradients, both ways."""

import copy

import pytest
import torch
from torch import nn
from transformers import SamVisionConfig
from transformers.models.sam.modeling_sam import (
    SamVisionAttention,
    SamVisionEncoder,
    SamVisionLayer,
    SamVisionSdpaAttention,
)

from adalora_qat.errors import ConfigError
from adalora_qat.model import fast_attention
from adalora_qat.model.fast_attention import (
    FastVisionAttention,
    install,
    install_best,
)


def encoder(side: int = 9, window: int = 4, attention: str = "eager", **more: object) -> nn.Module:
    """Two layers, windows that do not divide the grid, then global; positions that matter."""
    torch.manual_seed(0)
    config = SamVisionConfig(
        hidden_size=32,
        output_channels=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=side * 4,
        patch_size=4,
        window_size=window,
        global_attn_indexes=[1],
        mlp_dim=48,
        **more,
    )
    config._attn_implementation = attention
    model = SamVisionEncoder(config)
    for name, parameter in model.named_parameters():
        if "rel_pos" in name or "bias" in name or "norm" in name or "pos_embed" in name:
            nn.init.normal_(parameter, std=0.5)
    return model


class LowRank(nn.Module):
    """A stand-in for any adapter around a projection."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.inner = linear.requires_grad_(False)
        self.down = nn.Linear(linear.in_features, 3, bias=False)
        self.up = nn.Linear(3, linear.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + self.up(self.down(x))


def outcome(model: nn.Module, pixels: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    out = model(pixels).last_hidden_state
    torch.manual_seed(3)
    (out * torch.randn_like(out)).sum().backward()
    return out.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_same(
    ours: tuple[torch.Tensor, dict[str, torch.Tensor]],
    wanted: tuple[torch.Tensor, dict[str, torch.Tensor]],
) -> None:
    assert torch.allclose(ours[0], wanted[0], atol=1e-5)
    assert ours[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        scale = gradient.abs().max().clamp(min=1)
        assert (ours[1][name] - gradient).abs().max() <= 1e-5 * scale, name


@pytest.mark.parametrize(("side", "window"), [(9, 4), (8, 4), (5, 7)])
def test_values_and_gradients_are_those_of_eager(side: int, window: int) -> None:
    model = encoder(side, window)
    pixels = torch.randn(2, 3, side * 4, side * 4)
    wanted = outcome(model, pixels)
    assert install(model, "folded") == 2
    ours = outcome(model, pixels)
    assert_same(ours, wanted)
    assert {"layers.0.attn.rel_pos_h", "layers.0.attn.qkv.bias"} <= ours[1].keys()


def test_an_adapted_projection_is_served() -> None:
    model = encoder()
    for layer in model.layers:
        layer.attn.qkv = LowRank(layer.attn.qkv)
    pixels = torch.randn(1, 3, 36, 36)
    wanted = outcome(model, pixels)
    install(model, "folded")
    assert_same(outcome(model, pixels), wanted)


def test_kernels_may_differ_between_global_and_windowed_layers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fast_attention, "triton_is_here", lambda: True)
    model = encoder()
    pixels = torch.randn(1, 3, 36, 36)
    wanted = outcome(model, pixels)
    install(model, "folded", window_kernel="triton")
    assert [layer.attn.kernel for layer in model.layers] == ["triton", "folded"]
    assert_same(outcome(model, pixels), wanted)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_install_touches_no_parameter_and_no_name(attention: str) -> None:
    model = encoder(attention=attention)
    wanted = SamVisionAttention if attention == "eager" else SamVisionSdpaAttention
    assert type(model.layers[0].attn) is wanted
    parameters = {name: id(p) for name, p in model.named_parameters()}
    keys = list(model.state_dict())
    assert install(model, "folded") == 2
    assert isinstance(model.layers[0].attn, FastVisionAttention)
    assert list(model.state_dict()) == keys
    assert {name: id(p) for name, p in model.named_parameters()} == parameters


def test_a_copy_of_an_installed_model_stands_alone() -> None:
    model, pixels = encoder(), torch.randn(1, 3, 36, 36)
    install(model, "folded")
    before = model(pixels).last_hidden_state
    twin = copy.deepcopy(model)
    assert isinstance(twin.layers[0].attn, FastVisionAttention)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert torch.equal(twin(pixels).last_hidden_state, before)


def test_position_tables_of_another_length_are_interpolated() -> None:
    model = encoder()
    for layer in model.layers:
        for name in ("rel_pos_h", "rel_pos_w"):
            setattr(layer.attn, name, nn.Parameter(torch.randn(11, 16)))
    pixels = torch.randn(1, 3, 36, 36)
    wanted = outcome(model, pixels)
    install(model, "folded")
    assert_same(outcome(model, pixels), wanted)


def test_bf16_autocast_stays_near_fp32() -> None:
    model = encoder()
    pixels = torch.randn(2, 3, 36, 36)
    wanted = model(pixels).last_hidden_state
    install(model, "folded")
    with torch.autocast("cpu", torch.bfloat16):
        ours = model(pixels).last_hidden_state
    assert ((ours - wanted).norm() / wanted.norm()) < 2e-2


def test_misuse_is_refused_and_changes_nothing() -> None:
    with pytest.raises(ConfigError, match="no SAM ViT layers"):
        install(nn.Linear(2, 2), "folded")
    model = encoder()
    with pytest.raises(ConfigError, match="unknown attention kernel 'flash'"):
        install(model, "folded", window_kernel="flash")
    assert type(model.layers[1]) is SamVisionLayer
    install(model, "folded")
    with pytest.raises(ConfigError, match="installed already"):
        install(model, "folded")
    with pytest.raises(ConfigError, match="dropout"):
        install(encoder(attention_dropout=0.1), "folded")
    with pytest.raises(ConfigError, match="use_rel_pos=False"):
        install(encoder(use_rel_pos=False), "folded")


def test_without_a_gpu_or_half_precision_the_encoder_is_left_alone() -> None:
    model = encoder()
    assert install_best(model, torch.device("cpu"), torch.bfloat16) is None
    assert install_best(model, torch.device("cuda"), torch.float32) is None
    assert install_best(nn.Linear(2, 2), torch.device("cuda"), torch.bfloat16) is None
    assert not any(isinstance(module, FastVisionAttention) for module in model.modules())


def test_training_in_half_precision_on_a_gpu_takes_the_best_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for here, kernel in ((True, "triton"), (False, "cudnn")):
        monkeypatch.setattr(fast_attention, "triton_is_here", lambda here=here: here)
        model = encoder()
        assert install_best(model, torch.device("cuda"), torch.bfloat16) == kernel
        assert {layer.attn.kernel for layer in model.layers} == {kernel}
