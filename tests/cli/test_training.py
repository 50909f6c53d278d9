"""``convert``, ``params`` and ``train --track`` from outside."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adalora_qat.cli import app
from adalora_qat.cli.training import _one_each, split_arguments
from adalora_qat.config import ModelConfig
from adalora_qat.errors import CheckpointError, ConfigError
from adalora_qat.model.sam import random_segmenter
from adalora_qat.model.weights import build
from adalora_qat.phantom.phantom import write_phantoms
from adalora_qat.train.alone import alone_in

TIMEOUT_S = 120


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "adalora_qat.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )


def refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    for word in words:
        assert word in result.stderr


# In the order of the published modules; written independently of the table under test.
_BACK = {
    "prompt_encoder.shared_embedding.positional_embedding":
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    "prompt_encoder.point_embed.": "prompt_encoder.point_embeddings.",
    "prompt_encoder.mask_embed.conv1.": "prompt_encoder.mask_downscaling.0.",
    "prompt_encoder.mask_embed.layer_norm1.": "prompt_encoder.mask_downscaling.1.",
    "prompt_encoder.mask_embed.conv2.": "prompt_encoder.mask_downscaling.3.",
    "prompt_encoder.mask_embed.layer_norm2.": "prompt_encoder.mask_downscaling.4.",
    "prompt_encoder.mask_embed.conv3.": "prompt_encoder.mask_downscaling.6.",
    "mask_decoder.transformer.layer_norm_final_attn.":
        "mask_decoder.transformer.norm_final_attn.",
    "mask_decoder.upscale_conv1.": "mask_decoder.output_upscaling.0.",
    "mask_decoder.upscale_layer_norm.": "mask_decoder.output_upscaling.1.",
    "mask_decoder.upscale_conv2.": "mask_decoder.output_upscaling.3.",
    "image_encoder.patch_embed.projection.": "image_encoder.patch_embed.proj.",
    "image_encoder.neck.conv1.": "image_encoder.neck.0.",
    "image_encoder.neck.layer_norm1.": "image_encoder.neck.1.",
    "image_encoder.neck.conv2.": "image_encoder.neck.2.",
    "image_encoder.neck.layer_norm2.": "image_encoder.neck.3.",
}  # fmt: skip


def published_name(name: str) -> str:
    for ours, theirs in _BACK.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    name = re.sub(r"^(mask_decoder\.transformer\.layers\.\d\.)layer_norm", r"\1norm", name)
    name = re.sub(
        r"^image_encoder\.layers\.(\d+)\.layer_norm", r"image_encoder.blocks.\1.norm", name
    )
    name = re.sub(r"^image_encoder\.layers\.", "image_encoder.blocks.", name)
    if "hypernetworks" in name or "iou_prediction" in name:
        name = re.sub(r"\.layers\.0\.", ".layers.1.", name)
        name = name.replace(".proj_in.", ".layers.0.").replace(".proj_out.", ".layers.2.")
    return name


@pytest.fixture
def original() -> dict[str, Tensor]:
    """Return a tiny SAM under the names of the published checkpoints."""
    state = random_segmenter("tiny-vit-test", 3).state_dict()
    return {published_name(name): tensor for name, tensor in state.items()}


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "as MedSAM's training saves it"])
def test_convert_gives_the_same_model(
    tmp_path: Path, original: dict[str, Tensor], wrapped: bool
) -> None:
    assert "image_encoder.blocks.0.attn.qkv.weight" in original
    source, out = tmp_path / "sam.pth", tmp_path / "deep" / "sam.safetensors"
    state = {f"module.{name}": t for name, t in original.items()} if wrapped else original
    torch.save({"model": state, "epoch": 3} if wrapped else state, source)
    done = run("convert", source, "--variant", "tiny-vit-test", "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["file"] == str(out)
    converted, origin = build(ModelConfig(variant="tiny-vit-test", weights=str(out)))
    assert origin.sha256 == answer["sha256"]
    expected = random_segmenter("tiny-vit-test", 3).state_dict()
    assert converted.state_dict().keys() == expected.keys()
    assert all(torch.equal(converted.state_dict()[name], expected[name]) for name in expected)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("echo ran",)


def test_convert_refuses_what_it_should(tmp_path: Path, original: dict[str, Tensor]) -> None:
    source, out = tmp_path / "sam.pth", tmp_path / "sam.safetensors"

    def convert(name: str = "tiny-vit-test", target: Path = out) -> None:
        arguments = ["convert", source, "--variant", name, "--out", target]
        app([str(each) for each in arguments], standalone_mode=False)

    with pytest.raises(CheckpointError, match=r"sam\.pth does not exist"):
        convert()
    torch.save(original, source)
    with pytest.raises(ConfigError, match="known: litemedsam"):
        convert("tiny-vit")
    with pytest.raises(CheckpointError, match=r"not fit this .* it fits --variant tiny-vit-test"):
        convert("tiny-test")
    with pytest.raises(CheckpointError, match=r"must end in \.safetensors"):
        convert(target=tmp_path / "x.pth")
    source.write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(CheckpointError, match="fetch it again"):
        convert()
    assert {path.name for path in tmp_path.iterdir()} == {"sam.pth"}


def test_convert_runs_no_pickled_code(tmp_path: Path) -> None:
    source, out = tmp_path / "sam.pth", tmp_path / "sam.safetensors"
    torch.save({"x": Bomb()}, source)
    bomb = run("convert", source, "--variant", "tiny-vit-test", "--out", out)
    refused(bomb, "pickled code, which is never run")
    assert "ran" not in bomb.stdout.split()
    assert not out.exists()


@pytest.mark.parametrize("command", ["train", "convert", "adapter"])
def test_every_command_explains_itself(command: str) -> None:
    result = run(command, "--help")
    assert result.returncode == 0
    assert len(result.stdout) > 200


def test_train_takes_the_stage1_of_another_run(tmp_path: Path) -> None:
    manifest = tmp_path / "data"
    write_phantoms(tmp_path / "phantoms", 24, seed=0, side=64)
    prepared = run("prepare", f"phantom={tmp_path / 'phantoms'}", "--out", manifest)
    assert prepared.returncode == 0, prepared.stderr
    tiny = ["model.variant=tiny-test", "model.init=random", "model.side=64", "adapt.rank=4",
            "adapt.schedule=[]", "stage1.epochs=1", "stage2.epochs=1"]  # fmt: skip
    shared = ("--data", manifest, "--cpu")
    first = run("train", "demo", *tiny, *shared, "--stage", "1", "--out", tmp_path / "first")
    assert first.returncode == 0, first.stderr
    inherit = ("--stage1", tmp_path / "first", "--out", tmp_path / "second")
    refused(run("train", "demo", *tiny, "adapt.rank=5", *shared, *inherit), "adapt.rank is 4 there")
    assert not (tmp_path / "second").exists()
    second = run("train", "demo", *tiny, "quantize.policy=w4a8", *shared, *inherit)
    assert second.returncode == 0, second.stderr
    one, other = (tmp_path / n / "stage1/model.safetensors" for n in ("first", "second"))
    assert one.read_bytes() == other.read_bytes()
    assert (tmp_path / "second/stage2/model.safetensors").is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="no locks on folders")
@pytest.mark.parametrize("command", ["train", "demo"])
def test_a_second_training_in_a_folder_is_refused(tmp_path: Path, command: str) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    write_phantoms(tmp_path / "phantoms", 20, seed=0, side=64)
    if command == "train":
        prepared = run("prepare", f"phantom={tmp_path / 'phantoms'}", "--out", data)
        assert prepared.returncode == 0, prepared.stderr
        arguments = ["train", "demo", "--data", data]
    else:
        arguments = ["demo", "--count", 20]
    with alone_in(out):
        second = run(*arguments, "--out", out, "--cpu")
    refused(second, f"another process is training in {out}", "choose another --out")
    assert list(out.iterdir()) == []


def test_params_set_the_papers_figures_beside_ours() -> None:
    result = run("params", "sam-vit-base-decoder-only", "--json")
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["paper"]["paper_name"] == "SAM Decoder FT"
    trainable = next(r for r in answer["paper"]["rows"] if r["column"] == "trainable (M)")
    assert (round(trainable["start"], 2), trainable["paper"]) == (4.06, 3.8)
    assert answer["bytes"]["float32"] == 4 * 93_735_728


def test_an_adapter_needs_a_run(tmp_path: Path) -> None:
    refused(run("adapter", tmp_path / "none", "--out", tmp_path / "out"), "is not a run folder")
    assert not (tmp_path / "out").exists()


def test_data_sets_in_one_argument_end_where_another_name_begins() -> None:
    given = ["jsrt=/my data/jsrt shenzhen=b", "own=pairs:/c"]
    assert _one_each(given) == ["jsrt=/my data/jsrt", "shenzhen=b", "own=pairs:/c"]


def test_what_changes_the_recipe_is_told_from_data() -> None:
    changes = ["seed=3", "stage1.epochs=2", "model.weights=a=b.pth", "data.prompt.jitter_px=0"]
    sources = ["shenzhen=/data/x.y", "hospital_a=pairs:/seed=1", "own.name=images:/z"]
    mixed = [each for pair in zip(changes, sources, strict=False) for each in pair] + changes[3:]
    assert split_arguments(mixed) == (changes, sources)
    # A typing error is no key of the recipe: the reading of sources then refuses it by name.
    assert split_arguments(["stage.epochs=2"]) == ([], ["stage.epochs=2"])


def test_a_wrong_recipe_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    recipe = tmp_path / "latin.yaml"
    recipe.write_bytes(b"seed: 1 # \xff\n")
    program = (
        "import sys\nfrom adalora_qat.cli import main\n"
        f"sys.argv = ['adalora-qat', 'train', {str(recipe)!r}, '-o', {str(tmp_path / 'run')!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    print(end.code, 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "2 False"
    assert "latin.yaml is not UTF-8" in done.stderr and not (tmp_path / "run").exists()
