"""Both stages on a tiny model: reproducible, resumable, stopped before harm."""

import csv
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from child_processes import in_double

from adalora_qat.adapt.inject import svd_adapters
from adalora_qat.checkpoint import MODEL_FILE, RunFolder, load_model
from adalora_qat.config import RunConfig
from adalora_qat.corpus.records import Record
from adalora_qat.errors import CheckpointError, DataError, TrainingError
from adalora_qat.train.selection import choose_trainable_stage1
from adalora_qat.train.stages import Resources, Training

Tiny = Callable[..., RunConfig]


def train(path: Path, config: RunConfig, records: list[Record], **resources: object) -> RunFolder:
    run = RunFolder.create(path, config)
    training = Training(run, records[:7], records[7:], Resources(cpu=True, **resources))
    training.stage1()
    training.quantize()
    training.stage2()
    return run


def weights(run: RunFolder, stage: str) -> bytes:
    return (run.stage(stage) / MODEL_FILE).read_bytes()


def test_same_seed_same_bytes_and_ranks_follow_the_budget(
    tmp_path: Path, tiny: Tiny, phantoms: list[Record]
) -> None:
    one, two = (train(tmp_path / name, tiny(), phantoms) for name in ("a", "b"))
    for stage in ("stage1", "ptq", "stage2"):
        assert weights(one, stage) == weights(two, stage)
        history = one.stage(stage) / "history.csv"
        if stage != "ptq":
            assert history.read_text() == (two.stage(stage) / "history.csv").read_text()
    segmenter, description = load_model(one.stage("stage1") / MODEL_FILE)
    ranks = [adapter.rank for adapter in svd_adapters(segmenter.image_encoder).values()]
    assert sum(ranks) == 4 * len(ranks)
    assert description["ranks"]
    events = json.loads((one.stage("stage1") / "ranks.json").read_text())
    # Written for 4 epochs at 1 and 2; 3 epochs scale them to 1 and 2.
    assert [(event["epoch"], event["budget"]) for event in events] == [(1, 18), (2, 12)]


def test_stage2_moves_lambda_and_nothing_else(
    tmp_path: Path, tiny: Tiny, phantoms: list[Record]
) -> None:
    run = train(tmp_path / "run", tiny(), phantoms)
    before, after = (load_model(run.stage(s) / MODEL_FILE)[0] for s in ("ptq", "stage2"))
    moved = {
        name.rpartition(".")[2]
        for (name, a), (_, b) in zip(
            before.state_dict().items(), after.state_dict().items(), strict=True
        )
        if not torch.equal(a, b)
    }
    assert moved == {"lam"}


def test_zero_epochs_of_stage2_are_ptq(tmp_path: Path, tiny: Tiny, phantoms: list[Record]) -> None:
    run = train(tmp_path / "run", tiny("stage2.epochs=0"), phantoms)
    ptq, qat = (load_model(run.stage(s) / MODEL_FILE)[0].state_dict() for s in ("ptq", "stage2"))
    assert all(torch.equal(ptq[name], qat[name]) for name in ptq)


def test_a_recipe_without_a_second_stage_ends_where_nothing_could_train(
    tmp_path: Path, tiny: Tiny, phantoms: list[Record]
) -> None:
    frozen = ("stage1.encoder=frozen", "adapt.method=none", "quantize.policy=none")
    run = train(tmp_path / "run", tiny(*frozen, "stage2.epochs=0"), phantoms)
    first, last = (
        load_model(run.stage(s) / MODEL_FILE)[0].state_dict() for s in ("stage1", "stage2")
    )
    assert all(torch.equal(first[name], last[name]) for name in first)


