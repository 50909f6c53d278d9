"""What a model knows of its own limits: read from its file, applied to each prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adalora_qat.errors import CheckpointError
from adalora_qat.imaging.geometry import FrameMap
from adalora_qat.predictor import Prediction
from adalora_qat.runtime.confidence import Calibration
from adalora_qat.runtime.input_check import Caution, InputCheck, Real
from adalora_qat.runtime.metadata import ModelMetadata
from adalora_qat.runtime.plausibility import LOW, Plausibility


@dataclass(frozen=True)
class Assurance:
    """The parts that a model's file holds; a plain export holds none."""

    confidence: Calibration | None = None
    input_check: InputCheck | None = None
    plausibility: Plausibility | None = None

    @classmethod
    def of(cls, metadata: ModelMetadata, origin: str) -> Assurance:
        """Read the parts from a model's metadata.

        Raises
        ------
        CheckpointError
            If they are damaged.
        """
        given = metadata.assurance
        try:
            return cls(
                Calibration.from_json(given["confidence"]) if "confidence" in given else None,
                InputCheck.from_json(given["input_check"]) if "input_check" in given else None,
                Plausibility(**given["plausibility"]) if "plausibility" in given else None,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"what {origin} says of its own limits cannot be read ({error}); export the model "
                "again"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """Return the parts as they go into a model's metadata."""
        return {name: part.to_json() for name, part in vars(self).items() if part is not None}

    def look(
        self,
        embeddings: Real | None,
        frame_map: FrameMap,
        prediction: Prediction,
        first: Prediction | None = None,
    ) -> list[Caution]:
        """Return what is odd about an image and its masks, the image first.

        Parameters
        ----------
        embeddings : (E², D) of the image; None where the model's file does not give them.
        first : the first pass of the automatic prompt; None where boxes were given. Then a
            mask need not be that of a whole pair of lungs.
        """
        found: list[Caution] = []
        if self.input_check is not None and embeddings is not None:
            found += self.input_check.look(embeddings, frame_map)
        if self.plausibility is not None and first is not None:
            score = float(prediction.scores[0])
            found += self.plausibility.look(prediction.masks[0], score, first.masks[0])
        elif self.plausibility is not None:
            score, limit = float(prediction.scores.min()), self.plausibility.least_confidence
            if score < limit:
                found.append(Caution(LOW, "the model is not sure of a mask", score, limit))
        return found
