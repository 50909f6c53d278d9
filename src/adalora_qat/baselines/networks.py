"""The networks of the baselines: library implementations, one class round them all.

U-Net is MONAI's, SegFormer transformers', DeepLabV3+ segmentation_models_pytorch's: of the
libraries that have a DeepLabV3+ with a dilated ResNet and the decoder with low-level features,
it is the maintained one (transformers' DeepLab heads are for MobileNet and lack that decoder,
MONAI has none). Each is imported when it is built. nnU-Net builds its own, from its plan.

Shapes: B images, S model side.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adalora_qat.config import BaselinesConfig
from adalora_qat.errors import CheckpointError, ConfigError, UserError
from adalora_qat.files import sha256_file
from adalora_qat.imaging.geometry import Frame
from adalora_qat.model.weights import WeightsOrigin, load_strictly, read_state

RANDOM: Final = WeightsOrigin("random", None)

# Width of the first level, doubled four times: 64 is the published one (Ronneberger et al. 2015).
_UNET_WIDTHS: Final[Mapping[str, int]] = {"w64": 64, "w32": 32, "w16": 16, "w8": 8}
# Depths and widths by size; Xie et al. (2021), Table 6. ``tiny`` is for tests.
_MIT: Final[Mapping[str, tuple[tuple[int, ...], tuple[int, ...], int]]] = {
    "b0": ((2, 2, 2, 2), (32, 64, 160, 256), 256),
    "b1": ((2, 2, 2, 2), (64, 128, 320, 512), 256),
    "b2": ((3, 4, 6, 3), (64, 128, 320, 512), 768),
    "b3": ((3, 4, 18, 3), (64, 128, 320, 512), 768),
    "b4": ((3, 8, 27, 3), (64, 128, 320, 512), 768),
    "b5": ((3, 6, 40, 3), (64, 128, 320, 512), 768),
    "tiny": ((1, 1, 1, 1), (8, 16, 24, 32), 16),
}
_DEFAULT_SIZE: Final = {"unet": "w64", "segformer": "b2", "deeplabv3plus": "resnet50"}
_TITLES: Final = {"unet": "U-Net", "deeplabv3plus": "DeepLabV3+", "nnunet": "nnU-Net"}


class BaselineNet(nn.Module):
    """A network that gives one mask from an image alone.

    ``image_encoder`` and ``mask_decoder`` are its backbone and the rest, named as the training
    loop names the parts of a segmenter.
    """

    def __init__(self, config: BaselinesConfig) -> None:
        super().__init__()
        self.config = config
        self.frame = frame_of(config)
        self.network = _build(config)

    @property
    def image_encoder(self) -> nn.Module:
        """The backbone: what ImageNet weights are for; the whole network where it has none."""
        part = {"segformer": "segformer", "deeplabv3plus": "encoder"}
        name = part.get(self.config.architecture)
        return self.network if name is None else self.network.get_submodule(name)

    def forward(self, images: Tensor) -> Tensor:
        """Segment: images (B, 3, S, S) → logits (B, 1, S, S)."""
        if self.config.architecture == "unet":
            # Three equal channels are one radiograph.
            logits: Tensor = self.network(images[:, :1])
            return logits
        given = self.network(images)
        logits = given.logits if self.config.architecture == "segformer" else given
        if logits.shape[-2:] != images.shape[-2:]:
            # SegFormer answers at a quarter of the side.
            logits = F.interpolate(
                logits, size=images.shape[-2:], mode="bilinear", align_corners=False
            )
        return logits


def frame_of(config: BaselinesConfig) -> Frame:
    """Return what the network wants to see; backbones want what ImageNet weights expect."""
    plain = config.architecture in ("unet", "nnunet")
    return Frame(config.side, "minmax" if plain else "imagenet")


def size_of(config: BaselinesConfig) -> str:
    """Return the size, or the default of the architecture where none is given."""
    return config.size or _DEFAULT_SIZE.get(config.architecture, "")


def title_of(config: BaselinesConfig) -> str:
    """Return what a baseline is called in tables, with its input and, if it matters, its start."""
    size = size_of(config)
    if config.architecture == "segformer":
        name = f"SegFormer-{size.upper()}"
    else:
        shown = "" if config.architecture != "deeplabv3plus" else f" ({size})"
        name = f"{_TITLES[config.architecture]}{shown}"
    if config.weights is None and config.architecture in ("segformer", "deeplabv3plus"):
        # Baselines are known with ImageNet weights; one without must not pass for them.
        name += ", random init"
    return f"{name}, box crop" if config.input == "crop" else name


def build_baseline(config: BaselinesConfig, seed: int) -> tuple[BaselineNet, WeightsOrigin]:
    """Build a network with random weights by seed, and its ImageNet weights if it is to have any.

    Raises
    ------
    ConfigError
        If size and architecture do not go together, or it has no backbone to give weights to.
    CheckpointError
        If the weights are missing, damaged, or of another backbone.
    UserError
        If the library is not installed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = BaselineNet(config)
    origin = RANDOM if config.weights is None else _load_backbone(net, config.weights)
    return net, origin


