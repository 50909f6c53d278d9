import pickle
from pathlib import Path

import pytest
import torch

from adalora_qat.adapt.inject import inject, svd_adapters
from adalora_qat.checkpoint import (
    RunFolder,
    latest_checkpoint,
    load_model,
    optimizer_tensors,
    read_tensors,
    restore_optimizer,
    save_checkpoint,
    save_model,
    write_tensors,
)
from adalora_qat.config import RunConfig
from adalora_qat.errors import CheckpointError
from adalora_qat.model.sam import random_segmenter
from adalora_qat.recipe import load_config

CONFIG = load_config("demo", ["model.variant=tiny-test", "adapt.rank=8", "adapt.schedule=[]"])


def test_pruned_adapters_reload_exactly_and_can_train_on(tmp_path: Path) -> None:
    segmenter = random_segmenter("tiny-test", 0)
    for name, adapter in inject(segmenter.image_encoder, CONFIG.adapt, seed=0).items():
        with torch.no_grad():
            adapter.lam.normal_()
            # One layer at rank 0, the others at different ranks.
            adapter.mask[0 if "layers.1" in name else 3 :] = False
        adapter.compact()
    images, boxes = torch.rand(1, 3, 64, 64), torch.tensor([[[5.0, 5.0, 50.0, 50.0]]])
    save_model(segmenter, tmp_path / "model.safetensors", CONFIG, "stage1")
    loaded, description = load_model(tmp_path / "model.safetensors")
    assert sorted(set(description["ranks"].values())) == [0, 3]
    with torch.no_grad():
        for a, b in zip(segmenter(images, boxes), loaded(images, boxes), strict=True):
            assert torch.equal(a, b)
    loaded(images, boxes)[0].sum().backward()
    assert all(a.lam.grad is not None for a in svd_adapters(loaded).values())


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(3.0), "a": torch.ones(2, 2)}
    header = {"epoch": 1, "name": "x"}
    for name in ("one", "two"):
        write_tensors(tmp_path / name, tensors, header)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert read_tensors(tmp_path / "one")[1] == header


def test_only_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        save_checkpoint(tmp_path, step, {"x": torch.tensor([step])}, {"step": step})
    assert len(list(tmp_path.iterdir())) == 2
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found[1] == {"step": 10}


@pytest.mark.parametrize("damage", ["truncated", "pickle", "foreign", "missing"])
def test_what_is_not_a_model_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "model.safetensors"
    if damage == "truncated":
        save_model(random_segmenter("tiny-test", 0), path, CONFIG, "stage1")
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "pickle":
        path.write_bytes(pickle.dumps({"weights": print}))
    elif damage == "foreign":
        from safetensors.torch import save_file

        save_file({"x": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match=r"model.safetensors"):
        load_model(path)


def test_a_folder_with_other_things_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(CheckpointError, match="not empty and not a run folder"):
        RunFolder.create(tmp_path, RunConfig())
    with pytest.raises(CheckpointError, match=r"no config\.yaml"):
        RunFolder.open(tmp_path)


@pytest.mark.parametrize(
    "made",
    [
        "stage1/checkpoints/step-00000001.safetensors",
        "stage1/model.safetensors",
        # Of an unfinished nnU-Net, which goes on with the images that it was given.
        "stage1/nnunet/raw/Dataset001/dataset.json",
        "stage1/nnunet/results/fold_0/checkpoint_latest.pth",
        # Of a demo: a run inside the run, and images drawn by its seed.
        "decoder_only/stage1/model.safetensors",
        "data/manifest.parquet",
    ],
)
def test_a_run_that_has_made_something_keeps_its_configuration(tmp_path: Path, made: str) -> None:
    first, other = (RunConfig(name="run", seed=seed) for seed in (0, 1))
    # What a start that failed leaves does not stand in the way.
    RunFolder.create(tmp_path, first)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "image.npy").touch()
    (tmp_path / "provenance.json").touch()
    (tmp_path / "stage1" / "checkpoints").mkdir(parents=True)
    assert RunFolder.create(tmp_path, other).config == other
    (tmp_path / made).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / made).touch()
    with pytest.raises(CheckpointError, match="seed is 1 there, 0 here"):
        RunFolder.create(tmp_path, first)
    assert RunFolder.open(tmp_path).config == other


@pytest.mark.parametrize("fused", [False, True])
def test_optimizer_state_comes_back_in_the_parameters_own_layout(fused: bool) -> None:
    def made() -> tuple[torch.nn.Module, torch.optim.AdamW]:
        torch.manual_seed(0)
        layer = torch.nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
        return layer, torch.optim.AdamW(layer.parameters(), lr=0.1, fused=fused)

    def step(layer: torch.nn.Module, optimizer: torch.optim.AdamW) -> None:
        image = torch.arange(4 * 64, dtype=torch.float32).view(1, 4, 8, 8).sin()
        layer(image).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    layer, optimizer = made()
    step(layer, optimizer)
    # As a file gives them back: contiguous.
    kept = optimizer_tensors(optimizer, dict(layer.named_parameters()))
    kept = {name: tensor.detach().clone().contiguous() for name, tensor in kept.items()}
    again, resumed = made()
    again.load_state_dict(layer.state_dict())
    restore_optimizer(resumed, dict(again.named_parameters()), kept)
    state = resumed.state[again.weight]
    assert state["exp_avg"].stride() == again.weight.stride()
    step(layer, optimizer)
    step(again, resumed)
    assert torch.equal(layer.weight, again.weight)
