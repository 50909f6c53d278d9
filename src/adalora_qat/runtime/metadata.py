"""What an exported model says about itself, stored in the ONNX file's own metadata.

A reader needs nothing beside the file: the frame tells how to prepare an image, the hashes
where the weights came from, the parity figures how far the file may be trusted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from adalora_qat.errors import CheckpointError
from adalora_qat.imaging.geometry import Frame

FORMAT = "1"
_PREFIX = "adalora_qat."

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
    part : the whole model, or one half of the encoder/decoder split.
    mask_threshold : a pixel is foreground where its logit exceeds this.
    sources : what the weights came from, name → SHA-256.
    parity : agreement with the quantized PyTorch model on the validation images.
    assurance : what the model knows of its own limits, if it was finished for shipping:
        ``confidence``, ``input_check`` and ``plausibility``, each as its class writes it.
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
    assurance: Mapping[str, Any] = field(default_factory=dict)

    def to_props(self) -> dict[str, str]:
        """Return the key-value strings that go into the file."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values["frame"] = {"side": self.frame.side, "normalize": self.frame.normalize}
        for name in ("sources", "parity", "assurance"):
            values[name] = dict(values[name])
        props = {_PREFIX + key: json.dumps(value) for key, value in values.items()}
        return {_PREFIX + "format": json.dumps(FORMAT), **props}

    @classmethod
    def from_props(cls, props: Mapping[str, str], origin: str) -> ModelMetadata:
        """Read the key-value strings of a file.

        Raises
        ------
        CheckpointError
            If the file was not written by this package, or by one of another format.
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
            if values.get("part") not in get_args(Part):
                raise ValueError(f"part={values.get('part')!r}")
            return cls(
                **{**values, "frame": Frame(**values["frame"])},
            )
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(
                f"the metadata of {origin} cannot be read ({error}); export the model again with "
                "this version of adalora-qat"
            ) from error
