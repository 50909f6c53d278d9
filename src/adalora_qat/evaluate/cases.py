"""From a predictor and records to the per-case table.

One row per (id, target), measured at the original size of the image. A table is written
whole or not at all; while it grows, finished images stand in an append-only journal. Both
carry the identity of what made them, so that no stale result is returned because its file
exists: the predictor's answer to a fixed probe image, the box mode, the targets, and every
record with the size and time of its files.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from adalora_qat.ahead import in_order
from adalora_qat.chest.measures import cardiothoracic_ratio
from adalora_qat.corpus.records import Record, sort_structures
from adalora_qat.errors import DataError
from adalora_qat.evaluate.boxes import BoxPrompt, parse_box, stack_boxes
from adalora_qat.evaluate.case_table import TABLE_FORMAT, case_table, finished, write_cases
from adalora_qat.evaluate.clinical import area_mm2, component_count
from adalora_qat.evaluate.journal import Journal, answer_fingerprint, records_fingerprint
from adalora_qat.evaluate.mask_files import load_truth, mask_path, save_mask
from adalora_qat.evaluate.metrics import case_metrics
from adalora_qat.evaluate.structured import check_targets, targets_of
from adalora_qat.imaging.automatic_prompt import predict_automatically
from adalora_qat.imaging.geometry import load_image, whole_box
from adalora_qat.predictor import FindsStructures, Prediction, Predictor, uses_boxes
from adalora_qat.progress import Progress

Mask = NDArray[np.bool_]

OK = "ok"
NO_BOX = "no oracle box: the truth is empty"


@dataclass(frozen=True)
class Alteration:
    """A disturbance of the image whose effect is measured (noise, blur, rotation …).

    Attributes
    ----------
    name : stands in the column ``altered``.
    image : (image (H, W) or (H, W, 3), generator) → image of any size.
    mask : the same geometry on a mask (H, W) bool; None if pixels stay where they are.
    """

    name: str
    image: Callable[[NDArray[Any], np.random.Generator], NDArray[Any]]
    mask: Callable[[Mask], Mask] | None = None


@dataclass(frozen=True)
class _Case:
    """One image with the true masks of the targets it has."""

    record: Record
    image: NDArray[Any]
    truths: dict[str, Mask]
    resized: dict[str, bool]


@dataclass(frozen=True)
class _Answer:
    """What the predictor said about one case, by target; a target may have no box."""

    masks: dict[str, Mask]
    scores: dict[str, float]
    boxes: dict[str, NDArray[np.float32]]
    seconds: float
    boxes_in_call: int


def evaluate_cases(
    predictor: Predictor,
    records: Sequence[Record],
    targets: Sequence[str],
    box_mode: str | int | BoxPrompt = "oracle",
    out: Path | None = None,
    jobs: int = 2,
    progress: Progress | None = None,
    resume: bool = True,
    *,
    seed: int = 0,
    alteration: Alteration | None = None,
    provenance: Mapping[str, str] | None = None,
    save_masks: bool = False,
) -> pd.DataFrame:
    """Predict and measure every record that gives one of the targets.

    The predictor runs in the calling thread, once per image with all its boxes; reading
    and measuring run in ``jobs`` threads. Memory does not grow with the number of records.

    Parameters
    ----------
    predictor : any model of this package, or a baseline.
    records : the cases; ids unique.
    targets : structures ("lung" may be composed of both lungs). A record without a target
        gives no row for it; such are counted in ``cases.json``.
    box_mode : ``oracle``, a jitter in px or ``oracle+jitter5``, ``whole-image``, ``automatic``,
        or a ``BoxPrompt``. ``automatic`` asks a predictor with learned prompts for its structures,
        one mask each. A predictor that looks at the image alone gets none, whatever is asked: its
        rows say ``none``.
    out : folder for ``cases.parquet``, ``cases.csv`` and ``cases.json``; None keeps nothing.
    jobs : threads beside the predictor's own.
    progress : called with (images done, images, id).
    resume : return a finished table of the same identity, or go on where one stopped.
    seed : of box jitter and alteration.
    alteration : applied to image and truth before anything else.
    provenance : what made the predictor (weight hash, run folder …); part of the identity.
    save_masks : also write each predicted mask to ``out/masks`` as a 1-bit PNG.

    Returns
    -------
    One row per (id, target), columns ``CASE_COLUMNS``, in the order of records and targets.

    Raises
    ------
    DataError
        If ids are doubled, files are missing, no record gives a target, masks do not fit,
        or ``out`` holds results of another evaluation.
    """
    prompt = parse_box(box_mode, seed)
    if not uses_boxes(predictor):
        prompt = BoxPrompt("none", 0, seed)
    chosen = _choose(records, targets)
    structures = structures_without_box(predictor, prompt)
    if structures:
        check_targets(structures, targets, predictor.name)
    if save_masks and out is None:
        raise DataError("save_masks needs a folder: give out")
    identity = _identity(
        predictor, records, targets, prompt, alteration, seed, provenance, save_masks
    )
    if out is not None and resume and (ready := finished(out, identity)) is not None:
        return ready
    journal = Journal(out / "cases.partial.jsonl" if out else None, identity, resume)
    try:
        run = _Run(predictor, tuple(targets), prompt, alteration, seed, out if save_masks else None)
        run.fill(journal, chosen, max(1, jobs), progress)
        table = case_table(row for record in chosen for row in journal.done[record.id])
        if out is not None:
            lacking = {t: sum(not r.mask_parts(t) for r in records) for t in targets}
            write_cases(out, table, identity, lacking)
            journal.discard()
    finally:
        journal.close()
    return table


@dataclass(frozen=True)
class _Run:
    """One evaluation: how a record becomes rows."""

    predictor: Predictor
    targets: tuple[str, ...]
    prompt: BoxPrompt
    alteration: Alteration | None
    seed: int
    masks_in: Path | None

    def fill(
        self, journal: Journal, records: Sequence[Record], jobs: int, progress: Progress | None
    ) -> None:
        """Compute the rows of every record that the journal does not hold yet."""
        todo = [record for record in records if record.id not in journal.done]
        waiting: deque[tuple[Record, Future[list[dict[str, Any]]]]] = deque()

        def settle(at_most: int) -> None:
            while len(waiting) > at_most:
                record, rows = waiting.popleft()
                journal.add(record.id, rows.result())
                if progress is not None:
                    progress(len(journal.done), len(records), record.id)

        pool = ThreadPoolExecutor(jobs, thread_name_prefix="evaluate")
        try:
            # A few images ahead of the predictor and a few behind it: memory stays flat.
            for case in in_order(pool, self.load, todo, jobs + 1):
                waiting.append((case.record, pool.submit(self.measure, case, self.ask(case))))
                settle(2 * jobs)
            settle(0)
        finally:
            pool.shutdown(cancel_futures=True)

    def load(self, record: Record) -> _Case:
        """Read an image and its true masks at the size of the image."""
        image = load_image(record.image)
        given = [target for target in self.targets if record.mask_parts(target)]
        loaded = {target: load_truth(record, target, image.shape[:2]) for target in given}
        truths = {target: mask for target, (mask, _) in loaded.items()}
        if self.alteration is not None:
            key = f"{self.seed}\0{self.alteration.name}\0{record.id}"
            entropy = hashlib.sha256(key.encode()).digest()
            rng = np.random.default_rng(np.frombuffer(entropy, np.uint32))
            image = self.alteration.image(image, rng)
            if self.alteration.mask is not None:
                truths = {target: self.alteration.mask(mask) for target, mask in truths.items()}
            _check_altered(self.alteration, record, image, truths)
        return _Case(record, image, truths, {target: r for target, (_, r) in loaded.items()})

    def ask(self, case: _Case) -> _Answer:
        """Run the predictor once on a case, with the boxes of all its targets."""
        if self.prompt.kind != "oracle":
            # One mask for all targets, of the whole image or of the box that is found in it.
            boxed, boxes = list(case.truths), stack_boxes([whole_box(*case.image.shape[:2])])
        else:
            drawn = {t: self.prompt.box(m, case.record.id, t) for t, m in case.truths.items()}
            found = {target: box for target, box in drawn.items() if box is not None}
            if not found:
                return _Answer({}, {}, {}, math.nan, 0)
            boxed, boxes = list(found), stack_boxes(list(found.values()))
        begin = time.perf_counter()
        structures = structures_without_box(self.predictor, self.prompt)
        if structures and isinstance(self.predictor, FindsStructures):
            prediction = self.predictor.prompted(case.image).structures()
            seconds = time.perf_counter() - begin
            _check_prediction(self.predictor.name, case, prediction, len(structures))
            return _Answer(*targets_of(prediction, structures, boxed), seconds, len(structures))
        if self.prompt.kind == "automatic":
            prediction = predict_automatically(self.predictor, case.image)
        else:
            prediction = self.predictor.predict(case.image, boxes)
        seconds = time.perf_counter() - begin
        _check_prediction(self.predictor.name, case, prediction, len(boxes))
        at = {target: i if self.prompt.kind == "oracle" else 0 for i, target in enumerate(boxed)}
        return _Answer(
            {target: prediction.masks[i] for target, i in at.items()},
            {target: float(prediction.scores[i]) for target, i in at.items()},
            {target: prediction.boxes_xyxy_original[i] for target, i in at.items()},
            seconds,
            len(boxes),
        )

    def measure(self, case: _Case, answer: _Answer) -> list[dict[str, Any]]:
        """Return the rows of one case."""
        rows = [self._row(case, answer, target) for target in case.truths]
        for name, masks in (("ctr_truth", case.truths), ("ctr_prediction", answer.masks)):
            lungs = _lungs(masks)
            if "heart" in masks and lungs is not None:
                heart = next(row for row in rows if row["target"] == "heart")
                heart[name] = cardiothoracic_ratio(masks["heart"], lungs)
        return rows

    def _row(self, case: _Case, answer: _Answer, target: str) -> dict[str, Any]:
        record, truth = case.record, case.truths[target]
        row: dict[str, Any] = {
            "id": record.id,
            "source": record.source,
            "label": record.label,
            "patient": record.patient,
            "target": target,
            "model": self.predictor.name,
            "box": self.prompt.name,
            "altered": self.alteration.name if self.alteration else "as-read",
            "height": truth.shape[0],
            "width": truth.shape[1],
            "truth_resized": int(case.resized[target]),
            "truth_area_px": int(np.count_nonzero(truth)),
            "truth_components": component_count(truth),
        }
        # Another size than the file's has another spacing, which nobody stated.
        spacing = None if self.alteration and self.alteration.mask else record.spacing_mm
        row["truth_area_mm2"] = area_mm2(truth, spacing)
        prediction = answer.masks.get(target)
        if prediction is None:
            return row | {"status": NO_BOX, "empty": "truth", "boxes_in_call": 0}
        if self.masks_in is not None:
            save_mask(mask_path(self.masks_in, record.id, target), prediction)
        box = answer.boxes[target]
        row |= {f"box_{edge}": float(v) for edge, v in zip(_EDGES, box, strict=True)}
        return row | {
            "status": OK,
            "empty": _EMPTY[bool(truth.any()), bool(prediction.any())],
            "score": answer.scores[target],
            "seconds": answer.seconds,
            "boxes_in_call": answer.boxes_in_call,
            "prediction_area_px": int(np.count_nonzero(prediction)),
            "prediction_area_mm2": area_mm2(prediction, spacing),
            "prediction_components": component_count(prediction),
            **case_metrics(truth, prediction, spacing),
        }


def structures_without_box(predictor: Predictor, prompt: BoxPrompt) -> tuple[str, ...]:
    """Return the structures that a predictor is asked for by name; empty where a box asks."""
    if prompt.kind == "automatic" and isinstance(predictor, FindsStructures):
        return predictor.structures
    return ()


_EDGES = ("x0", "y0", "x1", "y1")
_EMPTY = {
    (True, True): "no",
    (False, True): "truth",
    (True, False): "prediction",
    (False, False): "both",
}


def _choose(records: Sequence[Record], targets: Sequence[str]) -> list[Record]:
    """Return the records that give a target, having checked all that can be checked now."""
    given = sort_structures(structure for record in records for structure in record.masks)
    if not targets or len(set(targets)) != len(targets):
        raise DataError(f"targets {list(targets)}: name some of {', '.join(given)}, each once")
    doubled = [case_id for case_id, n in Counter(r.id for r in records).items() if n > 1]
    if doubled:
        raise DataError(f"{len(doubled)} ids are listed twice, the first is {doubled[0]!r}")
    for target in targets:
        if not any(record.mask_parts(target) for record in records):
            raise DataError(
                f"none of the {len(records)} records gives a {target} mask; they give "
                f"{', '.join(given) or 'none at all'}"
            )
    chosen = [record for record in records if any(map(record.mask_parts, targets))]
    files = [p for r in chosen for p in (r.image, *(m for t in targets for m in r.mask_parts(t)))]
    missing = [path for path in files if not path.is_file()]
    if missing:
        shown = ", ".join(map(str, missing[:5])) + (" …" if len(missing) > 5 else "")
        raise DataError(f"{len(missing)} of {len(files)} files do not exist: {shown}")
    return chosen


def _identity(
    predictor: Predictor,
    records: Sequence[Record],
    targets: Sequence[str],
    prompt: BoxPrompt,
    alteration: Alteration | None,
    seed: int,
    provenance: Mapping[str, str] | None,
    save_masks: bool,
) -> dict[str, Any]:
    return {
        "format": TABLE_FORMAT,
        "model": predictor.name,
        "probe": answer_fingerprint(predictor),
        "box": prompt.name,
        "altered": alteration.name if alteration else "as-read",
        "seed": [prompt.seed, seed],
        "targets": list(targets),
        "records": len(records),
        "manifest": records_fingerprint(records, targets),
        "masks_saved": save_masks,
        "provenance": dict(provenance or {}),
    }


def _lungs(masks: Mapping[str, Mask]) -> Mask | None:
    if "lung" in masks:
        return masks["lung"]
    if "left_lung" in masks and "right_lung" in masks:
        return masks["left_lung"] | masks["right_lung"]
    return None


def _check_prediction(model: str, case: _Case, prediction: Prediction, count: int) -> None:
    expected = (count, *case.image.shape[:2])
    if prediction.masks.shape != expected or prediction.masks.dtype != np.bool_:
        raise DataError(
            f"{model} answered {prediction.masks.dtype} masks of {prediction.masks.shape} for "
            f"{case.record.id}; bool of {expected} at the original size is needed"
        )
    shapes = (prediction.scores.shape, prediction.boxes_xyxy_original.shape)
    if shapes != ((count,), (count, 4)):
        raise DataError(
            f"{model} answered scores and boxes of {shapes} for {case.record.id}; "
            f"{((count,), (count, 4))} is needed"
        )


def _check_altered(
    alteration: Alteration, record: Record, image: NDArray[Any], truths: Mapping[str, Mask]
) -> None:
    for mask in truths.values():
        if mask.shape != image.shape[:2]:
            raise DataError(
                f"alteration {alteration.name} makes {record.id} {image.shape[:2]} but its mask "
                f"{mask.shape}; give the alteration a mask function of the same geometry"
            )
