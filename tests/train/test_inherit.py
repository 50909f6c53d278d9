import json
from collections.abc import Callable
from pathlib import Path

import pytest

from adalora_qat.checkpoint import MODEL_FILE, RunFolder
from adalora_qat.config import RunConfig
from adalora_qat.corpus.records import Record
from adalora_qat.errors import CheckpointError
from adalora_qat.files import sha256_file
from adalora_qat.train.inherit import inherit_stage1, source_of_stage1
from adalora_qat.train.stages import Resources, Training

Tiny = Callable[..., RunConfig]


def training(run: RunFolder, records: list[Record]) -> Training:
    return Training(run, records[:7], records[7:], Resources(cpu=True))


@pytest.fixture
def first(tmp_path: Path, tiny: Tiny, phantoms: list[Record]) -> RunFolder:
    run = RunFolder.create(tmp_path / "first", tiny())
    training(run, phantoms).stage1()
    return run


def test_a_second_stage_from_another_runs_first(
    tmp_path: Path, tiny: Tiny, phantoms: list[Record], first: RunFolder
) -> None:
    config = tiny("quantize.policy=w4a8", "stage2.epochs=1")
    run = RunFolder.create(tmp_path / "second", config)
    inherit_stage1(run, source_of_stage1(first.path, config))
    model = first.stage("stage1") / MODEL_FILE
    assert (run.stage("stage1") / MODEL_FILE).read_bytes() == model.read_bytes()
    for name in ("history.csv", "epochs.csv", "ranks.csv", "ranks.json"):
        assert (run.stage("stage1") / name).is_file()
    found = json.loads((run.path / "provenance.json").read_text())
    assert found["stage1"]["sha256"] == sha256_file(model)
    assert found["stage1"]["run"] == "first"
    assert found["stage1"]["provenance"]["weights"] == found["weights"]
    # Called again, as when an interrupted run is continued, it changes nothing.
    inherit_stage1(run, first)
    again = training(run, phantoms)
    again.stage1()
    again.quantize()
    again.stage2()
    assert run.finished("stage2")
    assert sha256_file(run.stage("stage1") / MODEL_FILE) == found["stage1"]["sha256"]


def test_another_recipe_is_refused(tmp_path: Path, tiny: Tiny, first: RunFolder) -> None:
    for change in ("stage1.lr_encoder=2e-2", "adapt.rank=9", "model.side=128"):
        with pytest.raises(CheckpointError, match=change.partition("=")[0]):
            source_of_stage1(first.path, tiny(change))
    with pytest.raises(CheckpointError, match="not a run folder"):
        source_of_stage1(tmp_path / "none", tiny())
    unfinished = RunFolder.create(tmp_path / "unfinished", tiny())
    with pytest.raises(CheckpointError, match="no finished stage 1"):
        source_of_stage1(unfinished.path, tiny())


def test_a_stage1_of_its_own_is_kept(tmp_path: Path, tiny: Tiny, first: RunFolder) -> None:
    run = RunFolder.create(tmp_path / "other", tiny())
    own = run.stage("stage1") / MODEL_FILE
    own.parent.mkdir()
    own.write_bytes(b"another model")
    with pytest.raises(CheckpointError, match="another stage 1"):
        inherit_stage1(run, first)
    own.unlink()
    (own.parent / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="begun a stage 1"):
        inherit_stage1(run, first)
    assert not own.exists()
