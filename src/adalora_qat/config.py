"""The configuration of a run: typed, frozen, checked whole before anything starts.

``recipe`` reads it from a YAML file with these sections and writes the resolved copy.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from adalora_qat.errors import ConfigError
from adalora_qat.predictor import STRUCTURE_NAME

Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of the configuration: immutable, no unknown keys, every number finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(Section):
    """Which Segment Anything variant, and where its weights come from."""

    variant: str = "litemedsam"
    weights: str | None = None
    """A file, a local folder or a Hub id; None takes the variant's published weights, and
    ``packaged`` the INT8 model that comes with this package, dequantized (LiteMedSAM)."""
    init: Literal["pretrained", "random"] = "pretrained"
    """``random`` exists for benchmarks and tests and is stamped on every result."""
    side: Annotated[int, Field(ge=32)] | None = None
    """Working resolution in pixels; None takes the variant's own. TinyViT variants only."""
    structures: tuple[str, ...] = ()
    """Structures with a learned prompt each, which need no box: the targets of the samples."""
    refine: tuple[str, ...] = ()
    """Those of ``structures`` that are asked for twice without a box: the second time with the box
    of the first mask. It changes no training; choose it on validation images."""

    @model_validator(mode="after")
    def _refines_structures(self) -> ModelConfig:
        if unknown := sorted(set(self.refine) - set(self.structures)):
            known = ", ".join(self.structures) or "there are none"
            raise ValueError(f"refine names {unknown[0]}, none of model.structures ({known})")
        return self


class PromptConfig(Section):
    """The box prompt drawn from the truth in training and validation."""

    target: str | tuple[str, ...] = "lung"
    """A structure, or several: then each has its own box and mask in every sample."""
    jitter_px: Annotated[int, Field(ge=0)] = 5
    """Each box edge moves by a uniform integer in ±jitter_px, in model pixels."""
    oracle: Fraction = 0.0
    """Share of training samples with the exact box."""
    whole_image: Fraction = 0.0
    """Share of training samples with the whole image as box; the rest are jittered boxes."""
    unnamed: Fraction = 0.0
    """Of a model with structures: share of the boxes that do not say which structure they hold."""

    @model_validator(mode="after")
    def _shares_add_up(self) -> PromptConfig:
        if self.oracle + self.whole_image > 1:
            raise ValueError("oracle + whole_image are shares of one whole: at most 1 together")
        if not self.targets or len(set(self.targets)) != len(self.targets):
            raise ValueError("target must name one structure, or several different ones")
        if unfit := [name for name in self.targets if not re.fullmatch(STRUCTURE_NAME, name)]:
            raise ValueError(
                f"{unfit[0]!r} cannot name a structure: give lower-case letters, digits and "
                "underscores, a letter first, as in left_kidney"
            )
        return self

    @property
    def targets(self) -> tuple[str, ...]:
        """The structures as a tuple, also where one is given."""
        return (self.target,) if isinstance(self.target, str) else self.target


class AugmentConfig(Section):
    """Augmentation fit for radiographs; all ranges are symmetric around "no change"."""

    enabled: bool = False
    rotate_deg: Annotated[float, Field(ge=0, le=45)] = 7.0
    shift: Fraction = 0.05
    """Share of the side."""
    scale: Fraction = 0.1
    contrast: Fraction = 0.2
    gamma: Fraction = 0.2
    noise: Fraction = 0.02
    """Standard deviation of Gaussian noise on a 0–1 image."""
    blur_px: Annotated[float, Field(ge=0)] = 0.0
    opacity: Fraction = 0.0
    """Probability of painting opacities into the masks: see ``samples.opacity``. Only sensible
    for organs whose truth includes diseased parts, as lung masks do."""
    markers: Fraction = 0.0
    """Probability of bright letters or plates in a corner."""
    devices: Fraction = 0.0
    """Probability of wires, tubes and a battery over the chest."""
    collar: Fraction = 0.0
    """Probability of a black or white collar round the exposed field, as a collimator leaves."""
    exposure: Fraction = 0.0
    """Probability of over- or underexposure: a gain of 0.6 to 1.6 that burns out or dims, a window
    that cuts off up to a fifth of the range at either end, or both."""
    flip: Fraction = 0.0
    """Probability of a horizontal flip. Off by default: hearts are on the left, and a
    flipped chest is a different finding (situs inversus), not a nuisance."""


