"""What an exported model says about itself, stored in the ONNX file's own metadata.

A reader needs nothing beside the file: the frame tells how to prepare an image, the hashes
where the weights came from, the parity figures how far the file may be trusted.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from adalora_qat.errors import CheckpointError
from adalora_qat.imaging.geometry import Frame
from adalora_qat.predictor import STRUCTURE_NAME
from adalora_qat.runtime.graph_file import described

FORMAT = "1"
_PREFIX = "adalora_qat."
# The input check looks at the mean embedding of each quarter of an image.
_QUARTERS = 4
# Characters of a wrong value that an error repeats.
_MOST_SHOWN = 60

Part = Literal["whole", "encoder", "decoder"]


@dataclass(frozen=True)
class ModelMetadata:
    """The self-description of one ONNX file.

    Attributes
    ----------
    variant : which Segment Anything model.
    frame : how an image becomes the input.
    low_res_side : L, the side of the logits.
    policy : the quantization policy, ``none`` for FP32.
    product_version : the version of this package that wrote the file.
    min_onnxruntime : the oldest ONNX Runtime that loads the graph; empty in files of earlier
        versions.
    part : the whole model; earlier versions could write its halves as two files.
    mask_threshold : a pixel is foreground where its logit exceeds this; finite.
    sources : what the weights came from, name → SHA-256.
    parity : agreement with the quantized PyTorch model on the validation images.
    structures : what it was trained to segment, in the recipe's order; empty where not known.
    automatic_prompt : whether it saw whole images without a box of the object in training, so
        that it can find one itself; None where not known.
    refine : structures that get a second pass of the decoder, with the box of their first mask
        (``imaging.structure_passes``); only those of a model with learned prompts.
    points : whether its weights know points; None in files of earlier versions, which take none.
    assurance : what the model knows of its own limits, if it was finished for shipping:
        ``confidence``, ``input_check`` and ``plausibility``, each as its class writes it.

    Raises
    ------
    CheckpointError
        If a value is of another type, or out of its range.
    """

    variant: str
    frame: Frame
    low_res_side: int
    policy: str
    product_version: str
    part: Part = "whole"
    mask_threshold: float = 0.0
    sources: Mapping[str, str] = field(default_factory=dict)
    parity: Mapping[str, float] = field(default_factory=dict)
    structures: tuple[str, ...] = ()
    automatic_prompt: bool | None = None
    points: bool | None = None
    assurance: Mapping[str, Any] = field(default_factory=dict)
    refine: tuple[str, ...] = ()
    min_onnxruntime: str = ""

    def __post_init__(self) -> None:
        wrong = [name for name, holds in _CHECKS.items() if not holds(getattr(self, name))]
        if wrong:
            raise CheckpointError(f"{wrong[0]}={_shown(getattr(self, wrong[0]))}")
        if unknown := sorted(set(self.refine) - set(self.structures)):
            raise CheckpointError(f"refine={_shown(unknown[0])} is none of its structures")
        if not 1 <= self.low_res_side <= self.frame.side:
            raise CheckpointError(
                f"low_res_side={self.low_res_side} with a frame of {self.frame.side} pixels"
            )

    def to_props(self) -> dict[str, str]:
        """Return the key-value strings that go into the file."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values["frame"] = {"side": self.frame.side, "normalize": self.frame.normalize}
        for name in ("sources", "parity", "assurance"):
            values[name] = dict(values[name])
        for name, unknown in (
            ("min_onnxruntime", ""),
            ("structures", ()),
            ("refine", ()),
            ("automatic_prompt", None),
            ("points", None),
        ):
            if values[name] == unknown:
                del values[name]
        props = {_PREFIX + key: json.dumps(value) for key, value in values.items()}
        return {_PREFIX + "format": json.dumps(FORMAT), **props}

    @classmethod
    def of(cls, model: bytes, origin: str) -> ModelMetadata:
        """Read the description of a file, and hold it against its graph.

        Parameters
        ----------
        model : the bytes of the file.
        origin : what to call it in errors.

        Raises
        ------
        CheckpointError
            As ``from_props``, and as ``check_graph``; if it is half a model, or none.
        """
        try:
            found = described(model)
        except UnicodeDecodeError as error:
            raise CheckpointError(
                f"the metadata of {origin} are not text ({error}); export the model again"
            ) from error
        except (IndexError, ValueError) as error:
            raise CheckpointError(
                f"{origin} is not an ONNX model ({error}); write one with `adalora-qat export`"
            ) from error
        metadata = cls.from_props(found.properties, origin)
        if metadata.part != "whole":
            raise CheckpointError(
                f"{origin} holds the {metadata.part} part of a model, as an earlier version wrote "
                "it; export the model again: one file takes boxes and points"
            )
        metadata.check_graph(found.shapes, origin)
        return metadata

    @classmethod
    def from_props(cls, props: Mapping[str, str], origin: str) -> ModelMetadata:
        """Read the key-value strings of a file.

        Raises
        ------
        CheckpointError
            If the file was not written by this package, or by one of another format, or if a
            value is missing, of another type or out of its range.
        """
        if _PREFIX + "format" not in props:
            raise CheckpointError(
                f"{origin} is an ONNX model but not one that adalora-qat exported (its metadata "
                "is missing); write one with `adalora-qat export`"
            )
        try:
            values: dict[str, Any] = {
                key.removeprefix(_PREFIX): json.loads(text)
                for key, text in props.items()
                if key.startswith(_PREFIX)
            }
            if values.pop("format") != FORMAT:
                raise ValueError("it was written in another format")
            # The file's, not the model's: ``digest.verified_sha256`` reads it from the bytes.
            values.pop("digest", None)
            for name in ("structures", "refine"):
                if isinstance(values.get(name), list):
                    values[name] = tuple(values[name])
            frame = values.get("frame")
            if not isinstance(frame, dict):
                raise ValueError(f"frame={_shown(frame)}")
            return cls(**{**values, "frame": Frame(**frame)})
        # Deep nesting in JSON ends in a RecursionError, a long integer in an OverflowError.
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise CheckpointError(
                f"the metadata of {origin} cannot be read ({error}); export the model again with "
                "this version of adalora-qat"
            ) from error

    def check_graph(self, shapes: Mapping[str, Sequence[int | str]], origin: str) -> None:
        """Refuse a description that does not fit the graph beside it.

        Parameters
        ----------
        shapes : shape of each input and output of the graph by name; a dynamic size is a string.

        Raises
        ------
        CheckpointError
            If sides differ, or the input check was fitted on embeddings of another width.
        """
        side, low = self.frame.side, self.low_res_side
        check = self.assurance.get("input_check")
        expected: dict[str, Sequence[int | None]] = {
            "image": (1, 3, side, side),
            "logits": (1, None, low, low),
            "embeddings": (None, None if check is None else _features_of(check) // _QUARTERS),
        }
        for name, sizes in expected.items():
            shape = shapes.get(name)
            if shape is not None and (
                len(shape) != len(sizes)
                or any(size not in (None, given) for size, given in zip(sizes, shape, strict=True))
            ):
                raise CheckpointError(
                    f"the metadata of {origin} does not fit its graph ({name} is {list(shape)}, "
                    f"expected {list(sizes)}); export the model again"
                )


def _features_of(input_check: Any) -> int:
    """Return how many features an input check was fitted on; 0 if it does not say."""
    try:
        return int(input_check["mean"]["shape"][0])
    except (KeyError, IndexError, TypeError, ValueError):
        return 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_structures(value: Any) -> bool:
    return isinstance(value, tuple) and all(
        _is_text(name) and bool(re.fullmatch(STRUCTURE_NAME, name)) for name in value
    )


def _maps_to(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return a check of mappings from text to what ``holds``."""
    return lambda value: (
        isinstance(value, Mapping)
        and all(isinstance(key, str) and holds(one) for key, one in value.items())
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


_CHECKS: Mapping[str, Callable[[Any], bool]] = {
    "variant": _is_text,
    "frame": lambda value: type(value.side) is int,
    "low_res_side": lambda value: type(value) is int,
    "policy": _is_text,
    "product_version": _is_text,
    "part": lambda value: value in get_args(Part),
    "mask_threshold": _is_finite,
    "sources": _maps_to(_is_text),
    "parity": _maps_to(_is_finite),
    "assurance": _maps_to(lambda part: isinstance(part, Mapping)),
    "structures": _are_structures,
    "refine": _are_structures,
    "automatic_prompt": lambda value: value is None or isinstance(value, bool),
    "points": lambda value: value is None or isinstance(value, bool),
    "min_onnxruntime": lambda value: _is_text(value) and bool(re.fullmatch(r"[\d.]*", value)),
}
