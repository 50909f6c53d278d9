"""A folder, file or archive of DICOM → a folder of result objects and ``result.json``.

Also the contract of mercure's processing modules, which MHub, XNAT and Kaapana runners share in
substance: a folder in, a folder out.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset

from adalora_qat import __version__
from adalora_qat.ahead import in_order
from adalora_qat.dicom.answer import Answer, Answering
from adalora_qat.dicom.earlier import is_report
from adalora_qat.dicom.identity import NAME
from adalora_qat.dicom.objects import save
from adalora_qat.dicom.source import alias_of
from adalora_qat.errors import DataError, printable
from adalora_qat.files import write_json
from adalora_qat.imaging.dicom import HEADER_BYTES
from adalora_qat.imaging.image_file import MAX_PIXELS
from adalora_qat.imaging.integrity import warnings_heard
from adalora_qat.progress import Progress

RESULT = "result.json"
_WORKERS = 2
_MOST_BYTES = 2 * MAX_PIXELS + HEADER_BYTES
# What reading a file raises, or an archive or its member: damaged, encrypted, of another method.
_UNREADABLE = (
    DataError, OSError, ValueError, zipfile.BadZipFile, RuntimeError, NotImplementedError,
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """A file that may be an image: where it is, and how to read it."""

    place: str
    read: Callable[[], bytes]


@dataclass
class Outcome:
    """What a run came to: the content of ``result.json`` by part.

    Attributes
    ----------
    images : of answered images: alias, SOP Instance UID, files by kind, warnings.
    refused : alias and reason.
    skipped : how many files were no DICOM, or results of this package.
    stopped : whether it was told to stop before the end.
    """

    images: list[dict[str, Any]] = field(default_factory=list)
    refused: list[dict[str, str]] = field(default_factory=list)
    skipped: int = 0
    stopped: bool = False


def answer_folder(
    source: Path,
    out: Path,
    answering: Callable[[list[Dataset]], Answering],
    *,
    mercure_names: bool = False,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> Outcome:
    """Answer all radiographs in a folder, DICOMDIR, zip or file.

    Parameters
    ----------
    source : entered with its folders; files need no suffix, zip archives are read in place.
        Reports of this package among them are earlier results to compare with.
    out : gets ``<alias>_<kind>.dcm`` and ``result.json``; objects of the same names are replaced.
    answering : called with the earlier reports, gives what answers.
    mercure_names : name objects ``<series UID>#<instance UID>.dcm``.
    progress : called with (done, total, alias) after each image.
    stop : asked after each image; True ends the run with what is done.

    Raises
    ------
    DataError
        If there is no such source, or nothing in it is DICOM.
    UserError
        If the folder cannot be written.
    """
    outcome, images, reports = Outcome(), list[Found](), list[Dataset]()
    for found in files_in(source, out):
        try:
            header = _glance(found)
        except _UNREADABLE:
            outcome.refused.append(
                {
                    "image": alias_of(found.place),
                    "reason": "the file or archive is unreadable",
                }
            )
            continue
        if header is None:
            outcome.skipped += 1
        elif is_report(header):
            reports.append(pydicom.dcmread(BytesIO(found.read())))
            outcome.skipped += 1
        elif header.get("ManufacturerModelName") == NAME or "Rows" not in header:
            outcome.skipped += 1
        else:
            images.append(found)
    if not images:
        raise DataError(
            f"{printable(source)} holds no DICOM image ({outcome.skipped} other files); give a "
            "folder, DICOMDIR, zip or file of radiographs"
        )
    answer = answering(reports)
    with ThreadPoolExecutor(_WORKERS, thread_name_prefix="adalora-qat-dicom") as pool:
        for found_answer in in_order(pool, lambda one: answer(one.read()), images, _WORKERS):
            _keep(found_answer, out, outcome, mercure_names)
            if progress is not None:
                done = len(outcome.images) + len(outcome.refused)
                progress(done, len(images), found_answer.alias)
            if stop is not None and stop():
                outcome.stopped = True
                pool.shutdown(wait=False, cancel_futures=True)
                break
    _write_result(outcome, out)
    return outcome


def files_in(source: Path, out: Path | None = None) -> Iterator[Found]:
    """Yield the files of a folder, of what a DICOMDIR lists, or of a zip archive, in order.

    Raises
    ------
    DataError
        If there is no such source.
    """
    if not source.exists():
        raise DataError(f"{printable(source)} does not exist; give a folder, DICOMDIR, zip or file")
    root = source.parent if source.name.upper() == "DICOMDIR" else source
    paths = [root] if root.is_file() else sorted(root.rglob("*"))
    for path in paths:
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        own = out is not None and path.is_relative_to(out)
        if hidden or own or not path.is_file() or path.name.upper() == "DICOMDIR":
            continue
        if path.suffix.lower() == ".zip":
            yield from _members(path)
        else:
            yield Found(str(path.relative_to(root)), path.read_bytes)


def _members(path: Path) -> Iterator[Found]:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [one for one in archive.infolist() if not one.is_dir()]
    except _UNREADABLE:
        # A file among others: it is refused when its turn comes, by reading it again.
        yield Found(path.name, partial(_refuse, path))
        return
    for info in infos:
        if Path(info.filename).name.upper() != "DICOMDIR":
            yield Found(f"{path.name}:{info.filename}", partial(_member, path, info))


def _refuse(path: Path) -> bytes:
    raise DataError(f"{printable(path)} is no readable zip archive")


def _member(path: Path, info: zipfile.ZipInfo) -> bytes:
    # What an archive says of a member's size is checked while it is read.
    with zipfile.ZipFile(path) as archive, archive.open(info) as member:
        data = member.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise DataError(f"a member of {printable(path)} is larger than any radiograph")
    return data


def _glance(found: Found) -> Dataset | None:
    """Return the beginning of a header; None if the file is no DICOM."""
    data = found.read()
    named = data[128:132] == b"DICM"
    tags = ["Modality", "ManufacturerModelName", "Rows", "SOPInstanceUID"]
    try:
        with warnings_heard():
            header: Dataset = pydicom.dcmread(
                BytesIO(data),
                force=not named and data[:1] in (b"\x02", b"\x08"),
                stop_before_pixels=True,
                specific_tags=tags,
            )
            header.decode()
    except Exception:  # hostile bytes make the parser raise anything
        if not named:
            return None
        # It calls itself DICOM: it is answered, with a refusal.
        header = Dataset()
        header.Rows = 1
    return header


def _keep(answer: Answer, out: Path, outcome: Outcome, mercure_names: bool) -> None:
    if answer.refusal:
        outcome.refused.append({"image": answer.alias, "reason": answer.refusal})
        return
    files = {}
    for kind, made in answer.objects.items():
        name = f"{answer.alias}_{kind}.dcm"
        if mercure_names:
            name = f"{made.SeriesInstanceUID}#{made.SOPInstanceUID}.dcm"
        save(made, out / name)
        files[kind] = name
    outcome.images.append(
        {
            "image": answer.alias,
            "sop_instance_uid": answer.sop_uid,
            "objects": files,
            "warnings": list(answer.warnings),
        }
    )


def _write_result(outcome: Outcome, out: Path) -> None:
    count, refused = len(outcome.images), len(outcome.refused)
    odd = sum(bool(one["warnings"]) for one in outcome.images)
    text = f"{count} segmented ({odd} with warnings), {refused} refused; not for clinical use"
    write_json(
        out / RESULT,
        {
            "software": f"{NAME} {__version__}",
            "images": outcome.images,
            "refused": outcome.refused,
            "skipped": outcome.skipped,
            "__mercure_notification": {"text": text},
        },
    )
