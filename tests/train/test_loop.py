"""The loop's options, each on a tiny model: pruning rules, skipped steps, memory, trackers."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from adalora_qat.adapt.inject import svd_adapters
from adalora_qat.checkpoint import MODEL_FILE, RunFolder, load_model
from adalora_qat.config import RunConfig
from adalora_qat.corpus.records import Record
from adalora_qat.errors import CheckpointError, ConfigError, TrainingError
from adalora_qat.model.weights import build
from adalora_qat.train import objective
from adalora_qat.train.stages import Resources, Training
from adalora_qat.train.state import StepReport

Tiny = Callable[..., RunConfig]
VIT = ("model.variant=tiny-vit-test", "model.side=null", "adapt.rank=8")


def stage1(path: Path, config: RunConfig, records: list[Record], **given: object) -> RunFolder:
    run = RunFolder.create(path, config)
    Training(run, records[:7], records[7:], Resources(cpu=True, **given)).stage1()  # type: ignore[arg-type]
    return run


def rows(run: RunFolder) -> list[dict[str, float]]:
    with (run.stage("stage1") / "history.csv").open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def events(run: RunFolder) -> list[dict[str, object]]:
    return list(json.loads((run.stage("stage1") / "ranks.json").read_text()))


CUBIC = ("adapt.importance=peft", "adapt.allocation=cubic", "adapt.cubic_interval=2",
         "stage1.batch_size=1")  # fmt: skip


def test_the_cubic_schedule_prunes_inside_epochs_and_compacts_at_its_end(
    tmp_path: Path, tiny: Tiny, phantoms: list[Record]
) -> None:
    run = stage1(tmp_path / "run", tiny(*CUBIC), phantoms)
    # 21 steps, of which 10 % and 30 % at the ends do not prune.
    assert [event["step"] for event in events(run)] == [4, 6, 8, 10, 12, 14, 15]
    segmenter, _ = load_model(run.stage("stage1") / MODEL_FILE)
    adapters = svd_adapters(segmenter.image_encoder)
    assert sum(adapter.rank for adapter in adapters.values()) == 4 * len(adapters)


def test_a_cubic_run_resumes_to_the_bit(tmp_path: Path, tiny: Tiny, phantoms: list[Record]) -> None:
    class StopError(Exception):
        pass

    def stop(report: StepReport) -> None:
        if report.step == 9:
            raise StopError

    whole = stage1(tmp_path / "whole", tiny(*CUBIC), phantoms)
    with pytest.raises(StopError):
        stage1(tmp_path / "b", tiny(*CUBIC), phantoms, on_step=stop, checkpoint_seconds=0.0)
    broken = stage1(tmp_path / "b", tiny(*CUBIC), phantoms)
    one, two = (run.stage("stage1") / MODEL_FILE for run in (whole, broken))
    assert one.read_bytes() == two.read_bytes()
    assert events(whole) == events(broken)


def test_the_importance_decides_what_is_pruned(
    tmp_path: Path, tiny: Tiny, phantoms: list[Record]
) -> None:
    ours, theirs = (
        stage1(tmp_path / kind, tiny(f"adapt.importance={kind}"), phantoms)
        for kind in ("paper", "peft")
    )
    assert events(ours)[0]["importance"] != events(theirs)[0]["importance"]


def test_recomputed_activations_give_the_same_weights(
    tmp_path: Path, tiny: Tiny, phantoms: list[Record]
) -> None:
    plain, spared = (
        stage1(tmp_path / flag, tiny(*VIT, f"gradient_checkpointing={flag}"), phantoms)
        for flag in ("false", "true")
    )
    one, two = (load_model(run.stage("stage1") / MODEL_FILE)[0] for run in (plain, spared))
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name]), name


def test_layers_are_computed_again_in_the_backward_pass(
    tmp_path: Path, tiny: Tiny, phantoms: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    from adalora_qat.model.sam import random_segmenter
    from adalora_qat.train.placement import recompute_activations

    segmenter = random_segmenter("tiny-vit-test", 0)
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    segmenter.image_encoder.layers[0].register_forward_pre_hook(count)
    recompute_activations(segmenter)
    segmenter.encode(torch.rand(1, 3, 64, 64)).sum().backward()
    assert calls == 2


def test_recomputing_is_for_vit_encoders(
    tmp_path: Path, tiny: Tiny, phantoms: list[Record]
) -> None:
    with pytest.raises(ConfigError, match="not for tiny-test"):
        stage1(tmp_path / "run", tiny("gradient_checkpointing=true"), phantoms)


def scaled(training: Training, monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    """Scale losses as fp16 does, which Accelerate offers on GPUs only."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    training.accelerator.scaler = scaler
    monkeypatch.setattr(
        training.accelerator,
        "unscale_gradients",
        lambda optimizer: scaler.unscale_(optimizer.optimizer),
    )


