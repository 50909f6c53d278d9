"""A tiny run, trained to its end on phantoms once: seconds, not minutes."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from adalora_qat.checkpoint import RunFolder
from adalora_qat.corpus.prepare import prepare
from adalora_qat.corpus.splits import read_manifest, records_of
from adalora_qat.export.run import export_stage
from adalora_qat.phantom.phantom import write_phantoms
from adalora_qat.recipe import load_config
from adalora_qat.train.stages import Resources, Training

TINY = (
    "model.variant=tiny-test", "model.init=random", "model.side=64", "adapt.rank=8",
    "adapt.schedule_epochs=4", "adapt.schedule=[{epoch: 1, rank: 6}, {epoch: 2, rank: 4}]",
    "stage1.epochs=3", "stage1.lr_encoder=1e-2", "stage1.lr_decoder=1e-3", "stage2.epochs=1",
    # A model this small cannot be as exact as the gate asks of a real one.
    "export.min_dice=0.2", "export.min_pixel_agreement=0.5",
)  # fmt: skip
FROZEN = ("stage1.encoder=frozen", "adapt.method=none", "quantize.policy=none", "stage2.epochs=0")


@dataclass(frozen=True)
class Trained:
    """Where a finished run, its baseline inside it, and its data are."""

    run: Path
    data: Path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("trained")
    write_phantoms(root / "phantoms", 20, seed=0, side=64)
    prepare({"phantom": root / "phantoms"}, root / "data", 0, (0.5, 0.2, 0.3))
    manifest = read_manifest(root / "data")
    split = {name: records_of(manifest, name, "lung") for name in ("train", "val")}
    resources = Resources(cpu=True, cache=root / "cache")
    run = RunFolder.create(root / "run", load_config("demo", TINY))
    nested = RunFolder.create(root / "run" / "decoder_only", load_config("demo", (*TINY, *FROZEN)))
    Training(nested, split["train"], split["val"], resources).stage1()
    training = Training(run, split["train"], split["val"], resources)
    training.stage1()
    training.quantize()
    training.stage2()
    export_stage(run, "stage2", run.path / "int8.onnx", split["val"])
    return Trained(run.path, root / "data")


@pytest.fixture
def left_by_training(tmp_path: Path) -> Path:
    """Write the histories of a run folder, without its models."""
    for stage, epochs in (("stage1", 3), ("stage2", 1)):
        folder = tmp_path / stage
        folder.mkdir()
        steps = [
            f"{e},{2 * e - 1 + s},9,{0.2 / e},{0.1 + s}"
            for e in range(1, epochs + 1)
            for s in (0, 1)
        ]
        (folder / "history.csv").write_text("\n".join(["epoch,step,total,bce,dice", *steps]) + "\n")
        dice = [f"{e},{2 * e},{0.9 + e / 100}" for e in range(1, epochs + 1)]
        (folder / "epochs.csv").write_text("\n".join(["epoch,step,val_dice", *dice]) + "\n")
    (tmp_path / "stage1" / "ranks.csv").write_text(
        "event,epoch,step,layer,rank_before,rank,importance\n"
        "1,1,2,a.qkv,8,7,0.5\n1,1,2,b.qkv,8,5,0.4\n"
        "2,2,4,a.qkv,7,7,0.5\n2,2,4,b.qkv,5,1,0.4\n"
    )
    return tmp_path