@pytest.mark.parametrize("kept", [True, False], ids=["kept features", "every image anew"])
def test_an_interrupted_run_ends_like_an_unbroken_one(
    tmp_path: Path, tiny: Tiny, phantoms: list[Record], kept: bool
) -> None:
    room = {"feature_bytes": 2**30 if kept else 0}
    config = tiny("stage1.batch_size=2")
    whole = train(tmp_path / "whole", config, phantoms, **room)

    class StopError(Exception):
        pass

    def stop_at(step: int) -> Callable[[object], None]:
        def on_step(report: object) -> None:
            if report.step == step:  # type: ignore[attr-defined]
                raise StopError

        return on_step

    # Steps before, at and after the prunings; a checkpoint after each step.
    for step in (2, 5, 9):
        with pytest.raises(StopError):
            train(
                tmp_path / "broken",
                config,
                phantoms,
                on_step=stop_at(step),
                checkpoint_seconds=0.0,
                **room,
            )
    broken = train(tmp_path / "broken", config, phantoms, **room)
    for stage in ("stage1", "stage2"):
        assert weights(broken, stage) == weights(whole, stage)
    assert not (broken.stage("stage1") / "checkpoints").exists()


_CHILD = """
import sys
from pathlib import Path
import torch
from adalora_qat.checkpoint import RunFolder
from adalora_qat.corpus.sources import read_source
from adalora_qat.train.stages import Resources, Training
torch.set_num_threads(1)
run = RunFolder.open(Path(sys.argv[1]))
records = sorted(read_source("phantom", Path(sys.argv[2])).records, key=lambda r: r.id)
training = Training(run, records[:7], records[7:], Resources(cpu=True, checkpoint_seconds=0.0))
print("ready", flush=True)
training.stage1()
training.quantize()
training.stage2()
"""


@pytest.mark.slow
def test_sigkill_at_any_moment_changes_nothing(
    tmp_path: Path, tiny: Tiny, phantoms: list[Record]
) -> None:
    config = tiny("stage1.batch_size=2", "stage1.epochs=8")
    whole = train(tmp_path / "whole", config, phantoms)
    killed = RunFolder.create(tmp_path / "killed", config)
    folder = phantoms[0].image.parents[1]
    command = [sys.executable, "-c", _CHILD, str(killed.path), str(folder)]
    deaths = 0
    for attempt in range(200):
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}
        ) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(0.05 + 0.11 * (attempt % 17))
            if child.poll() is not None:
                break
            child.send_signal(signal.SIGKILL)
            deaths += 1
    assert deaths >= 5
    for stage in ("stage1", "ptq", "stage2"):
        assert weights(killed, stage) == weights(whole, stage)