def test_overflowed_steps_are_skipped_counted_and_shown(
    tmp_path: Path, tiny: Tiny, phantoms: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    run = RunFolder.create(tmp_path / "run", tiny("stage1.batch_size=1"))
    watched = Resources(cpu=True, on_step=lambda report: seen.append(report.skipped))
    training = Training(run, phantoms[:7], phantoms[7:], watched)
    scaled(training, monkeypatch, 2.0**127)
    original = objective.bce_loss
    monkeypatch.setattr(objective, "bce_loss", lambda *given: 64 * original(*given))
    training.stage1()
    skipped = [row["skipped"] for row in rows(run)]
    assert skipped == seen
    assert skipped[0] == 1
    # The scale falls at each of them until the gradients fit.
    assert skipped[-1] < len(skipped)
    assert skipped == sorted(skipped)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_fp16_skips_overflows_and_trains_on(
    tmp_path: Path, tiny: Tiny, phantoms: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[StepReport] = []
    config = tiny("stage1.batch_size=1", "precision=fp16", "adapt.schedule=[]")
    run = RunFolder.create(tmp_path / "run", config)
    original = objective.bce_loss
    # Scaled by 65,536 on top, gradients overflow at first; halved a few times, they fit.
    monkeypatch.setattr(objective, "bce_loss", lambda *given: 4096 * original(*given))
    training = Training(run, phantoms[:7], phantoms[7:], Resources(on_step=seen.append))
    training.stage1()
    skipped = [report.skipped for report in seen]
    assert [row["skipped"] for row in rows(run)] == skipped
    assert skipped[0] == 1
    assert skipped == sorted(skipped)
    assert skipped[-1] < len(skipped) == 21
    after = load_model(run.stage("stage1") / MODEL_FILE)[0].mask_decoder.state_dict()
    before = build(config.model)[0].mask_decoder.state_dict()
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_skipped_step_changes_no_weight(
    tmp_path: Path, tiny: Tiny, phantoms: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder.create(tmp_path / "run", tiny("stage1.batch_size=1", "stage1.ema=0.5"))
    training = Training(run, phantoms[:7], phantoms[7:], Resources(cpu=True))
    scaled(training, monkeypatch, 2.0**127)
    original = objective.bce_loss
    monkeypatch.setattr(objective, "bce_loss", lambda *given: 2.0**40 * original(*given))
    training.stage1()
    assert rows(run)[-1]["skipped"] == len(rows(run)) == 21
    after = load_model(run.stage("stage1") / MODEL_FILE)[0].mask_decoder.state_dict()
    before = build(run.config.model)[0].mask_decoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_gradient_that_is_broken_at_every_scale_is_an_error(
    tmp_path: Path, tiny: Tiny, phantoms: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder.create(tmp_path / "run", tiny("stage1.batch_size=1"))
    training = Training(run, phantoms[:7], phantoms[7:], Resources(cpu=True))
    scaled(training, monkeypatch, 4.0)
    original = objective.bce_loss

    def broken(logits: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        # √0 is 0, and its slope infinite.
        return original(logits, *rest) + (logits - logits).abs().sqrt().sum()

    monkeypatch.setattr(objective, "bce_loss", broken)
    with pytest.raises(TrainingError, match="the gradient is not finite at epoch 1, step 4"):
        training.stage1()


def test_a_batch_too_large_for_the_memory_is_explained(
    tmp_path: Path, tiny: Tiny, phantoms: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = objective.bce_loss

    def small_machine(logits: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        if len(logits) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")
        return original(logits, *rest)

    monkeypatch.setattr(objective, "bce_loss", small_machine)
    with pytest.raises(TrainingError, match=r"4 images at once .* set stage1.accumulate=2"):
        stage1(tmp_path / "run", tiny(), phantoms)
    assert not (tmp_path / "run" / "stage1" / MODEL_FILE).exists()
    # What was advised works, in the folder of another configuration.
    stage1(tmp_path / "again", tiny("stage1.accumulate=2"), phantoms)


def test_tensorboard_is_told_what_the_history_says(
    tmp_path: Path, tiny: Tiny, phantoms: list[Record]
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = RunFolder.create(tmp_path / "run", tiny())
    training = Training(
        run, phantoms[:7], phantoms[7:], Resources(cpu=True, track=("tensorboard",))
    )
    training.stage1()
    for tracker in training.accelerator.trackers:
        tracker.finish()
    found = {}
    for file in sorted((run.path / "tracking").rglob("events.out.tfevents*")):
        events = accumulator.EventAccumulator(str(file))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            found[tag] = [(scalar.step, scalar.value) for scalar in events.Scalars(tag)]
    expected = [(row["step"], pytest.approx(row["total"])) for row in rows(run)]
    assert found["stage1/total"] == expected
    assert len(found["stage1/val_dice"]) == 3


def test_a_checkpoint_of_another_model_is_refused(
    tmp_path: Path, tiny: Tiny, phantoms: list[Record]
) -> None:
    class StopError(Exception):
        pass

    def stop(report: StepReport) -> None:
        if report.epoch == 2:
            raise StopError

    frozen = ("stage1.encoder=frozen", "adapt.method=none")
    with pytest.raises(StopError):
        stage1(tmp_path / "one", tiny(*frozen), phantoms, on_step=stop)
    # As if its files had been copied into the run of another recipe.
    full = RunFolder.create(tmp_path / "two", tiny("stage1.encoder=full", "adapt.method=none"))
    shutil.copytree(tmp_path / "one" / "stage1", full.stage("stage1"))
    with pytest.raises(CheckpointError, match=r"another model or recipe .*image_encoder"):
        Training(full, phantoms[:7], phantoms[7:], Resources(cpu=True)).stage1()
