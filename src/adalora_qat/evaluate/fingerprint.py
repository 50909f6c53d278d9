"""What decides a result, in a few bytes: the predictor's answers and the files it is given."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from adalora_qat.corpus.records import Record
from adalora_qat.predictor import Predictor


def records_fingerprint(records: Sequence[Record], targets: Sequence[str]) -> str:
    """Return the SHA-256 of what records state, and of their files' paths, sizes and times."""
    digest = hashlib.sha256()
    for record in records:
        stated = (record.id, record.source, record.label, record.patient, record.spacing_mm)
        digest.update(repr(stated).encode())
        for path in (record.image, *(m for t in targets for m in record.mask_parts(t))):
            state = path.stat() if path.is_file() else None
            stamp = (state.st_size, state.st_mtime_ns) if state else None
            digest.update(repr((str(path), stamp)).encode())
    return digest.hexdigest()


def answer_fingerprint(predictor: Predictor) -> str:
    """Return the SHA-256 of a predictor's exact answer to one synthetic image.

    A name says nothing about weights; two trainings of one model answer differently. A
    predictor that is not deterministic has no stable fingerprint and cannot be resumed.
    """
    rows, columns = np.mgrid[:96, :128]
    image = (128 + 90 * np.sin(rows / 7) * np.cos(columns / 11)).astype(np.uint8)
    boxes = np.array([[20, 10, 110, 80], [40, 30, 90, 60]], dtype=np.float32)
    answer = predictor.predict(image, boxes)
    digest = hashlib.sha256()
    for array in (answer.logits, answer.masks, answer.scores):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
