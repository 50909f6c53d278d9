"""Count the warnings of a shipped model on chests of other hospitals and on what is no chest.

    python benchmarks/input_warnings.py MODEL covid=FOLDER dicom=FOLDER --out warnings.json

Every chest is also shown turned, inverted, mirrored and cut to a quarter. Photographs and text are
those that come with scikit-image; noise and ramps are drawn. None of these was used in fitting: the
fit saw views of training radiographs and its own drawings only. Writes counts, no images.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
from numpy.typing import NDArray

from _machine import describe_machine
from adalora_qat.checkpoint import provenance
from adalora_qat.errors import UserError
from adalora_qat.files import write_json
from adalora_qat.imaging.automatic_prompt import two_passes
from adalora_qat.imaging.geometry import to_grey
from adalora_qat.imaging.radiograph import SUFFIXES, read_radiograph
from adalora_qat.runtime.onnx_predictor import OnnxPredictor

Pixels = NDArray[Any]
PHOTOGRAPHS = (
    "astronaut", "brick", "camera", "cell", "chelsea", "clock", "coffee", "coins", "colorwheel",
    "grass", "gravel", "horse", "hubble_deep_field", "immunohistochemistry", "logo", "moon", "page",
    "retina", "rocket", "text",
)  # fmt: skip
CHANGES: dict[str, Callable[[Pixels], Pixels]] = {
    "as it is": lambda x: x,
    "turned left": lambda x: np.rot90(x),
    "upside down": lambda x: np.rot90(x, 2),
    "turned right": lambda x: np.rot90(x, 3),
    "inverted": lambda x: x.max() - x,
    "mirrored": lambda x: x[:, ::-1],
    "upper left quarter": lambda x: x[: x.shape[0] // 2, : x.shape[1] // 2],
}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("chests", nargs="*", help="NAME=FOLDER of upright chest radiographs")
    parser.add_argument("--most", type=int, default=60, help="images of a folder, at most")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    predictor, rows = OnnxPredictor(arguments.model), []
    for argument in arguments.chests:
        name, _, folder = argument.partition("=")
        radiographs = list(_radiographs(Path(folder), arguments.most))
        for change, function in CHANGES.items():
            changed = (np.ascontiguousarray(function(radiograph)) for radiograph in radiographs)
            rows.append(_row(predictor, name, change, changed))
    rows.append(_row(predictor, "photographs and text", "as it is", _photographs()))
    rows.append(_row(predictor, "noise and ramps", "as it is", _drawn()))
    write_json(arguments.out, {"rows": rows, "model_sha256": predictor.sha256,
                               "measured_on": describe_machine(), **provenance({})})  # fmt: skip


def _row(
    predictor: OnnxPredictor, name: str, change: str, images: Iterator[Pixels]
) -> dict[str, Any]:
    codes: Counter[str] = Counter()
    warned = total = 0
    for image in images:
        ask = predictor.prompted(image)
        first, prediction = two_passes(ask, (image.shape[0], image.shape[1]))
        found = predictor.assurance.look(ask.embeddings, ask.frame_map, prediction, first)
        codes.update({finding.code for finding in found})
        warned, total = warned + bool(found), total + 1
    row = {"images": name, "change": change, "n": total, "warned": warned, "codes": dict(codes)}
    print(row, flush=True)
    return row


def _radiographs(folder: Path, most: int) -> Iterator[Pixels]:
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    files = [p for p in files if "mask" not in str(p.relative_to(folder)).lower()]
    for file in files[:: max(1, len(files) // most)][:most]:
        try:
            yield to_grey(read_radiograph(file).pixels)
        except UserError as error:
            print(f"left out: {error}")


def _photographs() -> Iterator[Pixels]:
    for name in PHOTOGRAPHS:
        try:
            image = np.asarray(getattr(skimage.data, name)())
        except (OSError, ModuleNotFoundError, ValueError):
            continue  # not every picture comes with the package
        yield to_grey(image[..., :3] if image.ndim == 3 else image)


def _drawn() -> Iterator[Pixels]:
    rng = np.random.default_rng(0)
    for side in (64, 256, 1024):
        yield rng.integers(0, 256, (side, side), dtype=np.uint8)
    ramp = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    yield from (ramp, ramp.T.copy())


if __name__ == "__main__":
    main()
