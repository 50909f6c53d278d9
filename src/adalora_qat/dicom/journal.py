"""What a node was given and what became of it, on disk: a killed process loses nothing.

Three folders; a file moves on by being renamed, which a disk does wholly or not at all:

- ``received/KEY.dcm``: acknowledged, to be answered;
- ``results/KEY/``: result objects, to be sent on;
- ``done/KEY.json``: what became of it, for as long as the journal is kept.

A key is a hash of the image's UID and of the model, so that names tell nothing of a patient.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from adalora_qat.dicom.objects import save
from adalora_qat.dicom.source import alias_of
from adalora_qat.files import atomic_write, write_json


class Journal:
    """The journal in a folder, which is made if need be; what was begun is begun again.

    Raises
    ------
    UserError
        When something is written, if the folder cannot be.
    """

    def __init__(self, folder: Path, model_sha256: str) -> None:
        self._model = model_sha256
        self.received, self.results, self.done = (
            folder / name for name in ("received", "results", "done")
        )
        for each in (self.received, self.results, self.done):
            each.mkdir(parents=True, exist_ok=True)
        # What a killed process was writing; nobody was told that it is there.
        for path in folder.glob("*/.*.tmp*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def key(self, sop_uid: str) -> str:
        """Return the key of an image."""
        return alias_of(f"{sop_uid}\0{self._model}") + alias_of(f"{self._model}\0{sop_uid}")

    def is_done(self, key: str) -> bool:
        """Return whether an image was answered and its answer sent, or refused."""
        return (self.done / f"{key}.json").exists()

    def receive(self, key: str, data: bytes) -> bool:
        """Keep an image; it is on the disk when this returns.

        Returns
        -------
        Whether it is new, and not waiting or done already.
        """
        path = self.received / f"{key}.dcm"
        if self.is_done(key) or (self.results / key).exists() or path.exists():
            return False
        with atomic_write(path) as temporary:
            temporary.write_bytes(data)
        _sync(self.received)
        return True

    def waiting(self) -> list[str]:
        """Return keys of images to answer, the oldest first."""
        return _by_age(path for path in self.received.glob("*.dcm"))

    def answered(self) -> list[str]:
        """Return keys of results to send, the oldest first."""
        return _by_age(path for path in self.results.iterdir() if path.name[0] != ".")

    def image(self, key: str) -> bytes:
        """Return an image that waits."""
        return (self.received / f"{key}.dcm").read_bytes()

    def keep(self, key: str, objects: dict[str, Dataset]) -> None:
        """Write the objects of an image, all or none, and let the image go."""
        made, place = self.results / f".{key}.tmp", self.results / key
        if not place.exists():
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir()
            for kind, each in objects.items():
                save(each, made / f"{kind}.dcm")
            _sync(made)
            made.replace(place)
            _sync(self.results)
        self._let_go(key)

    def objects(self, key: str) -> list[Path]:
        """Return the files of an image's objects, the segmentation before what refers to it."""
        return sorted((self.results / key).glob("*.dcm"), key=lambda path: path.stem != "SEG")

    def finish(self, key: str, facts: dict[str, Any]) -> None:
        """Note that an image is done with, and remove what was kept of it."""
        write_json(self.done / f"{key}.json", facts)
        _sync(self.done)
        shutil.rmtree(self.results / key, ignore_errors=True)
        self._let_go(key)

    def _let_go(self, key: str) -> None:
        (self.received / f"{key}.dcm").unlink(missing_ok=True)


def _by_age(paths: Any) -> list[str]:
    dated = []
    for path in paths:
        try:
            dated.append((path.stat().st_mtime_ns, path.name.removesuffix(".dcm")))
        except FileNotFoundError:  # done by another thread just now
            continue
    return [name for _, name in sorted(dated)]


def _sync(folder: Path) -> None:
    """Make renames in a folder last through a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
