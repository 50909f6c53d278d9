"""Stage 2 with more than the paper's Λ: what trains, what is asked back, and that it resumes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from adalora_qat.checkpoint import MODEL_FILE, RunFolder, load_model
from adalora_qat.config import RunConfig
from adalora_qat.corpus.records import Record
from adalora_qat.errors import ConfigError, TrainingError
from adalora_qat.export.run import deployable
from adalora_qat.model.sam import Segmenter
from adalora_qat.quantize.compensate import branches
from adalora_qat.train.inherit import inherit_stage1
from adalora_qat.train.objective import LossWeights, Objective
from adalora_qat.train.selection import choose_trainable_stage2, parameter_groups_stage2
from adalora_qat.train.stages import Resources, Training

Tiny = Callable[..., RunConfig]
W4A8 = ("quantize.policy=w4a8", "stage2.lr_encoder=1e-3", "stage2.lr_decoder=1e-3",
        "stage2.lr_adapters=1e-3", "stage2.lr_scales=1e-4")  # fmt: skip
EVERYTHING = (
    *W4A8,
    "quantize.compensate=lqer",
    "quantize.compensate_rank=2",
    "quantize.compensate_iterations=2",
    "stage2.train=[lambda, adapters, encoder, decoder, scales]",
    "stage2.distill=0.5",
    "stage2.distill_embeddings=0.5",
    "stage2.batch_size=2",
    "stage2.warmup_steps=2",
    "stage2.lr_decay=cosine",
    "stage2.ema=0.9",
    "stage2.clip_norm=1.0",
)


@pytest.fixture(scope="module")
def first(
    tmp_path_factory: pytest.TempPathFactory, tiny: Tiny, phantoms: list[Record]
) -> RunFolder:
    """Train one stage 1 for all tests here."""
    run = RunFolder.create(tmp_path_factory.mktemp("low_bit") / "first", tiny())
    Training(run, phantoms[:7], phantoms[7:], Resources(cpu=True)).stage1()
    return run


def second(
    path: Path, config: RunConfig, records: list[Record], first: RunFolder, **resources: object
) -> RunFolder:
    run = RunFolder.create(path, config)
    inherit_stage1(run, first)
    training = Training(run, records[:7], records[7:], Resources(cpu=True, **resources))
    training.quantize()
    training.stage2()
    return run


def model(run: RunFolder, stage: str) -> Segmenter:
    return load_model(run.stage(stage) / MODEL_FILE)[0]


def moved(run: RunFolder) -> set[str]:
    """Return the names of what stage 2 changed."""
    before, after = (model(run, stage).state_dict() for stage in ("ptq", "stage2"))
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def leaf(name: str) -> str:
    return name.rpartition(".")[2]


def test_adapters_train_through_the_rounding(
    tmp_path: Path, tiny: Tiny, phantoms: list[Record], first: RunFolder
) -> None:
    run = second(tmp_path / "r", tiny(*W4A8, "stage2.train=[adapters]"), phantoms, first)
    assert {leaf(name) for name in moved(run)} == {"P", "lam", "Q"}


def test_encoder_and_scales(
    tmp_path: Path, tiny: Tiny, phantoms: list[Record], first: RunFolder
) -> None:
    config = tiny("stage2.train=[encoder]", *W4A8)
    names = moved(second(tmp_path / "encoder", config, phantoms, first))
    assert all(name.startswith("image_encoder.") for name in names)
    assert not {leaf(name) for name in names} & {"P", "lam", "Q", "scale"}
    # Adapted, few-bit, float32-norm and stem layers alike.
    for part in ("qkv.layer.weight", "fc1.layer.weight", "norm.weight", "patch_embed.seq.0.c"):
        assert any(part in name for name in names), part
    config = tiny("stage2.train=[scales]", *W4A8)
    names = moved(second(tmp_path / "scales", config, phantoms, first))
    assert {leaf(name) for name in names} == {"scale"}


def test_integers_follow_a_scale_that_is_learned(
    tmp_path: Path, tiny: Tiny, phantoms: list[Record], first: RunFolder
) -> None:
    config = tiny(*W4A8, "stage2.train=[scales]", "stage2.epochs=0")
    segmenter = model(second(tmp_path / "r", config, phantoms, first), "ptq")
    choose_trainable_stage2(segmenter, config)
    layer = segmenter.image_encoder.layers[1].blocks[0].mlp.fc1
    before = layer.quantized_weight().detach() / layer.weight_quantizer.broadcast(
        layer.layer.weight
    )
    with torch.no_grad():
        layer.weight_quantizer.scale *= 2
    after = layer.quantized_weight().detach() / layer.weight_quantizer.broadcast(layer.layer.weight)
    assert after.abs().max() < before.abs().max()


def test_learning_rates_go_to_their_kinds(
    tmp_path: Path, tiny: Tiny, phantoms: list[Record], first: RunFolder
) -> None:
    config = tiny(
        *EVERYTHING, "stage2.epochs=0", "stage2.lr_lambda=7e-3", "stage2.weight_decay=0.1"
    )
    segmenter = model(second(tmp_path / "r", config, phantoms, first), "ptq")
    choose_trainable_stage2(segmenter, config)
    names = {id(p): name for name, p in segmenter.named_parameters()}
    found: dict[str, tuple[float, float]] = {}
    for group in parameter_groups_stage2(segmenter, config):
        for parameter in group["params"]:
            found[names[id(parameter)]] = (group["lr"], group["weight_decay"])
    assert len(found) == sum(p.requires_grad for p in segmenter.parameters())
    for name, given in found.items():
        if leaf(name) == "lam":
            assert given == (7e-3, 0.0)
        elif leaf(name) in {"P", "Q"}:
            assert given == (config.stage2.lr_adapters, 0.0)
        elif leaf(name) == "scale":
            assert given == (config.stage2.lr_scales, 0.0)
        else:
            assert given[0] == 1e-3
            assert given[1] == (0.1 if segmenter.get_parameter(name).ndim > 1 else 0.0)


def test_everything_at_once_resumes_reloads_and_ships(
    tmp_path: Path, tiny: Tiny, phantoms: list[Record], first: RunFolder
) -> None:
    config = tiny(*EVERYTHING)
    whole = second(tmp_path / "whole", config, phantoms, first)

    class StopError(Exception):
        pass

    for step in (1, 3, 6):

        def stop(report: object, at: int = step) -> None:
            if report.step == at:  # type: ignore[attr-defined]
                raise StopError

        with pytest.raises(StopError):
            second(
                tmp_path / "broken", config, phantoms, first, on_step=stop, checkpoint_seconds=0.0
            )
    broken = second(tmp_path / "broken", config, phantoms, first)
    for stage in ("ptq", "stage2"):
        one, other = (run.stage(stage) / MODEL_FILE for run in (whole, broken))
        assert one.read_bytes() == other.read_bytes()
    rows = json.loads((whole.stage("ptq") / "compensation.json").read_text())
    assert all(row["after"] < row["before"] for row in rows)
    segmenter = model(whole, "stage2")
    assert branches(segmenter) == {row["name"]: row["rank"] for row in rows}
    image, box = torch.rand(1, 3, 64, 64), torch.tensor([[[5.0, 5, 50, 60]]])
    with torch.no_grad():
        expected = segmenter(image, box)
        found = deployable(segmenter)(image, box)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_model_may_hold_adapters_and_branches(
    tmp_path: Path, tiny: Tiny, phantoms: list[Record], first: RunFolder
) -> None:
    options = ("quantize.compensate=loftq", "quantize.compensate_targets=['*layers.1*']")
    config = tiny(*W4A8, *options, "stage2.epochs=0")
    run = second(tmp_path / "r", config, phantoms, first)
    _, description = load_model(run.stage("ptq") / MODEL_FILE)
    assert description["ranks"]
    assert not any("layers.1" in name for name in description["ranks"])
    assert any(name.endswith("layers.1.blocks.0.attn.qkv") for name in description["branches"])


def test_the_teacher_is_stage_one_and_stays_so(
    tmp_path: Path, tiny: Tiny, phantoms: list[Record], first: RunFolder
) -> None:
    teacher, student = model(first, "stage1"), model(first, "stage1")
    tensors = {
        "inputs": torch.rand(2, 3, 64, 64),
        "boxes": torch.tensor([[[5.0, 5, 50, 60]]] * 2),
        "masks": (torch.rand(2, 1, 64, 64) > 0.5).float(),
        "valid": torch.ones(2, 1, 64, 64),
        "weights": torch.full((2,), 0.5),
    }
    objective = Objective(student, LossWeights(distill=1, embeddings=1), "image", teacher=teacher)
    with torch.no_grad():
        assert float(objective(tensors).distill) == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        student.image_encoder.layers[2].blocks[0].mlp.fc1.weight.mul_(1.5)
    student.requires_grad_(True)
    losses = objective(tensors)
    assert losses.distill.item() > 1e-4
    parts = losses.bce + losses.dice + losses.distill
    assert losses.total.item() == pytest.approx(parts.item())
    losses.total.backward()
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert losses.distill.requires_grad


def test_what_cannot_be_is_said(
    tmp_path: Path, tiny: Tiny, phantoms: list[Record], first: RunFolder
) -> None:
    with pytest.raises(ConfigError, match="finds no linear layer of at most 4 bits"):
        second(tmp_path / "a", tiny("quantize.compensate=loftq"), phantoms, first)
    config = tiny("stage2.train=[]")
    with pytest.raises(TrainingError, match=r"stage2\.train=\[\]"):
        choose_trainable_stage2(model(first, "stage1"), config)