class DataConfig(Section):
    """How samples are made from the manifest."""

    prompt: PromptConfig = PromptConfig()
    augment: AugmentConfig = AugmentConfig()
    repeat: dict[str, Count] = {}
    """How often an epoch sees each record of a data set, by the set's name; once if not named.
    Each time has its own box and augmentation."""


class RankStep(Section):
    """At the end of ``epoch``, keep ``rank`` triplets per layer on average."""

    epoch: Count
    rank: Annotated[int, Field(ge=0)]


class AdaptConfig(Section):
    """Low-rank adaptation of the image encoder (paper, Sec. 2.2 and 2.3)."""

    method: Literal["adalora", "lora", "none"] = "adalora"
    targets: tuple[str, ...] = ("*.qkv",)
    """fnmatch patterns over the encoder's module names; one that matches nothing raises."""
    rank: Count = 48
    """Start rank (AdaLoRA) or the rank (LoRA)."""
    scaling: Positive = 1.0
    """Factor on ΔW, stored with the adapter."""
    schedule: tuple[RankStep, ...] = (
        RankStep(epoch=3, rank=43),
        RankStep(epoch=7, rank=37),
        RankStep(epoch=12, rank=32),
    )
    schedule_epochs: Count = 15
    """The epoch count the schedule is written for; it scales with ``stage1.epochs``."""
    importance: Literal["paper", "peft"] = "paper"
    """What a triplet is worth: the paper's |λ|·|∂L/∂λ|, or AdaLoRA's smoothed measure."""
    allocation: Literal["events", "cubic"] = "events"
    """``events`` prunes as ``schedule`` says; ``cubic`` falls to its last rank as PEFT does."""
    cubic_warmup: Fraction = 0.1
    """Share of all steps before a cubic allocation begins to fall."""
    cubic_final: Fraction = 0.3
    """Share of all steps after it has reached its end."""
    cubic_interval: Count = 10
    """Optimizer steps between two prunings of a cubic allocation."""

    @model_validator(mode="after")
    def _schedule_falls(self) -> AdaptConfig:
        if self.method != "adalora":
            return self  # a fixed rank has no schedule
        rank, epoch = self.rank, 0
        for step in self.schedule:
            if step.epoch <= epoch:
                raise ValueError(f"schedule epochs must rise: {step.epoch} after {epoch}")
            if step.rank > rank:
                raise ValueError(f"schedule ranks must not rise: {step.rank} after {rank}")
            if step.epoch > self.schedule_epochs:
                raise ValueError(
                    f"schedule epoch {step.epoch} lies beyond schedule_epochs="
                    f"{self.schedule_epochs}; prune earlier or lengthen the span"
                )
            rank, epoch = step.rank, step.epoch
        if self.allocation == "cubic":
            if not self.schedule:
                raise ValueError(
                    "allocation=cubic falls to the last rank of adapt.schedule: give one"
                )
            if self.cubic_warmup + self.cubic_final >= 1:
                raise ValueError("cubic_warmup + cubic_final must leave steps to prune in: below 1")
        return self

    def pruning_at(self, epochs: int) -> dict[int, int]:
        """Return {epoch (1-based): average rank}, the schedule scaled to ``epochs``.

        Raises
        ------
        ConfigError
            If so few epochs make two prunings fall on one.
        """
        if self.method != "adalora" or self.allocation == "cubic":
            return {}
        factor = epochs / self.schedule_epochs
        scaled = {max(1, round(step.epoch * factor)): step.rank for step in self.schedule}
        if len(scaled) != len(self.schedule):
            raise ConfigError(
                f"stage1.epochs={epochs} is too few for {len(self.schedule)} prunings at "
                f"{[step.epoch for step in self.schedule]} of {self.schedule_epochs}; "
                "use more epochs or a shorter adapt.schedule"
            )
        return scaled


