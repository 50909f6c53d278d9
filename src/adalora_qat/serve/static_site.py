"""The page as a site that needs no server: the model runs in the browser.

Everything is in scripts, wasm and weights among them: a page from a disk may load scripts and
fetch nothing, and so may this one everywhere (``connect-src 'none'``).
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adalora_qat import __version__
from adalora_qat.errors import CheckpointError, UserError
from adalora_qat.files import write_text
from adalora_qat.imaging.geometry import mask_box_edges
from adalora_qat.phantom.phantom import phantom
from adalora_qat.runtime.graph_file import halves, names_of
from adalora_qat.runtime.model import Model
from adalora_qat.runtime.packaged import CARD, weights_folder
from adalora_qat.serve.answers import rle
from adalora_qat.serve.page import built_page

# Of the masks of the known case with the library's, in the browser: less is not rounding.
LEAST_SAME = 0.99
GOLDEN_SEED = 0
_ASSETS = ("alone.js", "style.css", "icon.svg")


def write_site(model: Model, file: Path, out: Path) -> list[Path]:
    """Write the site: page, runtime, model, model card, licences and checksums.

    Parameters
    ----------
    model : the file, opened: the known case is computed with it.
    file : the portable ONNX file.
    out : the folder; files of an earlier site in it are replaced.

    Returns
    -------
    The files.

    Raises
    ------
    CheckpointError
        If the file cannot be cut into encoder and decoder.
    UserError
        If the page is not built, or the folder cannot be written.
    """
    built = built_page()
    if not (built / "alone.html").is_file():
        raise UserError(
            "the page is not built: run `make web` (it needs npm), or install a wheel, which "
            "holds it"
        )
    encoder, decoder = _cut(file)
    texts = {
        "index.html": (built / "alone.html").read_text("utf-8"),
        **{f"assets/{name}": (built / name).read_text("utf-8") for name in _ASSETS},
        "licences.txt": (built / "licences.txt").read_text("utf-8"),
        "model_card.md": _card(model, file),
        "data/wasm.js": (built / "wasm.js").read_text("utf-8"),
        "data/encoder.js": part("encoder", encoder),
        "data/decoder.js": part("decoder", decoder),
        "data/model.js": f"globalThis.adaloraModel = {_script(described(model, file))};\n",
    }
    names = ["./", *(name for name in texts if name.startswith(("index", "assets", "data")))]
    worker = (built / "offline.js").read_text("utf-8")
    version = f"{__version__}-{hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:12]}"
    texts["offline.js"] = worker.replace("__VERSION__", version).replace(
        "__FILES__", json.dumps(names)
    )
    sums = [f"{_sha256(text.encode())}  {name}" for name, text in sorted(texts.items())]
    texts["SHA256SUMS"] = "\n".join(sums) + "\n"
    for name, text in texts.items():
        write_text(out / name, text)
    return [out / name for name in texts]


def part(name: str, data: bytes) -> str:
    """Return a script that carries bytes: packed, and with the hash of what is unpacked."""
    packed = base64.b64encode(gzip.compress(data, 9, mtime=0)).decode("ascii")
    value = {"sha256": _sha256(data), "gz": packed}
    return f"(globalThis.adaloraParts ??= {{}}).{name} = {json.dumps(value)};\n"


def described(model: Model, file: Path) -> dict[str, Any]:
    """Return what the page knows of the model, and the case that it computes at its start."""
    metadata = model.metadata
    inputs = names_of(file.read_bytes()).inputs
    return {
        "name": model.name,
        **{key: value for key, value in model.described().items() if isinstance(value, str)},
        "side": metadata.frame.side,
        "normalize": metadata.frame.normalize,
        "low": metadata.low_res_side,
        "threshold": metadata.mask_threshold,
        "structures": list(metadata.structures),
        "points": model.takes_points,
        "learned": "structures" in inputs,
        "automatic": metadata.automatic_prompt is not False,
        "assurance": dict(metadata.assurance),
        "golden": golden(model),
    }


def golden(model: Model) -> dict[str, Any]:
    """Return a phantom, a box, and the masks that the library gives without it and with it."""
    image = phantom(GOLDEN_SEED).image
    opened = model.open(image)
    found = opened()
    if not found.mask.any():
        raise CheckpointError(
            f"{model.name} finds nothing in a phantom of a chest, so that a browser could not be "
            "told from a broken one by it; give a trained model"
        )
    box = mask_box_edges(found.mask)
    boxed = opened(box=box)
    height, width = image.shape
    grey = base64.b64encode(np.ascontiguousarray(image).tobytes()).decode("ascii")
    return {
        "image": {"width": width, "height": height, "grey": grey},
        "box": box.tolist(),
        "masks": [rle(mask) for mask in found.masks],
        "boxed": rle(boxed.masks[0]),
        "least": LEAST_SAME,
    }


def site_bytes(files: Sequence[Path]) -> int:
    """Return how many bytes a browser loads, as a host sends them: compressed."""
    needed = (file for file in files if file.suffix in (".html", ".js", ".css", ".svg"))
    return sum(len(gzip.compress(file.read_bytes(), 6)) for file in needed)


def _cut(file: Path) -> tuple[bytes, bytes]:
    whole = file.read_bytes()
    if "points" not in names_of(whole).inputs:
        raise CheckpointError(
            f"{file} is of an earlier form, which cannot be cut into encoder and decoder; export "
            "its model again with this version of adalora-qat"
        )
    return halves(whole)


def _card(model: Model, file: Path) -> str:
    if file.parent == weights_folder() and (file.parent / CARD).is_file():
        return (file.parent / CARD).read_text("utf-8")
    facts = "\n".join(f"- {key}: {value}" for key, value in model.described().items())
    return f"# {model.name}\n\nA model of its own, without a card.\n\n{facts}\n"


def _script(value: Any) -> str:
    # Inside a script file no sequence of characters ends it; only these two break lines.
    return json.dumps(value).replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
