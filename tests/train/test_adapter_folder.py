"""Stage 1 as a folder that PEFT puts onto transformers' SAM: the same masks."""

from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file

from adalora_qat.checkpoint import MODEL_FILE, RunFolder, load_model
from adalora_qat.config import RunConfig
from adalora_qat.corpus.records import Record
from adalora_qat.errors import CheckpointError, ConfigError
from adalora_qat.model.weights import build
from adalora_qat.train.adapter_folder import write_adapter_folder
from adalora_qat.train.stages import Resources, Training

Tiny = Callable[..., RunConfig]


def trained(path: Path, config: RunConfig, records: list[Record]) -> RunFolder:
    run = RunFolder.create(path, config)
    Training(run, records[:7], records[7:], Resources(cpu=True)).stage1()
    return run


def test_a_run_becomes_a_folder_that_peft_loads(
    tmp_path: Path, tiny: Tiny, phantoms: list[Record]
) -> None:
    run = trained(tmp_path / "run", tiny("stage1.lambda_iou=0.1"), phantoms)
    ranks = write_adapter_folder(run, tmp_path / "adapter")
    assert sum(ranks.values()) == 4 * len(ranks)
    stored = load_model(run.stage("stage1") / MODEL_FILE)[0]
    # A TinyViT is in no transformers model: PEFT puts it onto this package's own.
    theirs = peft.PeftModel.from_pretrained(
        build(run.config.model)[0], str(tmp_path / "adapter")
    ).eval()
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[[5.0, 6.0, 50.0, 40.0]]])
    with torch.no_grad():
        ours, found = stored(images, boxes)[0], theirs(images, boxes)[0]
    assert torch.allclose(found, ours, atol=1e-5)
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "It began with random weights" in card
    for line in ("| recipe | demo |", "| weights it began with | random |", "| epochs | 3 |"):
        assert line in card
    assert "Dice, boxes from the true masks | 0." in card


def test_a_frozen_decoder_is_not_in_the_folder(
    tmp_path: Path, tiny: Tiny, phantoms: list[Record]
) -> None:
    run = trained(
        tmp_path / "run",
        tiny("adapt.method=lora", "stage1.decoder=frozen", "quantize.policy=none"),
        phantoms,
    )
    write_adapter_folder(run, tmp_path / "adapter")
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all(".lora_" in name for name in tensors)


def test_what_is_no_adapter_is_refused(tmp_path: Path, tiny: Tiny, phantoms: list[Record]) -> None:
    frozen = tiny("stage1.encoder=frozen", "adapt.method=none")
    with pytest.raises(ConfigError, match=r"stage1\.encoder=adapters"):
        write_adapter_folder(RunFolder.create(tmp_path / "frozen", frozen), tmp_path / "out")
    unfinished = RunFolder.create(tmp_path / "unfinished", tiny())
    with pytest.raises(CheckpointError, match="does not exist"):
        write_adapter_folder(unfinished, tmp_path / "out")
    assert not (tmp_path / "out").exists()