class Stage1Config(Section):
    """Full-precision adaptation (paper, Eq. 2 and Sec. 2.3)."""

    epochs: Annotated[int, Field(ge=0)] = 15
    batch_size: Count = 16
    accumulate: Count = 1
    """Batches whose gradients are added before one optimizer step."""
    encoder: Literal["adapters", "full", "frozen"] = "adapters"
    decoder: Literal["full", "frozen"] = "full"
    lr_encoder: Positive = 5e-5
    lr_decoder: Positive = 2e-5
    lr_structures: Positive = 1e-3
    """Of the learned prompts of ``model.structures``."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    lambda_ortho: Annotated[float, Field(ge=0)] = 0.003
    lambda_iou: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the squared error of the predicted IoU, so that a mask's score means something
    after training; the paper has no such term."""
    clip_norm: Positive | None = None
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    lr_decay: Literal["none", "cosine"] = "none"
    patience: Count | None = None
    """Stop after this many epochs without a better validation Dice; None never stops."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of an exponential average of the weights, which is then validated and kept."""


class QuantizeConfig(Section):
    """Selective mixed precision (paper, Eq. 3)."""

    policy: str = "full"
    """A built-in policy or a YAML file."""
    per_channel: bool = False
    """Per-channel weight scales; the paper's are per tensor."""
    group_scales: Literal["float32", "float16"] = "float32"
    """What weight scales of groups are stored as (policy ``w4a8``: 32 weights share one)."""
    observer: Literal["minmax", "ema", "percentile", "mse"] = "minmax"
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99
    calibration_batches: Count = 8
    compensate: Literal["none", "loftq", "lqer"] = "none"
    """A low-rank branch in float16 beside each linear layer of few bits, started from what its
    rounding loses: by LoftQ (Li et al. 2023), or weighed by the inputs as in LQER (Zhang et al.
    2024). The layer's own adapter is merged before; the branch is trained as one."""
    compensate_rank: Count = 8
    """Rank of each branch. SAM ViT-B stays six times smaller than FP32 under ``w4a8`` up to rank 3,
    with ``group_scales: float16`` up to rank 16."""
    compensate_iterations: Count = 5
    """Turns of quantizing and decomposing; the best one is kept."""
    compensate_targets: tuple[str, ...] = ("image_encoder.*", "mask_decoder.*")
    """fnmatch patterns over layer names."""
    compensate_bits: Annotated[int, Field(ge=2, le=8)] = 4
    """Only layers whose weights have at most this many bits."""


class Stage2Config(Section):
    """Quantization-aware fine-tuning (paper, Eq. 4): by default only Λ moves.

    More than the paper's is for few bits. Weights train as FP32 masters whose rounding passes
    gradients straight through, scales as in "Learned Step Size Quantization" (Esser et al. 2020),
    and what is lost of stage 1's model can be asked back from it (Hinton et al. 2015).
    """

    epochs: Annotated[int, Field(ge=0)] = 5
    batch_size: Count = 16
    accumulate: Count = 1
    train: tuple[Literal["lambda", "adapters", "encoder", "decoder", "scales"], ...] = ("lambda",)
    """``lambda``: Λ of adapters and branches; ``adapters``: their P, Λ and Q (LoRA: A and B);
    ``encoder``, ``decoder``: the part's own weights, biases and norms; ``scales``: of weights
    and activations."""
    lr_lambda: Positive = 1e-6
    lr_adapters: Positive = 1e-4
    """Of P and Q; Λ keeps ``lr_lambda``."""
    lr_encoder: Positive = 1e-5
    lr_decoder: Positive = 1e-5
    lr_scales: Positive = 1e-5
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip_norm: Positive | None = None
    patience: Count | None = None
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    lr_decay: Literal["none", "cosine"] = "none"
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """As in stage 1."""
    distill: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the divergence from stage 1's masks, as soft targets."""
    distill_embeddings: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the relative squared error of the image embeddings against stage 1's."""


