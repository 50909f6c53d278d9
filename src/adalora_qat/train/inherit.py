"""Stage 1 of another run as a run's own: many second stages of one first stage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from adalora_qat.checkpoint import MODEL_FILE, RunFolder, differences, write_provenance
from adalora_qat.config import RunConfig
from adalora_qat.errors import CheckpointError
from adalora_qat.files import atomic_write, sha256_file

# What decides stage 1's model, beside the data. A run's configuration describes its own first
# stage, so these must be the same; seed and precision may differ, and are written down.
SECTIONS = ("model", "adapt", "stage1")


def source_of_stage1(path: Path, config: RunConfig) -> RunFolder:
    """Return the run folder at ``path``, whose stage 1 a run of ``config`` can take.

    Raises
    ------
    CheckpointError
        If it is no run folder, its stage 1 has not ended, or it is of another recipe.
    """
    source = RunFolder.open(path)
    if not source.finished("stage1"):
        raise CheckpointError(
            f"{path} has no finished stage 1; run `adalora-qat train` there to its end"
        )
    own, theirs = (
        {
            # Which structures are asked for twice is decided after training.
            name: each.model_dump(mode="json", exclude={"model": {"refine"}})[name]
            for name in SECTIONS
        }
        for each in (config, source.config)
    )
    found = differences(theirs, own)
    if found:
        raise CheckpointError(
            f"stage 1 of {path} is of another recipe: {found}; give the same "
            f"{', '.join(SECTIONS)} sections, or train stage 1 anew without --stage1"
        )
    return source


def inherit_stage1(run: RunFolder, source: RunFolder) -> None:
    """Copy the stage 1 of ``source`` into ``run``, and write where it came from.

    ``provenance.json`` of ``run`` names the source's folder, the SHA-256 of its model, and the
    provenance and configuration that it was trained with. Calling it again does nothing.

    Raises
    ------
    CheckpointError
        If ``run`` has a stage 1 of its own.
    """
    model, folder = source.stage("stage1") / MODEL_FILE, run.stage("stage1")
    digest = sha256_file(model)
    if run.finished("stage1"):
        if sha256_file(folder / MODEL_FILE) != digest:
            raise CheckpointError(
                f"{run.path} has another stage 1 than {source.path}; choose another --out"
            )
        return
    if (folder / "checkpoints").exists():
        raise CheckpointError(
            f"{run.path} has begun a stage 1 of its own; continue it without --stage1, or choose "
            "another --out"
        )
    write_provenance(run, _facts(run, source, digest))
    others = [file for file in sorted(model.parent.iterdir()) if file.is_file() and file != model]
    # The model last: its presence is what says that the stage has ended.
    for file in (*others, model):
        with atomic_write(folder / file.name) as temporary:
            shutil.copyfile(file, temporary)


def _facts(run: RunFolder, source: RunFolder, digest: str) -> dict[str, Any]:
    known = _provenance_of(source.path)
    return {
        "weights": known.get("weights"),
        "config": run.config.name,
        "stage1": {
            "run": source.path.resolve().name,
            "sha256": digest,
            "config": source.config.model_dump(mode="json"),
            "provenance": known,
        },
    }


def _provenance_of(path: Path) -> dict[str, Any]:
    file = path / "provenance.json"
    found: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    return found