def required(module: str, package: str) -> Any:
    """Import what a baseline needs beside the extra ``train``.

    Raises
    ------
    UserError
        Naming the package and the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"this baseline needs the package {package}, which cannot be imported ({error}); "
            "install the extra: pip install 'adalora-qat[baselines]'"
        ) from error


def _build(config: BaselinesConfig) -> nn.Module:
    builders = {"unet": _unet, "segformer": _segformer, "deeplabv3plus": _deeplab}
    if config.architecture not in builders:
        raise ConfigError(f"{config.architecture} builds its own network, from its plan")
    return builders[config.architecture](size_of(config))


def _unet(size: str) -> nn.Module:
    if size not in _UNET_WIDTHS:
        raise _unknown_size("unet", size, _UNET_WIDTHS)
    width = _UNET_WIDTHS[size]
    nets = required("monai.networks.nets", "monai")
    features = (*(width * 2**level for level in range(5)), width)
    net: nn.Module = nets.BasicUNet(2, 1, 1, features=features, act="relu", norm="batch")
    return net


def _segformer(size: str) -> nn.Module:
    if size not in _MIT:
        raise _unknown_size("segformer", size, _MIT)
    depths, widths, head = _MIT[size]
    heads = (1, 2, 5, 8) if size != "tiny" else (1, 1, 1, 1)
    transformers = required("transformers", "transformers")
    net: nn.Module = transformers.SegformerForSemanticSegmentation(
        transformers.SegformerConfig(
            num_labels=1,
            depths=list(depths),
            hidden_sizes=list(widths),
            num_attention_heads=list(heads),
            decoder_hidden_size=head,
        )
    )
    return net


def _deeplab(size: str) -> nn.Module:
    smp = required("segmentation_models_pytorch", "segmentation-models-pytorch")
    try:
        net: nn.Module = smp.DeepLabV3Plus(size, encoder_weights=None, in_channels=3, classes=1)
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"baselines.size={size} is no backbone of DeepLabV3+ ({error}); "
            "give one such as resnet50 or resnet101"
        ) from error
    return net


def _unknown_size(architecture: str, size: str, known: Mapping[str, object]) -> ConfigError:
    return ConfigError(f"baselines.size={size} for {architecture}: choose {', '.join(known)}")


def _load_backbone(net: BaselineNet, weights: str) -> WeightsOrigin:
    if net.config.architecture == "segformer":
        return _load_mit(net.image_encoder, weights)
    if net.config.architecture == "unet":
        raise ConfigError("unet trains from random weights; leave baselines.weights unset")
    path = Path(weights)
    # The classifier on top of an ImageNet backbone has no place here.
    state = {name: t for name, t in read_state(path).items() if not name.startswith("fc.")}
    load_strictly(net.image_encoder, state, str(path))
    return WeightsOrigin(path.name, sha256_file(path))


def _load_mit(backbone: nn.Module, weights: str) -> WeightsOrigin:
    transformers = required("transformers", "transformers")
    try:
        loaded = transformers.SegformerModel.from_pretrained(weights)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot load {weights!r} ({str(error).splitlines()[0]}); with a network run "
            "`hf download nvidia/mit-b2 --local-dir DIR` and set baselines.weights=DIR"
        ) from error
    load_strictly(backbone, loaded.state_dict(), weights)
    return WeightsOrigin(Path(weights).name if Path(weights).exists() else weights, None)
