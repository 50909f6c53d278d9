"""What stage 1 learned, as a folder for PEFT and the Hugging Face Hub."""

from __future__ import annotations

import csv
from pathlib import Path

from adalora_qat.adapt.inject import adapters
from adalora_qat.adapt.peft_format import save_peft
from adalora_qat.checkpoint import MODEL_FILE, RunFolder, load_model
from adalora_qat.errors import ConfigError
from adalora_qat.model.tiny_vit import TinyViT


def write_adapter_folder(run: RunFolder, out: Path) -> dict[str, int]:
    """Write stage 1's adapter, and the decoder if it trained, as a PEFT folder; return the ranks.

    Raises
    ------
    CheckpointError
        If stage 1 has not ended.
    ConfigError
        If the recipe has no adapters.
    """
    config = run.config
    if config.stage1.encoder != "adapters":
        raise ConfigError(
            f"{run.path} has no adapters: its encoder is {config.stage1.encoder}; "
            "train a recipe with stage1.encoder=adapters"
        )
    segmenter, _ = load_model(run.stage("stage1") / MODEL_FILE)
    found = adapters(segmenter.image_encoder)
    # transformers' SamModel calls the ViT so; a TinyViT is only in this package's own model.
    tiny = isinstance(segmenter.image_encoder, TinyViT)
    trained = config.stage1.decoder == "full"
    with (run.stage("stage1") / "epochs.csv").open(encoding="utf-8") as file:
        epochs = list(csv.DictReader(file))
    save_peft(
        out,
        found,
        base_model=(config.model.weights or segmenter.variant.weights or config.model.variant)
        .removeprefix("hub:")
        .removeprefix("package:"),
        prefix="image_encoder." if tiny else "vision_encoder.",
        description="It began with random weights, so it is for tests and benchmarks only."
        if config.model.init == "random"
        else "",
        modules={"mask_decoder": segmenter.mask_decoder} if trained else {},
        facts={
            "recipe": config.name,
            "variant": config.model.variant,
            "weights it began with": config.model.init,
            "seed": str(config.seed),
            "epochs": str(len(epochs)),
            "target": ", ".join(config.data.prompt.targets),
            "validation Dice, boxes from the true masks": f"{float(epochs[-1]['val_dice']):.4f}"
            if epochs
            else "not measured",
        },
    )
    return {name: adapter.active_rank for name, adapter in found.items()}