class ExportConfig(Section):
    """The parity gate between the quantized model and its ONNX runtime."""

    min_dice: Fraction = 0.995
    min_pixel_agreement: Fraction = 0.999


class BaselinesConfig(Section):
    """A baseline of the paper's Table 1 instead of a Segment Anything model (``baselines``).

    ``stage1`` says how it trains: ``lr_encoder`` for the backbone, ``lr_decoder`` for the rest.
    """

    architecture: Literal["unet", "deeplabv3plus", "segformer", "nnunet"]
    size: str = ""
    """Width or backbone, by architecture; empty takes its default."""
    weights: str | None = None
    """ImageNet weights of the backbone: a file, a local folder or a Hub id. None starts from
    random weights, which is stamped on every result."""
    side: Annotated[int, Field(ge=32, multiple_of=32)] = 256
    """Working resolution in pixels."""
    input: Literal["image", "crop"] = "image"
    """The whole image without any box, or the box with its margin, as a crop."""
    margin: Fraction = 0.1
    """What a crop adds on each side of the box, as a share of the box's own side."""
    steps_per_epoch: Count = 50
    """Optimizer steps of an nnU-Net epoch, which is no pass over the data. Others ignore it."""


class RunConfig(Section):
    """Everything that decides what a run computes."""

    name: str = "run"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """Precision of the forward pass; Λ, scales and optimizer state stay FP32. ``tf32`` is FP32
    with products of 10-bit mantissas on GPUs that have them, and FP32 elsewhere."""
    attention: Literal["auto", "sdpa"] = "auto"
    """How an encoder attends on a GPU in half precision: ``auto`` takes this package's kernels
    (a SAM ViT's never hold the relative-position bias); ``sdpa`` is PyTorch's own way."""
    compile: bool = False
    """Compile the model and its loss; on one GPU, where a step is short, as CUDA graphs."""
    gradient_checkpointing: bool = False
    """Keep only the inputs of the encoder's layers and compute the rest again in the backward
    pass: less memory for one more forward pass of the encoder, the same result. ViT only."""
    model: ModelConfig = ModelConfig()
    baselines: BaselinesConfig | None = None
    data: DataConfig = DataConfig()
    adapt: AdaptConfig = AdaptConfig()
    stage1: Stage1Config = Stage1Config()
    quantize: QuantizeConfig = QuantizeConfig()
    stage2: Stage2Config = Stage2Config()
    export: ExportConfig = ExportConfig()

    @model_validator(mode="after")
    def _stages_fit(self) -> RunConfig:
        if self.stage1.encoder == "adapters" and self.adapt.method == "none":
            raise ValueError(
                "stage1.encoder=adapters needs adapt.method=adalora or lora; "
                "for decoder-only training set stage1.encoder=frozen"
            )
        if self.stage1.epochs:
            self.adapt.pruning_at(self.stage1.epochs)
        return self

    @model_validator(mode="after")
    def _structures_are_targets(self) -> RunConfig:
        structures, targets = self.model.structures, self.data.prompt.targets
        if structures and structures != targets:
            raise ValueError(
                f"model.structures {', '.join(structures)} are not data.prompt.target "
                f"{', '.join(targets)}: give both the same names in the same order"
            )
        return self

    @model_validator(mode="after")
    def _baseline_trains_whole(self) -> RunConfig:
        if self.baselines is None:
            return self
        if len(self.data.prompt.targets) > 1:
            raise ValueError(
                "a baseline segments one target; give one data.prompt.target, not "
                f"{', '.join(self.data.prompt.targets)}"
            )
        whole = ("full", "full", "none", "none", 0)
        stage1, stage2 = self.stage1, self.stage2
        given = (stage1.encoder, stage1.decoder, self.adapt.method, self.quantize.policy)
        if (*given, stage2.epochs) != whole:
            raise ValueError(
                "a baseline trains whole and is not quantized: set stage1.encoder=full, "
                "stage1.decoder=full, adapt.method=none, quantize.policy=none, stage2.epochs=0"
            )
        return self
