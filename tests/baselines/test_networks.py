"""The networks: what they answer, what they are called, where their weights come from."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import SegformerConfig, SegformerModel

from adalora_qat.baselines.networks import BaselineNet, build_baseline, title_of
from adalora_qat.baselines.parameters import count_baseline
from adalora_qat.config import BaselinesConfig
from adalora_qat.errors import CheckpointError, ConfigError, UserError
from adalora_qat.recipe import load_config

TINY = SegformerConfig(
    depths=[1] * 4, hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1] * 4
)  # fmt: skip


def config(architecture: str, size: str = "", **more: Any) -> BaselinesConfig:
    return BaselinesConfig(architecture=architecture, size=size, side=64, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(("architecture", "size"), [("unet", "w8"), ("segformer", "tiny")])
def test_one_logit_for_every_pixel(architecture: str, size: str) -> None:
    net, origin = build_baseline(config(architecture, size), seed=1)
    images = torch.rand(2, 1, 64, 64).expand(-1, 3, -1, -1)
    assert net.eval()(images).shape == (2, 1, 64, 64)
    assert origin.source == "random"
    again, _ = build_baseline(config(architecture, size), seed=1)
    other, _ = build_baseline(config(architecture, size), seed=2)
    assert torch.equal(again.eval()(images), net(images))
    assert not torch.equal(other.eval()(images), net(images))


def test_deeplab_answers_too() -> None:
    pytest.importorskip(
        "segmentation_models_pytorch", reason="the extra baselines", exc_type=ImportError
    )
    net, _ = build_baseline(config("deeplabv3plus", "resnet18"), seed=0)
    assert net.eval()(torch.rand(2, 3, 64, 64)).shape == (2, 1, 64, 64)
    backbone = {name: torch.rand_like(t) if t.is_floating_point() else t
                for name, t in net.image_encoder.state_dict().items()}  # fmt: skip
    assert any(name.startswith("layer4") for name in backbone)


def test_without_its_library_a_baseline_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(UserError, match=r"adalora-qat\[baselines\]"):
        build_baseline(config("deeplabv3plus"), seed=0)


def test_titles_say_start_and_input() -> None:
    assert title_of(config("unet")) == "U-Net"
    assert title_of(config("unet", input="crop")) == "U-Net, box crop"
    assert title_of(config("nnunet")) == "nnU-Net"
    assert title_of(config("segformer")) == "SegFormer-B2, random init"
    assert title_of(config("segformer", weights="mit")) == "SegFormer-B2"
    assert title_of(config("deeplabv3plus")) == "DeepLabV3+ (resnet50), random init"


def test_imagenet_weights_come_from_a_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    published = SegformerModel(TINY)
    published.save_pretrained(tmp_path / "mit")
    net, origin = build_baseline(config("segformer", "tiny", weights=str(tmp_path / "mit")), 5)
    assert origin.source == "mit"
    own = net.image_encoder.state_dict()
    assert all(torch.equal(own[name], t) for name, t in published.state_dict().items())


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"baselines\.weights=DIR"):
        build_baseline(config("segformer", "tiny", weights=str(tmp_path / "none")), 0)
    wider = SegformerConfig(
        depths=[1] * 4, hidden_sizes=[8, 16, 24, 40], num_attention_heads=[1] * 4
    )
    SegformerModel(wider).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="does not fit"):
        build_baseline(config("segformer", "tiny", weights=str(tmp_path)), 0)
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match="unet trains from random weights"):
        build_baseline(config("unet", "w8", weights=str(tmp_path / "x.safetensors")), 0)


@pytest.mark.parametrize("architecture", ["unet", "segformer"])
def test_unknown_sizes_name_the_known(architecture: str) -> None:
    with pytest.raises(ConfigError, match="choose"):
        BaselineNet(config(architecture, "huge"))


def test_counts_beside_table_2() -> None:
    # Xie et al. (2021), Table 1, and the paper's own 84.6 M; counted by hand for a plain U-Net
    # with transposed convolutions and batch norms: 31 M.
    assert count_baseline(load_config("segformer", ("baselines.size=b5",)))["total"]["start"] == (
        84_594_113
    )
    counts = count_baseline(load_config("segformer"))
    assert 27.0e6 < counts["total"]["total"] < 27.5e6
    assert sum(part["total"] for part in counts["parts"].values()) == counts["total"]["total"]
    assert 31.0e6 < count_baseline(load_config("unet"))["total"]["total"] < 31.2e6
    with pytest.raises(ConfigError, match="no baseline"):
        count_baseline(load_config("litemedsam"))
