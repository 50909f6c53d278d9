import pytest
import torch
from torch import nn

from adalora_qat.errors import ConfigError
from adalora_qat.model.sam import random_segmenter
from adalora_qat.quantize.batch_norm import fold_batch_norms


class ConvNorm(nn.Module):
    def __init__(self, convolution: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.c, self.bn = convolution, norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.c(x))


def settled(norm: nn.BatchNorm2d, seed: int = 0) -> nn.BatchNorm2d:
    """Give a norm statistics and weights that matter, some of them extreme."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (norm.running_mean, norm.weight, norm.bias):
            if tensor is not None:
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
        norm.running_var.copy_(torch.rand(norm.running_var.shape, generator=generator) * 4)
        norm.running_var[0] = 1e-6
    return norm


def test_pairs_in_sequences_and_tinyvit_blocks_are_folded() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        ConvNorm(nn.Conv2d(3, 6, 3, bias=False), settled(nn.BatchNorm2d(6))),
        nn.ReLU(),
        nn.Sequential(
            nn.Conv2d(6, 6, 3, groups=3),
            settled(nn.BatchNorm2d(6, affine=False), 1),
            nn.GELU(),
            nn.ConvTranspose2d(6, 4, 2, stride=2),
            settled(nn.BatchNorm2d(4), 2),
        ),
    ).eval()
    # Float64: another order of float32 sums is no difference.
    model.double()
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    with torch.no_grad():
        before = model(x)
        assert fold_batch_norms(model) == ["0.bn", "2.1", "2.4"]
        after = model(x)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)
    assert fold_batch_norms(model) == []


def test_folded_norm_stays_frozen_in_training_mode() -> None:
    model = ConvNorm(nn.Conv2d(3, 4, 1), settled(nn.BatchNorm2d(4))).eval()
    x = torch.randn(2, 3, 5, 5)
    expected = model(x)
    fold_batch_norms(model)
    torch.testing.assert_close(model.train()(x), expected, rtol=1e-5, atol=1e-5)


def test_a_frozen_convolution_stays_frozen() -> None:
    model = ConvNorm(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)).requires_grad_(False)
    fold_batch_norms(model)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_tiny_vit_keeps_its_output() -> None:
    segmenter = random_segmenter("tiny-test", 0).double()
    for module in segmenter.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)
            module.running_mean.normal_()
    images = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        before = segmenter.encode(images)
        assert fold_batch_norms(segmenter)
        torch.testing.assert_close(segmenter.encode(images), before, rtol=1e-11, atol=1e-11)


def test_a_norm_without_statistics_is_refused() -> None:
    model = ConvNorm(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    with pytest.raises(ConfigError, match="bn"):
        fold_batch_norms(model)