def test_nan_stops_before_the_optimizer_moves(
    tmp_path: Path, tiny: Tiny, phantoms: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    from adalora_qat.train import objective

    original = objective.dice_loss
    monkeypatch.setattr(objective, "dice_loss", lambda *a: original(*a) * float("nan"))
    run = RunFolder.create(tmp_path / "run", tiny())
    training = Training(run, phantoms[:7], phantoms[7:], Resources(cpu=True))
    with pytest.raises(TrainingError, match=r"loss is not finite at epoch 1, step 1 .*phantom"):
        training.stage1()
    assert not run.finished("stage1")


def test_order_inside_a_step(
    tmp_path: Path, tiny: Tiny, phantoms: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import Accelerator

    from adalora_qat.adapt.rank_budget import RankBudget
    from adalora_qat.train import loop

    seen: list[str] = []

    def spy(owner: object, name: str, label: str) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def wrapper(*args: object, **kwargs: object) -> object:
            seen.append(label)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapper)

    spy(Accelerator, "backward", "backward")
    spy(Accelerator, "unscale_gradients", "unscale")
    spy(loop.Loop, "_finite", "finite check")
    spy(RankBudget, "accumulate", "importance")
    spy(torch.nn.utils, "clip_grad_norm_", "clip")
    spy(torch.optim.AdamW, "step", "optimizer")
    spy(loop, "after_step", "rank mask")
    spy(torch.optim.AdamW, "zero_grad", "zero grad")
    run = RunFolder.create(tmp_path / "run", tiny("stage1.clip_norm=1.0"))
    Training(run, phantoms[:4], phantoms[7:], Resources(cpu=True)).stage1()
    assert seen[:8] == [
        "backward",
        "unscale",
        "finite check",
        "importance",
        "clip",
        "optimizer",
        "rank mask",
        "zero grad",
    ]


def test_accumulation_computes_the_same_step(
    tmp_path: Path, tiny: Tiny, phantoms: list[Record]
) -> None:
    found = []
    # Float64: in float32 the learning rates here enlarge the rounding of another order of sums.
    with in_double():
        for n in (1, 4):
            run = RunFolder.create(tmp_path / str(n), tiny(f"stage1.accumulate={n}"))
            Training(run, phantoms[:7], phantoms[7:], Resources(cpu=True)).stage1()
            found.append(losses(run))
    first, second = found
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert a == pytest.approx(b, rel=1e-10, abs=1e-10)


def losses(run: RunFolder) -> list[dict[str, float]]:
    with (run.stage("stage1") / "history.csv").open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def test_a_step_shared_out_for_want_of_memory_stays_so_when_resumed(
    tmp_path: Path, tiny: Tiny, phantoms: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny("stage1.batch_size=4", "stage2.epochs=0")
    told: list[str] = []

    def start(name: str, free: int, chosen: RunConfig = config, **resources: object) -> RunFolder:
        monkeypatch.setattr("adalora_qat.train.stages.free_memory", lambda: free)
        return train(tmp_path / name, chosen, phantoms, tell=told.append, **resources)

    def stop(report: object) -> None:
        if report.step == 2:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    # Nothing is free: one image at a time. Then memory is plenty, of which a new run makes use.
    scarce, plenty = 0, 10**12
    whole = start("whole", scarce)
    with pytest.raises(KeyboardInterrupt):
        start("broken", scarce, on_step=stop, checkpoint_seconds=0.0)
    broken = start("broken", plenty)
    assert weights(broken, "stage1") == weights(whole, "stage1")
    assert computed(broken)["accumulate"] == computed(whole)["accumulate"] == 4
    assert "1 images at once" in told[0]
    assert "4 would take too much" in told[0]
    assert computed(start("new", plenty))["accumulate"] == 1

    # What the recipe itself says is not changed, only questioned.
    told.clear()
    stated = start("stated", scarce, tiny("stage1.batch_size=4", "stage1.accumulate=2"))
    assert computed(stated)["accumulate"] == 2
    assert "set stage1.accumulate=4 if it is too much" in told[0]


def computed(run: RunFolder) -> dict[str, object]:
    provenance = json.loads((run.path / "provenance.json").read_text("utf-8"))
    found: dict[str, object] = provenance["computed"]["stage1"]
    return found


def test_another_configuration_is_refused(tmp_path: Path, tiny: Tiny) -> None:
    # Before a stage has left anything, a corrected configuration takes the folder over.
    RunFolder.create(tmp_path / "run", tiny("stage1.epochs=4"))
    run = RunFolder.create(tmp_path / "run", tiny())
    assert RunFolder.open(run.path).config == tiny()
    (run.stage("stage1") / "checkpoints").mkdir(parents=True)
    (run.stage("stage1") / "checkpoints" / "step-00000001.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"stage1.epochs is 3 there, 5 here"):
        RunFolder.create(tmp_path / "run", tiny("stage1.epochs=5"))


def test_nothing_to_train_is_an_error(tiny: Tiny) -> None:
    from adalora_qat.model.weights import build

    config = tiny("stage1.encoder=frozen", "stage1.decoder=frozen")
    with pytest.raises(TrainingError, match="nothing trains"):
        choose_trainable_stage1(build(config.model)[0], config)


def test_training_needs_both_splits(tmp_path: Path, tiny: Tiny, phantoms: list[Record]) -> None:
    run = RunFolder.create(tmp_path / "run", tiny())
    with pytest.raises(DataError, match="needs train and val records"):
        Training(run, phantoms, [])
